"""The whole system on this machine: time to the first metric, freshness, memory, nothing lost and nothing twice."""

import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console

from thousandfold.bench import report

FIRST_METRIC_S, FRESHNESS_S, MEMORY_MB = 60.0, 10.0, 4000.0


def run(duration: str = "60s", say: Callable[[str], None] = print) -> list[report.Row]:
    """Run the demo as a person would, and judge its report.

    Raises:
        RuntimeError: it failed; the message is the end of what it printed.
    """
    with tempfile.TemporaryDirectory(prefix="thousandfold-bench-") as folder:
        path = pathlib.Path(folder) / "demo.json"
        argv = [sys.executable, "-m", "thousandfold", "demo", "--for", duration, "--report", str(path)]
        ran = subprocess.run(argv, capture_output=True, text=True, check=False)
        if not path.exists():
            raise RuntimeError(f"the demo failed with code {ran.returncode}:\n{ran.stderr[-2000:]}")
        found = json.loads(path.read_text(encoding="utf-8"))
    memory_mb = sum(found["peak_rss_mb"].values())
    say(
        f"first metric {found['first_metric_s']:.1f} s, freshness p95 {found['freshness_p95_s']:.1f} s, {memory_mb:,.0f} MB, "
        f"lost {found['lost']}, duplicated {found['duplicated']}"
    )
    return [
        report.row("demo/first_metric", found["first_metric_s"], "s", better="lower", target=FIRST_METRIC_S),
        report.row("demo/freshness_p50", found["freshness_p50_s"], "s", better="lower"),
        report.row("demo/freshness_p95", found["freshness_p95_s"], "s", better="lower", target=FRESHNESS_S),
        report.row("demo/peak_rss", memory_mb, "MB, sum of the processes' peaks", better="lower", target=MEMORY_MB),
        report.row("demo/lost", found["lost"], "rows", better="lower", target=0.0),
        report.row("demo/duplicated", found["duplicated"], "rows", better="lower", target=0.0),
    ]


app = typer.Typer()


@app.command()
def system(
    duration: Annotated[str, typer.Option("--for", help="how long the stream flows")] = "60s",
    report_file: Annotated[pathlib.Path | None, typer.Option("--report", help="write the rows to this JSON file")] = None,
) -> None:
    """Time to the first metric, freshness and memory of the whole system."""
    console = Console()
    rows = run(duration, console.print)
    console.print(report.table(rows, "system"))
    if report_file:
        report.write(report_file, rows)
