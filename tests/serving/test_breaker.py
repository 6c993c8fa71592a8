import hypothesis
from hypothesis import strategies as st

from serving.breaker import Breaker


def opened(at: float = 0.0, failures: int = 3, open_s: float = 2.0) -> Breaker:
    breaker = Breaker(failures, open_s)
    for _ in range(failures):
        assert breaker.admits(at)
        breaker.failed(at)
    return breaker


def test_it_opens_after_the_allowed_failures_in_a_row_and_not_before() -> None:
    breaker = Breaker(3, 2.0)
    for _ in range(2):
        breaker.failed(0.0)
    assert breaker.admits(0.0)
    breaker.failed(0.0)
    assert not breaker.admits(0.1)


def test_a_success_forgets_earlier_failures() -> None:
    breaker = Breaker(2, 2.0)
    breaker.failed(0.0)
    breaker.succeeded()
    breaker.failed(0.0)
    assert breaker.state(0.0) == "closed"


def test_half_open_lets_exactly_one_probe_through() -> None:
    breaker = opened()
    assert not breaker.admits(1.9)
    assert breaker.admits(2.0)
    assert not breaker.admits(2.0)


def test_a_failed_probe_opens_it_for_the_whole_time_again() -> None:
    breaker = opened()
    assert breaker.admits(2.0)
    breaker.failed(2.5)
    assert not breaker.admits(4.4)
    assert breaker.admits(4.5)


def test_a_probe_that_succeeds_closes_it() -> None:
    breaker = opened()
    assert breaker.admits(2.0)
    breaker.succeeded()
    assert all(breaker.admits(2.0) for _ in range(5))


def test_an_abandoned_probe_makes_room_for_another() -> None:
    breaker = opened()
    assert breaker.admits(2.0)
    breaker.abandoned()
    assert breaker.admits(2.0)


@hypothesis.given(st.lists(st.sampled_from(["ok", "bad", "gone", "wait"]), max_size=60), st.integers(1, 4))
def test_it_is_never_stuck_open(steps: list[str], failures: int) -> None:
    breaker, now = Breaker(failures, 1.0), 0.0
    for step in steps:
        now += 0.4
        if step != "wait" and breaker.admits(now):
            if step == "bad":
                breaker.failed(now)
            else:
                {"ok": breaker.succeeded, "gone": breaker.abandoned}[step]()
    assert breaker.admits(now + 1.0)
