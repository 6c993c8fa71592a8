"""Switches on the wire."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from state import control


@given(
    st.text(min_size=1).filter(lambda s: s.isprintable()),
    st.sampled_from(["on", "off", "fine_tune_only", "auto"]),
    st.integers(0, 2**62),
)
def test_a_switch_comes_back_as_it_was_written_under_the_key_of_its_scenario(
    scenario: str, mode: control.Mode, wall_ms: int
) -> None:
    switch = control.Switch(scenario=scenario, mode=mode, wall_ms=wall_ms)
    key, value = control.encode(switch)
    assert key.decode() == scenario
    assert control.decode(value) == switch


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (b"", "truncated"),
        (b"\xff", "malformed"),
        (b"[]", "object"),
        (b'{"scenario": "home", "wall_ms": 1}', "mode"),
        (b'{"scenario": "home", "mode": "maybe", "wall_ms": 1}', "maybe"),
        (b'{"scenario": "", "mode": "on", "wall_ms": 1}', "length >= 1"),
        (b'{"scenario": "home", "mode": "on", "wall_ms": 1, "weight": 2}', "weight"),
    ],
)
def test_bytes_that_are_no_switch_are_refused_with_the_reason(value: bytes, problem: str) -> None:
    with pytest.raises(control.Malformed, match=problem) as refused:
        control.decode(value)
    assert refused.value.reason == "malformed"


@given(st.text(min_size=1).filter(lambda s: s.isprintable()), st.booleans())
def test_a_decision_comes_back_under_a_key_that_no_switch_has(scenario: str, on: bool) -> None:
    decision = control.Decision(scenario=scenario, on=on, first_step=3, sequence=2, wall_ms=1)
    key, value = control.encode_decision(decision)
    assert control.is_decision(key)
    assert control.decode_decision(value) == decision
    assert not control.is_decision(control.encode(control.Switch(scenario=scenario, mode="auto", wall_ms=1))[0])
    with pytest.raises(control.Malformed):
        control.decode(value)


def test_bytes_that_are_no_decision_are_refused() -> None:
    with pytest.raises(control.Malformed, match="not a decision"):
        control.decode_decision(b'{"scenario": "home", "on": "perhaps"}')
