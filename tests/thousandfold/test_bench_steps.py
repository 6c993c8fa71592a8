import numpy as np

from thousandfold.bench import quality, steps


def test_steps_hold_every_row_once_with_supports_from_before_and_every_variant_has_a_rate() -> None:
    config = steps.settings("simulate")
    log = quality.open_log(config, "simulate", None, 2000)
    made = steps.steps(config, log)
    assert sum(len(s.batch.ids) for s in made) == log.rows
    assert all(len(s.batch.ids) <= config.learner.rows_per_step for s in made if len(s.batch.n_items) > 1)
    assert sum(int(np.sum(s.batch.n_support)) for s in made) > 100
    said: list[str] = []
    rows = steps.run("simulate", 2000, 1, said.append)
    assert [r.id for r in rows] == ["steps/native", "steps/torch", "steps/native/maml_cost", "steps/torch/maml_cost"]
    assert all(r.value and r.value > 0 for r in rows)
    assert [r.target for r in rows] == [150_000, 40_000, 4 / 3, None]
    assert "whole step" in said[-1]
