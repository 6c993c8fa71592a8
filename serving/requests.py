"""The edge of the scoring service: bytes to a checked request, a reply to bytes. JSON and msgpack carry the same fields."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from serving.problems import Problem

Format = Literal["json", "msgpack"]
Id = str | int
Scalar = str | int | float | bool | None
Attributes = dict[str, Scalar | list[Scalar]]
LATEST_MS = 253_402_300_799_999
MEDIA_TYPES: dict[str, Format] = {
    "application/json": "json",
    "application/msgpack": "msgpack",
    "application/x-msgpack": "msgpack",
    "application/vnd.msgpack": "msgpack",
}
CONTENT_TYPE: dict[Format, str] = {"json": "application/json", "msgpack": "application/msgpack"}


class Candidate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One item to score. `position` is where it would be shown, its place in `candidates` if not given."""

    item_id: Id
    position: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    features: Attributes = {}


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One user, one scenario, the candidates that would be shown together."""

    user_id: Id
    scenario: str
    candidates: Annotated[list[Candidate], Meta(min_length=1)]
    request_id: Id | None = None
    ts_ms: Annotated[int, Meta(ge=0, le=LATEST_MS)] | None = None
    user: Attributes = {}
    context: Attributes = {}
    objectives: Annotated[list[str], Meta(min_length=1)] | None = None


class Reply(msgspec.Struct, frozen=True):
    """Scores per objective in the order of the candidates, and what produced them."""

    request_id: Id | None
    version: str
    step: int
    scores: dict[str, list[float]]
    adapted: bool
    support_rows: int
    mode: Literal["adapted", "plain"]
    degraded: str | None
    took_ms: float


_from: dict[Format, Any] = {
    "json": msgspec.json.Decoder(Request).decode,
    "msgpack": msgspec.msgpack.Decoder(Request).decode,
}
_to: dict[Format, Any] = {"json": msgspec.json.Encoder().encode, "msgpack": msgspec.msgpack.Encoder().encode}


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
        raise Problem(406, "not_acceptable", "no format of Accept can be written", "accept application/json or application/msgpack")
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


def decode(body: bytes, form: Format, max_candidates: int, objectives: tuple[str, ...]) -> Request:
    """Read and check a request.

    Raises:
        Problem: 400 unreadable bytes; 422 a field is missing, unknown, mistyped or out of range, too many
            candidates, or an objective that is not configured.
    """
    try:
        request: Request = _from[form](body)
    except msgspec.ValidationError as error:
        raise Problem(422, "invalid_request", str(error), "see the fields of a request in docs/serving.md") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, "malformed_body", f"the body is not {form}: {error}", "check Content-Type and the encoder") from error
    if len(request.candidates) > max_candidates:
        raise Problem(
            422,
            "too_many_candidates",
            f"{len(request.candidates):,} candidates, at most {max_candidates:,}",
            "split the request, or raise serving.max_candidates",
        )
    for name in request.objectives or ():
        if name not in objectives:
            raise Problem(422, "unknown_objective", f"objective {name!r} is not configured", f"one of: {', '.join(objectives)}")
    return request


def encode(value: object, form: Format) -> bytes:
    """A reply, an error or an administrative answer as bytes."""
    return bytes(_to[form](value))
