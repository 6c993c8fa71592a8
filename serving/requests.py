"""The edge of the scoring service: bytes to a checked request, a reply to bytes. JSON and msgpack carry the same fields."""

import typing
from typing import Annotated, Any, Literal, Protocol

import msgspec
from msgspec import Meta

from serving.exploration import Exploration
from serving.problems import Problem
from state import config as configuration
from state import records

Format = Literal["json", "msgpack"]
LATEST_MS = 253_402_300_799_999
MEDIA_TYPES: dict[str, Format] = {
    "application/json": "json",
    "application/msgpack": "msgpack",
    "application/x-msgpack": "msgpack",
    "application/vnd.msgpack": "msgpack",
}
CONTENT_TYPE: dict[Format, str] = {"json": "application/json", "msgpack": "application/msgpack"}


class Candidate(Protocol):
    """One item to score. `position` is where it would be shown; its place in `candidates` if not given."""

    item_id: records.Id
    position: int | None
    features: Any


class Request(Protocol):
    """One user, one scenario, the candidates that would be shown together; attributes are typed by the feature spec."""

    user_id: records.Id
    scenario: records.Id
    candidates: list[Candidate]
    request_id: records.Id | None
    ts_ms: int | None
    user: Any
    context: Any
    objectives: list[str] | None


class Search(Protocol):
    """One user, one scenario, and how many items to find; attributes are typed by the feature spec."""

    user_id: records.Id
    scenario: records.Id
    k: int
    request_id: records.Id | None
    ts_ms: int | None
    user: Any
    context: Any
    exclude: list[records.Id]


Answer = list[float | list[float]] | None
"""One objective's scores in the order of the candidates: a number each, of a multiclass one a probability per class; None where
the scenario does not have the objective."""


class Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    """Scores per objective in the order of the candidates, and what produced them; `exploration` only where that is on."""

    request_id: records.Id | None
    version: str
    step: int
    scores: dict[str, Answer]
    adapted: bool
    support_rows: int
    mode: Literal["adapted", "plain"]
    degraded: str | None
    took_ms: float
    exploration: Exploration | None = None


class Found(msgspec.Struct, frozen=True):
    """The best items of all that the snapshot knows, best first, with their scores, and what produced them."""

    request_id: records.Id | None
    version: str
    step: int
    items: list[str]
    scores: list[float]
    known: int
    adapted: bool
    support_rows: int
    mode: Literal["adapted", "plain"]
    degraded: str | None
    took_ms: float


class Decoder:
    """Reads requests of one configuration. Attributes that the spec does not read are dropped; others are errors."""

    def __init__(self, config: configuration.Config) -> None:
        self._objectives = tuple(o.name for o in config.objectives)
        self._max_candidates = config.serving.max_candidates
        impression = records.impression_type(config.features)
        candidate = _candidate_type(impression)
        self.blank: Any = candidate(item_id="", position=0)
        """What the feature engine takes for the item where none is shown yet."""
        self._decode = _decoders(_request_type(impression, candidate))
        self._decode_search = _decoders(_search_type(impression))

    def decode(self, body: bytes, form: Format) -> Request:
        """Read and check a request; afterwards every candidate has a position.

        Raises:
            Problem: 400 unreadable bytes; 422 a field is missing, unknown, mistyped or out of range, too many
                candidates, or an objective that is not configured.
        """
        request: Request = _read(self._decode[form], body, form)
        if len(request.candidates) > self._max_candidates:
            raise Problem(
                422,
                "too_many_candidates",
                f"{len(request.candidates):,} candidates, at most {self._max_candidates:,}",
                "split the request, or raise serving.max_candidates",
            )
        for name in request.objectives or ():
            if name not in self._objectives:
                allowed = ", ".join(self._objectives)
                raise Problem(422, "unknown_objective", f"objective {name!r} is not configured", f"one of: {allowed}")
        for place, candidate in enumerate(request.candidates):
            if candidate.position is None:
                candidate.position = place
        return request

    def decode_search(self, body: bytes, form: Format) -> Search:
        """Read and check a request for items.

        Raises:
            Problem: as `decode`; 422 also if more items are asked for or excluded than a request may have candidates.
        """
        search: Search = _read(self._decode_search[form], body, form)
        for what, count in (("k is", search.k), ("exclude has", len(search.exclude))):
            if count > self._max_candidates:
                raise Problem(
                    422, "too_many_candidates", f"{what} {count:,}, at most {self._max_candidates:,}", "ask for fewer, or raise "
                    "serving.max_candidates",
                )  # fmt: skip
        return search


def _decoders(kind: type[msgspec.Struct]) -> dict[Format, Any]:
    return {"json": msgspec.json.Decoder(kind).decode, "msgpack": msgspec.msgpack.Decoder(kind).decode}


def _read(decode: Any, body: bytes, form: Format) -> Any:
    try:
        return decode(body)
    except msgspec.ValidationError as error:
        raise Problem(422, "invalid_request", str(error), "see the fields of a request in docs/serving.md") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, "malformed_body", f"the body is not {form}: {error}", "check Content-Type") from error


def _candidate_type(impression: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """The struct of a candidate; `features` are typed as in an impression."""
    fields = {f.name: f for f in msgspec.structs.fields(impression)}
    listed, *_ = typing.get_args(fields["items"].type)
    (item,) = typing.get_args(listed)
    features = next(f for f in msgspec.structs.fields(item) if f.name == "features")
    return msgspec.defstruct(
        "Candidate",
        [("item_id", records.Id), ("position", records.Place | None, None), ("features", features.type, features.default)],
        forbid_unknown_fields=True,
        gc=False,
    )


def _about(impression: type[msgspec.Struct]) -> list[Any]:
    """Fields that may be left out of every kind of request; `user` and `context` are typed as in an impression."""
    fields = {f.name: f for f in msgspec.structs.fields(impression)}
    return [
        ("request_id", records.Id | None, None),
        ("ts_ms", Annotated[int, Meta(ge=0, le=LATEST_MS)] | None, None),
        ("user", fields["user"].type, fields["user"].default),
        ("context", fields["context"].type, fields["context"].default),
    ]


def _request_type(impression: type[msgspec.Struct], candidate: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """The struct of a request for scores."""
    candidates: Any = Annotated[list[candidate], Meta(min_length=1)]  # type: ignore[valid-type]
    objectives = ("objectives", Annotated[list[str], Meta(min_length=1)] | None, None)
    who = [("user_id", records.Id), ("scenario", records.Id), ("candidates", candidates)]
    return msgspec.defstruct("Request", [*who, *_about(impression), objectives], forbid_unknown_fields=True)


def _search_type(impression: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """The struct of a request for items."""
    who = [("user_id", records.Id), ("scenario", records.Id), ("k", Annotated[int, Meta(ge=1)])]
    exclude: Any = ("exclude", list[records.Id], msgspec.field(default_factory=list))
    return msgspec.defstruct("Search", [*who, *_about(impression), exclude], forbid_unknown_fields=True)


def body_format(content_type: str) -> Format:
    """The format that a Content-Type header names; JSON where there is none.

    Raises:
        Problem: 415, any other media type.
    """
    media = content_type.partition(";")[0].strip().lower()
    if not media:
        return "json"
    if media in MEDIA_TYPES:
        return MEDIA_TYPES[media]
    raise Problem(
        415, "unsupported_media_type", f"Content-Type {media!r} is not read here", "send application/json or application/msgpack"
    )


def reply_format(accept: str, fallback: Format) -> Format:
    """The format that an Accept header prefers (RFC 9110, by q and then by order); `fallback` where it leaves the choice.

    Raises:
        Problem: 406, it accepts neither format.
    """
    best: tuple[float, Format] | None = None
    for part in accept.split(",") if accept.strip() else ["*/*"]:
        media, _, rest = part.partition(";")
        name, weight = media.strip().lower(), _quality(rest)
        chosen = fallback if name in {"*/*", "application/*"} else MEDIA_TYPES.get(name)
        if chosen and weight > 0 and (best is None or weight > best[0]):
            best = (weight, chosen)
    if best is None:
        raise Problem(406, "not_acceptable", "no format of Accept can be written", "accept JSON or msgpack")
    return best[1]


def _quality(parameters: str) -> float:
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


_to: dict[Format, Any] = {"json": msgspec.json.Encoder().encode, "msgpack": msgspec.msgpack.Encoder().encode}


def encode(value: object, form: Format) -> bytes:
    """A reply, an error or an administrative answer as bytes."""
    return bytes(_to[form](value))
