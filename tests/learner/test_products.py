from collections.abc import Iterator

import pytest
import torch

from learner import products
from tests import minibatches


@pytest.fixture(autouse=True)
def flag() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("faster", "error", "wanted"), [(2.0, 1e-7, "onednn"), (1.05, 1e-7, "mkl"), (0.5, 1e-7, "mkl"), (2.0, 1e-3, "mkl")]
)
def test_onednn_is_chosen_where_it_is_clearly_faster_and_as_exact(faster: float, error: float, wanted: str) -> None:
    measured: dict[products.Library, products.Measured] = {
        "mkl": products.Measured(faster, 1e-7), "onednn": products.Measured(1.0, error),
    }  # fmt: skip
    assert products.choose(measured) == wanted


def test_measuring_leaves_the_flag_and_sees_errors_of_float32() -> None:
    torch.set_float32_matmul_precision("highest")
    measured = products.measure([3, 5], [(6, 4)])
    assert torch.get_float32_matmul_precision() == "highest"
    assert set(measured) == {"mkl", "onednn"}
    assert 0 <= measured["mkl"].error < 1e-5
    assert measured["mkl"].seconds > 0


@pytest.mark.parametrize(("named", "precision"), [("mkl", "highest"), ("onednn", "medium")])
def test_a_library_that_is_named_is_taken_without_measuring(named: str, precision: str) -> None:
    def clock() -> float:
        raise AssertionError

    assert products.apply(minibatches.settings(learner={"products": named}), 20, clock) == named
    assert torch.get_float32_matmul_precision() == precision


def test_auto_measures_what_the_learner_will_do() -> None:
    ticks = iter(float(i) for i in range(1000))
    settings = minibatches.settings(learner={"rows_per_step": 4})
    # Every measurement takes one tick, so neither is faster.
    assert products.apply(settings, 20, lambda: next(ticks)) == "mkl"
    assert next(ticks) == 2.0 * products.ROUNDS * len(products.PRECISION)
    assert len(set(products.row_counts(4, vary=True))) > 1
    assert set(products.row_counts(4, vary=False)) == {4}
