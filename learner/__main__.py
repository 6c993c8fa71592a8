"""The learner's process: `python -m learner --config FILE [--ready-file PATH]`.

Exit codes: 0 asked to stop, 1 a defect, 2 the configuration or the topics are wrong, 3 another learner has taken over.
"""

import argparse
import importlib
import logging
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

from state import config, kafka_topics

# Read by the C library and the thread pools when a process starts, so it starts itself anew with them. Large blocks stay in the
# heap instead of being mapped, and page-faulted, at each step: 1.2 to 2 times the speed.
MEMORY = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "1073741824", "MALLOC_TOP_PAD_": "67108864"}
PATIENCE_S = 60.0

log = logging.getLogger("learner")


def environment(settings: config.Config) -> dict[str, str]:
    """Variables that the process needs from its start: memory, and one pool of as many threads as are configured."""
    threads = str(settings.learner.threads)
    return MEMORY | {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": "1",
        "NUMBA_NUM_THREADS": threads,
    }


class Stop:
    """Set by SIGTERM and SIGINT."""

    def __init__(self) -> None:
        self._asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - what a handler is given
        self._asked = True

    def __call__(self) -> bool:
        """Whether the process was asked to stop."""
        return self._asked


def wait_for_topics(settings: config.Config, stopping: Callable[[], bool]) -> None:
    """Check the topics; brokers may come up later than we do and are given a minute.

    Raises:
        kafka_topics.TopicsWrong: the topics are not those of the configuration.
        kafka_topics.BrokerUnreachable: no broker answered.
    """
    until_s = time.monotonic() + PATIENCE_S
    while not stopping():
        try:
            kafka_topics.require(settings)
        except kafka_topics.BrokerUnreachable:
            if time.monotonic() > until_s:
                raise
            log.warning("no broker at %s yet", settings.kafka.bootstrap)
        else:
            return


def main() -> int:
    """Parse the command line, start anew with the right environment, check, run."""
    parser = argparse.ArgumentParser(prog="python -m learner", description="The continuous learner.")
    parser.add_argument("--config", required=True, help="configuration file (TOML)")
    parser.add_argument("--ready-file", type=pathlib.Path, help="created once the learner is ready")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = config.load(arguments.config)
        wanted = environment(settings)
        if any(os.environ.get(name) != value for name, value in wanted.items()):
            os.execve(sys.executable, [sys.executable, "-m", "learner", *sys.argv[1:]], os.environ | wanted)
        stopping = Stop()
        wait_for_topics(settings, stopping)
        # Imported late: torch and river take seconds, which a wrong configuration need not wait for.
        code: int = importlib.import_module("learner.process").run(settings, arguments.ready_file, stopping)
    except config.Refused as error:
        print(error, file=sys.stderr)
        return 2
    return code


if __name__ == "__main__":
    sys.exit(main())
