import asyncio
from types import SimpleNamespace
from typing import Any

from state import features, memory_store, stores
from streams import enrich_agent
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
