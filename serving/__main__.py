"""`python -m serving --config FILE [--ready-file PATH]`: the scoring service. Exit codes are those of docs/architecture.md."""

import argparse
import ctypes
import logging
import os
import pathlib
import sys

from state import config as configuration

ARENA_BYTES = 32 << 20
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


def prepare(threads: int) -> None:
    """Settings that must precede the import of numpy and torch: one thread pool, and an allocator that keeps its pages."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(threads)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option in (M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD):
            mallopt(option, ARENA_BYTES)


def main(arguments: list[str]) -> int:
    """Run until SIGTERM or SIGINT; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m serving", description="The scoring service.")
    parser.add_argument("--config", required=True, type=pathlib.Path, help="the configuration file")
    parser.add_argument("--ready-file", type=pathlib.Path, help="created, with the addresses in JSON, once requests are accepted")
    parser.add_argument("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    options = parser.parse_args(arguments)
    logging.basicConfig(level=options.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    try:
        config = configuration.load(options.config)
        prepare(config.serving.threads)
        from models import registry  # noqa: PLC0415 -- imports numpy and torch, which read what `prepare` has set
        from serving import uvicorn_servers  # noqa: PLC0415

        registry.check(config)
    except configuration.ConfigError as error:
        logging.getLogger("serving").critical("%s", error)
        return 2
    return uvicorn_servers.run(config, options.ready_file)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
