"""The shell of the stage enrich: impressions and clicks to the pure core, its messages to `enriched`, its counts to the store.

What a group of lists needs of the store is asked for when it is taken, and the reply is waited for while earlier groups run: a
count holds the server for a tenth of a second, and what is asked meanwhile waits as long.

A batch is delivered, then counted, then acknowledged. The count carries an offset fence per input partition: what it covers is
neither counted nor sent again after a crash. The newest impression of a partition stays unacknowledged, so that a restart
knows the partition's event time and goes on moving the watermark of one that fell silent.
"""

import asyncio
import logging
import time
from collections import deque
from typing import Any

from state import features, stores
from streams import enrich, faust_stage

log = logging.getLogger("thousandfold.streams")
LOOKAHEAD = 4
"""Groups whose reads may be under way while another one runs."""


class Enrich(faust_stage.Stage):
    """See the head of this file."""

    name = "enrich"

    def __init__(self, shell: faust_stage.Shell) -> None:
        super().__init__(shell, shell.config.streams.batch_lists)
        self._topics = self.config.topics
        self.core = enrich.Enrich(self.config)
        self._clicks: list[Any] = []
        self._assigned: set[int] = set()
        self._tails: dict[int, Any] = {}
        self._reads: deque[asyncio.Task[None]] = deque()
        self._ready = asyncio.Event()
        self._is_counting = False
        self._counted_at = 0.0
        self._shown = dict.fromkeys(enrich.Counts.__slots__, 0)
        self._present = dict(self.core.presence.present)

    async def feed_clicks(self, stream: Any) -> None:
        """Take the clicks; the core lets them wait until the lists up to their time are stamped."""
        async for event in stream.noack().events():
            if not self.is_stale(event):
                self.shell.took(event.message)
                self._clicks.append(event.message)

    async def tick(self) -> None:
        """Flush what waited long enough, and run a group as soon as it was read."""
        await asyncio.gather(super().tick(), self._run_when_read())

    async def _run_when_read(self) -> None:
        while True:
            await self._ready.wait()
            self._ready.clear()
            async with self._turn:
                await self.process([])

    def is_due(self) -> bool:
        """Clicks may become due and a silent partition's watermark may move at any time, so the core is always asked."""
        return bool(self._assigned or self._clicks)

    async def process(self, events: list[Any]) -> None:
        """Take events and run what may run; messages are delivered before they are counted and acknowledged."""
        impressions = [event.message for event in events]
        await self._assign(impressions)
        rejected = self._hand_over(impressions)
        deliveries = [await self.reject(why.reason, why.detail, message) for message, why in rejected]
        if impressions:
            self._read_ahead()
        if not self._reads:
            await self._run(deliveries)
            return
        while self._reads and (len(self._reads) > LOOKAHEAD or self._reads[0].done() or deliveries):
            await self._reads.popleft()
            await self._run(deliveries)
            deliveries = []

    def _read_ahead(self) -> None:
        now_s = time.monotonic()
        wanted = self.core.ahead(now_s)
        task = asyncio.create_task(self.shell.guard(self._fill(wanted, now_s)))
        task.add_done_callback(lambda _: self._ready.set())
        self._reads.append(task)

    async def _fill(self, wanted: stores.Wanted, now_s: float) -> None:
        if not features.is_empty(wanted):
            self.core.fill(wanted, await self.shell.store.read(wanted), now_s)

    async def _run(self, deliveries: list[faust_stage.Delivery]) -> None:
        """Run one micro-batch through the core."""
        await self._assign([])
        now = self.shell.now_ms()
        rejected = self._hand_over([])
        busy = self.core.begin(now, self._caught_up(now))
        deliveries += [await self.reject(why.reason, why.detail, message) for message, why in rejected]
        if busy:
            await self._read()
            for partition, value in self.core.finish(now):
                deliveries.append(await self.shell.send(self._topics.enriched, value, partition))
            self._show()
        if self.core.uncounted and not self._is_counting and self._is_count_due():
            await self._count(deliveries)
        elif deliveries:
            await self.finish(deliveries, [])

    async def conclude(self) -> None:
        """Count all that was sent: the next owner of a partition would send it again. No read outlives the assignment."""
        await asyncio.gather(*self._reads)
        self._reads.clear()
        await self._batches.join()
        if self.core.uncounted:
            await self._count([])

    def forget(self) -> None:
        """Give every partition up; what is still ours is read again and assigned anew."""
        self.core.revoke(self._assigned)
        self._assigned.clear()
        self._clicks.clear()
        self._tails.clear()

    async def _assign(self, impressions: list[Any]) -> None:
        """Look up how far partitions that have not been seen since the last rebalance were counted."""
        while new := {message.partition for message in (*impressions, *self._clicks)} - self._assigned:
            inputs = [(topic, p) for p in sorted(new) for topic in (self._topics.impressions, self._topics.clicks)]
            fences = await self.shell.store.fences(inputs)
            await self.shell.locate(inputs)
            for i, p in enumerate(sorted(new)):
                self.core.assign(p, fences[2 * i], fences[2 * i + 1], self.shell.now_ms())
                self._assigned.add(p)

    def _hand_over(self, impressions: list[Any]) -> list[tuple[Any, Any]]:
        """Give the core all that was taken, and return what it rejects.

        Nothing is waited for between the last of these and `begin`: a click that came in between would be overtaken by the
        watermark.
        """
        rejected, now = [], self.shell.now_ms()
        clicks, self._clicks = self._clicks, []
        for take, messages in ((self.core.impression, impressions), (self.core.action, clicks)):
            for message in messages:
                why = take(message.partition, message.offset, message.value, message, now)
                if why is not None:
                    rejected.append((message, why))
        return rejected

    def _caught_up(self, now: int) -> dict[int, enrich.CaughtUp]:
        """How far the inputs of every partition are taken; what is in the buffer or in a later group comes after the batch."""
        buffered = {event.message.partition for event in self._buffer} | self.core.waiting_partitions()
        impressions, clicks, is_caught_up = self._topics.impressions, self._topics.clicks, self.shell.is_caught_up
        return {
            p: enrich.CaughtUp(p not in buffered and is_caught_up(impressions, p, now), is_caught_up(clicks, p, now))
            for p in self._assigned
        }

    async def _read(self) -> None:
        """Read what the batch needs and this worker does not hold."""
        while True:
            now_s = time.monotonic()
            wanted = self.core.wanted(now_s)
            if features.is_empty(wanted):
                return
            self.core.fill(wanted, await self.shell.store.read(wanted), now_s)

    def _is_count_due(self) -> bool:
        return time.monotonic() - self._counted_at >= self.config.store.count_interval_s

    async def _count(self, deliveries: list[faust_stage.Delivery]) -> None:
        """Queue the batch with the count of all that was finished since the last one."""
        counting = self.core.take()
        self._counted_at, self._is_counting = time.monotonic(), True

        async def write() -> None:
            self.core.merged(await self.shell.store.count(counting.counted))
            self._is_counting = False

        await self.finish(deliveries, self._without_tails(counting.tokens), write)

    def _without_tails(self, messages: list[Any]) -> list[Any]:
        """All but the newest impression of each partition, which takes the place of the one that was held back before."""
        done = []
        for message in messages:
            if message.topic != self._topics.impressions:
                done.append(message)
                continue
            before = self._tails.get(message.partition)
            if before is not None:
                done.append(before)
            self._tails[message.partition] = message
        return done

    def _show(self) -> None:
        counts = {name: getattr(self.core.counts, name) for name in self._shown}
        new = {name: n - self._shown[name] for name, n in counts.items()}
        self._shown = counts
        self.count(lists=new["lists"], rows=new["items"], actions=new["actions"])
        self.shell.metrics.duplicates.labels(self.name).inc(new["duplicates"] + new["stale"])
        self.shell.metrics.bad_propensities.inc(new["bad_propensities"])
        self._show_presence()

    def _show_presence(self) -> None:
        presence = self.core.presence
        for source, rows in presence.present.items():
            self.shell.metrics.source_rows.labels(source).inc(rows - self._present[source])
        self._present = dict(presence.present)
        for source in presence.missing():
            log.warning(
                'none of the first %d rows carried "%s", which [features] reads: its columns are constant; compare the spelling '
                "with what the producer sends, or remove it from the feature spec",
                presence.rows, source,
            )  # fmt: skip
