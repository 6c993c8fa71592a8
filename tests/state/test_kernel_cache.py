import importlib
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

OUTER = """
import {package}.inner
from state.kernels import kernel
from {package} import inner

@kernel
def outer(x: float) -> float:
    return inner.twice(x) + inner.SHIFT

@kernel
def dotted(x: float) -> float:
    return {package}.inner.twice(x)

@kernel
def first(pair: inner.Pair) -> float:
    return pair.a
"""
INNER = """
from typing import NamedTuple
from state.kernels import {decorator}

class Pair(NamedTuple):
    {fields}

SHIFT = {shift}

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
        usual = {"decorator": "kernel", "shift": 1.0, "factor": 2.0, "fields": "a: float; b: float"}
        text = INNER.format(**(usual | numbers))
        (folder / "inner.py").write_text(text, encoding="utf-8")
        importlib.invalidate_caches()
        return importlib.import_module(f"{package}.outer")

    yield imported
    forget()


def hits(function: Any) -> int:
    return sum(function.stats.cache_hits.values())


@pytest.mark.parametrize("decorator", ["kernel", "inlined"])
@pytest.mark.parametrize("name", ["outer", "dotted"])
def test_a_kernel_is_compiled_anew_when_another_file_that_it_calls_has_changed(
    compiled: Callable[..., Any], decorator: str, name: str
) -> None:
    before = getattr(compiled(decorator=decorator), name)(10.0)
    changed = getattr(compiled(decorator=decorator, factor=3.0), name)
    assert (changed(10.0), hits(changed)) == (before + 10.0, 0)


def test_a_kernel_is_compiled_anew_when_a_constant_of_another_file_has_changed(compiled: Callable[..., Any]) -> None:
    assert compiled().outer(10.0) == 21.0
    assert compiled(shift=5.0).outer(10.0) == 25.0


def test_a_kernel_is_compiled_anew_when_a_named_tuple_that_it_takes_has_changed(compiled: Callable[..., Any]) -> None:
    module = compiled()
    assert module.first(module.inner.Pair(a=1.0, b=2.0)) == 1.0
    module = compiled(fields="b: float; a: float")
    assert module.first(module.inner.Pair(a=1.0, b=2.0)) == 1.0


def test_a_kernel_whose_sources_are_as_they_were_is_read_from_disk(compiled: Callable[..., Any]) -> None:
    assert compiled().outer(10.0) == 21.0
    again = compiled().outer
    assert (again(10.0), hits(again)) == (21.0, 1)
