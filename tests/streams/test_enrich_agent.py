import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from state import features, memory_store, stores
from streams import enrich_agent, presence, prometheus_metrics
from tests import feature_events as raw

CONFIG = raw.config()


def test_no_read_outlives_an_assignment() -> None:
    """Its reply could be older than what the next owner of the partition writes."""
    server = memory_store.MemoryStore(features.Engine(CONFIG, 64).schema, lambda: 0)
    may_reply = asyncio.Event()

    class Slow:
        async def read(self, wanted: stores.Wanted) -> stores.Found:
            await may_reply.wait()
            return await server.read(wanted)

    async def guard(work: Any) -> None:
        await work

    async def revoked() -> None:
        shell: Any = SimpleNamespace(config=CONFIG, store=Slow(), guard=guard)
        stage = enrich_agent.Enrich(shell)
        stage.core.assign(0, -1, -1, 0)
        stage.core.impression(0, 0, raw.impression("r", raw.NOW), None, raw.NOW)
        stage._read_ahead()
        settling = asyncio.create_task(stage.settle())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not settling.done()
        may_reply.set()
        await settling
        assert stage.core.groups == 0

    asyncio.run(revoked())


def test_a_source_that_no_event_carries_is_zero_in_the_metrics_and_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(presence, "LEAST_ROWS", 2)
    metrics = prometheus_metrics.Metrics()
    shell: Any = SimpleNamespace(config=CONFIG, metrics=metrics)
    stage = enrich_agent.Enrich(shell)
    stage.core.assign(0, -1, -1, 0)
    server = memory_store.MemoryStore(stage.core.engine.schema, lambda: 0)
    with caplog.at_level(logging.WARNING):
        for offset, name in enumerate("abc"):
            stage.core.impression(0, offset, raw.impression(name, raw.NOW, context={"devise": "phone"}), None, raw.NOW)
            stage.core.begin(raw.NOW, {})
            while not features.is_empty(wanted := stage.core.wanted(0.0)):
                stage.core.fill(wanted, asyncio.run(server.read(wanted)), 0.0)
            stage.core.finish(raw.NOW)
            stage._show()
    rows = {source: metrics.registry.get_sample_value("thousandfold_source_rows_total", {"source": source}) for source in
            ("context.device", "item.price")}  # fmt: skip
    assert rows == {"context.device": 0, "item.price": 3}
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == 1
    assert warned[0].startswith('none of the first 2 rows carried "context.device"')
