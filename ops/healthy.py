"""Health check of a container: `healthy.py URL [READY_FILE]`; exit 0 when URL answers 200 and READY_FILE, if named, exists.

Only the standard library, so that a check every few seconds stays cheap.
"""

import pathlib
import sys
import urllib.error
import urllib.request

TIMEOUT_S = 3.0


def main(arguments: list[str]) -> int:
    """0 healthy, 1 not (standard error says why), 2 called wrongly."""
    if not 1 <= len(arguments) <= 2:
        print("usage: healthy.py URL [READY_FILE]", file=sys.stderr)
        return 2
    url, ready_files = arguments[0], arguments[1:]
    if missing := [name for name in ready_files if not pathlib.Path(name).exists()]:
        print(f"not ready yet: {missing[0]} does not exist", file=sys.stderr)
        return 1
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as reply:  # noqa: S310 - the URL is ours
            status = reply.status
    except (OSError, urllib.error.URLError) as error:
        print(f"{url}: {error}", file=sys.stderr)
        return 1
    if status != 200:
        print(f"{url}: status {status}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
