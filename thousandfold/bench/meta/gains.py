"""Every meta-learning algorithm on the same inputs, beside no adaptation, one bias per task and fine-tuning alone."""

import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from learner.meta.registry import META_LEARNERS
from state import config as configuration
from thousandfold.bench import baselines, kept, protocol, quality

F32 = npt.NDArray[np.float32]
Settings = dict[str, Any]
OFF, BIAS_TUNING, FINE_TUNE, REAL_TIME = "off", "bias_tuning", "fine_tune_only", "real_time_features"
VARIANTS = (OFF, BIAS_TUNING, FINE_TUNE, *sorted(META_LEARNERS))
MAIN = (OFF, BIAS_TUNING, "fomaml")
"""Run with every seed; the others with `--seeds-of-others`."""


class Run(NamedTuple):
    """Predictions (R,) of the first objective, adapted and by the plain tower, one array a seed; seconds a pass."""

    adapted: list[F32]
    unadapted: list[F32]
    seconds: float


class Store(NamedTuple):
    """Where finished passes are kept, and whether they are read again."""

    folder: pathlib.Path | None = None
    resume: bool = False


NOWHERE = Store()


def configured(config: configuration.Config, variant: str, chosen: Mapping[str, Settings]) -> configuration.Config:
    """The configuration of a variant, with the settings chosen for it; fine-tuning adapts as first-order MAML does.

    Where a variant adapts on more rows than are kept, as many are kept.

    Raises:
        ConfigError: there is no such variant, or a setting is not one of [meta].
    """
    if variant not in VARIANTS:
        raise configuration.ConfigError(f'no variant "{variant}"; there are {", ".join(VARIANTS)}')
    own: Settings = {"algorithm": variant, "mode": "on"}
    if variant in {OFF, BIAS_TUNING}:
        own, chosen = {"algorithm": "fomaml", "mode": "off"}, {}
    elif variant == FINE_TUNE:
        own = {"algorithm": "fomaml", "mode": "fine_tune_only"}
    try:
        meta = msgspec.convert(
            msgspec.to_builtins(config.meta) | chosen.get(variant, {}) | own, configuration.MetaLearning, strict=True
        )  # fmt: skip
    except msgspec.ValidationError as error:
        raise configuration.ConfigError(f"settings of {variant}: {error}") from error
    kept_rows = msgspec.structs.replace(config.support, size=max(config.support.size, meta.support_rows))
    return msgspec.structs.replace(config, meta=meta, support=kept_rows)


def check(config: configuration.Config, variants: Sequence[str], chosen: Mapping[str, Settings]) -> None:
    """Fail before the work on a variant or a setting that does not exist.

    Raises:
        ConfigError: see `configured`.
    """
    for variant in variants:
        configured(config, variant, chosen)


def bias_rate(config: configuration.Config, chosen: Mapping[str, Settings]) -> float:
    """The rate of bias tuning that was chosen, or else the configured one."""
    return float(chosen.get(BIAS_TUNING, {}).get("rate", config.quality.bias_tuning_rate))


def measure(
    config: configuration.Config, inputs: protocol.Inputs, variants: Sequence[str], chosen: Mapping[str, Settings],
    seeds: Mapping[str, int], progress: quality.Progress, store: Store = NOWHERE,
) -> dict[str, Run]:  # fmt: skip
    """Run the variants, each with its number of `seeds`. No adaptation always runs, and bias tuning on it."""
    found, of = dict[str, Run](), kept.digest(inputs)
    for variant in (OFF, *(v for v in variants if v not in {OFF, BIAS_TUNING})):
        passes = []
        for seed in range(seeds[variant]):
            own = quality.override(configured(config, variant, chosen), "learner.seed", seed)
            tell = progress.stage(f"{variant}, seed {seed}")
            passes.append(kept.arrays(*store, of, "meta", own, lambda c=own, t=tell: _pass(c, inputs, t)))  # type: ignore[misc]
        seconds = float(np.mean([p["seconds"] for p in passes]))
        found[variant] = Run([p["adapted"] for p in passes], [p["unadapted"] for p in passes], seconds)
    began, plain = time.monotonic(), found[OFF].adapted
    tuned = [baselines.bias_tuning(inputs, 0, p, bias_rate(config, chosen)) for p in plain]
    seconds = found[OFF].seconds + (time.monotonic() - began) / len(plain)
    return {OFF: found.pop(OFF), BIAS_TUNING: Run(tuned, plain, seconds), **found}


def _pass(config: configuration.Config, inputs: protocol.Inputs, tell: protocol.Tell) -> kept.Arrays:
    # Time of this process, not of the clock: a pass of minutes shares the machine.
    began = time.process_time()
    scores = protocol.run(config, inputs, tell)
    seconds = np.float64(time.process_time() - began)
    return {"adapted": scores.adapted[:, 0], "unadapted": scores.unadapted[:, 0], "seconds": np.asarray(seconds)}
