"""Compile every kernel before the first event: a few made-up events go once through all three cores, into a store in memory.

On a machine without compiled kernels in the cache this takes many seconds, in which a worker in a group would seem dead.
"""

import msgspec

from state import columns, features, memory_store
from state.config import Config
from streams import enrich, group, join, samples

NOW_MS = 1_700_000_000_000
LISTS = 3


async def warm(config: Config) -> int:
    """Run the made-up events; return the number of episodes that they gave."""
    core = enrich.Enrich(config, capacity=1024)
    store = memory_store.MemoryStore(core.engine.schema, lambda: NOW_MS)
    partition, sets = join.Partition(join.rules(config)), group.Group(config)
    core.assign(0, -1, -1, NOW_MS)
    episodes = 0
    for i in range(LISTS):
        _show(core, config, i)
        core.begin(NOW_MS, {0: enrich.CaughtUp(impressions=True, clicks=True)})
        while not features.is_empty(wanted := core.wanted(0.0)):
            core.fill(wanted, await store.read(wanted), 0.0)
        for _, value in core.finish(NOW_MS):
            partition.take(*columns.unpack(value), i)
        core.merged(await store.count(core.take().counted))
        partition.advance(NOW_MS + round(2000 * (config.join.window_s + config.join.lateness_s)) + 10 * LISTS)
        lists = partition.emit().lists
        if lists is None:
            continue
        for _, value, _, _ in samples.messages(lists, samples.Names({}, {}), samples.routing(config), 0):
            message = columns.unpack(value)
            tasks = sets.wanted([message])
            sets.fill(tasks, await store.supports(tasks))
            episodes += len(sets.episodes([message]))
            await store.put_supports(*sets.writes(), sets.ttl_ms)
    return episodes


def _show(core: enrich.Enrich, config: Config, i: int) -> None:
    """One list of two items, and an action of every kind."""
    at = {"request_id": f"warm-{i}", "user_id": "warm", "ts_ms": NOW_MS + i}
    items = [{"item_id": f"warm-{k}", "position": k} for k in range(2)]
    core.impression(0, i, msgspec.json.encode({**at, "scenario": "warm", "items": items}), None, NOW_MS)
    for k, kind in enumerate(config.action_kinds):
        action = {**at, "item_id": "warm-0", "action": kind}
        core.action(0, i * len(config.action_kinds) + k, msgspec.json.encode(action), None, NOW_MS)
