"""What a snapshot is: its manifest, its names, and when a manifest can be trusted.

A snapshot is a folder named by its version with one safetensors file per part and `manifest.json`, written last. The
`serving` part is what scoring needs; the `training` part is the rest of the learner's state. The manifest also holds the
offsets of every partition, so that a restart continues exactly where the arrays left off.
"""

import hashlib

import msgspec

SERVING, TRAINING = "serving", "training"
MANIFEST_FILE = "manifest.json"


class Damaged(ValueError):
    """A snapshot cannot be trusted; the message says which file and why. Use the one before it."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """One published snapshot.

    `offsets` are [topic, partition, next offset] of everything trained; `files` maps a file's name to its sha256 (hex);
    `sequence` is the number that the next plan record takes; `skipped` are entries that record still has to carry;
    `check` is the sha256 of the manifest itself without it.
    """

    version: str
    step: int
    created_ms: int
    directory: str
    files: dict[str, str]
    spec: str
    model: str
    offsets: tuple[tuple[str, int, int], ...]
    trained_rows: int
    sequence: int = 0
    skipped: tuple[tuple[str, int, int, int, str], ...] = ()
    seed: int = 0
    threads: int = 1
    code: str = ""
    check: str = ""


def version_of(step: int, created_ms: int) -> str:
    """The name of a snapshot: names sort by the time of creation, then by step.

    >>> version_of(1200, 1_700_000_000_000)
    '0001700000000000-000000001200'
    """
    return f"{created_ms:016d}-{step:012d}"


def is_version(name: str) -> bool:
    """Whether a folder's name is one that `version_of` makes."""
    created, dash, step = name.partition("-")
    return bool(dash) and len(created) == 16 and len(step) == 12 and created.isdigit() and step.isdigit()


def file_of(part: str) -> str:
    """The file that holds a part."""
    return f"{part}.safetensors"


def _digest(manifest: Manifest) -> str:
    return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(manifest, check=""))).hexdigest()


def seal(manifest: Manifest) -> Manifest:
    """The manifest with its own checksum."""
    return msgspec.structs.replace(manifest, check=_digest(manifest))


def parse(data: bytes, name: str) -> Manifest:
    """Decode a manifest from JSON and check it; `name` is what an error calls it.

    Raises:
        Damaged: it is no manifest, or a byte of it was changed.
    """
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Damaged(f"{name}: not a manifest: {error}") from error
    return _checked(manifest, name)


def unpack(data: bytes) -> Manifest:
    """Decode an announcement from the `snapshots` topic (msgpack). Raises Damaged like `parse`."""
    try:
        manifest = msgspec.msgpack.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Damaged(f"announcement: not a manifest: {error}") from error
    return _checked(manifest, "announcement")


def pack(manifest: Manifest) -> bytes:
    """The announcement of a snapshot."""
    return msgspec.msgpack.encode(manifest)


def _checked(manifest: Manifest, name: str) -> Manifest:
    if manifest.check != _digest(manifest):
        raise Damaged(f"{name}: its checksum does not match; the file was changed after it was written")
    return manifest
