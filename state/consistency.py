"""What is wrong with a configuration: settings that are impossible together, and errors of its types put into words."""

import re
import typing
from typing import TYPE_CHECKING, Any

import msgspec

from state import spec

if TYPE_CHECKING:
    from state.config import Config, Objective


def contradictions(config: "Config") -> list[tuple[str, str]]:
    """Settings that are fine alone and impossible together, as (key, what is wrong and what is allowed)."""
    found: list[tuple[str, str]] = []
    names = [o.name for o in config.objectives]
    if len(set(names)) != len(names):
        found.append(("objectives", f"names must differ, got {names}"))
    for i, objective in enumerate(config.objectives):
        found += [(f"objectives[{i}].{key}", problem) for key, problem in _misdeclared(objective, config.scenarios.known)]
    for name in config.scenarios.known:
        if not any(o.exists(name) for o in config.objectives):
            found.append(("objectives", f'scenario "{name}" of scenarios.known has no objective; add it to the scenarios of one'))
    layout_error = spec.problem(config.features, config.action_kinds)
    if layout_error:
        found.append(("features", layout_error))
    categories = {c.name for c in config.features.categories}
    for part in config.task.key:
        if part in {c.name for c in spec.sequences(config.features)}:
            found.append(("task.key", f'"{part}" holds the user\'s last actions, which no task can be named after'))
        if part not in {"user", "item", "scenario"} | categories:
            found.append(("task.key", f'"{part}" is neither "user", "item", "scenario" nor a declared category'))
    for part in config.quality.group:
        if part not in {"user", "item", "scenario", "request"} | categories:
            found.append(("quality.group", f'"{part}" is none of "user", "item", "scenario", "request" nor a declared category'))
    found += _unpaired(config)
    columns = categories | set(spec.number_names(config.features))
    for key, wanted, allowed in (
        ("model.scenario_features", config.model.scenario_features, columns),
        ("model.common_features", config.model.common_features, columns),
        ("model.personal_features", config.model.personal_features, categories),
    ):
        for column in wanted:
            if config.features.categories and column not in allowed:
                found.append((key, f'"{column}" is not a declared column; allowed: {", ".join(sorted(allowed))}'))
    if "auto" in {config.meta.mode, *config.meta.scenarios.values()} and all(o.kind != "binary" for o in config.objectives):
        found.append(("meta.mode", 'auto judges by the logloss of binary objectives, and none is declared; choose "on" or "off"'))
    if config.model.prune_least > config.model.prune_most:
        found.append(("model.prune_least", f"must not exceed prune_most, which is {config.model.prune_most:g}"))
    if config.join.window_s + config.join.lateness_s > config.join.retention_s:
        found.append(("join.window_s", "window_s plus lateness_s must not exceed retention_s"))
    for name in config.scenarios.negative_sampling:
        if config.scenarios.known and name not in {"*", *config.scenarios.known}:
            known = ", ".join(config.scenarios.known)
            found.append(("scenarios.negative_sampling", f'"{name}" is not in scenarios.known ({known}), nor "*"'))
    if config.scenarios.negative_sampling and config.join.mode == "eager":
        found.append(
            ("scenarios.negative_sampling", 'needs join.mode = "window": in eager mode every row first comes without its actions')
        )
    if 0 < config.learner.propensity_clip < 1:
        found.append(
            ("learner.propensity_clip", "is the greatest weight of a row: at least 1, or 0 to leave propensities unused")
        )
    if config.model.name in {"fm", "lr", "two_tower"}:
        deep = [f"objectives[{i}].layers" for i, o in enumerate(config.objectives) if o.layers]
        found += [(key, f'must be 0: model.name = "{config.model.name}" has no layers of an objective') for key in deep]
    if config.model.dropout and config.model.native is True:
        found.append(("model.dropout", 'no native step leaves anything out; set model.native to "auto" or false'))
    found += _unexplorable(config) + _owned(config) + _widths(config) + _unretrievable(config)
    if config.support.max_age_s < config.join.window_s:
        found.append(("support.max_age_s", "must be at least join.window_s, or no sample would ever be support"))
    return found


def _unpaired(config: "Config") -> list[tuple[str, str]]:
    """Rankings whose lists a task key would cut: rows of one list go to partitions of their own and are never compared."""
    source = {c.name: c.source for c in config.features.categories}
    cuts = [p for p in config.task.key if p == "item" or source.get(p, "").startswith(("item", "position"))]
    ranked = [o.name for o in config.objectives if o.kind == "ranking"]
    if not cuts or not ranked:
        return []
    parts, names = (", ".join(f'"{x}"' for x in own) for own in (cuts, ranked))
    problem = (
        f"{parts} differs within a shown list and cuts it, so that ranking ({names}) has nothing to compare and would not learn; "
        'name tasks after the user, the scenario or the context, or give the objective another kind, such as "binary"'
    )
    return [("task.key", problem)]


def _unexplorable(config: "Config") -> list[tuple[str, str]]:
    """What exploration lacks, where it is on."""
    found: list[tuple[str, str]] = []
    name = config.serving.exploration.count
    if not config.serving.exploration.share:
        return found
    fit = [s.name for s in config.features.statistics if (s.kind, s.key, s.window) == ("count", ("item",), "all")]
    if name not in fit:
        allowed = ", ".join(fit) or 'declare one in features.statistics: { name = "item_count", key = ["item"], kind = "count" }'
        found.append(("serving.exploration.count", f'"{name}" is no count of an item\'s exposures; allowed: {allowed}'))
    if config.objectives[0].kind != "binary":
        found.append(("serving.exploration.share", f'needs a binary first objective, "{config.objectives[0].name}" is not one'))
    return found


def _widths(config: "Config") -> list[tuple[str, str]]:
    """Widths that categories cannot have."""
    wanted, widest = config.model.embedding_widths, config.model.embedding_width
    owners = [c.name for c in config.features.categories if not c.share]
    allowed = f"allowed: {', '.join(owners)}"
    problems = [f'"{n}" is no category with embeddings of its own; {allowed}' for n in wanted if n not in owners]
    problems += [f"{n} = {width} is more than model.embedding_width, {widest}" for n, width in wanted.items() if width > widest]
    if wanted and config.model.name == "lr":
        problems.append("lr has weights in the place of embeddings, one an objective; remove it")
    if wanted and config.embedding.cold != "off":
        problems.append('not together with embedding.cold = "meta", which generates whole rows; remove one')
    return [("model.embedding_widths", problem) for problem in problems[:1]]


def _owned(config: "Config") -> list[tuple[str, str]]:
    """Categories that cannot have own rows."""
    wanted, declared = config.model.own_rows, config.features.categories
    if not wanted:
        return []
    problem, owners = "", [c.name for c in declared if not c.share and c.source != "scenario"]
    if unknown := [name for name in wanted if name not in owners]:
        problem = (
            f'"{unknown[0]}" is no category with embeddings of its own, or the scenario itself; allowed: {", ".join(owners)}'
        )
    elif all(c.source != "scenario" for c in declared):
        problem = 'needs a category with source = "scenario", which says whose an id is; declare one'
    elif config.model.name == "two_tower":
        problem = "two_tower retrieves one item for all scenarios; remove it"
    elif config.embedding.cold != "off":
        problem = 'not together with embedding.cold = "meta", whose first values are of an item in all scenarios; remove one'
    return [("model.own_rows", problem)] if problem else []


def _unretrievable(config: "Config") -> list[tuple[str, str]]:
    """What the sampled softmax lacks, where it is asked for."""
    if config.retrieval.loss != "softmax":
        return []
    categories = config.features.categories
    sources = {c.source for c in categories}
    of_items = {"item", *(c.name for c in categories if c.source.partition(".")[0] in {"item", "item_id"})}
    kinds, names = [o.kind for o in config.objectives], "two towers learned by softmax"
    problems = (
        (config.model.name != "two_tower", 'softmax wants model.name = "two_tower", or choose "objectives"'),
        (kinds != ["ranking"], f'{names} know one objective, kind = "ranking"; declared: {", ".join(kinds)}'),
        (bool(config.objectives[0].scenarios), f"{names} have their objective in every scenario; remove its scenarios"),
        (not {"user_id", "item_id"} <= sources, 'softmax wants categories with source = "user_id" and source = "item_id"'),
        (bool(of_items & set(config.task.key)), "two towers adapt the user's; task.key must not name items"),
        (config.meta.algorithm != "fomaml", f'{names} know meta.algorithm = "fomaml" only'),
        (config.support.mode != "features", f'{names} want support.mode = "features"'),
        (config.embedding.cold != "off", 'a ranking teaches nothing about cold items; set embedding.cold = "off"'),
        (config.model.dropout > 0, f"{names} leave nothing out; set model.dropout = 0.0"),
        (config.learner.device == "cuda", f'{names} learn on the CPU; set learner.device = "cpu"'),
    )
    return [("retrieval.loss", problem) for wrong, problem in problems if wrong]


def _misdeclared(objective: "Objective", known: tuple[str, ...]) -> list[tuple[str, str]]:
    """Settings of one objective that its kind does not have or lacks, and scenarios that nobody declared."""
    found, kind = [], objective.kind
    if kind == "multiclass" and objective.classes < 2:
        found.append(("classes", f'"{objective.name}" is multiclass and needs classes = 2 or more, got {objective.classes}'))
    for key, given, owner in (
        ("classes", objective.classes != 0, "multiclass"),
        ("transform", objective.transform != "none", "regression"),
        ("scale", objective.scale != 1.0, "regression"),
        ("weights", bool(objective.weights), "ranking"),
    ):
        if given and kind != owner:
            found.append((key, f'"{objective.name}" is {kind}, and only kind = "{owner}" has {key}; remove one of them'))
    if objective.loss and kind == "ranking":
        found.append(("loss", f'"{objective.name}" is ranking, which compares rows; a loss of your own sees one row at a time'))
    for name in objective.scenarios:
        if name not in known:
            allowed = ", ".join(known) or "none is declared"
            found.append(("scenarios", f'"{name}" is not in scenarios.known ({allowed}); add it there or correct it'))
    return found


def explain(message: str, raw: dict[str, Any], whole: type[msgspec.Struct]) -> str:
    """Turn msgspec's message and path into key, value and what is allowed; `whole` is the type of the configuration."""
    match = re.match(r"(?s)(.*?)(?: - at `\$\.?(.*)`)?$", message)
    problem, path = (match.group(1), match.group(2) or "") if match else (message, "")
    unknown = re.search(r"unknown field `(.+?)`", problem)
    kind = _struct_at(path, whole)
    allowed = f"; allowed: {', '.join(sorted(kind.__struct_fields__))}" if unknown and kind else ""
    if unknown:
        return f"{path + '.' if path else ''}{unknown.group(1)}: unknown key{allowed}"
    value: Any = raw
    for part in re.findall(r"[^.\[\]]+", path):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, TypeError, ValueError):
            return f"{path}: {problem}"
    return f"{path}: {problem}, got {value!r}"


def _struct_at(path: str, whole: type[msgspec.Struct]) -> type[msgspec.Struct] | None:
    """The struct that a path like `features.statistics[2]` leads to."""
    kind: Any = whole
    for part in re.findall(r"[^.\[\]]+", path):
        hints = typing.get_type_hints(kind) if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else {}
        if not part.isdigit() and part != "...":
            kind = hints.get(part)
        arguments = [a for a in typing.get_args(kind) if isinstance(a, type) and issubclass(a, msgspec.Struct)]
        if arguments:
            kind = arguments[0]
    return kind if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else None
