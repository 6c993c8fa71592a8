"""What meta-learning costs the learner: two loops, with it and without, take turns on the same fetches in one process.

Everything that the learner does between broker and broker is in it: decoding, duplicates, id map, steps, prequential metrics and
drift, the encoding of plan records. What the broker costs is the same for both and left out, which makes the bar stricter.
"""

import time
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from learner import episodes, publishing, rehearsal
from learner.loop import DeadLetter, Loop, Note
from state.config import Config
from thousandfold.bench import report

TARGET = 0.25
TURNS, WARM_SHARE = 24, 0.25
LISTS = 20_000
"""Of a larger preload only so many are used."""


class Forgetting:
    """A durable log that keeps nothing."""

    def write(self, record: bytes, letters: Sequence[DeadLetter], notes: Sequence[Note] = ()) -> None:
        """Forget all of it."""


def loops(config: Config) -> dict[str, tuple[Loop, rehearsal.MemorySource]]:
    """A loop with first-order MAML and one without, each with a source to be filled; neither publishes nor reports in between."""
    never = msgspec.structs.replace(config.snapshot, every_s=float("inf"), every_steps=0)
    out = {}
    for mode in ("on", "off"):
        settings = msgspec.structs.replace(config, meta=msgspec.structs.replace(config.meta, mode=mode), snapshot=never)
        source = rehearsal.MemorySource()
        publisher = publishing.Publisher(rehearsal.MemoryWriter(), lambda _: None, never)
        out[mode] = Loop(settings, source, Forgetting(), publisher), source
    return out


def seconds(
    config: Config, packed: Sequence[bytes], turns: int = TURNS, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """CPU seconds that each loop takes for each of `turns` parts of the messages, after a first part that fills its table."""
    messages = [episodes.Message(config.topics.episodes, 0, i, None, value) for i, value in enumerate(packed)]
    found, took = loops(config), dict[str, list[float]](on=[], off=[])
    warm = int(WARM_SHARE * len(messages))
    ends = np.linspace(warm, len(messages), turns + 1).astype(int).tolist()
    for turn, (begin, end) in enumerate(zip((0, *ends[:-1]), ends, strict=True)):
        for mode in ("on", "off") if turn % 2 else ("off", "on"):
            loop, source = found[mode]
            source.messages = messages[begin:end]
            began = clock()
            while loop.once():
                pass
            took[mode].append(clock() - began)
    return {mode: times[1:] for mode, times in took.items()}


def cost(config: Config, packed: Sequence[bytes], turns: int = TURNS, say: Callable[[str], None] = print) -> report.Row:
    """The share of its rows per second that the learner loses to meta-learning, as a row of the report.

    Raises:
        ValueError: there are fewer messages than turns need.
    """
    if len(packed) < 2 * turns:
        raise ValueError(f"{len(packed):,} messages are too few for {turns} turns; preload more with --lists")
    took = seconds(config, packed, turns)
    shares = 1.0 - np.array(took["off"]) / np.array(took["on"])
    say(f"meta-learning takes {np.median(shares):.1%} of the learner's rows/s, in memory ({turns} turns, quartiles "
        f"{np.quantile(shares, 0.25):.1%} and {np.quantile(shares, 0.75):.1%})")  # fmt: skip
    return report.row("learner/maml_cost", float(np.median(shares)), "of the rows/s without", better="lower", target=TARGET)
