import pathlib
from typing import Any

import msgspec
import pytest

from state import credentials
from state.config import Config, ConfigError, Security

NAMES = {"THOUSANDFOLD_KAFKA_USERNAME": "ann", "THOUSANDFOLD_KAFKA_PASSWORD": "s3cret"}


def secured(**settings: Any) -> Config:
    return msgspec.structs.replace(Config(), security=Security(**settings))


def test_plain_text_needs_no_secret() -> None:
    assert credentials.kafka(Config(), {}) == ("PLAINTEXT", "PLAIN", "", "", "", "", "")
    assert credentials.store(Config(), {}) == (None, "")


@pytest.mark.parametrize("missing", sorted(NAMES))
def test_a_missing_secret_names_the_variable_and_the_setting(missing: str) -> None:
    with pytest.raises(ConfigError, match=rf"security\.kafka_\w+_env: the environment variable {missing} is not set"):
        credentials.kafka(secured(kafka_protocol="SASL_SSL"), {k: v for k, v in NAMES.items() if k != missing})


def test_a_secret_may_lie_in_a_file_that_the_variable_with_file_at_its_end_names(tmp_path: pathlib.Path) -> None:
    (tmp_path / "secret").write_text("from a file\n")
    name = Security().store_password_env
    assert credentials.store(Config(), {f"{name}_FILE": str(tmp_path / "secret")}).password == "from a file"
    both = {name: "from the environment", f"{name}_FILE": str(tmp_path / "secret")}
    assert credentials.store(Config(), both).password == "from the environment"
    with pytest.raises(ConfigError, match=rf"security\.store_password_env: the file that {name}_FILE names cannot be read"):
        credentials.store(Config(), {f"{name}_FILE": str(tmp_path / "absent")})


@pytest.mark.parametrize("setting", ["kafka_ca_file", "store_ca_file"])
def test_an_authority_that_cannot_be_read_is_named(setting: str, tmp_path: pathlib.Path) -> None:
    config = secured(kafka_protocol="SSL", **{setting: str(tmp_path / "absent.pem")})
    with pytest.raises(ConfigError, match=rf"security\.{setting}: .*absent\.pem cannot be read"):
        credentials.kafka(config, {}) if setting.startswith("kafka") else credentials.store(config, {})


def test_a_certificate_without_its_key_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"kafka_certificate_file and security\.kafka_key_file: set both"):
        credentials.kafka(secured(kafka_protocol="SSL", kafka_certificate_file="our.pem"), {})
