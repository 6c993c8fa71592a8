"""How we prove who we are to the brokers and to the store.

Secrets come from the environment or from files, never from the configuration.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

from state import redis_connection
from state.config import Config, ConfigError

FILE_SUFFIX = "_FILE"


class Kafka(NamedTuple):
    """User name and password are empty without SASL; the files are empty without TLS, `ca_file` also for the system's."""

    protocol: str
    mechanism: str
    username: str
    password: str
    ca_file: str
    certificate_file: str
    key_file: str

    @property
    def sasl(self) -> bool:
        """Whether a user name and a password are sent."""
        return self.protocol.startswith("SASL")

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.protocol.endswith("SSL")


def kafka(config: Config, environment: Mapping[str, str] = os.environ) -> Kafka:
    """Read what `config.security` names for the brokers.

    Raises:
        ConfigError: SASL is configured and a secret is not there, or a file of TLS cannot be read or has no partner.
    """
    security = config.security
    known = Kafka(security.kafka_protocol, security.kafka_mechanism, "", "", "", "", "")
    if known.sasl:
        known = known._replace(
            username=_required(security.kafka_username_env, "kafka_username_env", environment),
            password=_required(security.kafka_password_env, "kafka_password_env", environment),
        )
    if not known.tls:
        return known
    if bool(security.kafka_certificate_file) != bool(security.kafka_key_file):
        raise ConfigError("security.kafka_certificate_file and security.kafka_key_file: set both, or neither")
    return known._replace(
        ca_file=_readable(security.kafka_ca_file, "kafka_ca_file"),
        certificate_file=_readable(security.kafka_certificate_file, "kafka_certificate_file"),
        key_file=_readable(security.kafka_key_file, "kafka_key_file"),
    )


def store(config: Config, environment: Mapping[str, str] = os.environ) -> redis_connection.Access:
    """Read what `config.security` names for the store; nothing of it need be there.

    Raises:
        ConfigError: a file that is named cannot be read.
    """
    security = config.security
    password = secret(security.store_password_env, "store_password_env", environment)
    return redis_connection.Access(password or None, _readable(security.store_ca_file, "store_ca_file"))


def secret(variable: str, setting: str, environment: Mapping[str, str]) -> str:
    """The value of `variable`, else the first line of the file that `variable` + "_FILE" names, else empty.

    Raises:
        ConfigError: the file cannot be read.
    """
    value = environment.get(variable, "")
    file = environment.get(variable + FILE_SUFFIX, "")
    if value or not file:
        return value
    try:
        lines = pathlib.Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"security.{setting}: the file that {variable}{FILE_SUFFIX} names cannot be read: {error}") from error
    return lines[0] if lines else ""


def _required(variable: str, setting: str, environment: Mapping[str, str]) -> str:
    value = secret(variable, setting, environment)
    if not value:
        raise ConfigError(
            f"security.{setting}: the environment variable {variable} is not set; export it, "
            f"or put the secret into a file and its path into {variable}{FILE_SUFFIX}, or name another variable"
        )
    return value


def _readable(file: str, setting: str) -> str:
    if file and not os.access(file, os.R_OK):
        raise ConfigError(f"security.{setting}: {file} cannot be read")
    return file
