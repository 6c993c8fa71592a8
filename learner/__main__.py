"""The learner's process: `python -m learner --config FILE [--ready-file PATH]`.

Exit codes: 0 asked to stop, 1 a defect, 2 the configuration or the topics are wrong, 3 another learner has taken over.
"""

import argparse
import importlib
import os
import pathlib
import sys

from state import config

# Read by the C library and the thread pools when a process starts, so it starts itself anew with them. Large blocks stay in the
# heap instead of being mapped, and page-faulted, at each step: 1.2 to 2 times the speed.
MEMORY = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "1073741824", "MALLOC_TOP_PAD_": "67108864"}


def environment(settings: config.Config) -> dict[str, str]:
    """Variables that the process needs from its start: memory, and one pool of as many threads as are configured."""
    threads = str(settings.learner.threads)
    return MEMORY | {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": "1",
        "NUMBA_NUM_THREADS": threads,
    }


def main() -> int:
    """Parse the command line, start anew with the right environment, run."""
    parser = argparse.ArgumentParser(prog="python -m learner", description="The continuous learner.")
    parser.add_argument("--config", required=True, help="configuration file (TOML)")
    parser.add_argument("--ready-file", type=pathlib.Path, help="created once the learner is ready")
    arguments = parser.parse_args()
    try:
        settings = config.load(arguments.config)
    except config.ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    wanted = environment(settings)
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, "-m", "learner", *sys.argv[1:]], os.environ | wanted)
    code: int = importlib.import_module("learner.process").run(settings, arguments.ready_file)
    return code


if __name__ == "__main__":
    sys.exit(main())
