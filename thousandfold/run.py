"""`thousandfold run`: become one of the processes of a deployment."""

import os
import sys
from typing import Annotated, Literal

import typer

app = typer.Typer()


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
    no_args_is_help=True,
)
def run(context: typer.Context, process: Annotated[Literal["streams", "learner", "serving"], typer.Argument()]) -> None:
    """Run one process: streams, learner or serving. Everything after its name goes to it, such as --config FILE."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", process, *context.args])
