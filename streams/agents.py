"""The shells of join and group, and which topic feeds which stage. Enrich has a file of its own."""

from collections.abc import Callable, Coroutine
from typing import Any, Literal

import faust

from state import columns, dead_letters, spec
from streams import enrich_agent, faust_stage, group, join, samples

Name = Literal["enrich", "join", "group"]
NAMES: tuple[Name, ...] = ("enrich", "join", "group")
MESSAGES_PER_BATCH = 8
ENRICHED = ("request", "user", "scenario", "ts", "n_items", "offset", "item", "ids", "x")
ACTIONS = ("a_request", "a_item", "a_user", "a_ts", "a_kind", "a_value", "a_offset", "a_raw_length", "a_raw")


class Join(faust_stage.Stage):
    """enriched -> samples. An input message is acknowledged when everything that it opened has been delivered."""

    name = "join"

    def __init__(self, shell: faust_stage.Shell) -> None:
        super().__init__(shell, MESSAGES_PER_BATCH)
        self._rules, self._routing = join.rules(self.config), samples.routing(self.config)
        self._spec = spec.fingerprint(self.config.features, self.config.action_kinds)
        self._partitions: dict[int, join.Partition] = {}
        self._names: dict[int, str] = {}

    def forget(self) -> None:
        """Drop every partition: what was open is read again by its next owner."""
        for p in self._partitions:
            self.shell.metrics.open_lists.labels(p).set(0)
        self._partitions.clear()

    async def process(self, events: list[Any]) -> None:
        """Take messages and send what the watermark closes."""
        deliveries: list[faust_stage.Delivery] = []
        done: list[Any] = []
        for message in [event.message for event in events]:
            partition = self._partitions.setdefault(message.partition, join.Partition(self._rules))
            try:
                head, found = columns.unpack(message.value or b"")
                problem = self._problem(head, found)
            except columns.UnreadableColumns as error:
                problem = str(error)
            if problem:
                deliveries.append(await self.reject(dead_letters.SCHEMA, problem, message))
                partition.skip(message)
                continue
            self._names.update((int(text), name) for text, name in head["scenarios"].items())
            partition.take(head, found, message)
            # The token may wait for two windows; its bytes need not.
            message.value = None
        for p in sorted({event.message.partition for event in events}):
            deliveries += await self._emit(p, done)
        if deliveries or done:
            await self.finish(deliveries, done)

    def _problem(self, head: dict[str, Any], found: columns.Columns) -> str:
        if head.get("spec") != self._spec:
            return f"enriched by feature spec {head.get('spec')!r}, this worker has {self._spec!r}"
        missing = [name for name in (*ENRICHED, *ACTIONS) if name not in found]
        missing += [name for name in ("watermark_ms", "scenarios") if name not in head]
        return f"without {', '.join(missing)}" if missing else ""

    async def _emit(self, p: int, done: list[Any]) -> list[faust_stage.Delivery]:
        """Send the samples and dead letters of a partition; what may be acknowledged after them is added to `done`."""
        partition = self._partitions[p]
        output = partition.emit()
        done += output.released
        deliveries = []
        if output.lists is not None:
            names = samples.Names(self._names, output.items)
            for target, value, n_lists, n_rows in samples.messages(output.lists, names, self._routing, p):
                deliveries.append(await self.shell.send(self.config.topics.samples, value, target))
                self.count(lists=n_lists, rows=n_rows)
        for gone in output.unjoined:
            origin = (self.config.topics.clicks, p, gone.offset, self.shell.now_ms())
            letter = dead_letters.Letter(gone.reason, gone.detail, self.name, *origin)
            deliveries.append(await self.shell.send_dead_letter(letter, faust_stage.user_key(gone.raw), gone.raw))
        self._show(p, partition)
        return deliveries

    def _show(self, p: int, partition: join.Partition) -> None:
        metrics, counts = self.shell.metrics, partition.counts
        partition.counts = join.Counts()
        self.count(labels=counts.labels, orphans=counts.orphans, revisions=counts.revisions, other_actions=counts.others)
        metrics.late_actions.inc(counts.late)
        metrics.duplicates.labels(self.name).inc(counts.copies + counts.repeated)
        metrics.open_lists.labels(p).set(partition.open_lists)
        metrics.watermark.labels(p).set(max(partition.watermark_ms, 0))


class Group(faust_stage.Stage):
    """samples -> episodes, and the support sets in the store, which are written once the episodes are delivered."""

    name = "group"

    def __init__(self, shell: faust_stage.Shell) -> None:
        super().__init__(shell, MESSAGES_PER_BATCH)
        self._core = group.Group(self.config)
        metrics = shell.metrics
        self._counters = (metrics.duplicates.labels(self.name), metrics.foreign, metrics.trimmed)
        self._shown = (0, 0, 0)

    def forget(self) -> None:
        """Drop the sets that were read: others may write them now."""
        self._core.forget()

    async def process(self, events: list[Any]) -> None:
        """Send the episodes of some messages and queue the sets that they leave behind."""
        deliveries: list[faust_stage.Delivery] = []
        taken, sources = [], []
        for message in [event.message for event in events]:
            try:
                unpacked = columns.unpack(message.value or b"")
                problem = self._core.problem(unpacked)
            except columns.UnreadableColumns as error:
                problem = str(error)
            if problem:
                deliveries.append(await self.reject(dead_letters.SCHEMA, problem, message))
            else:
                taken.append(unpacked)
                sources.append(message.partition)
        tasks = self._core.wanted(taken)
        if len(tasks):
            self._core.fill(tasks, await self.shell.store.supports(tasks))
        for index, value in self._core.episodes(taken):
            deliveries.append(await self.shell.send(self.config.topics.episodes, value, sources[index]))
        self._show(taken)
        changed, packed = self._core.writes()

        async def write() -> None:
            await self.shell.store.put_supports(changed, packed, self._core.ttl_ms)

        await self.finish(deliveries, [event.message for event in events], write)

    def _show(self, taken: list[group.Message]) -> None:
        self.count(lists=sum(len(c["task"]) for _, c in taken), rows=sum(len(c["item"]) for _, c in taken))
        now = (self._core.duplicates, self._core.foreign, self._core.trimmed)
        for counter, count, shown in zip(self._counters, now, self._shown, strict=True):
            counter.inc(count - shown)
        self._shown = now


def connect(app: faust.App, shell: faust_stage.Shell, names: tuple[Name, ...]) -> list[faust_stage.Stage]:
    """Build the stages and give each its topics: one agent of concurrency 1 a topic.

    With a higher concurrency a later offset can be committed while an earlier one is under way, and a crash loses that one.
    """
    topics = shell.config.topics
    stages: list[faust_stage.Stage] = []
    if "enrich" in names:
        stage = enrich_agent.Enrich(shell)
        _agent(app, shell, "enrich-impressions", topics.impressions, stage.feed)
        _agent(app, shell, "enrich-clicks", topics.clicks, stage.feed_clicks)
        stages.append(stage)
    if "join" in names:
        stages.append(Join(shell))
        _agent(app, shell, "join", topics.enriched, stages[-1].feed)
    if "group" in names:
        stages.append(Group(shell))
        _agent(app, shell, "group", topics.samples, stages[-1].feed)
    return stages


def _agent(
    app: faust.App, shell: faust_stage.Shell, name: str, topic: str, feed: Callable[[Any], Coroutine[Any, Any, None]]
) -> None:
    async def run(stream: Any) -> None:
        await shell.guard(feed(stream))

    run.__name__ = name
    channel = app.topic(topic, key_serializer="raw", value_serializer="raw")
    app.agent(channel, name=name, concurrency=1)(run)
