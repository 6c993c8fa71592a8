"""Rows per second of the training step from memory: one thread, 50 rows a step, first-order MAML on real support sets.

Lists of MovieLens-1M, or of the simulator, with the features that the product computes and the support sets of their users; the
first rows fill the id map and the table and are not timed. Variants take turns on the same steps, each is timed several times and
its fastest pass counts: other work on the machine makes a pass slower, never faster. Seconds are processor time of the process,
all of its threads together: on an idle machine one thread's is what a clock shows, on a busy one waiting for a core is left out.
What a clock on the wall said is printed beside it.
"""

import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
import typer
from rich.console import Console

from learner import episodes
from learner.step import Trainer
from models import base
from state import config as configuration
from state.config import Config
from thousandfold import specs
from thousandfold.bench import logs, protocol, quality, report

Source = Literal["ml1m", "simulate"]
TARGETS = {"native": 150_000.0, "torch": 40_000.0}
MAML_COSTS = {"native": 4 / 3}
"""Meta-learning may cost a quarter of the rows per second, of the step alone, which is stricter than of the whole learner."""
SPECS: dict[Source, str] = {"ml1m": "ml1m", "simulate": "search_log"}
ROWS_PER_STEP = 50
SKIPPED_SHARE = 0.5
ROUNDS = 5


class Step(NamedTuple):
    """One minibatch and the event time it is trained at."""

    batch: base.Batch
    now_ms: int


class Variant(NamedTuple):
    """One way to train: its name, trainer, and seconds of each pass over the timed steps, of the processor and on the wall."""

    name: str
    trainer: Trainer
    seconds: list[float]
    wall: list[float]


def settings(data: Source = "ml1m") -> Config:
    """The features of the log, one thread, `ROWS_PER_STEP` rows a step."""
    config = quality.override(configuration.load(specs.path(SPECS[data])), "learner.rows_per_step", ROWS_PER_STEP)
    return quality.override(config, "learner.threads", 1)


def steps(config: Config, log: logs.Log) -> list[Step]:
    """Minibatches of whole lists in order of time, each with the support sets as of its lists."""
    inputs = protocol.prepare(config, log, protocol.Lag())
    known, out = protocol.Supports(config, inputs), []
    for first, last in episodes.cut(np.diff(inputs.start), config.learner.rows_per_step):
        n_support, s = known.of(first, last)
        rows = slice(int(inputs.start[first]), int(inputs.start[last]))
        label = inputs.label[rows]
        batch = base.Batch(
            inputs.ids[rows], inputs.x[rows], label, np.ones_like(label), inputs.scenario[first:last],
            np.diff(inputs.start[first : last + 1]), n_support,
            np.ascontiguousarray(s["ids"]), np.ascontiguousarray(s["x"]), np.ascontiguousarray(s["label"]),
        )  # fmt: skip
        out.append(Step(batch, int(inputs.ts[last - 1])))
    return out


def variants(config: Config) -> Iterator[Variant]:
    """The native step and autograd's, each with and without meta-learning."""
    off = msgspec.structs.replace(config, meta=msgspec.structs.replace(config.meta, mode="off"))
    for name, native in (("native", True), ("torch", False)):
        yield Variant(name, Trainer(config, native), [], [])
        yield Variant(f"{name}_meta_off", Trainer(off, native), [], [])


def measure(found: Sequence[Variant], made: Sequence[Step], rounds: int = ROUNDS) -> None:
    """Train every variant on the first steps, then time it on the others, `rounds` times in turns."""
    skipped = int(SKIPPED_SHARE * len(made))
    for variant in found:
        for step in made[:skipped]:
            variant.trainer.step(*step)
    for _ in range(rounds):
        for variant in found:
            began, at = time.process_time(), time.perf_counter()
            for step in made[skipped:]:
                variant.trainer.step(*step)
            variant.seconds.append(time.process_time() - began)
            variant.wall.append(time.perf_counter() - at)


def parts(trainer: Trainer, made: Sequence[Step]) -> dict[str, float]:
    """Microseconds a step by part of the trainer: what it calls is timed where it is called."""
    spent: dict[str, float] = {}

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **more: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **more)
            finally:
                spent[name] = spent.get(name, 0.0) + time.perf_counter() - began

        return run

    places: list[tuple[Any, str]] = [
        (trainer.table, "admit"),
        (trainer, "_work"),
        (trainer.engine, "run"),
        (trainer, "_descend"),
    ]
    for owner, name in places:
        setattr(owner, name, timed(f"{type(owner).__name__}.{name}", getattr(owner, name)))
    began = time.perf_counter()
    for step in made:
        trainer.step(*step)
    spent["whole step"] = time.perf_counter() - began
    for owner, name in places:
        delattr(owner, name)
    return {name: seconds / len(made) * 1e6 for name, seconds in spent.items()}


def run(
    data: Source = "ml1m", limit: int = 100_000, rounds: int = ROUNDS, say: Callable[[str], None] = print
) -> list[report.Row]:
    """Measure; returns the rows of the report."""
    config = settings(data)
    made = steps(config, quality.open_log(config, data, None, limit, say=say))
    timed = made[int(SKIPPED_SHARE * len(made)) :]
    rows, support = (sum(len(getattr(s.batch, name)) for s in timed) for name in ("ids", "s_ids"))
    lists = sum(len(s.batch.n_items) for s in timed)
    each = [round(n / len(timed)) for n in (rows, lists, support)]
    say(f"{len(timed):,} steps timed, of {each[0]} rows, {each[1]} lists and {each[2]} support rows")
    found = list(variants(config))
    measure(found, made, rounds)
    rates = {v.name: rows / min(v.seconds) for v in found}
    say("rows/s by the clock on the wall: " + ", ".join(f"{v.name} {rows / min(v.wall):,.0f}" for v in found))
    for variant in found:
        if variant.name in TARGETS:
            spent = parts(variant.trainer, timed)
            say(f"{variant.name}, us a step: " + ", ".join(f"{name} {us:.0f}" for name, us in spent.items()))
    costs = {name: rates[f"{name}_meta_off"] / rates[name] for name in TARGETS}
    return [
        *(report.row(f"steps/{name}", rates[name], "rows/s", target=target) for name, target in TARGETS.items()),
        *(
            report.row(f"steps/{name}/maml_cost", cost, "rows/s off / on", better="lower", target=MAML_COSTS.get(name))
            for name, cost in costs.items()
        ),
    ]


app = typer.Typer()


@app.command("steps")
def command(
    data: Annotated[Source, typer.Option(help="ml1m (MovieLens-1M) or simulate")] = "ml1m",
    limit: Annotated[int, typer.Option(min=2000, help="rows of the log; the first half is not timed")] = 100_000,
    rounds: Annotated[int, typer.Option(min=1, help="passes of each variant, the fastest counts")] = ROUNDS,
    report_file: Annotated[pathlib.Path | None, typer.Option("--report", help="write the rows to this JSON file")] = None,
) -> None:
    """Rows per second of the training step from memory, with meta-learning."""
    console = Console()
    rows = run(data, limit, rounds, console.print)
    console.print(report.table(rows, "steps"))
    if report_file:
        report.write(report_file, rows)
