"""A seeded world of users, items and scenarios that knows the true probability of every click.

Its defaults imitate a travel-search log (docs/benchmarks.md): sessions of median 4 lists and 95th percentile 53, lists of 23,
clicks falling with position, three quarters of a day between the quiet and the busy hour, clicks after 132 s in the median.
"""

import math
from collections.abc import Iterator
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from thousandfold.data import blocks

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Share = Annotated[float, Meta(ge=0, le=1)]
Spread = Annotated[float, Meta(ge=0, le=10)]
Count = Annotated[int, Meta(ge=1)]
KINDS = ("click", "view", "save", "search")
START_MS = 1_700_000_000_000
SESSIONS = 256
"""Sessions that start in one block; part of what a seed means."""
FACTORS = 8
"""Of tastes; each further action pairs those of users and items in another order."""
BUSY = 0.55
"""Amplitude of the day: hourly shares from .019 to .065."""


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry point: its share of the sessions, how willing its visitors are (added to the logit), its mean list length.

    `shared` scales what all scenarios have in common (an item's worth, a user's taste) for its visitors: with -1 they like what
    the others do not, so that what is learned elsewhere does harm. `own` scales the scenario's own liking.
    """

    name: str
    share: Annotated[float, Meta(gt=0)]
    bias: float = 0.0
    list_length: Annotated[float, Meta(ge=1, le=500)] = 23.0
    shared: Annotated[float, Meta(ge=-2, le=2)] = 1.0
    own: Annotated[float, Meta(ge=0, le=10)] = 1.0


class Action(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One more thing that visitors do to a row, clicked or not.

    The logit of its probability is `base`, plus `agrees` times what moves the logit of a click (items, tastes, scenario, place;
    so with -1 it happens where clicks do not), plus a taste of its own with the standard deviation `own`, which every scenario
    shares. One that happens by chance alone has 0 in both.
    """

    name: str
    base: float
    agrees: Annotated[float, Meta(ge=-2, le=2)] = 1.0
    own: Spread = 0.0


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that shapes the traffic. Spreads are standard deviations in logits."""

    scenarios: Annotated[tuple[Scenario, ...], Meta(min_length=1)] = (
        Scenario("home", 0.6, -0.2, 24.0),
        Scenario("search", 0.3, 0.5, 28.0),
        Scenario("offers", 0.1, -0.6, 30.0),
    )
    users: Annotated[Count, Meta(description="users known before the first list")] = 2_000
    items: Annotated[Count, Meta(description="items known before the first list")] = 2_000
    new_user_share: Annotated[Share, Meta(description="share of sessions by a user never seen before")] = 0.05
    new_items_per_hour: Annotated[float, Meta(ge=0)] = 20.0
    lists_per_s: Annotated[float, Meta(gt=0, description="mean over a day, in event time")] = 20.0
    session_median: Annotated[float, Meta(ge=1)] = 4.0
    session_p95: Annotated[float, Meta(ge=1)] = 53.0
    session_gap_s: Annotated[float, Meta(gt=0, description="mean time between the lists of a session")] = 40.0
    repeat_share: Annotated[Share, Meta(description="share of rows drawn from what the session saw before")] = 0.35
    base: Annotated[float, Meta(description="logit of a click at the first position")] = -1.8
    position_bias: Annotated[Spread, Meta(description="logits lost per log(1 + position)")] = 1.1
    item_spread: Spread = 0.7
    user_spread: Spread = 0.5
    taste_spread: Annotated[Spread, Meta(description="of user x item, of which half is known by segment and category")] = 0.7
    scenario_spread: Annotated[Spread, Meta(description="of scenario x item: what one scenario's visitors like")] = 0.5
    drift_spread: Annotated[Spread, Meta(description="of the slow change of items and scenarios")] = 0.4
    drift_hours: Annotated[float, Meta(gt=0, description="time after which the change has forgotten e to one")] = 12.0
    delay_median_s: Annotated[float, Meta(ge=0)] = 132.0
    delay_p90_s: Annotated[float, Meta(ge=0)] = 1_378.0
    view_share: Annotated[Share, Meta(description="share of rows that are looked at without a click")] = 0.05
    save_share: Annotated[Share, Meta(description="share of clicks that are followed by a save")] = 0.15
    search_share: Annotated[Share, Meta(description="share of lists after which the user searches (an action without item)")] = (
        0.2
    )
    actions: Annotated[tuple[Action, ...], Meta(max_length=FACTORS - 1, description="what visitors do beside that")] = ()
    duplicate_share: Annotated[Share, Meta(description="share of messages that are sent twice")] = 0.01
    disorder_share: Annotated[Share, Meta(description="share of messages that are held back")] = 0.05
    disorder_ms: Annotated[int, Meta(ge=0, description="longest hold")] = 2_000


class Waiting(NamedTuple):
    """Lists of sessions that have begun: (n,) each, and `pool` (n, p), the items that the session keeps coming back to."""

    user: I64
    scenario: I64
    at_ms: I64
    pool: I64


class Simulator:
    """An endless log: `events()` yields it, `world` says what its codes mean. Same settings and seed, same log.

    Not a pure function because the world grows: users and items arrive, and their attributes are appended to `world`.
    """

    CATEGORIES, SEGMENTS, POOL = 24, 12, 16

    def __init__(self, settings: Settings | None = None, seed: int = 0) -> None:
        self.settings = settings or Settings()
        self._random = np.random.default_rng(seed)
        self._now_ms = float(START_MS)
        self._lists = 0
        f = FACTORS
        self._category = self._random.standard_normal((self.CATEGORIES, f))
        self._segment = self._random.standard_normal((self.SEGMENTS, f))
        self._liking = self._random.standard_normal((len(self.settings.scenarios), f))
        self._scenario_drift = np.zeros(len(self.settings.scenarios))
        self._user_bias, self._user_factors = np.zeros(0), np.zeros((0, f))
        self._item_bias, self._item_factors, self._item_drift, self._popularity = (
            np.zeros(0),
            np.zeros((0, f)),
            np.zeros(0),
            np.zeros(0),
        )
        users: dict[str, blocks.Attribute] = {"segment": [], "country": []}
        items: dict[str, blocks.Attribute] = {"category": [], "tags": [], "price": []}
        names = tuple(s.name for s in self.settings.scenarios)
        kinds = (*KINDS, *(action.name for action in self.settings.actions))
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"actions: names must differ, also from {', '.join(KINDS)}; got {kinds[len(KINDS) :]}")
        self.world = blocks.World("simulate", blocks.Entities([], users), blocks.Entities([], items), names, kinds)
        self._add_users(self.settings.users)
        self._add_items(self.settings.items)
        nothing = np.zeros(0, np.int64)
        self._waiting = Waiting(nothing, nothing, nothing, np.zeros((0, self.POOL), np.int64))

    def events(self) -> Iterator[blocks.Block]:
        """Blocks of some thousand rows, for ever."""
        while True:
            block = self._block()
            if len(block.user):
                yield block

    def _add_users(self, n: int) -> I64:
        random, first = self._random, len(self.world.users.ids)
        segment = random.integers(0, self.SEGMENTS, n)
        own = random.standard_normal((n, FACTORS))
        self._user_factors = np.vstack([self._user_factors, (self._segment[segment] + own) / math.sqrt(2)])
        self._user_bias = np.r_[self._user_bias, self.settings.user_spread * random.standard_normal(n)]
        self.world.users.ids.extend(f"u{first + k}" for k in range(n))
        self.world.users.attributes["segment"].extend(f"segment-{s}" for s in segment)
        self.world.users.attributes["country"].extend(f"country-{c}" for c in random.zipf(1.8, n) % 40)
        return np.arange(first, first + n)

    def _add_items(self, n: int) -> None:
        random, first = self._random, len(self.world.items.ids)
        category = random.integers(0, self.CATEGORIES, n)
        own = random.standard_normal((n, FACTORS))
        self._item_factors = np.vstack([self._item_factors, (self._category[category] + own) / math.sqrt(2)])
        self._item_bias = np.r_[self._item_bias, self.settings.item_spread * random.standard_normal(n)]
        self._item_drift = np.r_[self._item_drift, self.settings.drift_spread * random.standard_normal(n)]
        self._popularity = np.r_[self._popularity, np.exp(random.standard_normal(n))]
        attributes = self.world.items.attributes
        self.world.items.ids.extend(f"i{first + k}" for k in range(n))
        attributes["category"].extend(f"category-{c}" for c in category)
        attributes["tags"].extend([f"tag-{t}" for t in pair] for pair in random.integers(0, 60, (n, 2)))
        prices = np.round(np.exp(4 + 0.3 * (category % 4) + 0.6 * random.standard_normal(n)), 2)
        attributes["price"].extend(prices.tolist())

    def _pass(self, hours: float) -> None:
        """Let the world change: an Ornstein-Uhlenbeck step for items and scenarios, and new items."""
        keep = math.exp(-hours / self.settings.drift_hours)
        scale = self.settings.drift_spread * math.sqrt(1 - keep * keep)
        self._item_drift = keep * self._item_drift + scale * self._random.standard_normal(len(self._item_drift))
        self._scenario_drift = keep * self._scenario_drift + scale * self._random.standard_normal(len(self._scenario_drift))
        self._add_items(int(self._random.poisson(self.settings.new_items_per_hour * hours)))

    def _sessions(self, until_ms: float) -> Waiting:
        """All lists of the sessions that start before `until_ms`, and those still waiting."""
        s, random = self.settings, self._random
        new = random.random(SESSIONS) < s.new_user_share
        known = len(self.world.users.ids)
        # Activity falls with the square of the rank, newest first and last: some users come often, most rarely.
        user = (known * random.random(SESSIONS) ** 2).astype(np.int64)
        user[new] = self._add_users(int(new.sum()))
        shares = np.array([c.share for c in s.scenarios])
        scenario = random.choice(len(shares), SESSIONS, p=shares / shares.sum())
        sigma = math.log(max(s.session_p95, s.session_median) / s.session_median) / 1.6448536269514722
        length = np.clip(np.rint(s.session_median * np.exp(sigma * random.standard_normal(SESSIONS))), 1, 500).astype(np.int64)
        begin = np.sort(random.uniform(self._now_ms, until_ms, SESSIONS))
        pool = self._popular((SESSIONS, self.POOL))
        of = np.repeat(np.arange(SESSIONS), length)
        gaps = random.exponential(1000 * s.session_gap_s, len(of)) + 1
        first = np.r_[0, np.cumsum(length)[:-1]]
        gaps[first] = 0
        since = np.cumsum(gaps)
        at_ms = (begin[of] + since - since[first][of]).astype(np.int64)
        started = Waiting(user[of], scenario[of], at_ms, pool[of])
        joined = Waiting(*(np.concatenate(pair) for pair in zip(self._waiting, started, strict=True)))
        return Waiting(*(column[np.argsort(joined.at_ms, kind="stable")] for column in joined))

    def _popular(self, shape: tuple[int, ...]) -> I64:
        edges = np.cumsum(self._popularity)
        found: I64 = np.searchsorted(edges, self._random.random(shape) * edges[-1]).clip(max=len(edges) - 1).astype(np.int64)
        return found

    def _block(self) -> blocks.Block:
        s = self.settings
        day = 1 + BUSY * math.sin(2 * math.pi * (self._now_ms / 86_400_000 - 0.25))
        sigma = math.log(max(s.session_p95, s.session_median) / s.session_median) / 1.6448536269514722
        lists_a_session = s.session_median * math.exp(sigma * sigma / 2)
        until = self._now_ms + 1000 * SESSIONS * lists_a_session / (s.lists_per_s * day)
        self._pass((until - self._now_ms) / 3_600_000)
        lists = self._sessions(until)
        due = int(np.searchsorted(lists.at_ms, until))
        self._waiting = Waiting(*(column[due:].copy() for column in lists))
        now = Waiting(*(column[:due] for column in lists))
        self._now_ms = until
        start, item = self._show(now)
        logit = self._logit(now, start, item)
        block = self._act(now, start, item, logit)
        self._lists += due
        return block

    def _show(self, lists: Waiting) -> tuple[I64, I64]:
        """What is shown: distinct items, ranked by a noisy idea of their worth. Returns list offsets (L + 1,) and items (R,)."""
        s, random, n = self.settings, self._random, len(lists.user)
        mean = np.array([c.list_length for c in s.scenarios])[lists.scenario]
        length = np.clip(np.rint(mean * np.exp(0.5 * random.standard_normal(n) - 0.125)), 1, 1000).astype(np.int64)
        of = np.repeat(np.arange(n), length)
        item = self._popular((len(of),))
        repeated = random.random(len(of)) < s.repeat_share
        item[repeated] = lists.pool[of[repeated], random.integers(0, self.POOL, int(repeated.sum()))]
        _, kept = np.unique(of * len(self._item_bias) + item, return_index=True)
        of, item = of[kept], item[kept]
        worth = self._item_bias[item] + 0.8 * random.standard_normal(len(item))
        order = np.lexsort((-worth, of))
        start = np.searchsorted(of[order], np.arange(n + 1)).astype(np.int64)
        return start, item[order]

    def _logit(self, lists: Waiting, start: I64, item: I64) -> F64:
        """(R,) of the true probability that a shown row is clicked, position and moment included."""
        s = self.settings
        of = np.repeat(np.arange(len(lists.user)), np.diff(start))
        user, scenario, position = lists.user[of], lists.scenario[of], np.arange(len(item)) - start[of]
        factors = self._item_factors[item]
        root = math.sqrt(FACTORS)
        shared, own = (np.array([getattr(c, name) for c in s.scenarios])[scenario] for name in ("shared", "own"))
        logit: F64 = (
            s.base
            + np.array([c.bias for c in s.scenarios])[scenario]
            + self._scenario_drift[scenario]
            + shared * self._item_bias[item]
            + shared * self._item_drift[item]
            + self._user_bias[user]
            + shared * (s.taste_spread / root * np.einsum("rf,rf->r", self._user_factors[user], factors))
            + own * (s.scenario_spread / root * np.einsum("rf,rf->r", self._liking[scenario], factors))
            - s.position_bias * np.log1p(position)
        )
        return logit

    def _further(self, user: I64, item: I64, logit: F64) -> list[I64]:
        """Rows of every further action; `logit` (R,) is that of a click."""
        found = []
        for k, action in enumerate(self.settings.actions):
            turned = np.roll(self._item_factors[item], k + 1, axis=1)
            taste = np.einsum("rf,rf->r", self._user_factors[user], turned) / math.sqrt(FACTORS)
            chance = _chance(action.base + action.agrees * (logit - self.settings.base) + action.own * taste)
            found.append(np.flatnonzero(self._random.random(len(item)) < chance))
        return found

    def _act(self, lists: Waiting, start: I64, item: I64, logit: F64) -> blocks.Block:
        s, random, n, truth = self.settings, self._random, len(lists.user), _chance(logit)
        of = np.repeat(np.arange(n), np.diff(start))
        clicked = random.random(len(item)) < truth
        viewed = ~clicked & (random.random(len(item)) < s.view_share)
        saved = clicked & (random.random(len(item)) < s.save_share)
        searched = np.flatnonzero(random.random(n) < s.search_share)
        rows = [np.flatnonzero(chosen) for chosen in (clicked, viewed, saved)]
        further = self._further(lists.user[of], item, logit)
        a_list = np.concatenate([*(of[r] for r in rows), searched, *(of[r] for r in further)])
        a_item = np.concatenate([*(item[r] for r in rows), np.full(len(searched), -1), *(item[r] for r in further)])
        a_kind = np.repeat(np.arange(len(self.world.kinds)), [len(r) for r in (*rows, searched, *further)])
        delay = blocks.Delay(s.delay_median_s, s.delay_p90_s).draw(random, len(a_list))
        return blocks.Block(
            first=self._lists,
            user=lists.user.astype(np.int32),
            scenario=lists.scenario.astype(np.int16),
            ts_ms=lists.at_ms,
            held_ms=self._held(n),
            start=start,
            item=item.astype(np.int32),
            truth=truth.astype(np.float32),
            a_list=a_list,
            a_item=a_item.astype(np.int32),
            a_kind=a_kind.astype(np.int16),
            a_delay_ms=delay,
            a_held_ms=self._held(len(a_list)),
            again=self._again(n),
            a_again=self._again(len(a_list)),
        )

    def _held(self, n: int) -> I64:
        late = self._random.random(n) < self.settings.disorder_share
        return late * self._random.integers(0, self.settings.disorder_ms + 1, n)

    def _again(self, n: int) -> I64:
        chosen = np.flatnonzero(self._random.random(n) < self.settings.duplicate_share)
        return np.column_stack([chosen, self._random.integers(0, 2 * self.settings.disorder_ms + 1, len(chosen))]).astype(
            np.int64
        )


def _chance(logit: F64) -> F64:
    chance: F64 = 1 / (1 + np.exp(-logit))
    return chance


def regret(block: blocks.Block, scores: npt.ArrayLike) -> float:
    """Mean over lists of the best item's true click probability less that of the item with the highest score, in [0, 1].

    `truth` counts the position at which an item was shown, so a policy is judged on the lists as they were.
    """
    score, lists = np.asarray(scores, np.float64), np.repeat(np.arange(len(block.user)), np.diff(block.start))
    order = np.lexsort((score, lists))
    chosen = order[block.start[1:] - 1]
    return float(np.mean(np.maximum.reduceat(block.truth, block.start[:-1]) - block.truth[chosen]))
