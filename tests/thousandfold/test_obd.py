import hashlib
import io
import pathlib
import subprocess
import tarfile
from typing import Any

import polars as pl
import pytest

from thousandfold.data import obd, packages


def table(policy: str, campaign: str) -> bytes:
    own = 2 if campaign == "all" else 1
    rows = {
        "": [0, 1], "timestamp": [f"2019-11-24 00:00:{7 if policy == 'bts' else 5}.5+00:00", "2019-11-30 23:00:00.25+00:00"],
        "item_id": [0, own - 1], "position": [3, 1], "click": [1, 0], "propensity_score": [0.25, 0.5],
        **{f"user_feature_{k}": [f"{k}a", f"{k}b"] for k in range(4)},
        **{f"user-item_affinity_{k}": [float(k), 7.0 + k] for k in range(own)},
    }  # fmt: skip
    return pl.DataFrame(rows).write_csv().encode()


def context(campaign: str) -> bytes:
    own = 2 if campaign == "all" else 1
    items = {"": range(own), "item_id": range(own), "item_feature_0": [-0.5 * k for k in range(own)]}
    return pl.DataFrame(items | {f"item_feature_{k}": [f"{k}x"] * own for k in (1, 2, 3)}).write_csv().encode()


def files() -> dict[str, bytes]:
    found = {f"{p}/{c}/{c}.csv": table(p, c) for p in obd.POLICIES for c in obd.CAMPAIGNS}
    return found | {f"bts/{c}/item_context.csv": context(c) for c in obd.CAMPAIGNS}


@pytest.fixture
def archive(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A small archive of the same form, and the checks set to it."""
    monkeypatch.setattr(obd, "ROWS", 12)
    monkeypatch.setattr(obd, "CLICKS", 6)
    monkeypatch.setattr(obd, "SHA256", {name: hashlib.sha256(body).hexdigest() for name, body in files().items()})
    path = tmp_path / obd.ARCHIVE.file
    with tarfile.open(path, "w:gz") as packed:
        for name, body in files().items():
            member = tarfile.TarInfo(obd.FOLDER + name)
            member.size = len(body)
            packed.addfile(member, io.BytesIO(body))
    return path


def test_the_log_has_every_campaign_and_policy_in_order_of_time(archive: pathlib.Path) -> None:
    found = pl.read_parquet(obd.load(archive.parent, lambda _: None))
    assert found.height == 12
    assert found["time"].is_sorted()
    assert found["time"].dt.epoch("ms")[0] == 1_574_553_605_500
    assert found["request"].n_unique() == 12
    assert set(found["scenario"]) == {"all", "men", "women"}
    assert set(found["item"]) == {"all-0", "all-1", "men-0", "women-0"}
    second = found.filter(pl.col("request") == "random-all-1").row(0, named=True)
    assert second["user"] == "0b-1b-2b-3b"
    assert second["item.affinity"] == 8.0
    assert second["item.price"] == -0.5
    assert second["context.propensity"] == 0.5
    assert second["position"] == 1
    assert second["click"] == 0


def test_the_parsed_log_is_kept(archive: pathlib.Path) -> None:
    first = obd.load(archive.parent, lambda _: None)
    archive.unlink()
    assert obd.load(archive.parent, lambda _: None) == first


def test_another_archive_is_refused(archive: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(obd.SHA256, "bts/men/men.csv", "0" * 64)
    with pytest.raises(packages.DataError, match=r"bts/men/men.csv in .* has sha256 .*, expected 0{64}; delete it with `rm"):
        obd.load(archive.parent)


def test_a_damaged_archive_is_refused(archive: pathlib.Path) -> None:
    archive.write_bytes(archive.read_bytes()[:100])
    with pytest.raises(packages.DataError, match="is damaged"):
        obd.load(archive.parent)


def test_other_counts_are_refused(archive: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obd, "CLICKS", 7)
    with pytest.raises(packages.DataError, match=r"\(12, 6\) rows and clicks; expected \(12, 7\)"):
        obd.load(archive.parent)


def test_a_download_that_fails_says_why_and_what_to_do(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, stderr="first\nno network")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(
        packages.DataError, match=rf"could not be fetched: no network. Check the network, or put {obd.ARCHIVE.file}"
    ):
        obd.load(tmp_path, lambda _: None)
