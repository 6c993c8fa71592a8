"""Raw messages of `impressions` and `clicks`: typed decoding of what the feature spec names, and everything that can be wrong."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from state import config as configuration
from state import spec

Reason = Literal[
    "malformed", "missing_or_mistyped", "future", "expired", "too_many_items", "too_large", "unknown_action", "non_finite"
]
LIMIT = 1e30
"""Greatest magnitude of a number: beyond it a float32 column would overflow in the learner's moments."""

Finite = Annotated[float, Meta(ge=-LIMIT, le=LIMIT)]
Id = Annotated[str, Meta(min_length=1)] | int
Place = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
Scalar = str | int | Finite | bool
AsCategory = Scalar | list[Scalar | None] | None
AsNumber = Finite | None
AsBoth = int | Finite | None


class Rejected(Exception):
    """This message belongs in dead-letters: `reason` is one of a fixed few, `detail` says what exactly is wrong."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail


class Action(msgspec.Struct, gc=False):
    """What a user did; `item_id` is None for an action with no item, such as a search."""

    request_id: Id
    user_id: Id
    ts_ms: int
    item_id: Id | None = None
    action: str = "click"
    value: Finite = 1.0


def attribute_names(features: spec.Features, holder: str) -> tuple[str, ...]:
    """The attributes of `holder` (user, context or item) that the spec reads; the k-th is decoded into field `vK`."""
    sources = [*(c.source for c in features.categories), *(n.source for n in features.numbers)]
    return tuple(dict.fromkeys(s.partition(".")[2] for s in sources if s.startswith(holder + ".")))


def _attributes(features: spec.Features, holder: str) -> type[msgspec.Struct]:
    """A struct of the attributes that the spec reads; others are ignored. Fields are `v0`, `v1`, ...: any name may occur."""
    categories = {c.source for c in features.categories}
    numbers = {n.source for n in features.numbers}
    fields: list[tuple[str, Any, Any]] = []
    rename: dict[str, str] = {}
    for k, name in enumerate(attribute_names(features, holder)):
        source = f"{holder}.{name}"
        kind: Any = AsBoth if source in categories and source in numbers else AsCategory if source in categories else AsNumber
        fields.append((f"v{k}", kind, None))
        rename[f"v{k}"] = name
    return msgspec.defstruct(holder.capitalize(), fields, rename=rename, frozen=True, gc=False)


def impression_type(features: spec.Features) -> type[msgspec.Struct]:
    """The struct of an impression; `user`, `context` and each item's `features` hold the attributes that the spec reads."""
    user, context, shown = (_attributes(features, holder) for holder in ("user", "context", "item"))
    item = msgspec.defstruct(
        "Item", [("item_id", Id), ("position", Place), ("features", shown, shown()), ("propensity", AsNumber, None)], gc=False
    )
    items: Any = Annotated[list[item], Meta(min_length=1)]  # type: ignore[valid-type]
    fields: list[Any] = [("request_id", Id), ("ts_ms", int), ("user_id", Id), ("scenario", Id), ("items", items)]
    return msgspec.defstruct("Impression", [*fields, ("user", user, user()), ("context", context, context())], gc=False)


class Decoder:
    """Decodes and checks raw messages for one configuration; see `decoder`."""

    def __init__(self, config: configuration.Config) -> None:
        impression = impression_type(config.features)
        self._impression = msgspec.json.Decoder(impression).decode, msgspec.msgpack.Decoder(impression).decode
        self._action = msgspec.json.Decoder(Action).decode, msgspec.msgpack.Decoder(Action).decode
        self._kinds = frozenset(config.action_kinds)
        self._valued = {
            kind: tuple(o for o in config.objectives if o.action == kind and (o.kind == "multiclass" or o.transform == "log1p"))
            for kind in config.action_kinds
        }
        self._max_items, self._max_bytes = config.join.max_items, config.topics.max_message_bytes
        self._future_ms, self._retention_ms = round(config.join.future_s * 1000), round(config.join.retention_s * 1000)

    def impression(self, value: bytes | None, now_ms: int) -> Any:
        """A shown list, as an instance of `impression_type`.

        Raises:
            Rejected: malformed, missing_or_mistyped, non_finite, too_large, too_many_items, future or expired.
        """
        found = self._decode(self._impression, value)
        items = found.items
        if len(items) > self._max_items:
            raise Rejected("too_many_items", f"{len(items)} items, join.max_items is {self._max_items}")
        if len(items) > 1 and len({i.item_id for i in items}) < len(items):
            raise Rejected("malformed", "an item is shown twice in one request, so its actions could not be told apart")
        self._check_time(found.ts_ms, now_ms)
        return found

    def action(self, value: bytes | None, now_ms: int) -> Action:
        """An action.

        Raises:
            Rejected: malformed, missing_or_mistyped (a value that an objective cannot use, too), non_finite, too_large,
                unknown_action, future or expired.
        """
        found: Action = self._decode(self._action, value)
        if found.action not in self._kinds:
            raise Rejected("unknown_action", f"action {found.action!r}; declared: {', '.join(sorted(self._kinds))}")
        for objective in self._valued[found.action]:
            _check_value(found, objective)
        self._check_time(found.ts_ms, now_ms)
        return found

    def _decode(self, decoders: tuple[Any, Any], value: bytes | None) -> Any:
        """JSON, or msgpack when the first byte says so: a msgpack map starts at 0x80 or above, which no JSON text does."""
        if not value:
            raise Rejected("malformed", "the message is empty")
        if len(value) > self._max_bytes:
            raise Rejected("too_large", f"{len(value)} bytes, topics.max_message_bytes is {self._max_bytes}")
        try:
            return decoders[value[0] >= 0x80](value)
        except msgspec.ValidationError as error:
            raise Rejected("non_finite" if _is_range(str(error)) else "missing_or_mistyped", str(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Rejected("malformed", str(error)) from None

    def _check_time(self, ts_ms: int, now_ms: int) -> None:
        if ts_ms > now_ms + self._future_ms:
            raise Rejected("future", f"ts_ms {ts_ms} is {(ts_ms - now_ms) / 1000:.0f} s ahead of the clock")
        if ts_ms < now_ms - self._retention_ms:
            raise Rejected("expired", f"ts_ms {ts_ms} is {(now_ms - ts_ms) / 1000:.0f} s old, beyond join.retention_s")


def _check_value(action: Action, objective: configuration.Objective) -> None:
    """A value that an objective counts must be one of its classes, or have a logarithm."""
    value, named = action.value, f'of {action.action!r} for objective "{objective.name}"'
    if value < objective.min_value:
        return
    if objective.kind == "multiclass" and not (value.is_integer() and 0 <= value < objective.classes):
        raise Rejected("missing_or_mistyped", f"value {value:g} {named} is no class; classes are 0 to {objective.classes - 1}")
    if objective.transform == "log1p" and value < 0:
        raise Rejected("missing_or_mistyped", f"value {value:g} {named} is negative, and its transform is log1p")


def decoder(config: configuration.Config) -> Decoder:
    """A decoder for the sources that `config.features` names. Unknown attributes are ignored, so that producers can add some."""
    return Decoder(config)


def _is_range(message: str) -> bool:
    """Whether msgspec refused a float for its size (a NaN too), as opposed to its type."""
    return "Number out of range" in message or "Expected `float` " in message
