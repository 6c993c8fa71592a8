"""Snapshots on disk: atomic writing, checking, retention, and a writer thread that hardly holds the learner up."""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import shutil
import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from state import snapshots
from state.snapshots import Damaged, Manifest

Arrays = Mapping[str, npt.NDArray[Any]]
Parts = Mapping[str, Arrays]
Refused = Callable[[str, str], None]

log = logging.getLogger(__name__)

_PARTIAL = ".partial-"
_CHUNK_BYTES = 1 << 22
_LEAST_BYTES = 1 << 25
_CODES = {"b1": "BOOL", "u1": "U8", "i1": "I8", "u2": "U16", "i2": "I16", "u4": "U32", "i4": "I32", "u8": "U64", "i8": "I64"} | {
    "f2": "F16",
    "f4": "F32",
    "f8": "F64",
}


def write(directory: str | os.PathLike[str], manifest: Manifest, parts: Parts, keep: int) -> Manifest:
    """Write one snapshot and return its manifest with `version`, `directory`, `files` and `check` filled in.

    Everything goes to a hidden folder first; files and folder are on the disk (fsync) before it is renamed into place, so a
    reader sees a whole snapshot or none. Snapshots older than the `keep` newest are then removed.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    root = pathlib.Path(directory)
    root.mkdir(parents=True, exist_ok=True)
    version = snapshots.version_of(manifest.step, manifest.created_ms)
    partial = root / f"{_PARTIAL}{version}-{os.getpid()}"
    partial.mkdir()
    try:
        files = {name: _write_arrays(partial / name, arrays) for name, arrays in _by_file(parts).items()}
        sealed = snapshots.seal(msgspec.structs.replace(manifest, version=version, directory=str(root), files=files))
        _write_bytes(partial / snapshots.MANIFEST_FILE, msgspec.json.format(msgspec.json.encode(sealed), indent=1))
        _sync_folder(partial)
        partial.rename(root / version)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync_folder(root)
    for old in versions(root)[keep:]:
        _remove(root, old)
    return sealed


def versions(directory: str | os.PathLike[str]) -> list[str]:
    """Names of all snapshots in the folder, newest first; none if the folder does not exist. Nothing is checked."""
    try:
        return sorted(filter(snapshots.is_version, (p.name for p in pathlib.Path(directory).iterdir())), reverse=True)
    except FileNotFoundError:
        return []


def manifest_of(directory: str | os.PathLike[str], version: str) -> Manifest:
    """Read and check the manifest alone.

    Raises:
        Damaged: it is missing, unreadable or changed.
    """
    path = pathlib.Path(directory) / version / snapshots.MANIFEST_FILE
    try:
        manifest = snapshots.parse(path.read_bytes(), str(path))
    except OSError as error:
        raise Damaged(f"{path}: cannot be read ({error.strerror})") from error
    if manifest.version != version:
        raise Damaged(f"{path}: is the manifest of {manifest.version}; the folder was renamed or copied over")
    return manifest


def verify(directory: str | os.PathLike[str], manifest: Manifest, parts: Collection[str] | None = None) -> None:
    """Check the sha256 of the files of `parts` (all of them by default).

    Raises:
        Damaged: a file is missing, unreadable or changed.
    """
    for name in manifest.files if parts is None else map(snapshots.file_of, parts):
        path = pathlib.Path(directory) / manifest.version / name
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise Damaged(f"{path}: cannot be read ({error.strerror})") from error
        if digest != manifest.files.get(name):
            raise Damaged(f"{path}: sha256 differs from the manifest's; the file was changed or cut short")


def _warn(version: str, reason: str) -> None:
    log.error("snapshot %s refused: %s; looking at the one before it", version, reason)


def newest_intact(
    directory: str | os.PathLike[str], parts: Collection[str] | None = None, refused: Refused = _warn
) -> Manifest | None:
    """The manifest of the newest snapshot whose files (of `parts`, or all) are intact, or None.

    `refused(version, reason)` is called for every damaged one on the way; the default logs it.
    """
    for version in versions(directory):
        try:
            manifest = manifest_of(directory, version)
            verify(directory, manifest, parts)
        except Damaged as error:
            refused(version, str(error))
        else:
            return manifest
    return None


def read(directory: str | os.PathLike[str], manifest: Manifest, part: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays of one part. The very bytes that are returned are the ones that were checked.

    Raises:
        Damaged: the file is missing, unreadable or changed.
    """
    name = snapshots.file_of(part)
    path = pathlib.Path(directory) / manifest.version / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Damaged(f"{path}: cannot be read ({error.strerror})") from error
    if hashlib.sha256(data).hexdigest() != manifest.files.get(name):
        raise Damaged(f"{path}: sha256 differs from the manifest's; the file was changed or cut short")
    try:
        return _views(data)
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{path}: not a safetensors file: {error}") from error


def _views(data: bytes) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a safetensors file as read-only views of its bytes.

    Not `safetensors.numpy.load`: that copies all of it while it holds the interpreter lock, 0.4 s for 136 MB, and serving would
    stand still at each new snapshot.
    """
    start = 8 + int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8:start])
    dtypes = {code: dtype for dtype, code in _CODES.items()}
    out = {}
    for name, described in header.items():
        if name == "__metadata__":
            continue
        dtype = np.dtype(dtypes[described["dtype"]]).newbyteorder("<")
        first, end = described["data_offsets"]
        out[name] = np.frombuffer(data, dtype, (end - first) // dtype.itemsize, start + first).reshape(described["shape"])
    return out


class Writer:
    """Writes snapshots in a thread; the caller is held up only while its arrays are copied into a buffer.

    The buffer is allocated and touched beforehand (`prepare`, and by the thread itself when it runs short), because page
    faults would cost several times the copy. One snapshot is in flight at a time.
    """

    def __init__(self, directory: str | os.PathLike[str], keep: int) -> None:
        self._directory, self._keep = pathlib.Path(directory), keep
        self._arena: npt.NDArray[np.uint8] = np.zeros(0, np.uint8)
        self._thread: threading.Thread | None = None
        self._outcome: Manifest | BaseException | None = None

    def prepare(self, parts: Parts) -> None:
        """Allocate room for these arrays and some growth, and remove what a killed writer left behind."""
        self._arena = _touched(max(_size(parts) * 3 // 2, _LEAST_BYTES))
        self._directory.mkdir(parents=True, exist_ok=True)
        for left in self._directory.glob(f"{_PARTIAL}*"):
            shutil.rmtree(left, ignore_errors=True)

    @property
    def busy(self) -> bool:
        """Whether a snapshot is in flight, or its outcome was not collected yet."""
        return self._thread is not None

    def submit(self, manifest: Manifest, parts: Parts) -> None:
        """Copy the arrays and start writing them; the caller may change them at once.

        Raises:
            RuntimeError: one is still in flight; call `collect` first.
        """
        if self._thread is not None:
            raise RuntimeError("a snapshot is still being written; collect it first")
        if _size(parts) > len(self._arena):
            self._arena = _touched(_size(parts) * 3 // 2)
        copies = _copy(parts, self._arena)
        self._thread = threading.Thread(target=self._run, args=(manifest, copies), name="snapshot-writer")
        self._thread.start()

    def collect(self, timeout_s: float = 0.0) -> Manifest | None:
        """The manifest of a snapshot that has been renamed into place since the last call, else None.

        Raises:
            OSError: writing it failed; nothing was published.
        """
        if self._thread is None:
            return None
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return None
        self._thread, outcome, self._outcome = None, self._outcome, None
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def _run(self, manifest: Manifest, copies: Parts) -> None:
        try:
            self._outcome = write(self._directory, manifest, copies, self._keep)
            if _size(copies) * 5 > len(self._arena) * 4:
                self._arena = _touched(_size(copies) * 3 // 2)
        except BaseException as error:  # noqa: BLE001 - raised again by collect
            self._outcome = error


def _by_file(parts: Parts) -> dict[str, Arrays]:
    return {snapshots.file_of(part): arrays for part, arrays in parts.items()}


def _size(parts: Parts) -> int:
    return sum(a.nbytes + 64 for arrays in parts.values() for a in arrays.values())


def _touched(size_bytes: int) -> npt.NDArray[np.uint8]:
    return np.ones(size_bytes, np.uint8)


def _copy(parts: Parts, arena: npt.NDArray[np.uint8]) -> dict[str, dict[str, npt.NDArray[Any]]]:
    """Copies of all arrays inside the arena, each at a multiple of 64 bytes."""
    copies: dict[str, dict[str, npt.NDArray[Any]]] = {}
    at = 0
    for part, arrays in parts.items():
        copies[part] = {}
        for name, array in arrays.items():
            copy = arena[at : at + array.nbytes].view(array.dtype).reshape(array.shape)
            np.copyto(_rows(copy, array), _rows(array, array))
            copies[part][name] = copy
            at += array.nbytes + (-array.nbytes % 64)
    return copies


def _rows(array: npt.NDArray[Any], like: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array; if rows of `like` lie apart, each row as one value: copied in a third less time."""
    apart = like.ndim == 2 and like.size > 0 and not like.flags.c_contiguous and like.strides[1] == like.itemsize
    return array.view(f"V{like.shape[1] * like.itemsize}") if apart else array


def _write_arrays(path: pathlib.Path, arrays: Arrays) -> str:
    """Write a safetensors file (8-byte header length, JSON header, bodies) and return its sha256.

    Not `safetensors.numpy.save_file`: that copies each array while it holds the interpreter lock and hashes nothing.
    """
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    header: dict[str, object] = {}
    at = 0
    for name in order:
        array = arrays[name]
        code = _CODES[array.dtype.str.lstrip("<|=")]
        header[name] = {"dtype": code, "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("xb", buffering=0) as file:
        bodies = [np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data for name in order]
        for body in (memoryview(len(text).to_bytes(8, "little") + text), *bodies):
            for start in range(0, len(body), _CHUNK_BYTES):
                chunk = body[start : start + _CHUNK_BYTES]
                digest.update(chunk)
                while chunk:
                    chunk = chunk[file.write(chunk) :]
        os.fsync(file.fileno())
    return digest.hexdigest()


def _write_bytes(path: pathlib.Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: pathlib.Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(root: pathlib.Path, version: str) -> None:
    """Hide the folder first, so that no reader ever finds half of it."""
    hidden = root / f"{_PARTIAL}{version}-old"
    with contextlib.suppress(FileNotFoundError):
        (root / version).rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)
