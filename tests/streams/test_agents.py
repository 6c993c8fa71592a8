"""What the shell of a stage shows of its core."""

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np

from state import columns, supports
from streams import agents, group, prometheus_metrics
from tests.streams.test_group import Shown, made, message


def grouped(config: Any, batches: list[group.Message], held: bytes | None) -> prometheus_metrics.Metrics:
    """The metrics of a group stage that took each message as a batch of its own, over a store that holds one set for all."""
    metrics = prometheus_metrics.Metrics()

    async def read(tasks: Any) -> list[bytes | None]:
        return [held] * len(tasks)

    async def send(*_: Any) -> None:
        return None

    shell: Any = SimpleNamespace(config=config, metrics=metrics, store=SimpleNamespace(supports=read), send=send)

    async def run() -> None:
        stage = agents.Group(shell)
        for offset, (head, found) in enumerate(batches):
            at = {"value": columns.pack(found, **head), "partition": 0, "offset": offset, "topic": "samples", "key": None}
            await stage.process([SimpleNamespace(message=SimpleNamespace(**at))])
            stage._room.release()

    asyncio.run(asyncio.wait_for(run(), 30))
    return metrics


def shown(metrics: prometheus_metrics.Metrics) -> dict[str, float]:
    names = ("foreign_supports", "trimmed_support_rows")
    found = {name: metrics.registry.get_sample_value(f"thousandfold_{name}_total") for name in names}
    return {name: value for name, value in found.items() if value is not None}


def test_sets_of_another_spec_and_support_that_does_not_fit_are_exported_as_they_happen() -> None:
    config = made(size=200, max_message_bytes=10_000)
    n = (10_000 - group.HEAD_BYTES - 300) // (8 + 3 * 8 + 2 * 4 + 2 * 4 + 2 * 4)
    before = message([Shown(1, ts, ts, (5,)) for ts in range(1, 101)])
    long = message([Shown(1, 500, 500, tuple(range(n)))])
    other = supports.layout(config)._replace(fingerprint=1)
    foreign = supports.pack(other, np.zeros(1, other.dtype))
    assert shown(grouped(config, [before], None)) == {"foreign_supports": 0, "trimmed_support_rows": 0}
    assert shown(grouped(config, [before], foreign)) == {"foreign_supports": 1, "trimmed_support_rows": 0}
    core = group.Group(config)
    for batch in (before, long):
        tasks = core.wanted([batch])
        core.fill(tasks, [None] * len(tasks))
        core.episodes([batch])
    assert core.trimmed > 0
    assert shown(grouped(config, [before, long], None)) == {"foreign_supports": 0, "trimmed_support_rows": core.trimmed}
