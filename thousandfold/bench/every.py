"""All benchmarks after one another, in one report."""

import pathlib
import subprocess
import sys
import tempfile
from typing import Annotated

import typer
from rich.console import Console

from thousandfold.bench import report

PARTS = ("streams", "steps", "training", "adaptation", "learner", "serving", "system", "quality")

app = typer.Typer()


@app.command()
def every(
    only: Annotated[str, typer.Option(help=f"comma-separated, of {', '.join(PARTS)}")] = ",".join(PARTS),
    report_file: Annotated[pathlib.Path, typer.Option("--report", help="write all rows to this JSON file")] = pathlib.Path(
        "bench.json"
    ),
) -> None:
    """Run every benchmark, each in a process of its own, and print what passed and what missed."""
    console, rows, failed = Console(), list[report.Row](), list[str]()
    with tempfile.TemporaryDirectory(prefix="thousandfold-bench-") as folder:
        for name in only.split(","):
            if name not in PARTS:
                raise typer.BadParameter(f"{name!r} is no benchmark; allowed: {', '.join(PARTS)}")
            part = pathlib.Path(folder) / f"{name}.json"
            # A process of its own: allocator, thread pools and memory of one must not change the figures of the next.
            ran = subprocess.run([sys.executable, "-m", "thousandfold", "bench", name, "--report", str(part)], check=False)
            if ran.returncode == 0 and part.exists():
                rows += report.read(part).rows
            else:
                failed.append(name)
    report.write(report_file, rows)
    console.print(report.table([row for row in rows if row.passed is not None or row.target is not None], "targets"))
    missed = [row.id for row in rows if row.passed is False]
    absent = [row.id for row in rows if row.passed is None and row.target is not None]
    verdicts = [
        f"{len(found)} {what}: {', '.join(found)}" for what, found in (("missed", missed), ("not measured", absent)) if found
    ]
    console.print("; ".join([f"{sum(row.passed is True for row in rows)} passed", *(verdicts or ["0 missed"])]))
    console.print(f"written: {report_file}")
    if failed:
        console.print(f"[red]failed to run: {', '.join(failed)}[/red]")
        raise typer.Exit(1)
