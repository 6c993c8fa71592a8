import re

import pytest

from tests.ops import expressions

MATCHER = re.compile(r"(\w+)\{([^}]*)\}")
LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
QUOTED = re.compile(r"\"[^\"]*\"")


@pytest.mark.parametrize(("where", "expression"), expressions.asked().items(), ids=expressions.asked())
def test_every_expression_asks_for_metrics_that_the_code_exports(where: str, expression: str) -> None:
    names = set(expressions.NAME.findall(QUOTED.sub("", expression)))
    unknown = {n for n in names if expressions.family(n) not in expressions.exported()}
    assert not unknown, f"{where} asks for {unknown}"
    assert names or any(name in expression for name in expressions.PROVIDED)


@pytest.mark.parametrize(("where", "expression"), expressions.asked().items(), ids=expressions.asked())
def test_every_expression_asks_for_metrics_that_the_architecture_declares(where: str, expression: str) -> None:
    names = {expressions.family(n) for n in expressions.NAME.findall(QUOTED.sub("", expression))}
    assert names <= expressions.documented(), f"{where}: docs/architecture.md lacks {names - expressions.documented()}"


@pytest.mark.parametrize(("where", "expression"), expressions.asked().items(), ids=expressions.asked())
def test_every_expression_selects_by_labels_that_the_metric_has(where: str, expression: str) -> None:
    exported = expressions.exported()
    for name, selection in MATCHER.findall(expression):
        has = expressions.PROVIDED.get(name) or exported[expressions.family(name)] | expressions.SCRAPED
        wanted = set(LABEL.findall(QUOTED.sub('""', selection)))
        assert wanted <= has, f"{where}: {name} has no label {wanted - has}"


def test_the_architecture_declares_every_metric_that_the_code_exports() -> None:
    assert set(expressions.exported()) - expressions.documented() == set()


def test_a_counter_is_asked_for_with_its_suffix() -> None:
    for where, expression in expressions.asked().items():
        for call in re.findall(r"(?:rate|increase)\((thousandfold_[a-z_]+)", expression):
            assert re.search(r"_(total|bucket|count|sum)$", call), f"{where}: {call} is no counter"
