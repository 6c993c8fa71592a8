"""The features of a history in plain Python: every value is a sum over the remembered events, nothing is kept up to date."""

import math
from collections import defaultdict
from typing import Any

import msgspec

from state import config as configuration
from state import spec
from tests import feature_events as raw


def rows(config: configuration.Config, history: list[raw.Event]) -> list[list[float]]:
    """The numbers of every row of every list that is no repetition, in order."""
    reference = _Reference(config)
    out: list[list[float]] = []
    for kind, value in history:
        event = msgspec.json.decode(value) if kind == "list" else msgspec.msgpack.decode(value)
        if kind == "list":
            out += reference.show(event)
        else:
            reference.act(event)
    return out


class _Reference:
    def __init__(self, config: configuration.Config) -> None:
        self.features, self.default = config.features, config.action_kinds[0]
        # per key: ("shown", ts, rates) or (kind of action, ts, {})
        self.log: dict[tuple[Any, ...], list[tuple[str, int, dict[str, float]]]] = defaultdict(list)
        self.requests: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.actions: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.items: dict[str, dict[str, Any]] = {}

    def keys(self, key: tuple[str, ...], context: dict[str, Any]) -> list[tuple[Any, ...]]:
        """The keys of a row; none if a part is unknown or a set is empty."""
        out: list[tuple[Any, ...]] = [tuple(sorted(key))]
        for part in sorted(key):
            if part not in context:
                return []
            values = context[part] if part == "tags" else [context[part] or ""]
            out = [(*head, value) for head in out for value in values]
        return out

    def sums(self, s: spec.Statistic, context: dict[str, Any], ts: int) -> tuple[float, float, float, int]:
        """E, A, X and the time of the last exposure."""
        e = a = x = 0.0
        newest = 0
        for key in self.keys(s.key, context):
            events = [v for v in self.log[key] if v[0] == "shown" or self.counts(s.key, v[0])]
            latest = max([ts, *(v[1] for v in events)])
            for i, (kind, at, rates) in enumerate(events):
                weight = 1.0
                if s.window == "decay":
                    weight = 2.0 ** (-(latest - at) / 1000 / s.half_life_s)
                elif s.window == "last":
                    weight = (1 - 1 / s.n) ** sum(v[0] == "shown" for v in events[i + 1 :])
                if kind == "shown":
                    e, x, newest = e + weight, x + weight * rates.get(s.over, 0.0), max(newest, at)
                elif kind == (s.action or self.default):
                    a += weight
        return e, a, x, newest

    def counts(self, key: tuple[str, ...], kind: str) -> bool:
        """Whether cells of this key count this kind of action, and so are as new as it."""
        return not key or any(
            sorted(s.key) == sorted(key) and s.kind in {"rate", "actions", "residual"} and (s.action or self.default) == kind
            for s in self.features.statistics
        )

    def statistics(self, context: dict[str, Any], ts: int) -> dict[str, float]:
        out: dict[str, float] = {}
        for s in self.features.statistics:
            e, a, x, newest = self.sums(s, context, ts)
            if s.kind == "rate":
                if s.toward:
                    toward = out[s.toward]
                else:
                    whole, acted, _, _ = self.sums(spec.Statistic(name="w", key=(), kind="rate", action=s.action), {}, ts)
                    toward = acted / whole if whole else 0.0
                out[s.name] = (a + s.prior * toward) / (e + s.prior) if e + s.prior else toward
            elif s.kind == "residual":
                out[s.name] = (a - x) / (e + s.prior) if e + s.prior else 0.0
            elif s.kind == "age":
                out[s.name] = math.log1p((ts - newest) / 1000) if newest else -1.0
            else:
                out[s.name] = math.log1p(e if s.kind == "count" else a)
        return out

    def recent(self, user: str, item: str, ts: int) -> dict[str, float]:
        out = {}
        for r in self.features.recent:
            ages = []
            for action in self.actions[user][-20:]:
                age = ts - action["ts_ms"]
                if age > r.max_age_s * 1000 or r.action not in {"any", action["action"]}:
                    continue
                shown, done = self.items[item], action["attributes"]
                hit = r.match == "any" or (r.match == "item" and action["item_id"] == item)
                if r.match == "genre":
                    hit = bool(shown["genre"]) and shown["genre"] == done.get("genre")
                elif r.match == "tags":
                    hit = bool(set(shown["tags"]) & set(done.get("tags", ())))
                if hit:
                    ages.append(age)
            if r.value == "count":
                out[r.name] = float(len(ages))
            else:
                out[r.name] = math.log1p(min(ages) / 1000) if ages else -1.0
        return out

    def show(self, event: dict[str, Any]) -> list[list[float]]:
        user, ts = event["user_id"], event["ts_ms"]
        if any(event["request_id"] == r["request_id"] for r in self.requests[user][-16:]):
            return []
        device = event["context"]["device"]
        self.requests[user].append(event)
        made, contexts = [], []
        for shown in event["items"]:
            item, given = shown["item_id"], shown["features"]
            self.items[item] = {"genre": given["genre"], "tags": (given["tags"] or [])[:3]}
            context = {"user": user, "item": item, "scenario": event["scenario"], "device": device, **self.items[item]}
            numbers = {"price": math.log1p(given["price"]), "spot": float(shown["position"])}
            made.append(numbers | self.statistics(context, ts) | self.recent(user, item, ts))
            contexts.append(context)
        for p in self.features.places:
            of = [row[p.of] for row in made]
            for row, value in zip(made, of, strict=True):
                row[p.name] = float(sum(v > value for v in of)) if p.value == "rank" else value - sum(of) / len(of)
        for row, context in zip(made, contexts, strict=True):
            for key in {tuple(sorted(s.key)) for s in self.features.statistics} | {()}:
                for full in self.keys(key, context):
                    self.log[full].append(("shown", ts, row))
        return [list(row.values()) for row in made]

    def act(self, event: dict[str, Any]) -> None:
        user, ts, kind, item = event["user_id"], event["ts_ms"], event["action"], event["item_id"]
        if any((a["item_id"], a["ts_ms"], a["action"]) == (item, ts, kind) for a in self.actions[user][-20:]):
            return
        context: dict[str, Any] = {"user": user}
        attributes: dict[str, Any] = {}
        if item is not None:
            attributes = self.items.get(item, {})
            context |= {"item": item, **attributes}
        for shown in self.requests[user][-16:]:
            if shown["request_id"] == event["request_id"]:
                context |= {"scenario": shown["scenario"], "device": shown["context"]["device"]}
        self.actions[user].append({**event, "attributes": attributes})
        for key in {tuple(sorted(s.key)) for s in self.features.statistics} | {()}:
            for full in self.keys(key, context):
                self.log[full].append((kind, ts, {}))
