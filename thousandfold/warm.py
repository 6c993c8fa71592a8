"""Compile the native kernels once, after an install, so that no process compiles while it should answer.

Each process rehearses with made-up events when it starts; here all of them do, and a small simulated log goes through every stage
and through the scorer. numba keeps what it compiles on disk.
"""

import asyncio

from learner import episodes, rehearsal
from learner.loop import layout_of
from learner.step import Trainer
from models import base, scorer
from state import config
from streams import warming
from thousandfold import pipeline, produce, specs

LISTS = 60
START_MS = 1_700_000_000_000


def raw_messages(settings: config.Config, lists: int = LISTS, seed: int = 0) -> list[pipeline.Raw]:
    """A simulated log as raw messages, partitioned by user and in order of sending."""
    world, events = produce.open_log("simulate", seed)
    sends = produce.sends(produce.limited(events, lists), world, produce.Stamp(produce.Pace(rate=1000), START_MS), "warm")
    return list(pipeline.raw(sends, settings.kafka.partitions))


def warm(settings: config.Config) -> int:
    """Rehearse every process of a configuration; returns the rows trained on the way."""
    asyncio.run(warming.warm(settings))
    rehearsal.warm_up(settings)
    flow = pipeline.Pipeline(settings)
    packed = [*flow.feed(raw_messages(settings)), *flow.end()]
    layout = layout_of(settings)
    lists = episodes.merge([episodes.decode(value, layout) for value in packed], layout)
    trainer = Trainer(settings)
    for minibatch in episodes.minibatches(lists, settings.learner.rows_per_step):
        trainer.score(minibatch.batch)
        trainer.step(minibatch.batch, minibatch.now_ms)
    found, model = lists.columns, scorer.Scorer(settings, trainer.arrays())
    support = base.Support(found["s_ids"][:4], found["s_x"][:4], found["s_label"][:4])
    for one in (support, _known(trainer, support)) if len(support.ids) else (None,):
        model.score(found["ids"][:8], found["x"][:8], int(found["scenario"][0]), one)
    return lists.rows


def _known(trainer: Trainer, support: base.Support) -> base.Known:
    """The same support as the learner stores it."""
    hidden, gate, offset, shift = (part.numpy() for part in trainer.trunk(support.ids, support.x))
    return base.Known(hidden, gate, offset, shift, support.label)


if __name__ == "__main__":
    for name in specs.NAMES:
        print(f"{name}: kernels compiled, {warm(config.load(specs.path(name))):,} rows trained")
