import importlib
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

OUTER = """
from state.kernels import kernel
from {package} import inner

@kernel
def outer(x: float) -> float:
    return inner.twice(x) + inner.SHIFT
"""
INNER = """
from typing import NamedTuple
import numpy as np
from state.kernels import {decorator}

SHIFT = {shift}
UNUSED = {unused}

@{decorator}
def twice(x: float) -> float:
    return {factor} * x
"""


@pytest.fixture
def compiled(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """A kernel that calls another file's, imported anew from sources with these numbers."""
    package = f"sources_{abs(hash(tmp_path)):x}"
    folder = tmp_path / package
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "outer.py").write_text(OUTER.format(package=package), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[name]

    def imported(**numbers: object) -> Any:
        forget()
        text = INNER.format(**({"decorator": "kernel", "shift": 1.0, "factor": 2.0, "unused": 0} | numbers))
        (folder / "inner.py").write_text(text, encoding="utf-8")
        importlib.invalidate_caches()
        return importlib.import_module(f"{package}.outer").outer

    yield imported
    forget()


def hits(function: Any) -> int:
    return sum(function.stats.cache_hits.values())


@pytest.mark.parametrize("decorator", ["kernel", "inlined"])
def test_a_kernel_is_compiled_anew_when_another_file_that_it_calls_has_changed(
    compiled: Callable[..., Any], decorator: str
) -> None:
    assert compiled(decorator=decorator)(10.0) == 21.0
    changed = compiled(decorator=decorator, factor=3.0)
    assert (changed(10.0), hits(changed)) == (31.0, 0)


def test_a_kernel_is_compiled_anew_when_a_constant_of_another_file_has_changed(compiled: Callable[..., Any]) -> None:
    assert compiled()(10.0) == 21.0
    assert compiled(shift=5.0)(10.0) == 25.0


def test_a_kernel_whose_sources_are_as_they_were_is_read_from_disk(compiled: Callable[..., Any]) -> None:
    assert compiled()(10.0) == 21.0
    again = compiled()
    assert (again(10.0), hits(again)) == (21.0, 1)
