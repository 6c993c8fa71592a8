import pathlib
import signal
import subprocess
import time

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "ops" / "test.sh"


def stub(folder: pathlib.Path, body: str) -> pathlib.Path:
    """Stands where Python stands; `$4` is the half that it is asked for."""
    file = folder / "python"
    file.write_text(f"#!/bin/bash\n{body}\n")
    file.chmod(0o755)
    return file


@pytest.mark.parametrize(
    ("real", "pure", "code"), [(0, 0, 0), (0, 5, 0), (5, 0, 0), (5, 5, 5), (1, 0, 1), (0, 1, 1), (1, 5, 1), (5, 2, 2)]
)
def test_it_fails_when_either_half_fails_and_when_no_test_was_chosen(
    tmp_path: pathlib.Path, real: int, pure: int, code: int
) -> None:
    python = stub(tmp_path, f'echo "$4: ${{*:5}}"; if [ "$4" = real ]; then exit {real}; else exit {pure}; fi')
    done = subprocess.run(["bash", SCRIPT, python, "-k", "some"], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "real: -k some" in done.stdout
    assert "pure: -k some" in done.stdout


def test_an_interrupt_reaches_both_halves_and_it_waits_for_them_to_end(tmp_path: pathlib.Path) -> None:
    python = stub(
        tmp_path,
        f"trap 'sleep 0.2; touch {tmp_path}/$4.ended; exit 2' INT; touch {tmp_path}/$4.began; while :; do sleep 0.05; done",
    )
    running = subprocess.Popen(["bash", SCRIPT, python], stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        end = time.monotonic() + 30
        while not all((tmp_path / f"{half}.began").exists() for half in ("real", "pure")):
            assert time.monotonic() < end, "the halves did not begin"
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        assert running.wait(30) == 2
    finally:
        running.kill()
        running.wait()
    assert all((tmp_path / f"{half}.ended").exists() for half in ("real", "pure"))
