import msgspec
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models import base, embedding, registry
from state.config import Config
from thousandfold.bench import fma, training, training_peers

SMALL = training_peers.Size((*[40] * 19, 3), 16, 2, (16, 8), (16, 8), 4, 3, 2)


def products(settings: Config, rows: int) -> int:
    """Multiply-adds of a forward and a backward pass of the model, counted by torch."""
    model, g = registry.build(settings), base.geometry(settings)
    parameters = {n: t.requires_grad_() for n, t in base.views(model.initial(0), model.shapes).items()}
    x = torch.randn(rows, g.row).requires_grad_()
    with FlopCounterMode(display=False) as counted:
        meta = model.trunk(parameters, base.Inputs(x, torch.ones(rows, dtype=torch.int64), torch.ones(rows)))
        fast = {name: parameters[name] for name in model.fast_parameters()}
        model.tower(fast, meta).sum().backward()  # type: ignore[no-untyped-call]
    return int(counted.get_total_flops()) // 2


def test_multiply_adds_of_pepnet_are_those_that_torch_counts_where_no_gradient_is_stopped() -> None:
    settings = training.settings("pepnet", SMALL)
    free = msgspec.structs.replace(settings, model=msgspec.structs.replace(settings.model, stop_gradient=False))
    g, model = base.geometry(settings), settings.model
    seen = (g.dense - g.width) * model.gate_hidden
    personal = g.dense * len(model.hidden) * g.objectives * model.gate_hidden
    output = 3 * g.objectives * model.hidden[-1]
    # Torch multiplies the output layer number by number; of what gates read, gradients are counted only where they pass.
    assert fma.pepnet(settings) + seen + personal - output == products(free, 8) / 8


def test_multiply_adds_of_mmoe_are_those_that_torch_counts_without_what_scenarios_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.side_by_side.usable", lambda *_: False)
    monkeypatch.setattr("models.parts.NARROW", 0)
    settings = training.settings("mmoe", SMALL)
    g, model = base.geometry(settings), settings.model
    output = 3 * model.hidden[-1] * g.objectives
    owned = 3 * g.objectives * (g.dense * model.experts + model.expert_hidden[-1] * model.hidden[-1])
    assert fma.mmoe(settings) + owned - output == products(settings, 12) / 12


def test_the_peak_is_positive_and_native_loops_return_a_finite_number() -> None:
    assert np.isfinite([fma.eight(100), fma.sixteen(100)]).all()
    assert fma.peak(0.001) > 1e6


def test_no_chain_of_the_peak_stands_still_where_a_compiler_would_leave_it_out() -> None:
    left = sum(1 + (start - 1) * 0.999 for start in range(1, fma.CHAINS + 1))
    for lanes, run in zip(fma.LANES, (fma.eight, fma.sixteen), strict=True):
        assert run(1) == pytest.approx(lanes * (left + fma.CHAINS * 0.999), rel=1e-5)


def test_ratios_are_medians_of_what_each_round_gave() -> None:
    timing = training.Timing({"slow": [4.0, 9.0, 1.0], "fast": [2.0, 3.0, 4.0]}, [10.0, 20.0, 40.0])
    assert timing.ratio("slow", "fast") == 2.0
    assert timing.share("fast", 20.0) == pytest.approx(1 / 3)


def test_a_peer_that_is_not_installed_has_no_value_and_does_not_miss() -> None:
    steps = training.Timing({m: [1.0] for m in ("pepnet", "mmoe", "naive_torch/pepnet", "naive_torch/mmoe")}, [1e9])
    updates = training.Timing({"ours": [1.0], "per_field": [30.0]}, [1e9])
    rows = {r.id: r for r in training.rows_of(steps, updates, {"pepnet": 1000, "mmoe": 1000}, 1024, 1)}
    absent = rows["training/embedding/fbgemm"]
    assert (absent.value, absent.unit, absent.passed) == (None, "not installed", None)
    assert rows["training/embedding/per_field"].passed is True
    assert rows["training/mmoe/naive_torch"].passed is False
    assert rows["training/mmoe/floor"].value == pytest.approx(1000 * 1024 / 1e9 * 1e3)


def test_every_candidate_takes_its_turn_in_every_round() -> None:
    steps, updates = training.candidates(SMALL, 1, 32, 2)
    timing = training.measure(steps | updates, 2, 1e-4)
    assert {"pepnet", "mmoe", "naive_torch/pepnet", "naive_torch/mmoe", "ours", "per_field"} <= timing.seconds.keys()
    assert all(len(s) == 2 and min(s) > 0 for s in timing.seconds.values())
    assert len(timing.peak) == 2


def test_our_embedding_update_is_adagrad_on_the_sum_of_each_row_s_gradients() -> None:
    made = training.minibatches(SMALL, 64, 1)
    settings = training.settings("pepnet", SMALL)
    table = embedding.Table(settings)
    training.fill(table, SMALL)
    rows = table.admit(made[0].ids.numpy().astype(np.uint64), training.START_MS)
    assert len(np.unique(rows)) < rows.size
    slope = np.random.default_rng(0).normal(size=(64, table.row)).astype(np.float32)
    wanted, squares = table.table.astype(np.float64), table.accumulator.astype(np.float64)
    total = np.zeros_like(wanted)
    np.add.at(total, rows, np.concatenate([slope[:, :320].reshape(64, 20, 16), slope[:, 320:, None]], 2))
    there = np.unique(rows)
    squares[there] += np.stack([(total[there, :16] ** 2).mean(1), total[there, 16] ** 2], 1)
    by = settings.optimizer.embedding_rate / (np.sqrt(squares[there]) + 1e-8)
    wanted[there] -= total[there] * np.concatenate([np.repeat(by[:, :1], 16, 1), by[:, 1:]], 1)
    table.descend(rows, slope)
    np.testing.assert_allclose(table.table, wanted, atol=1e-6)
    np.testing.assert_allclose(table.accumulator, squares, rtol=1e-4, atol=1e-8)


def test_candidates_read_the_same_skewed_rows() -> None:
    first, again = training.minibatches(SMALL, 200, 2), training.minibatches(SMALL, 200, 2)
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(first, again, strict=True))
    ids = first[0].ids.numpy()
    assert (ids < np.array(SMALL.rows)).all()
    assert (ids[:, -1] == first[0].scenario.numpy()).all()
    assert np.bincount(ids[:, 0]).max() > 200 / 40 * 3
    assert (training.batch(first[0]).ids == ids).all()
