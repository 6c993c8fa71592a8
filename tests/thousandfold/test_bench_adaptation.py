import pytest
import torch

from thousandfold.bench import adaptation
from thousandfold.bench import adaptation_peers as peers


@pytest.mark.parametrize("steps", [1, 3])
def test_every_way_computes_the_same_gradients_of_its_order(steps: int) -> None:
    given, start = peers.tasks(12), peers.parameters()
    ways = {name: way(given, start, steps) for name, way in adaptation.WAYS.items()}
    assert adaptation.apart(ways["first_order"], ways["vmap_first_order"]) < 1e-5
    assert adaptation.apart(ways["first_order"], ways["loop"]) < 1e-5
    assert adaptation.apart(ways["second_order"], ways["vmap_second_order"]) < 1e-5
    assert adaptation.apart(ways["first_order"], ways["second_order"]) > 1e-3
    assert [g.shape for g in ways["loop"]()] == [torch.Size(shape) for shape in peers.SHAPES.values()]


def test_the_report_has_a_row_for_every_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptation, "_peak_elsewhere", lambda way, count: {"first_order": 10.0}.get(way, 0.01 * count))
    rows = {r.id.removeprefix("adaptation/"): r for r in adaptation.run(8, 4000, 1, lambda _: None)}
    assert {name: r.target for name, r in rows.items() if r.target is not None and not name.endswith("gradient")} == {
        "first_order/1_step/speed": 5.0, "first_order/3_steps/speed": 4.0, "second_order/1_step/speed": 1.8,
        "first_order/1_step/loop": 50.0, "memory": 1 / 3,
    }  # fmt: skip
    assert rows["memory"].value == 0.25
    assert rows["memory"].passed
    assert all(r.passed for name, r in rows.items() if name.endswith("gradient"))


def test_the_peak_of_a_pass_is_told_in_mb() -> None:
    assert 1 < adaptation._peak_elsewhere("vmap_first_order", 1024) < 500
