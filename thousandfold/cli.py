"""The command line. A sub-command's module is imported only when that command runs, so that `--help` is quick.

To add a command: write a module with a Typer `app` and give it one row in COMMANDS.
"""

import importlib
import os
import sys
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup

from state.config import Refused

REFUSED = 2


class Command(NamedTuple):
    """Where a command is and what the overview says of it."""

    module: str
    summary: str


COMMANDS = {
    "demo": Command("thousandfold.demo", "Everything on this machine, with a live table per scenario."),
    "top": Command("thousandfold.top", "The same table for any running deployment."),
    "doctor": Command("thousandfold.doctor", "Check versions, broker, store, topics, disk and clock, and say what to do."),
    "config": Command("thousandfold.configuration", "Check and show the configuration."),
    "topics": Command("thousandfold.topics", "Create and check the topics."),
    "meta": Command("thousandfold.meta_cli", "Switch meta-learning of the running learner, per scenario."),
    "dlq": Command("thousandfold.dead_letters", "List, show and requeue dead letters."),
    "data": Command("thousandfold.data.cli", "Fetch and verify data sets."),
    "produce": Command("thousandfold.produce_cli", "Send a data set or simulated traffic to the topics."),
    "replay": Command("thousandfold.replay", "Re-read a range of the raw topics into a fresh learner."),
    "migrate": Command("thousandfold.migrate_cli", "Merge models of one scenario each into one model, without loss."),
    "transfer": Command("thousandfold.transfer", "A new objective from a log: alone, with all, frozen trunk, fine-tuned."),
    "inspect": Command("thousandfold.inspection", "See what a model attends to, and what its split of the work saves."),
    "bench": Command("thousandfold.bench", "Measure speed, memory and quality."),
    "run": Command("thousandfold.run", "Run one process: streams, learner or serving."),
}


class Lazy(TyperGroup):
    """A group whose commands are known by name and summary until one is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Every command, in the order of the table."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command as the overview needs it: without its module."""
        del ctx
        row = COMMANDS.get(cmd_name)
        if row is None:
            return None
        described = typer.Typer()
        described.command(cmd_name, help=row.summary)(lambda: None)
        return typer.main.get_command(described)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """A command as it runs: from its module."""
        row = COMMANDS.get(args[0])
        if row is None:
            return super().resolve_command(ctx, args)
        command = typer.main.get_command(importlib.import_module(row.module).app)
        # Shell completion is installed once, for the whole command line.
        command.params = [p for p in command.params if p.name not in ("install_completion", "show_completion")]
        return args[0], command, args[1:]


app = typer.Typer(cls=Lazy, no_args_is_help=True, pretty_exceptions_enable=False)


def _version(show: bool) -> None:
    if show:
        from importlib import metadata  # noqa: PLC0415 a quick start matters more

        print(f"thousandfold {metadata.version('thousandfold')}")
        raise typer.Exit


@app.callback()
def front_door(
    _version_wanted: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version and leave")
    ] = False,
) -> None:
    """Kafka impressions and clicks in; a continuously learned model for every scenario and every user out."""


def main() -> None:
    """Run the command line; what an operator can put right is one line on standard error and exit code 2."""
    try:
        app()
    except Refused as error:
        print(f"thousandfold: {error}", file=sys.stderr)
        raise SystemExit(REFUSED) from None
    except BrokenPipeError:
        # The reader of our output left, as `| head` does; nothing more can be printed, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
