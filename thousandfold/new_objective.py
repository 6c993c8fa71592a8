"""`thousandfold transfer --from`: the snapshot of a deployment becomes one with a new objective, where its learner starts."""

import pathlib

import msgspec

from models import extension
from state import config as configuration
from state import disk_snapshots
from state.config import Config, ConfigError
from state.snapshots import Manifest
from thousandfold import conversion


def without(new: Config, name: str) -> Config:
    """The configuration as it was before it had this objective.

    Raises:
        ConfigError: it has no such objective, or no other one.
    """
    kept = tuple(o for o in new.objectives if o.name != name)
    if not kept or len(kept) == len(new.objectives):
        declared = ", ".join(o.name for o in new.objectives)
        raise ConfigError(
            f'--objective "{name}": --spec must declare it, and another one that was there before; it has {declared}'
        )
    return msgspec.structs.replace(new, objectives=kept)


def write(old: Config, source: pathlib.Path, new: Config, into: pathlib.Path) -> Manifest:
    """Extend the newest intact snapshot of `source` and write it to `into`, a folder without snapshots.

    Table, trunk, old heads and what the optimiser and the switches know of them are taken over. The new learner reads its topics
    from the beginning: its episodes have a label more.

    Raises:
        ConfigError: there is no snapshot, it is of another configuration, `into` has snapshots, or the two do not fit.
    """
    manifest, arrays = conversion.opened(old, source, into)
    loop = conversion.blank(new)
    try:
        loop.trainer.load(extension.extend(old, arrays, new, loop.trainer.arrays()))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"--from {source}: {error}") from error
    evidence = conversion.group(arrays, "policy")
    if evidence:
        loop.measures.policy.load(evidence)
    return disk_snapshots.write(into, conversion.begun(new, manifest), loop.parts(), new.snapshot.keep)


def into_a_deployment(
    objective: str, spec: pathlib.Path | None, action: str | None, source: pathlib.Path | None, before: pathlib.Path | None,
    into: pathlib.Path | None,
) -> str:  # fmt: skip
    """Write the snapshot that the options of `thousandfold transfer` ask for, and say what to do with it.

    Raises:
        ConfigError: an option is missing or too many, and see `write`.
    """
    if source is None or into is None or spec is None or action is not None:
        raise ConfigError(
            "a snapshot with a new objective needs --from DIR, --into DIR and --spec NEW.toml, the configuration that declares "
            "the objective (and no --action: the learner reads the same file)"
        )
    new = configuration.load(spec)
    old = without(new, objective) if before is None else configuration.load(before)
    written = write(old, source, new, into)
    names = ", ".join(o.name for o in old.objectives)
    return (
        f"{into / written.version}: {names} predicted as before; {objective} starts fresh\n"
        "its episodes have another label: new derived topics, kafka.group and store.prefix, and snapshot.directory there "
        '(docs/operations.md, "A new objective"); then start the processes'
    )
