import pytest

from streams import event_time

IDLE, NOW = 1_000, 1_700_000_000_000


def clock() -> event_time.Clock:
    return event_time.Clock(IDLE, NOW)


def test_the_watermark_is_that_of_the_input_that_is_behind() -> None:
    c = clock()
    c.show(NOW - 100, NOW)
    c.act(NOW - 500, NOW)
    assert c.watermark(NOW, impressions_caught_up=True, clicks_caught_up=False) == NOW - 500


def test_clicks_that_are_caught_up_hold_nothing_back() -> None:
    c = clock()
    c.show(NOW - 100, NOW)
    assert c.watermark(NOW, impressions_caught_up=False, clicks_caught_up=False) == event_time.NEVER
    assert c.watermark(NOW, impressions_caught_up=False, clicks_caught_up=True) == NOW - 100


def test_a_silent_partition_moves_on_with_wall_time_and_one_that_is_behind_does_not() -> None:
    c = clock()
    c.show(NOW - 100, NOW)
    later = NOW + 5_000
    assert c.watermark(later, impressions_caught_up=False, clicks_caught_up=True) == NOW - 100
    assert c.watermark(NOW + IDLE - 1, impressions_caught_up=True, clicks_caught_up=True) == NOW - 100
    assert c.watermark(later, impressions_caught_up=True, clicks_caught_up=True) == NOW - 100 + 5_000


def test_a_partition_that_never_had_an_event_has_no_watermark() -> None:
    assert clock().watermark(NOW + 60_000, impressions_caught_up=True, clicks_caught_up=True) == event_time.NEVER


def test_an_event_from_the_future_does_not_move_the_watermark_beyond_now() -> None:
    c = clock()
    c.show(NOW + 80_000_000, NOW)
    assert c.watermark(NOW, impressions_caught_up=True, clicks_caught_up=True) == NOW


def test_the_watermark_never_moves_back() -> None:
    c = clock()
    c.show(NOW - 100, NOW)
    c.watermark(NOW, impressions_caught_up=True, clicks_caught_up=True)
    c.act(NOW - 900, NOW)
    assert c.watermark(NOW, impressions_caught_up=True, clicks_caught_up=False) == NOW - 100


def test_an_action_is_due_when_the_lists_up_to_its_time_are_stamped_or_none_can_be_expected() -> None:
    c = clock()
    c.show(NOW - 100, NOW)
    assert c.is_due(NOW - 100, NOW, NOW, caught_up=False)
    assert not c.is_due(NOW - 99, NOW, NOW + 60_000, caught_up=False)
    assert not c.is_due(NOW - 99, NOW, NOW + IDLE - 1, caught_up=True)
    assert c.is_due(NOW - 99, NOW, NOW + IDLE, caught_up=True)


def test_a_partition_is_in_sight_after_the_idle_timeout_without_a_break() -> None:
    sight = event_time.Sight(IDLE)
    assert not sight.holds("clicks", NOW, NOW)
    assert not sight.holds("clicks", NOW + IDLE - 1, NOW + IDLE - 1)
    assert sight.holds("clicks", NOW + IDLE, NOW + IDLE)
    assert not sight.holds("impressions", NOW + IDLE, NOW + IDLE)


@pytest.mark.parametrize("looks", [[1, 2, 3, 4, 5, 6], [6]], ids=["brokers away", "nobody looked"])
def test_after_an_outage_the_idle_timeout_begins_anew_for_what_producers_held_back(looks: list[int]) -> None:
    sight, fetched = event_time.Sight(IDLE), NOW + IDLE
    assert not sight.holds("clicks", NOW, NOW)
    assert sight.holds("clicks", fetched, fetched)
    for seconds in looks:
        sight.holds("clicks", fetched, fetched + 1_000 * seconds)
    back = fetched + 6_000
    assert not sight.holds("clicks", back, back)
    assert not sight.holds("clicks", back + IDLE - 1, back + IDLE - 1)
    assert sight.holds("clicks", back + IDLE, back + IDLE)


def test_a_new_assignment_begins_anew() -> None:
    sight = event_time.Sight(IDLE)
    sight.holds("clicks", NOW, NOW)
    sight.forget()
    assert not sight.holds("clicks", NOW + IDLE, NOW + IDLE)
