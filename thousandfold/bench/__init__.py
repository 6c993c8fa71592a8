"""Benchmarks: each prints a table and writes one report (`report`). They are imported when they are run."""

import importlib
from types import ModuleType
from typing import Any

import typer
from typer.core import TyperGroup

BENCHES = {
    "quality": "prequential AUC, GAUC, logloss and calibration against baselines, on MovieLens-1M or your own log",
    "models": "every model of the zoo by scenario and objective, against each scenario's own network, with ablations",
    "meta": "what every meta-learning algorithm gains over no adaptation and over one bias per task, and for whom",
    "adaptation": "meta-gradients against vmap(grad) and a loop over tasks: tasks per second, memory, agreement",
    "increments": "quality against the time between two updates of the model, from one base fit",
    "retrieval": "recall and NDCG of what a user acts on next, two towers adapted and not, against popularity",
    "support": "support sets of features against those of meta inputs: quality, latency and bytes",
    "cold": "cold start in MeLU's protocol: old and new users on old and new movies, against the best known cells",
    "cold-items": "new items at their first impressions, by what their embedding begins with: zero, random, generated",
    "merge": "what one merged model costs against a model for every scenario: parameters, keys, rows per second, memory",
    "streams": "impressions per second of enrich, join and group on a real broker and store",
    "steps": "rows per second of the training step from memory, native and torch, with and without meta-learning",
    "training": "the training step at 1,024 rows against naive torch, torch-rechub, fbgemm and the processor's peak",
    "learner": "rows per second of the continuous learner from its topic",
    "serving": "latency of scoring with adaptation while snapshots are swapped in",
    "system": "time to the first metric, freshness and memory of the whole system",
    "all": "every benchmark, in one report",
}
MODULES = {"all": "every", "cold": "cold_start", "cold-items": "cold_items", "retrieval": "retrieval_command"}


def module(name: str) -> ModuleType:
    """The module of a benchmark.

    Raises:
        KeyError: there is no such benchmark.
    """
    if name not in BENCHES:
        raise KeyError(f'no benchmark "{name}"; there are {", ".join(BENCHES)}')
    return importlib.import_module(f"{__name__}.{MODULES.get(name, name)}")


class _Lazy(TyperGroup):
    """A group whose benchmarks are known by name and summary until one runs."""

    def list_commands(self, ctx: Any) -> list[str]:
        del ctx
        return list(BENCHES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        del ctx
        if cmd_name not in BENCHES:
            return None
        described = typer.Typer()
        described.command(cmd_name, help=BENCHES[cmd_name])(lambda: None)
        return typer.main.get_command(described)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in BENCHES:
            return super().resolve_command(ctx, args)
        return args[0], typer.main.get_command(module(args[0]).app), args[1:]


app = typer.Typer(cls=_Lazy, no_args_is_help=True, help="Measure speed, memory and quality.")


@app.callback()
def bench() -> None:
    """Measure speed, memory and quality; every benchmark takes --report FILE."""
