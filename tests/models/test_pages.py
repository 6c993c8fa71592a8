import numpy as np

from models import pages


def test_memory_starts_as_zeros_of_the_asked_length_with_and_without_huge_pages() -> None:
    for size in (0, 1, 1000, 300_000):
        found = pages.zeros(size)
        assert found.shape == (size,)
        assert found.dtype == np.float32
        assert not found.any()
        assert found.flags.writeable


def test_matrices_of_an_arena_do_not_overlap_whether_they_fit_or_not() -> None:
    arena = pages.Arena()
    for _ in range(3):
        arena.begin()
        taken = [arena.take(3, 5), arena.take(0, 4), arena.take(7), arena.take(2, 3, 4)]
        assert [part.shape for part in taken] == [(3, 5), (0, 4), (7,), (2, 3, 4)]
        for i, part in enumerate(taken):
            part[:] = i
        assert all((part == i).all() for i, part in enumerate(taken))


def test_an_arena_cuts_the_same_matrices_from_the_same_memory_again() -> None:
    arena = pages.Arena()
    arena.take(100, 50)
    arena.begin()
    first = arena.take(100, 50)
    arena.begin()
    assert np.shares_memory(first, arena.take(100, 50))
