"""What `ops/e2e.sh` looks at from outside: `observe.py metrics|targets|score BASE_URL ...`; exit 0 when seen, 1 when not yet.

Only the standard library: it runs with whatever Python the machine has.
"""

import json
import math
import sys
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

TIMEOUT_S = 10.0
FIGURES = ("auc", "gauc", "logloss", "calibration")
REQUEST = {
    "request_id": "e2e",
    "user_id": "e2e",
    "scenario": "home",
    "user": {"gender": "F", "age": "25"},
    "candidates": [{"item_id": f"e2e-{k}", "position": k, "features": {"year": 1990 + k}} for k in range(3)],
}


class NotYet(Exception):
    """What was looked for is not there; the message says what is."""


def ask(url: str, body: object = None) -> Any:
    """The JSON that `url` answers, with `body` as JSON posted to it.

    Raises:
        NotYet: no answer, or one with an error.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310 - an http URL of ours
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:  # noqa: S310
            return json.load(reply)
    except urllib.error.HTTPError as error:
        raise NotYet(f"{url}: status {error.code}: {error.read(500).decode(errors='replace')}") from error
    except (OSError, ValueError) as error:
        raise NotYet(f"{url}: {error}") from error


def query(base: str, expression: str) -> dict[str, float]:
    """An instant query to Prometheus: value by scenario, instance or nothing."""
    reply = ask(f"{base}/api/v1/query?{urllib.parse.urlencode({'query': expression})}")
    rows = reply["data"]["result"]
    return {r["metric"].get("scenario") or r["metric"].get("instance", ""): float(r["value"][1]) for r in rows}


def metrics(base: str, wanted: int) -> list[str]:
    """The quality of every scenario as Prometheus knows it, once `wanted` scenarios have figures of the adapted model."""
    rows = query(base, "thousandfold_rows_total")
    found = {f: query(base, f'thousandfold_{f}{{variant="adapted", window="cumulative"}}') for f in FIGURES}
    complete = [s for s in rows if rows[s] > 0 and all(math.isfinite(found[f].get(s, math.nan)) for f in FIGURES)]
    if len(complete) < wanted:
        raise NotYet(f"{len(complete)} of {wanted} scenarios have figures in Prometheus; rows trained: {rows}")
    lines = [f"{'scenario':<12} {'rows':>8}" + "".join(f"{f:>12}" for f in FIGURES)]
    lines += [f"{s:<12} {rows[s]:>8.0f}" + "".join(f"{found[f][s]:>12.4f}" for f in FIGURES) for s in sorted(complete)]
    return lines


def targets(base: str, wanted: int) -> list[str]:
    """The processes that Prometheus reaches, once `wanted` streams workers, the learner and serving are among them."""
    up = {job: query(base, f'up{{job="{job}"}} == 1') for job in ("streams", "learner", "serving")}
    if len(up["streams"]) < wanted or not up["learner"] or not up["serving"]:
        raise NotYet(f"Prometheus reaches {up}")
    return [f"{job}: {', '.join(sorted(found))}" for job, found in up.items()]


def score(base: str) -> list[str]:
    """A score of each candidate, from a model that has trained."""
    reply = ask(f"{base}/v1/score", REQUEST)
    scores = reply["scores"]["click"]
    if len(scores) != len(REQUEST["candidates"]) or not all(0 < s < 1 for s in scores):
        raise NotYet(f"scores are no probabilities: {scores}")
    if reply["step"] < 1:
        raise NotYet(f"the model that answers has not trained yet: {reply}")
    return [f"version {reply['version']}, step {reply['step']}, {reply['mode']}: {', '.join(f'{s:.4f}' for s in scores)}"]


def main(arguments: list[str]) -> int:
    """0 seen (and printed), 1 not yet (standard error says what there is), 2 called wrongly."""
    try:
        match arguments:
            case ["metrics", base, wanted]:
                seen = metrics(base, int(wanted))
            case ["targets", base, wanted]:
                seen = targets(base, int(wanted))
            case ["score", base]:
                seen = score(base)
            case _:
                print("usage: observe.py metrics URL SCENARIOS | targets URL WORKERS | score URL", file=sys.stderr)
                return 2
    except NotYet as problem:
        print(problem, file=sys.stderr)
        return 1
    print("\n".join(seen))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
