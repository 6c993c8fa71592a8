import numpy as np
import pytest

from models.cross_entropy import cross_entropy


def test_cross_entropies_and_sigmoids_are_right_to_the_last_places_at_both_ends() -> None:
    logit = np.linspace(-60, 60, 6_004).astype(np.float32).reshape(-1, 2)
    label = np.tile(np.array([0, 1], np.float32), (len(logit), 1))
    chance, entropy = np.empty_like(logit), np.empty(logit.size, np.float32)
    cross_entropy(logit, label, chance, entropy)
    exact = logit.astype(np.float64)
    assert chance == pytest.approx(1 / (1 + np.exp(-exact)), rel=1e-6)
    wanted = np.logaddexp(0, exact) - exact * label
    assert entropy.reshape(logit.shape) == pytest.approx(wanted, rel=1e-6, abs=1e-5)


def test_what_is_no_number_has_no_cross_entropy() -> None:
    logit, label = np.array([np.nan, 1.0], np.float32), np.zeros(2, np.float32)
    chance, entropy = np.empty(2, np.float32), np.empty(2, np.float32)
    cross_entropy(logit, label, chance, entropy)
    assert np.isnan([chance[0], entropy[0]]).all()
    assert np.isfinite([chance[1], entropy[1]]).all()
