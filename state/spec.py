"""The feature spec: what a sample is made of, declared once and computed by the same code everywhere."""

import hashlib
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Name = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]*$", description="name of the column")]
Source = Annotated[
    str,
    Meta(
        pattern=r"^(user_id|item_id|scenario|position|(user|context|item)\.[A-Za-z_][A-Za-z0-9_]*)$",
        description='"user_id", "item_id", "scenario", "position", or an attribute: "user.X", "context.X", "item.X"',
    ),
]
CategorySource = Annotated[
    str,
    Meta(
        pattern=r"^(user_id|item_id|scenario|position|(user|context|item)\.[A-Za-z_][A-Za-z0-9_]*|recent\.[a-z][a-z0-9_]*)$",
        description='"user_id", "item_id", "scenario", "position", an attribute: "user.X", "context.X", "item.X", or, newest '
        'first, of the user\'s last actions: "recent.item", "recent.kind", "recent.age" (time since, bucket k from 2^k - 1 s), '
        '"recent.scenario", "recent.X" with X a declared category of the item',
    ),
]
INTRINSIC_KEYS = ("user", "item", "scenario")
MAX_CATEGORY_VALUES = 32
MAX_ACTIONS = 100
AGE_BUCKETS = 40
"""Buckets of "recent.age": k holds ages from 2^k - 1 seconds; the last one everything above 17,000 years."""


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every table of the configuration: immutable, and an unknown key is an error."""


class Category(Section, frozen=True):
    """An id column: any text or integer (booleans too), hashed to 64 bits; a list of them when multi-valued."""

    name: Name
    source: CategorySource
    max_values: Annotated[
        int,
        Meta(
            ge=1,
            le=MAX_ACTIONS,
            description=f"above 1: multi-valued, pooled; values beyond it are counted, not used; at most {MAX_CATEGORY_VALUES}, "
            f"for last actions {MAX_ACTIONS}",
        ),
    ] = 1
    share: Annotated[
        str, Meta(description="an earlier category whose embeddings this one uses: an id has one row in both; empty: its own")
    ] = ""
    nth: Annotated[
        int,
        Meta(
            ge=1,
            le=MAX_CATEGORY_VALUES,
            description='of "recent.X" with X multi-valued (tags): which of its values; one category each',
        ),
    ] = 1


class Number(Section, frozen=True):
    """A number column, standardised by running moments in the learner."""

    name: Name
    source: Source
    transform: Annotated[Literal["none", "log1p"], Meta(description="applied to the raw value")] = "none"


class Statistic(Section, frozen=True):
    """A smoothed count or rate over a key or a combination of keys, from strictly earlier events."""

    name: Name
    key: Annotated[
        tuple[Name, ...],
        Meta(max_length=3, description='of "user", "item", "scenario" and declared categories; empty: the whole stream'),
    ]
    kind: Annotated[
        Literal["rate", "count", "actions", "residual", "age"],
        Meta(
            description="rate: (A + prior x toward) / (E + prior); count: log(1 + E); actions: log(1 + A); residual: "
            "(A - X) / (E + prior), X the sum of `over` at each exposure; age: log(1 + seconds since the key's last "
            "exposure), -1 if none. E exposures, A actions"
        ),
    ]
    action: Annotated[str, Meta(description="kind of action counted; empty: the first objective's")] = ""
    window: Annotated[
        Literal["all", "decay", "last"],
        Meta(description="all: whole time; decay: halves every half_life_s; last: weights halve smoothly over about n exposures"),
    ] = "all"
    half_life_s: Annotated[float, Meta(gt=0, description="for decay")] = 86_400.0
    n: Annotated[int, Meta(ge=1, description="for last: mean length of the exponential window, in exposures")] = 20
    prior: Annotated[float, Meta(ge=0, description="pseudo exposures")] = 10.0
    toward: Annotated[str, Meta(description="an earlier rate to shrink towards; empty: the whole stream's rate")] = ""
    over: Annotated[str, Meta(description="for residual: the earlier rate that is expected")] = ""


class Recent(Section, frozen=True):
    """What the user lately did with this very item, with its category, or at all."""

    name: Name
    match: Annotated[str, Meta(description='"any", "item" or a declared category of the item')] = "item"
    action: Annotated[str, Meta(description='a kind of action, or "any"')] = "any"
    value: Annotated[
        Literal["count", "age"], Meta(description="count of matches, or log(1 + seconds since the latest), -1 if none")
    ] = "count"
    max_age_s: Annotated[float, Meta(gt=0, description="older actions are not looked at")] = 2_592_000.0


class Place(Section, frozen=True):
    """The item's place in its shown list."""

    name: Name
    of: Annotated[str, Meta(description="a number or statistic declared before")]
    value: Annotated[
        Literal["rank", "difference"], Meta(description="items of the list with a greater value; difference from the list's mean")
    ] = "rank"


class Features(Section, frozen=True):
    """All columns of a sample, in the order of declaration."""

    categories: Annotated[tuple[Category, ...], Meta(description="id columns")] = ()
    numbers: Annotated[tuple[Number, ...], Meta(description="number columns from attributes")] = ()
    statistics: Annotated[tuple[Statistic, ...], Meta(description="number columns from counters")] = ()
    recent: Annotated[tuple[Recent, ...], Meta(description="number columns from the user's last actions")] = ()
    places: Annotated[tuple[Place, ...], Meta(description="number columns from the item's place in its list")] = ()


class IdColumn(msgspec.Struct, frozen=True):
    """Where a category stands in the id matrix: columns start to start + width."""

    name: str
    start: int
    width: int


def id_columns(features: Features) -> tuple[IdColumn, ...]:
    """The columns of the n x F id matrix. A multi-valued category takes `max_values` columns, padded with PAD."""
    out, at = [], 0
    for category in features.categories:
        out.append(IdColumn(category.name, at, category.max_values))
        at += category.max_values
    return tuple(out)


def id_width(features: Features) -> int:
    """F, the width of the id matrix."""
    return sum(c.max_values for c in features.categories)


def number_names(features: Features) -> tuple[str, ...]:
    """The D columns of the number matrix: numbers, statistics, recent, places."""
    groups = (features.numbers, features.statistics, features.recent, features.places)
    return tuple(declared.name for group in groups for declared in group)


def behaviour(category: Category) -> str:
    """What a category holds of the user's last actions ("item", "kind", "age", "scenario" or an item's category), or ""."""
    holder, _, what = category.source.partition(".")
    return what if holder == "recent" else ""


def sequences(features: Features) -> tuple[Category, ...]:
    """Categories that hold the user's last actions, newest first: place k of each is the same action, PAD if there is none."""
    return tuple(c for c in features.categories if behaviour(c))


def fingerprint(features: Features, action_kinds: tuple[str, ...]) -> str:
    """Hash of everything that changes the meaning of a packed sample, or of what a model learned from it (hex, 16 digits)."""
    plain = msgspec.to_builtins(features)
    for category in plain["categories"]:
        for name, default in (("share", ""), ("nth", 1)):
            if category[name] == default:
                del category[name]
    return hashlib.blake2b(msgspec.json.encode((plain, action_kinds)), digest_size=8).hexdigest()


def problem(features: Features, action_kinds: tuple[str, ...]) -> str:
    """The first impossible combination in words, or an empty string."""
    seen: set[str] = set()
    for name in (*(c.name for c in features.categories), *number_names(features)):
        if name in seen:
            return f'"{name}" is declared twice; every column needs a name of its own'
        seen.add(name)
    source_problem = _source_problem(features)
    if source_problem:
        return source_problem
    categories = {c.name for c in features.categories}
    keys = set(INTRINSIC_KEYS) | categories - {c.name for c in sequences(features)}
    declared = {n.name for n in features.numbers}
    rates: set[str] = set()
    for s in features.statistics:
        for part in s.key:
            if part not in keys:
                return f'statistics "{s.name}": key "{part}" is unknown; allowed: {", ".join(sorted(keys))}'
        if s.action and s.action not in action_kinds:
            return f'statistics "{s.name}": action "{s.action}" is unknown; allowed: {", ".join(action_kinds)}'
        for field, target in (("toward", s.toward), ("over", s.over)):
            if target and target not in rates:
                allowed = ", ".join(sorted(rates))
                return f'statistics "{s.name}": {field} "{target}" is no rate declared before it; allowed: {allowed}'
        if s.kind == "residual" and not s.over:
            return f'statistics "{s.name}": a residual needs `over`, the name of a rate declared before it'
        if s.kind == "rate":
            rates.add(s.name)
        declared.add(s.name)
    for r in features.recent:
        if r.match not in {"any", "item"} | categories:
            return f'recent "{r.name}": match "{r.match}" is unknown; allowed: any, item, {", ".join(sorted(categories))}'
        if r.action != "any" and r.action not in action_kinds:
            return f'recent "{r.name}": action "{r.action}" is unknown; allowed: any, {", ".join(action_kinds)}'
    for place in features.places:
        if place.of not in declared:
            return f'places "{place.name}": "{place.of}" is no number or statistic; allowed: {", ".join(sorted(declared))}'
    return ""


def _source_problem(features: Features) -> str:
    """A source that cannot serve what it is declared for, in words, or an empty string."""
    sources = {c.name: c.source for c in features.categories}
    for name, source in zip(INTRINSIC_KEYS, ("user_id", "item_id", "scenario"), strict=True):
        if sources.get(name, source) != source:
            return f'category "{name}" must have source "{source}", which is what keys mean by it; give this one another name'
    for i, category in enumerate(features.categories):
        found = _category_problem(category, features.categories[:i], features.categories)
        if found:
            return f'category "{category.name}": {found}'
    for number in features.numbers:
        if number.source in {"user_id", "item_id", "scenario"}:
            return f'numbers "{number.name}": source "{number.source}" is an id; allowed: position, user.X, context.X, item.X'
    for s in features.statistics:
        for part in s.key:
            if sources.get(part) == "position":
                return f'statistics "{s.name}": key "{part}" is a position, which an action does not carry; use another key'
    for r in features.recent:
        if r.match in sources and not sources[r.match].startswith("item"):
            return f'recent "{r.name}": match "{r.match}" is no category of the item; its source must be item_id or item.X'
    return ""


def _category_problem(category: Category, before: tuple[Category, ...], every: tuple[Category, ...]) -> str:
    """What is wrong with one category beside its source's form, in words, or an empty string."""
    what = behaviour(category)
    of_item = {c.name: c.max_values for c in every if c.source.startswith("item.")}
    allowed = ["item", "kind", "age", "scenario", *sorted(of_item.keys() - {"kind", "age"})]
    if what and what not in allowed:
        return f'"recent.{what}" is not kept of an action; allowed: {", ".join(allowed)} (categories of the item)'
    values = 1 if what in {"item", "kind", "age", "scenario"} else of_item.get(what, 1)
    if category.nth > values:
        return f'nth {category.nth} is beyond the values of "{category.source}"; allowed: up to {values}'
    if not what and category.max_values > MAX_CATEGORY_VALUES:
        return f"max_values {category.max_values} is for last actions only; allowed: up to {MAX_CATEGORY_VALUES}"
    owners = [c.name for c in before if not c.share]
    if category.share and category.share not in owners:
        return f'share "{category.share}" is no category before it with embeddings of its own; allowed: {", ".join(owners)}'
    return ""
