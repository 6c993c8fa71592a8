"""Compile the native kernels once, after an install, so that no process compiles while it should answer.

A small simulated log goes through every stage in this process; numba keeps what it compiles on disk.
"""

from typing import Any

import msgspec
import numpy as np

from learner import episodes, prequential, seen
from learner.step import Trainer
from models import base, scorer
from state import columns, config, ids, spec
from thousandfold import pipeline, produce, specs

LISTS = 60
START_MS = 1_700_000_000_000


def raw_messages(settings: config.Config, lists: int = LISTS, seed: int = 0) -> list[pipeline.Raw]:
    """A simulated log as raw messages, partitioned by user and in order of sending."""
    world, events = produce.open_log("simulate", seed)
    sends = produce.sends(produce.limited(events, lists), world, produce.Stamp(produce.Pace(rate=1000), START_MS), "warm")
    out: list[pipeline.Raw] = []
    following: dict[tuple[str, int], int] = {}
    for send in sends:
        topic: Any = "impressions" if isinstance(send.message, produce.Impression) else "clicks"
        partition = ids.of(send.message.user_id) % settings.kafka.partitions
        offset = following[topic, partition] = following.get((topic, partition), -1) + 1
        out.append(pipeline.Raw(topic, partition, offset, msgspec.json.encode(send.message), send.due_ms))
    return out


def warm(settings: config.Config) -> int:
    """Run the log through streams, learner and scorer; returns the rows trained."""
    flow = pipeline.Pipeline(settings)
    packed = [*flow.feed(raw_messages(settings)), *flow.end()]
    layout = episodes.Layout(
        spec.fingerprint(settings.features, settings.action_kinds),
        spec.id_width(settings.features),
        len(spec.number_names(settings.features)),
        len(settings.objectives),
    )
    lists = episodes.merge([episodes.decode(value, layout) for value in packed], layout)
    found = lists.columns
    seen.Seen(1024).add(seen.keys_of(found["request"], found["task"], found["version"]))
    trainer = Trainer(settings)
    scores = []
    for minibatch in episodes.minibatches(lists, settings.learner.rows_per_step):
        trainer.score(minibatch.batch)
        scores.append(trainer.step(minibatch.batch, minibatch.now_ms))
    figures = prequential.Prequential(tuple(o.name for o in settings.objectives), (), 8, 1000)
    adapted, plain = (np.concatenate([getattr(s, name) for s in scores]) for name in ("adapted", "unadapted"))
    variants = np.stack([adapted, plain, np.full_like(plain, np.nan)])
    figures.update(found["scenario"], found["user"], found["n_items"], variants, found["label"], found["weight"], lists.scenarios)
    figures.report()
    _score(trainer, settings, found)
    return lists.rows


def _score(trainer: Trainer, settings: config.Config, found: columns.Columns) -> None:
    model = scorer.Scorer(settings, trainer.arrays())
    support = base.Support(found["s_ids"][:4], found["s_x"][:4], found["s_label"][:4])
    model.score(found["ids"][:8], found["x"][:8], int(found["scenario"][0]), support)


if __name__ == "__main__":
    for name in specs.NAMES:
        print(f"{name}: kernels compiled, {warm(config.load(specs.path(name))):,} rows trained")
