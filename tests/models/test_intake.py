import numpy as np
import pytest

from learner import step
from models import base, intake, modes, supports
from tests import minibatches


def entered(trainer: step.Trainer, batch: base.Batch, code: int = modes.ON) -> intake.Entered:
    query = intake.Query(batch.ids, batch.x, trainer.table.map.find(batch.ids), trainer.slots.find(batch.ids[:, 2]))
    codes = np.full(len(batch.n_items), code, np.int64)
    return intake.enter(batch, query, codes, trainer.settings.meta, trainer.table, trainer.slots, 2, learn=False)


@pytest.mark.parametrize("moments", ["shared", "scenario"])
def test_one_call_reads_what_look_up_and_gather_read_one_after_the_other(moments: str) -> None:
    settings = minibatches.settings(2, model={"moments": moments})
    trainer = step.Trainer(settings)
    for i in range(3):
        trainer.step(minibatches.minibatch(settings, i), i)
    batch = minibatches.minibatch(settings, 1)
    known = batch._replace(
        s_ids=np.concatenate([batch.ids[:3], batch.s_ids[3:]]), s_x=np.concatenate([batch.x[:3], batch.s_x[3:]])
    )
    found, meta = entered(trainer, known), settings.meta
    wanted = supports.distinct(known, np.full(len(known.n_items), modes.ON), meta.min_support, meta.support_rows)
    assert all(np.array_equal(getattr(found.found, n), getattr(wanted, n)) for n in ("rows", "place", "taken", "extra", "at"))
    assert 0 < len(wanted.extra) < len(wanted.rows)
    ids, x = (np.concatenate([a, b[wanted.extra]]) for a, b in ((known.ids, known.s_ids), (known.x, known.s_x)))
    slot, rows = trainer.slots.find(ids[:, 2]), trainer.table.map.find(ids)
    out = np.empty((len(ids), trainer.table.row), np.float32)
    trainer.table.gather(rows, x, slot, out)
    assert found.inputs.tobytes() == out.tobytes()
    assert found.slot.tolist() == slot.tolist()
    assert found.extra_rows.tolist() == rows[len(known.ids) :].tolist()
    assert found.s_label.tolist() == known.s_label[wanted.rows].tolist()


def test_without_meta_learning_only_the_rows_themselves_enter() -> None:
    settings = minibatches.settings()
    batch = minibatches.minibatch(settings)
    found = entered(step.Trainer(settings), batch, modes.OFF)
    assert len(found.inputs) == len(batch.ids)
    assert not found.found.taken.any()
    assert found.extra_rows.shape == (0, batch.ids.shape[1])
