"""Snapshots: whole or not at all, and never a damaged one."""

import pathlib
import threading

import msgspec
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from state import disk_snapshots, snapshots
from state.snapshots import Damaged, Manifest


def manifest(step: int = 7, created_ms: int = 1_000) -> Manifest:
    return Manifest(
        version="", step=step, created_ms=created_ms, directory="", files={}, spec="ab", model="pepnet",
        offsets=(("episodes", 0, 12), ("episodes", 1, 5)), trained_rows=99, skipped=(("episodes", 0, 3, 1, "guard"),),
    )  # fmt: skip


def arrays(seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return {
        "serving": {
            "table": rng.standard_normal((50, 4), np.float32),
            "scalar": np.array(3.5),
            "none": np.zeros((0, 3), np.uint64),
        },
        "training": {
            "keys": rng.integers(0, 2**63, 20).astype(np.uint64),
            "flags": np.array([True, False]),
            "odd": np.arange(3, dtype=np.int8),
        },
    }


def test_what_was_written_is_read_back_bit_for_bit(tmp_path: pathlib.Path) -> None:
    written = disk_snapshots.write(tmp_path, manifest(), arrays(), keep=3)
    found = disk_snapshots.newest_intact(tmp_path)
    assert found == written
    assert found.offsets == (("episodes", 0, 12), ("episodes", 1, 5))
    for part, expected in arrays().items():
        read = disk_snapshots.read(tmp_path, found, part)
        assert set(read) == set(expected)
        for name, array in expected.items():
            assert read[name].dtype == array.dtype
            np.testing.assert_array_equal(read[name], array)


def test_the_file_is_one_that_the_safetensors_library_reads(tmp_path: pathlib.Path) -> None:
    written = disk_snapshots.write(tmp_path, manifest(), arrays(), keep=3)
    read = safetensors.numpy.load_file(tmp_path / written.version / "training.safetensors")
    np.testing.assert_array_equal(read["keys"], arrays()["training"]["keys"])


def test_a_fortran_ordered_array_keeps_its_values(tmp_path: pathlib.Path) -> None:
    array = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    written = disk_snapshots.write(tmp_path, manifest(), {"serving": {"a": array}}, keep=1)
    np.testing.assert_array_equal(disk_snapshots.read(tmp_path, written, "serving")["a"], array)


@pytest.mark.parametrize("file", ["serving.safetensors", "training.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_snapshot_is_refused_and_the_one_before_it_used(tmp_path: pathlib.Path, file: str, damage: str) -> None:
    good = disk_snapshots.write(tmp_path, manifest(1, 1_000), arrays(1), keep=3)
    bad = disk_snapshots.write(tmp_path, manifest(2, 2_000), arrays(2), keep=3)
    path = tmp_path / bad.version / file
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "truncate":
        path.write_bytes(data[:-1])
    else:
        path.unlink()
    refused: list[str] = []
    assert disk_snapshots.newest_intact(tmp_path, refused=lambda version, _: refused.append(version)) == good
    assert refused == [bad.version]


@given(st.data())
def test_no_flipped_bit_of_a_manifest_goes_unnoticed(data: st.DataObject) -> None:
    sealed = snapshots.seal(manifest())
    text = bytearray(msgspec.json.encode(sealed))
    text[data.draw(st.integers(0, len(text) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        assert snapshots.parse(bytes(text), "manifest.json") == sealed
    except Damaged:
        return


def test_the_damage_of_a_part_that_is_not_needed_does_not_matter(tmp_path: pathlib.Path) -> None:
    written = disk_snapshots.write(tmp_path, manifest(), arrays(), keep=3)
    (tmp_path / written.version / "training.safetensors").unlink()
    assert disk_snapshots.newest_intact(tmp_path, parts=("serving",)) == written
    assert disk_snapshots.newest_intact(tmp_path, refused=lambda *_: None) is None
    with pytest.raises(Damaged, match="training"):
        disk_snapshots.read(tmp_path, written, "training")


def test_a_renamed_folder_is_not_taken_for_another_version(tmp_path: pathlib.Path) -> None:
    written = disk_snapshots.write(tmp_path, manifest(), arrays(), keep=3)
    other = snapshots.version_of(9, 9_999)
    (tmp_path / written.version).rename(tmp_path / other)
    with pytest.raises(Damaged, match="renamed"):
        disk_snapshots.manifest_of(tmp_path, other)


def test_only_the_newest_are_kept(tmp_path: pathlib.Path) -> None:
    for step in range(6):
        disk_snapshots.write(tmp_path, manifest(step, 1_000 + step), arrays(step), keep=2)
    assert [disk_snapshots.manifest_of(tmp_path, v).step for v in disk_snapshots.versions(tmp_path)] == [5, 4]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_failed_write_leaves_nothing_behind(tmp_path: pathlib.Path) -> None:
    with pytest.raises(KeyError):
        disk_snapshots.write(tmp_path, manifest(), {"serving": {"a": np.array(["text"])}}, keep=2)
    assert list(tmp_path.iterdir()) == []
    assert disk_snapshots.newest_intact(tmp_path / "nowhere") is None


def test_the_writer_publishes_what_the_arrays_were_at_submission(tmp_path: pathlib.Path) -> None:
    writer = disk_snapshots.Writer(tmp_path, keep=3)
    live = arrays(5)
    writer.prepare(live)
    writer.submit(manifest(), live)
    for part in live.values():
        for array in part.values():
            array.fill(0)
    with pytest.raises(RuntimeError, match="collect"):
        writer.submit(manifest(8, 2_000), live)
    written = writer.collect(timeout_s=30)
    assert written is not None
    assert not writer.busy
    np.testing.assert_array_equal(disk_snapshots.read(tmp_path, written, "serving")["table"], arrays(5)["serving"]["table"])


def test_arrays_that_outgrew_the_buffer_are_still_written_whole(tmp_path: pathlib.Path) -> None:
    writer = disk_snapshots.Writer(tmp_path, keep=5)
    writer.prepare({"serving": {"a": np.zeros(4)}})
    for round_, size in enumerate((10, 1_000, 100_000)):
        writer.submit(manifest(round_, 1_000 + round_), {"serving": {"a": np.arange(float(size))}})
        written = writer.collect(timeout_s=30)
        assert written is not None
        np.testing.assert_array_equal(disk_snapshots.read(tmp_path, written, "serving")["a"], np.arange(float(size)))


def test_an_error_of_the_writer_thread_surfaces_at_collect(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "snapshots"
    writer = disk_snapshots.Writer(folder, keep=1)
    writer.prepare(arrays())
    folder.rmdir()
    folder.write_text("in the way")
    writer.submit(manifest(), arrays())
    with pytest.raises(OSError, match="exists"):
        writer.collect(timeout_s=30)
    folder.unlink()
    writer.submit(manifest(), arrays())
    assert writer.collect(timeout_s=30) is not None


def test_what_a_killed_writer_left_is_removed_at_the_next_start(tmp_path: pathlib.Path) -> None:
    (tmp_path / ".partial-x-1").mkdir()
    disk_snapshots.Writer(tmp_path, keep=1).prepare(arrays())
    assert list(tmp_path.iterdir()) == []


def test_a_reader_beside_a_writer_sees_whole_snapshots_only(tmp_path: pathlib.Path) -> None:
    stop = threading.Event()
    torn: list[str] = []

    def look() -> None:
        while not stop.is_set():
            found = disk_snapshots.newest_intact(tmp_path, refused=lambda _, r: torn.append(r) if "sha256" in r else None)
            if found is None:
                continue
            try:
                read = disk_snapshots.read(tmp_path, found, "serving")
            except Damaged:
                continue
            np.testing.assert_array_equal(read["a"], np.full(1000, found.step))

    reader = threading.Thread(target=look)
    reader.start()
    for step in range(30):
        disk_snapshots.write(tmp_path, manifest(step, 1_000 + step), {"serving": {"a": np.full(1000, step)}}, keep=2)
    stop.set()
    reader.join()
    assert torn == []


def test_an_announcement_survives_the_wire_and_a_changed_one_is_refused() -> None:
    sealed = snapshots.seal(manifest())
    assert snapshots.unpack(snapshots.pack(sealed)) == sealed
    with pytest.raises(Damaged, match="checksum"):
        snapshots.unpack(snapshots.pack(msgspec.structs.replace(sealed, step=8)))
    with pytest.raises(Damaged, match="not a manifest"):
        snapshots.unpack(b"\xc1")
