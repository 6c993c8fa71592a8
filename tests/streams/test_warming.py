import asyncio
import pathlib

import pytest

from state import config as configuration
from streams import warming

EXAMPLES = sorted((pathlib.Path(__file__).parents[2] / "examples").glob("ml1m*.toml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_made_up_events_go_through_all_three_stages(path: pathlib.Path) -> None:
    assert asyncio.run(warming.warm(configuration.load(path))) == warming.LISTS


def test_they_do_so_when_revisions_are_emitted_and_items_are_tasks() -> None:
    config = configuration.parse('task = { key = ["item"] }\njoin = { mode = "eager" }')
    assert asyncio.run(warming.warm(config)) >= warming.LISTS
