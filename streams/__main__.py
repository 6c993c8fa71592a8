"""`python -m streams --config FILE [--stages enrich,join,group] [--instance w0] [--ready-file PATH]`."""

import argparse
import asyncio
import logging
import pathlib
import socket
import sys

from state import config as configuration
from state import kafka_topics, stores
from streams import agents, app

EXIT_WRONG, EXIT_REFUSED = 2, 3
log = logging.getLogger("thousandfold.streams")


def main() -> int:
    """Run a worker; the exit codes are those of docs/architecture.md."""
    options = arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for noisy in ("faust", "mode", "aiokafka"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        config = configuration.load(options.config)
        kafka_topics.require(config)
    except (configuration.ConfigError, kafka_topics.TopicsWrong, kafka_topics.BrokerUnreachable) as error:
        log.critical("%s", error)
        return EXIT_WRONG
    try:
        return asyncio.run(app.run(config, options.stages, options.instance, options.ready_file))
    except (stores.StoreUnavailable, stores.StoreRefused) as error:
        log.critical("%s", error)
        return EXIT_REFUSED


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser("python -m streams", description="A stream worker: enrich, join and group.")
    parser.add_argument("--config", type=pathlib.Path, default=pathlib.Path("thousandfold.toml"), help="configuration file")
    parser.add_argument("--stages", type=_stages, default=_stages("enrich,join,group"), help="comma-separated, default all")
    instance = f"{socket.gethostname()}-0"
    parser.add_argument("--instance", default=instance, help="name of this worker in its group, the same after a restart")
    parser.add_argument("--ready-file", type=pathlib.Path, help="created when the worker is ready")
    return parser.parse_args(given)


def _stages(text: str) -> tuple[agents.Name, ...]:
    """Stages in their order in the flow.

    Raises:
        ArgumentTypeError: a name that is no stage, or none at all.
    """
    named = text.split(",")
    if wrong := [name for name in named if name not in agents.NAMES]:
        raise argparse.ArgumentTypeError(f"{wrong[0]!r} is no stage; allowed: {', '.join(agents.NAMES)}")
    return tuple(name for name in agents.NAMES if name in named)


if __name__ == "__main__":
    sys.exit(main())
