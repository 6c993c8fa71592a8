"""Small configurations and random minibatches for the tests of models and learner."""

from typing import Any

import msgspec
import numpy as np

from models import base
from state import config, ids, spec

TEXT = """
[scenarios]
slots = 3
prior_rows = 20
[model]
embedding_width = 4
hidden = [12, 8]
gate_hidden = 6
scenario_features = ["scenario", "price"]
[embedding]
capacity = 4096
[features]
categories = [
  { name = "user", source = "user_id" },
  { name = "item", source = "item_id" },
  { name = "scenario", source = "scenario" },
  { name = "genres", source = "item.genres", max_values = 3 },
]
numbers = [{ name = "price", source = "item.price" }, { name = "year", source = "item.year" }]
"""


SEQUENCES = """\
  { name = "last_items", source = "recent.item", max_values = 4, share = "item" },
  { name = "last_kinds", source = "recent.kind", max_values = 4 },
  { name = "last_ages", source = "recent.age", max_values = 4 },
]
numbers"""


def settings(objectives: int = 1, **sections: dict[str, Any]) -> config.Config:
    """The small configuration, with settings of sections replaced: `settings(meta={"inner_steps": 3})`."""
    reads_sequences = sections.get("model", {}).get("name") in base.SEQUENTIAL
    out = config.parse(TEXT.replace("]\nnumbers", SEQUENCES) if reads_sequences else TEXT)
    if objectives > 1:
        kinds = tuple(config.Objective(name=f"o{i}", action=f"a{i}") for i in range(objectives))
        out = msgspec.structs.replace(out, objectives=kinds)
    for name, values in sections.items():
        out = msgspec.structs.replace(out, **{name: msgspec.structs.replace(getattr(out, name), **values)})
    return out


def rows(declared: config.Config, generator: np.random.Generator, n: int, user: int, scenario: int) -> tuple[Any, Any, Any]:
    """Random ids (n, F), numbers (n, D) and labels (n, O) of one user in one scenario."""
    width = spec.id_width(declared.features)
    found = generator.integers(0, 60, (n, width)).astype(np.uint64)
    found[:, 0], found[:, 2] = user, scenario
    found[generator.random((n, width)) < 0.3 * (np.arange(width) >= 4)] = ids.PAD
    numbers = (generator.standard_normal((n, len(spec.number_names(declared.features)))) * 3 + 5).astype(np.float32)
    return found, numbers, (generator.random((n, len(declared.objectives))) < 0.5).astype(np.float32)


def minibatch(
    declared: config.Config, seed: int = 0, lists: int = 8, support: int | None = None, scenario: int | None = None
) -> base.Batch:
    """Lists of 1 to 6 rows with 0 to 20 support rows each (or exactly `support`), in three scenarios (or one)."""
    generator = np.random.default_rng(seed)
    n_items, n_support = generator.integers(1, 7, lists), generator.integers(0, 21, lists)
    if support is not None:
        n_support[:] = support
    scenarios = generator.integers(0, 3, lists) if scenario is None else np.full(lists, scenario)
    users = generator.integers(0, 5, lists)
    query = [rows(declared, generator, n, u, s) for n, u, s in zip(n_items, users, scenarios, strict=True)]
    known = [rows(declared, generator, n, u, s) for n, u, s in zip(n_support, users, scenarios, strict=True)]
    q, s = ([np.concatenate(part) for part in zip(*parts, strict=True)] for parts in (query, known))
    weight = generator.random(q[2].shape).astype(np.float32) + np.float32(0.5)
    return base.Batch(q[0], q[1], q[2], weight, scenarios.astype(np.uint64), n_items, n_support, *s)


def alone(batch: base.Batch, lists: list[int]) -> base.Batch:
    """The same minibatch with only these lists."""
    take, known = ([np.repeat(np.isin(np.arange(len(n)), lists), n)] for n in (batch.n_items, batch.n_support))
    rows_, s_rows = take[0], known[0]
    return base.Batch(
        batch.ids[rows_], batch.x[rows_], batch.label[rows_], batch.weight[rows_], batch.scenario[lists], batch.n_items[lists],
        batch.n_support[lists], batch.s_ids[s_rows], batch.s_x[s_rows], batch.s_label[s_rows],
    )  # fmt: skip
