"""Requests to serving, made alongside a stream: the shown lists that are being produced, scored as a page would score them."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import httpx
import msgspec
import numpy as np

from thousandfold import produce

TIMEOUT_S = 5.0
REMEMBERED = 256


class Summary(NamedTuple):
    """What the client saw. Latencies are in ms, of answered requests; `refused` counts connections that were not accepted."""

    requests: int
    errors: int
    adapted: int
    degraded: int
    p50_ms: float
    p99_ms: float


class Client(threading.Thread):
    """Scores `rate_per_s` lists a second until it is stopped. An answer other than 200 is an error.

    A request that cannot connect while `excused()` is true (its process was killed on purpose) is not counted as an error.
    """

    def __init__(self, url: str, rate_per_s: float, excused: Callable[[], bool]) -> None:
        super().__init__(name="score-client", daemon=True)
        self._url, self._gap_s, self._excused = url, 1.0 / rate_per_s, excused
        self._lists: deque[produce.Impression] = deque(maxlen=REMEMBERED)
        self._stop_event = threading.Event()
        self._took_ms: list[float] = []
        self._errors = self._adapted = self._degraded = 0
        self.first_scored_ms: dict[int, int] = {}
        self.last_error = ""

    def offer(self, impression: produce.Impression) -> None:
        """Remember a shown list as a request to make."""
        self._lists.append(impression)

    def run(self) -> None:
        """Send requests at an even rate; a slow answer delays the next one and is not made up for."""
        with httpx.Client(timeout=TIMEOUT_S) as http:
            while not self._stop_event.wait(self._gap_s):
                if self._lists:
                    self._score(http, self._lists[-1])

    def stop(self) -> Summary:
        """Stop and return what was seen."""
        self._stop_event.set()
        if self.is_alive():
            self.join(TIMEOUT_S + 1)
        took = np.array(self._took_ms) if self._took_ms else np.full(1, np.nan)
        return Summary(
            requests=len(self._took_ms) + self._errors,
            errors=self._errors,
            adapted=self._adapted,
            degraded=self._degraded,
            p50_ms=float(np.percentile(took, 50)),
            p99_ms=float(np.percentile(took, 99)),
        )

    def _score(self, http: httpx.Client, shown: produce.Impression) -> None:
        body = {
            "request_id": shown.request_id,
            "user_id": shown.user_id,
            "scenario": shown.scenario,
            "user": shown.user,
            "candidates": shown.items,
        }
        begun = time.perf_counter()
        try:
            reply = http.post(
                f"{self._url}/v1/score", content=msgspec.json.encode(body), headers={"content-type": "application/json"}
            )
        except httpx.HTTPError as error:
            if not self._excused():
                self._errors += 1
                self.last_error = repr(error)
            return
        if reply.status_code != httpx.codes.OK:
            if reply.status_code != httpx.codes.SERVICE_UNAVAILABLE or (self.first_scored_ms and not self._excused()):
                self._errors += 1
                self.last_error = reply.text[:200]
            return
        self._took_ms.append((time.perf_counter() - begun) * 1000)
        found = reply.json()
        self._adapted += bool(found["adapted"])
        self._degraded += found["degraded"] not in (None, "no_support")
        self.first_scored_ms.setdefault(int(found["step"]), int(time.time() * 1000))
