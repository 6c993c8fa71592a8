"""`thousandfold run`: become one of the processes of a deployment."""

import os
import sys
from typing import Literal

import typer

app = typer.Typer(help="Run one process: streams, learner or serving.", no_args_is_help=True)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def run(context: typer.Context, process: Literal["streams", "learner", "serving"]) -> None:
    """Replace this process by `python -m PROCESS`; everything after its name goes to it, such as --config FILE."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", process, *context.args])
