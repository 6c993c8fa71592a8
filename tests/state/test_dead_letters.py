import pytest

from state import dead_letters


def test_headers_read_back_as_the_same_letter() -> None:
    letter = dead_letters.Letter("late", "üñ 1", "join", "clicks", 3, 77, 1_700_000_000_000)
    assert dead_letters.read_headers(dead_letters.headers(letter)) == letter


@pytest.mark.parametrize("found", [None, [], [("reason", None)], [("other", b"\xff"), ("origin_offset", b"x")]])
def test_foreign_headers_read_as_nothing_known(found: list[tuple[str, bytes | None]] | None) -> None:
    letter = dead_letters.read_headers(found)
    assert (letter.reason, letter.origin_topic, letter.origin_partition, letter.origin_offset) == ("", "", -1, -1)


def test_every_reason_of_a_rejection_is_a_reason_of_a_letter() -> None:
    assert {"malformed", "too_large", "unknown_action", dead_letters.LATE, dead_letters.ORPHAN} <= set(dead_letters.REASONS)
