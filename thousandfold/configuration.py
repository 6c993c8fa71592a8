"""`thousandfold config`: check a file, show every effective setting, and write docs/configuration.md from the structs."""

import importlib
import pathlib
import re
import textwrap
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import msgspec
import typer
from msgspec import inspect

from state import config as configuration
from state import spec

app = typer.Typer(help="Check and show the configuration.", no_args_is_help=True)

INTRODUCTION = """# Configuration

One TOML file configures every process: `--config FILE`, by convention `thousandfold.toml`. Every setting has a default except
the features, which say what a sample is. An unknown key, a wrong type, a value out of range or two settings that contradict each
other is an error that names file, key, value and what is allowed.

    thousandfold config check FILE      is it valid, and what does it come to
    thousandfold config show FILE       every setting with its effective value

Secrets are never in the file: `[security]` names the environment variables that hold them. `examples/` has whole files.

This page is generated from `state/config.py` and `state/spec.py` by `make docs`; do not edit it.
"""


class Setting(NamedTuple):
    """One documented setting; `default` is TOML, empty for a required key."""

    key: str
    kind: str
    default: str
    allowed: str
    description: str


class Table(NamedTuple):
    """One section of the page: a table of the file, or the rows of an array of tables."""

    title: str
    summary: str
    settings: tuple[Setting, ...]


@app.command()
def check(file: Annotated[pathlib.Path, typer.Argument(help="the configuration file")]) -> None:
    """Say whether FILE is valid, and what it comes to; the model is built, and what is your own imported and tried."""
    config = configuration.load(file)
    if config.features.categories:
        _build(config, file)
    features = config.features
    categories, numbers = len(features.categories), len(spec.number_names(features))
    print(f"{file}: valid")
    print(f"  {categories} categories in {spec.id_width(features)} id columns, {numbers} numbers")
    print(f"  objectives {', '.join(o.name for o in config.objectives)}; actions {', '.join(config.action_kinds)}")
    print(f"  task key {', '.join(config.task.key)}; model {config.model.name}; meta-learning {config.meta.mode}")
    print(f"  feature spec {spec.fingerprint(features, config.action_kinds)}")
    if not categories:
        print("  no [features]: enough for `topics` and `doctor`, not for the streams or the learner")


def _build(config: configuration.Config, file: pathlib.Path) -> None:
    """Imports torch, which a file that says nothing of samples need not wait for."""
    try:
        importlib.import_module("models.registry").check(config)
    except configuration.ConfigError as error:
        raise configuration.ConfigError(f"{file}: {error}") from None


@app.command()
def show(file: Annotated[pathlib.Path | None, typer.Argument(help="the configuration file; none: the defaults")] = None) -> None:
    """Print every setting with its effective value, as TOML."""
    config = configuration.load(file) if file else configuration.Config()
    print(to_toml(config), end="")


@app.command()
def document(out: Annotated[pathlib.Path | None, typer.Option(help="write to this file instead")] = None) -> None:
    """Print docs/configuration.md, generated from the structs."""
    text = page()
    if out is None:
        print(text, end="")
    else:
        out.write_text(text, encoding="utf-8")


def to_toml(config: configuration.Config) -> str:
    """The whole configuration as TOML that reads back as the same configuration."""
    built: dict[str, Any] = msgspec.to_builtins(config)
    lines: list[str] = []
    for name, value in built.items():
        if isinstance(value, dict):
            lines += ["", f"[{name}]", *(f"{key} = {_lines(each)}" for key, each in value.items())]
        else:
            lines.insert(0, f"{name} = {_lines(value)}")
    return "\n".join(lines) + "\n"


def tables() -> list[Table]:
    """Every section of the configuration, in the order of the file, arrays of tables last of their section."""
    out: list[Table] = []
    root = inspect.type_info(configuration.Config)
    for name, kind in _fields(root):
        out += _tables(name, kind)
    return out


def page() -> str:
    """The text of docs/configuration.md."""
    parts = [INTRODUCTION]
    for table in tables():
        parts.append(f"## {table.title}\n\n{textwrap.fill(table.summary, 128)}\n")
        parts.append("| setting | type | default | allowed | meaning |\n| --- | --- | --- | --- | --- |")
        parts += [_row(setting) for setting in table.settings]
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def _tables(name: str, kind: inspect.Type, *, array: bool = False) -> Iterator[Table]:
    plain = _bare(kind)
    if isinstance(plain, inspect.VarTupleType):
        yield from _tables(name, plain.item_type, array=True)
        return
    if not isinstance(plain, inspect.StructType):
        raise TypeError(f"{name}: a section must be a table or an array of tables")
    inner = [(f.encode_name, f.type) for f in plain.fields if _holds_tables(f.type)]
    own = [f for f in plain.fields if not _holds_tables(f.type)]
    title = f"[[{name}]]" if array else f"[{name}]"
    summary = " ".join((plain.cls.__doc__ or "").split())
    if own:
        yield Table(title, summary, tuple(_setting(f) for f in own))
    for key, each in inner:
        yield from _tables(f"{name}.{key}", each)


def _fields(kind: inspect.Type) -> list[tuple[str, inspect.Type]]:
    plain = _bare(kind)
    return [(f.encode_name, f.type) for f in plain.fields] if isinstance(plain, inspect.StructType) else []


def _bare(kind: inspect.Type) -> inspect.Type:
    return kind.type if isinstance(kind, inspect.Metadata) else kind


def _holds_tables(kind: inspect.Type) -> bool:
    plain = _bare(kind)
    return isinstance(_bare(plain.item_type) if isinstance(plain, inspect.VarTupleType) else plain, inspect.StructType)


def _setting(field: inspect.Field) -> Setting:
    described = field.type.extra_json_schema or {} if isinstance(field.type, inspect.Metadata) else {}
    default = field.default
    if default is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
        default = field.default_factory()
    kind, allowed = _kind(_bare(field.type))
    return Setting(
        field.encode_name,
        kind,
        "" if default is msgspec.NODEFAULT else literal(default),
        allowed,
        described.get("description", ""),
    )


def _kind(kind: inspect.Type) -> tuple[str, str]:
    """(type, what is allowed) in words."""
    match kind:
        case inspect.BoolType():
            return "boolean", "`true`, `false`"
        case inspect.IntType() | inspect.FloatType():
            return "integer" if isinstance(kind, inspect.IntType) else "number", _range(kind)
        case inspect.LiteralType():
            return "text", ", ".join(f"`{literal(value)}`" for value in kind.values)
        case inspect.UnionType():
            each = [_kind(_bare(part)) for part in kind.types]
            return " or ".join(words for words, _ in each), ", ".join(allowed for _, allowed in each)
        case inspect.StrType():
            return "text", f"matches `{kind.pattern}`" if kind.pattern else "not empty" if kind.min_length else ""
        case inspect.VarTupleType():
            item, allowed = _kind(_bare(kind.item_type))
            least = f"at least {kind.min_length}" if kind.min_length else ""
            most = f"at most {kind.max_length}" if kind.max_length else ""
            return f"list of {item}", ", ".join(x for x in (least, most, f"each {allowed}" if allowed else "") if x)
        case inspect.DictType():
            return "table", f"of name = {_kind(_bare(kind.value_type))[1]}"
        case _:
            raise TypeError(f"{kind}: no words for this type of setting")


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    bounds = ((">", kind.gt), ("≥", kind.ge), ("<", kind.lt), ("≤", kind.le))
    return ", ".join(f"{sign} {value:,}" for sign, value in bounds if value is not None)


def _row(setting: Setting) -> str:
    default = f"`{setting.default}`" if setting.default else "required"
    return f"| `{setting.key}` | {setting.kind} | {default} | {_cell(setting.allowed)} | {_cell(setting.description)} |"


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", text)


def _lines(value: object) -> str:
    """Like `literal`, but an array of tables takes a line per table."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + "".join(f"  {literal(each)},\n" for each in value) + "]"
    return literal(value)


def literal(value: object) -> str:
    """A value as TOML on one line."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            # TOML's basic strings escape as JSON's do.
            return msgspec.json.encode(value).decode()
        case dict():
            return "{ " + ", ".join(f"{_key(key)} = {literal(each)}" for key, each in value.items()) + " }" if value else "{}"
        case list() | tuple():
            return "[" + ", ".join(literal(each) for each in value) + "]"
        case msgspec.Struct():
            return literal(msgspec.to_builtins(value))
        case _:
            raise TypeError(f"{type(value).__name__} has no place in TOML")


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else msgspec.json.encode(name).decode()
