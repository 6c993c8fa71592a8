"""The continuous learner: fetch, plan, score, train, measure, publish.

Everything that touches the world comes in: a source of messages, a durable log for plan records and dead letters, a publisher of
snapshots, a clock. A fetch is planned in one durable record before any of its steps runs; snapshots are taken between fetches, so
their offsets are exactly what was trained.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from learner import episodes, measures, meta_inputs, policy, publishing, reports, seen, slot_watch
from learner.episodes import Message
from learner.prequential import VARIANTS
from learner.step import Trainer
from state import config, control, dead_letters, plan, snapshots, spec
from state.snapshots import Manifest

log = logging.getLogger(__name__)
STAGE = "learner"
Arrays = Mapping[str, npt.NDArray[Any]]


class Source(Protocol):
    """Where messages come from: those of `episodes`, and switches from `control`."""

    def fetch(self, limit: int, deadline_s: float) -> list[Message]:
        """Up to `limit` messages, waiting at most `deadline_s` for them; and every switch that has come, at once."""

    def lag(self) -> dict[tuple[str, int], int]:
        """Messages not fetched yet, by (topic, partition)."""


class DeadLetter(NamedTuple):
    """A message that cannot be trained on, and why."""

    message: Message
    letter: dead_letters.Letter


Note = tuple[bytes, bytes]
"""Key and value of a record for `control`."""


class Log(Protocol):
    """Where plan records, dead letters and decisions go."""

    def write(self, record: bytes, letters: Sequence[DeadLetter], notes: Sequence[Note] = ()) -> None:
        """Write all or nothing; durable when it returns."""


class Fetched(NamedTuple):
    """What a fetch holds: lists and the messages that they came from, switches in order, and what could not be used."""

    lists: episodes.Lists
    usable: list[Message]
    switches: list[control.Switch]
    letters: list[DeadLetter]
    skipped: list[plan.Skip]


class Clock(NamedTuple):
    """Wall time in ms for records, monotonic seconds for intervals."""

    wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    monotonic_s: Callable[[], float] = time.monotonic


class Origin(NamedTuple):
    """What runs: the code's version, and the wall ms at which this process started."""

    code: str = ""
    incarnation: int = 0


def layout_of(settings: config.Config) -> episodes.Layout:
    """What this configuration's episodes look like."""
    features = settings.features
    fingerprint = spec.fingerprint(features, settings.action_kinds)
    width, numbers = spec.id_width(features), len(spec.number_names(features))
    return episodes.Layout(fingerprint, width, numbers, len(settings.objectives), settings.objectives)


class Loop:
    """The learner's whole state and the round that moves it on."""

    def __init__(
        self, settings: config.Config, source: Source, plans: Log, publisher: publishing.Publisher,
        clock: Clock | None = None, origin: Origin | None = None, support_store: meta_inputs.Store | None = None,
    ) -> None:  # fmt: skip
        """`support_store` is where meta inputs go, if the configuration wants them kept."""
        self._settings, self._source, self._log, self._publisher = settings, source, plans, publisher
        self._clock, self._origin = clock or Clock(), origin or Origin()
        self._layout = layout_of(settings)
        self.trainer = Trainer(settings)
        self.seen = seen.Seen(settings.learner.dedup_rows)
        self.measures = measures.Measures(settings)
        self._slot_watch = slot_watch.SlotWatch(settings.scenarios.max_shown)
        self.keeper: meta_inputs.Keeper | None = None
        if support_store is not None:
            self.keeper = meta_inputs.Keeper(settings, self.trainer, support_store, self._origin.incarnation)
        self.offsets: dict[tuple[str, int], int] = {}
        self.step = self.sequence = self.trained_rows = 0
        self._unreported: list[plan.Skip] = []
        self.counts = reports.Counts()
        self._reporter = reports.Reporter(self.measures.figures, self.measures.explored)
        self.report = reports.Report()
        self._mark_s = self._clock.monotonic_s()

    def load(self, manifest: Manifest, arrays: Arrays) -> None:
        """Take over a snapshot; `arrays` are those of both parts.

        Raises:
            config.ConfigError: it was made with another feature spec or model; nothing was changed.
            ValueError: as `Trainer.load`.
        """
        for what, found, own in (
            ("feature spec", manifest.spec, self._layout.spec),
            ("model", manifest.model, self._settings.model.name),
        ):
            if found != own:
                raise config.ConfigError(
                    f"snapshot.directory: {manifest.directory} holds snapshots of another {what} ({found}; the configuration's "
                    f"is {own}); name another folder, or go back to the configuration that made them"
                )
        groups: dict[str, dict[str, npt.NDArray[Any]]] = defaultdict(dict)
        for name, array in arrays.items():
            group, slash, rest = name.rpartition("/")
            groups[group if slash else ""][rest] = array
        self.trainer.load(groups[""])
        self.seen.load(groups["seen"])
        self.measures.load(groups, self.trainer.modes)
        if self.keeper is not None and groups["meta_inputs"]:
            self.keeper.load(groups[""], groups["meta_inputs"])
        self.offsets = {(topic, partition): offset for topic, partition, offset in manifest.offsets}
        self.step, self.sequence, self.trained_rows = manifest.step, manifest.sequence, manifest.trained_rows
        self._unreported = list(manifest.skipped)
        self._publisher.resume(manifest, self._clock.monotonic_s())

    def once(self) -> bool:
        """One round: fetch, plan, switch, train, measure; then publish and report if due. Returns whether there was input."""
        learner = self._settings.learner
        self._mark_s = self._clock.monotonic_s()
        messages = self._source.fetch(learner.fetch_messages, learner.deadline_ms / 1000)
        self._spent("fetch")
        self._publisher.collect()
        if messages:
            self._consume(sorted(messages, key=lambda m: (m.topic, m.partition, m.offset)))
        now_s = self._clock.monotonic_s()
        if self._publisher.due(now_s, self.step, self.sequence):
            self.publish()
        if self._reporter.due(now_s):
            self._report(now_s)
        return bool(messages)

    def stop(self, timeout_s: float = 60.0) -> None:
        """Leave a snapshot of everything trained, announced, and name in the plan what no record has named yet."""
        if self._unreported:
            self._plan((), (), 0, 0, ())
        self._publisher.collect(timeout_s)
        newest = self._publisher.newest
        if newest is None or newest.sequence != self.sequence:
            self.publish()
            self._publisher.collect(timeout_s)

    def publish(self) -> None:
        """Hand a snapshot of the whole state to the publisher."""
        self._mark_s = self._clock.monotonic_s()
        newest = self._publisher.newest
        if self.keeper is not None:
            self.keeper.measure(self.step)
        manifest = Manifest(
            version="", directory="", files={}, step=self.step, spec=self._layout.spec, model=self._settings.model.name,
            # Versions sort by time: a clock that was set back must not make the newest snapshot look old.
            created_ms=max(self._clock.wall_ms(), newest.created_ms + 1 if newest else 0),
            offsets=tuple((topic, partition, offset) for (topic, partition), offset in sorted(self.offsets.items())),
            trained_rows=self.trained_rows, sequence=self.sequence, skipped=tuple(self._unreported),
            seed=self._settings.learner.seed, threads=self._settings.learner.threads, code=self._origin.code,
        )  # fmt: skip
        self._publisher.publish(manifest, self.parts(), self._mark_s)
        self._spent("snapshot")

    def parts(self) -> dict[str, dict[str, npt.NDArray[Any]]]:
        """The whole state by part of a snapshot, as views."""
        model = self.trainer.arrays()
        serving = {name: model.pop(name) for name in self.trainer.serving_names}
        groups = {"seen": self.seen.arrays()} | self.measures.arrays()
        if self.keeper is not None:
            serving |= self.keeper.serving()
            groups["meta_inputs"] = self.keeper.arrays()
        training = model | {f"{group}/{name}": array for group, arrays in groups.items() for name, array in arrays.items()}
        return {snapshots.SERVING: serving, snapshots.TRAINING: training}

    def _consume(self, messages: list[Message]) -> None:
        lists, usable, switches, letters, skipped = self._decode(messages)
        fresh = self.seen.add(seen.keys_of(*(lists.columns[name] for name in ("request", "task", "version"))))
        places = np.flatnonzero(~fresh)
        skipped += [_skip(usable, lists, i, plan.DUPLICATE) for i in places.tolist()]
        self.counts.duplicates += len(places)
        kept = episodes.keep(lists, fresh)
        clip = self._settings.learner.propensity_clip
        steps = list(episodes.minibatches(kept, self._settings.learner.rows_per_step, clip))
        self.counts.propensities.update(episodes.propensities(kept, clip))
        self._spent("decode")
        decided = self.measures.policy.differing(self.trainer.modes.granted)
        self._plan(self._ranges(messages), skipped, len(steps), kept.rows, letters, switches, decided)
        for key, state in decided:
            self.trainer.modes.grant(key, state.on)
            log.info("auto: %s is %s from step %d on", state.name, "adapted" if state.on else "not adapted", self.step + 1)
        for switch in switches:
            self.trainer.set_meta(None if switch.scenario == control.EVERY else switch.scenario, switch.mode)
            log.info("meta-learning of %s is %s from step %d on", switch.scenario, switch.mode, self.step + 1)
        if switches:
            self.measures.keep_automatic(self.trainer.modes)
        self._spent("plan")
        scores = np.full((len(VARIANTS), kept.rows, self.trainer.model.objectives), np.nan, np.float32)
        for minibatch in steps:
            self._train(minibatch, scores, kept, usable)
        self._slot_watch.see(self.trainer.without_slot(kept.columns["scenario"]), self.trainer.room, kept.scenarios)
        if self.trainer.catalogue is not None:
            self.trainer.catalogue.name(kept.items)
        self._spent("step")
        if self.keeper is not None:
            self.keeper.put(kept)
            self.counts.support_rows, self.counts.support_failures = self.keeper.rows, self.keeper.failures
            self.counts.foreign_supports = self.keeper.foreign
            self._spent("supports")
        stops = [minibatch.stop for minibatch in steps]
        self.counts.drift.update(self.measures.update(kept, scores, stops, self.trainer.modes, self._spent))

    def _decode(self, messages: list[Message]) -> Fetched:
        decoded, usable, switches, letters, skipped = [], [], [], [], []
        for message in messages:
            try:
                if message.topic == self._settings.topics.control:
                    if control.is_decision(message.key):
                        continue
                    switches.append(control.decode(message.value))
                else:
                    decoded.append(episodes.decode(message.value, self._layout))
                    usable.append(message)
            except (episodes.Refused, control.Malformed) as refused:
                at = (message.topic, message.partition, message.offset)
                letter = dead_letters.Letter(refused.reason, refused.detail, STAGE, *at, self._clock.wall_ms())
                letters.append(DeadLetter(message, letter))
                skipped.append((*at, plan.WHOLE_MESSAGE, refused.reason))
                self.counts.dead_letters[refused.reason] += 1
                log.warning("%s-%d offset %d goes to dead-letters: %s", *at, refused)
        return Fetched(episodes.merge(decoded, self._layout), usable, switches, letters, skipped)

    def _ranges(self, messages: list[Message]) -> tuple[plan.Range, ...]:
        """[topic, partition, from, to) of a sorted fetch, from where the last one ended; moves `offsets` on."""
        ends = {(m.topic, m.partition): m.offset + 1 for m in messages}
        starts: dict[tuple[str, int], int] = {}
        for m in messages:
            starts.setdefault((m.topic, m.partition), m.offset)
        found = []
        for key, end in ends.items():
            start = min(self.offsets.get(key, starts[key]), starts[key])
            if start < self.offsets.get(key, start):
                log.warning(
                    "%s-%d went back from offset %d to %d: the broker lost its newest records", *key, self.offsets[key], start
                )
            found.append((*key, start, end))
        self.offsets |= ends
        return tuple(found)

    def _plan(
        self, ranges: tuple[plan.Range, ...], skipped: Sequence[plan.Skip], steps: int, rows: int, letters: Sequence[DeadLetter],
        switches: Sequence[control.Switch] = (), decided: Sequence[tuple[int, policy.Scenario]] = (),
    ) -> None:  # fmt: skip
        learner, now_ms = self._settings.learner, self._clock.wall_ms()
        record = plan.Record(
            sequence=self.sequence, incarnation=self._origin.incarnation, first_step=self.step + 1, last_step=self.step + steps,
            wall_ms=now_ms, ranges=ranges, skipped=(*self._unreported, *skipped), rows=rows,
            seed=learner.seed, threads=learner.threads, code=self._origin.code, spec=self._layout.spec,
            switches=tuple((switch.scenario, switch.mode) for switch in switches),
            decisions=tuple((state.name, key, state.on) for key, state in decided),
        )  # fmt: skip
        notes = [
            control.Decision(scenario=s.name, on=s.on, first_step=self.step + 1, sequence=self.sequence, wall_ms=now_ms)
            for _, s in decided
        ]
        self._log.write(plan.encode(record), letters, [control.encode_decision(note) for note in notes])
        self.sequence += 1
        self._unreported = []

    def _train(
        self, minibatch: episodes.Minibatch, scores: npt.NDArray[np.float32], lists: episodes.Lists, usable: list[Message]
    ) -> None:
        said = self.trainer.step(minibatch.batch, minibatch.now_ms)
        self.step += 1
        scores[0, minibatch.start : minibatch.stop] = said.adapted
        scores[1, minibatch.start : minibatch.stop] = said.unadapted
        if said.diverged:
            self.counts.diverged += said.diverged
            log.warning("step %d: the adaptation of %d lists diverged; lower meta.inner_rate", self.step, said.diverged)
        if said.skipped:
            self.counts.skipped_steps[said.skipped] += 1
            self._unreported += [_skip(usable, lists, i, plan.GUARD) for i in range(minibatch.first, minibatch.last)]
            log.warning("step %d skipped: %s", self.step, said.skipped)
        else:
            self.trained_rows += minibatch.stop - minibatch.start

    def _spent(self, stage: str) -> None:
        now_s = self._clock.monotonic_s()
        self.counts.seconds[stage] += now_s - self._mark_s
        self._mark_s = now_s

    def _report(self, now_s: float) -> None:
        self._mark_s = now_s
        newest = self._publisher.newest
        self.report = self._reporter.report(
            self.counts,
            step=self.step,
            trained_rows=self.trained_rows,
            snapshot=(newest.step, newest.created_ms / 1000) if newest else (0, 0.0),
            snapshot_failures=self._publisher.failures,
            lag=self._source.lag(),
            embedding_rows=self.trainer.table.map.admitted,
            items=reports.items(self.trainer.catalogue),
            meta=self.trainer.modes,
            auto=self.measures.policy.judged(),
            room=self.trainer.room,
            engine=self.trainer.choice,
        )
        self._reporter.took(now_s, self._clock.monotonic_s())
        self._spent("report")


def _skip(usable: list[Message], lists: episodes.Lists, i: int, reason: str) -> plan.Skip:
    message = usable[int(lists.source[i])]
    return message.topic, message.partition, message.offset, int(lists.place[i]), reason
