"""What a user names in the configuration is found, or the error says what is missing and what to do."""

import pathlib

import pytest

from models import plugins
from state import config

SOURCE = """
import torch
class Here: ...
def zero(label, logit): return 0 * logit[:, 0]
"""


@pytest.fixture(autouse=True)
def modules(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugin_whole.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "plugin_broken.py").write_text("import nowhere_to_be_found", encoding="utf-8")
    (tmp_path / "plugin_wrong.py").write_text("1 / 0", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)


def test_a_name_of_a_module_is_found() -> None:
    assert plugins.named("model.name", "plugin_whole:Here").__name__ == "Here"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("plugin_absent:Model", 'there is no module "plugin_absent" .* install its package, or put its folder on PYTHONPATH'),
        ("plugin_whole:There", 'has no "There"; it defines Here, zero'),
        ("plugin_broken:Model", 'needs the module "nowhere_to_be_found", which is missing'),
        ("plugin_wrong:Model", "cannot be imported: ZeroDivisionError"),
        ("plugin_whole:", 'write it as "package.module:name"'),
        (":Model", 'write it as "package.module:name"'),
        ("a b:Model", 'write it as "package.module:name"'),
    ],
)
def test_an_error_names_setting_cause_and_remedy(path: str, said: str) -> None:
    with pytest.raises(config.ConfigError, match=f"model.name: .*{said}"):
        plugins.named("model.name", path)
