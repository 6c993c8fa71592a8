"""The settings of the talks in docs/models.md are settings, and the networks that they ask for can be built."""

import pathlib
import re
import tomllib

import pytest

from models import base, registry
from state import config
from thousandfold import configuration, specs

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "models.md"
BLOCKS = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def over(example: str, text: str) -> config.Config:
    """The worked example with the block's settings in place of its own."""
    whole = tomllib.loads(specs.path(example).read_text(encoding="utf-8"))
    for section, settings in tomllib.loads(text).items():
        whole[section] = whole.get(section, {}) | settings
    return config.parse("\n".join(f"{key} = {configuration.literal(value)}" for key, value in whole.items()))


@pytest.mark.parametrize("text", BLOCKS, ids=lambda text: str(tomllib.loads(text)["model"]["name"]))
def test_what_a_talk_gives_can_be_built_over_a_worked_example(text: str) -> None:
    asked = tomllib.loads(text)
    settings = over("ml1m_dupn" if asked["model"]["name"] in base.SEQUENTIAL else "ml1m", text)
    model = registry.build(settings)
    assert model.initial(0).shape == (base.size(model.shapes),)
    for section, values in asked.items():
        for key, value in values.items():
            assert getattr(getattr(settings, section), key) == (tuple(value) if isinstance(value, list) else value)


def test_every_talk_with_settings_is_there() -> None:
    assert {tomllib.loads(text)["model"]["name"] for text in BLOCKS} == {"pepnet", "sass", "dupn", "trs"}
