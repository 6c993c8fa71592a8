"""The learner's support sets of meta inputs in Redis or Valkey. A store that is away holds nothing up."""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from state import config, credentials, layout, meta_supports, redis_store, stores
from state.supports import U64

log = logging.getLogger(__name__)
TIMEOUT_S = 1.0
PAUSE_CALLS = 50
"""Calls that are not tried after one that failed, so that a store that is away does not hold up learning each time."""
Result = TypeVar("Result")


class RedisSupports:
    """`learner.meta_inputs.Store` over a connection and an event loop of its own."""

    def __init__(self, settings: config.Config) -> None:
        self._loop, self._pause = asyncio.new_event_loop(), 0
        self._store = redis_store.RedisStore(
            settings.store.url, settings.store.prefix, layout.compiled(settings).schema,
            access=credentials.store(settings), timeout_s=TIMEOUT_S, support_key=meta_supports.KEY,
        )  # fmt: skip
        self.failures = 0

    def read(self, tasks: U64) -> list[bytes | None]:
        """The packed set of each task, None where there is none or the store does not answer."""
        found = self._ask(self._store.supports(tasks))
        return [None] * len(tasks) if found is None else found

    def write(self, tasks: U64, values: Sequence[bytes], ttl_ms: int) -> None:
        """Replace sets, which expire after `ttl_ms`."""
        self._ask(self._store.put_supports(tasks, values, ttl_ms))

    def close(self) -> None:
        """Close the connection."""
        self._loop.run_until_complete(self._store.close())
        self._loop.close()

    def _ask(self, question: Coroutine[Any, Any, Result]) -> Result | None:
        if self._pause:
            self._pause -= 1
            self.failures += 1
            question.close()
            return None
        try:
            return self._loop.run_until_complete(question)
        except (OSError, stores.StoreRefused) as error:
            self.failures += 1
            self._pause = PAUSE_CALLS
            log.warning("meta inputs are not kept for now: %s", error)
            return None
