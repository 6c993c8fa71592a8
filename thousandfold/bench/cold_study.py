"""What runs in MeLU's protocol: baselines without a network, and the library's models, losses and meta-learners.

Ratings less the mean of the training part are a regression. A training list is a user whose rows are cut in two at random: what
is known and what is asked. In a share of the lists the movie's id is hidden (after DropoutNet, Volkovs et al., NIPS 2017), so
that the network also learns to say something of movies that nobody has rated.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from learner import step
from models import base
from state import config as configuration
from thousandfold.bench import cold_states

I64 = npt.NDArray[np.int64]
Say = Callable[[str], None]
Told = dict[str, dict[str, float]]
"""Figures by quadrant and figure."""
USER_MEAN, BIASES, NONE, FINE_TUNE, MELU = "user_mean", "biases", "no_adaptation", "fine_tune", "melu"
TRAINED = (FINE_TUNE, MELU, "bias", "maml", "ridge")
META = ("bias", "maml", "ridge")
VARIANTS = (USER_MEAN, BIASES, NONE, *TRAINED)
"""`no_adaptation` is the plain tower of `fine_tune`, which is trained without a meta loss."""
PRIORS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
EPOCHS, EVERY = 6, 2
"""Passes over the training part that are tried, and after how many there is a choice to stop."""
GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    FINE_TUNE: {"meta.inner_rate": (0.03, 0.1, 0.3), "meta.prior_rows": (10.0,)},
    "bias": {"meta.inner_rate": (0.1, 0.3), "meta.prior_rows": (10.0,)},
    "maml": {"meta.inner_rate": (0.03, 0.1, 0.3), "meta.prior_rows": (10.0,)},
    "ridge": {"meta.inner_rate": (0.02, 0.1, 0.3)},
}
"""What is tried of each, one setting after the other, each with the best values of those before it. All start
without prior rows."""
FIXED: dict[str, dict[str, Any]] = {
    FINE_TUNE: {"meta.algorithm": "fomaml", "meta.mode": "fine_tune_only", "meta.inner_steps": 5},
    "bias": {"meta.algorithm": "bias", "meta.inner_steps": 5},
    "maml": {"meta.algorithm": "maml", "meta.inner_steps": 5},
    "ridge": {"meta.algorithm": "ridge", "meta.inner_steps": 1},
    MELU: {
        "meta.algorithm": "maml", "meta.inner_steps": 1, "meta.inner_rate": 1e-5, "model.embedding_width": 32,
        "model.hidden": (64, 64), "model.wide": "off", "optimizer.dense_rate": 5e-5, "optimizer.average": 0.0,
    },
}  # fmt: skip
"""MeLU's rate is 5e-6 on the squared error, so 1e-5 on half of it. It has no ids of movies. After so
small a step the original and the meta loss are the same, so that their sum is MeLU's loss."""
HIDDEN, MELU_EPOCHS = 0.5, 20
USERS = 32


class Part(NamedTuple):
    """Quadrants that are judged together (`cold_states.parts`), and what may be learned from for them.

    What `cold_makers` fills in depends on that too, so every part has rows of its own.
    """

    rows: cold_states.Rows
    states: cold_states.States
    lists: cold_states.Lists


Draw = Sequence[Part]
"""All quadrants of one draw of old users."""


class Settings(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Of one variant: settings of the configuration by `section.key`, passes over the training part, prior rows of biases."""

    config: dict[str, Any] = {}
    epochs: int = EPOCHS
    user_prior: float = 5.0
    item_prior: float = 5.0
    worth: float = 0.0
    """On the quadrants that it was chosen on (`cold_states.worth`)."""


def configured(config: configuration.Config, changes: Mapping[str, Any]) -> configuration.Config:
    """The configuration with settings replaced, by `section.key`.

    Raises:
        ConfigError: there is no such setting, or it cannot have the value.
    """
    whole = msgspec.to_builtins(config)
    for name, value in changes.items():
        section, _, key = name.partition(".")
        whole[section][key] = value
    try:
        return msgspec.convert(whole, configuration.Config, strict=True)
    except (msgspec.ValidationError, KeyError) as error:
        raise configuration.ConfigError(f"settings {dict(changes)}: {error}") from error


def centre(part: Part) -> float:
    """The mean rating of what may be learned from."""
    return float(part.rows.rating[cold_states.known(part.lists)].mean())


def user_mean(part: Part) -> Told:
    """The mean of the user's support for every movie."""
    rows = part.rows
    return {
        name: cold_states.judge(rows, tasks, np.repeat([[rows.rating[t.support].mean()] for t in tasks], cold_states.ASKED, 1))
        for name, tasks in part.states.items()
    }  # fmt: skip


def biases(part: Part, user_prior: float, item_prior: float) -> Told:
    """Mean + user bias + movie bias, each shrunk as by so many ratings of zero; users' biases from their supports."""
    rows, kept, mean = part.rows, cold_states.known(part.lists), centre(part)
    users, items = int(rows.user.max()) + 1, int(rows.item.max()) + 1
    user, item, residual = rows.user[kept], rows.item[kept], rows.rating[kept] - mean
    _, of_item = cold_states.biases(user, item, residual, (users, items), user_prior, item_prior)
    told = {}
    for name, tasks in part.states.items():
        left = [rows.rating[t.support] - mean - of_item[rows.item[t.support]] for t in tasks]
        own = [residuals.sum() / (len(residuals) + user_prior) for residuals in left]
        score = [mean + bias + of_item[rows.item[t.query]] for bias, t in zip(own, tasks, strict=True)]
        told[name] = cold_states.judge(rows, tasks, np.array(score))
    return told


def scores(trainer: step.Trainer, part: Part) -> tuple[Told, Told]:
    """Figures with adaptation and of the plain tower, as serving would score."""
    mean, adapted, plain = centre(part), Told(), Told()
    for name, tasks in part.states.items():
        said = [trainer.score(cold_states.batch(part.rows, tasks[at : at + 64], mean)) for at in range(0, len(tasks), 64)]
        for told, which in ((adapted, "adapted"), (plain, "unadapted")):
            score = mean + np.concatenate([getattr(s, which)[:, 0] for s in said]).reshape(-1, cold_states.ASKED)
            told[name] = cold_states.judge(part.rows, tasks, score)
    return adapted, plain


def train(config: configuration.Config, part: Part, epochs: int, hidden: float = HIDDEN) -> Iterator[step.Trainer]:
    """Pass over a part's lists `epochs` times, in `hidden` of them without movie ids; gives the trainer after each pass.

    Raises:
        FloatingPointError: a step was skipped because its loss or gradient was not finite; lower the rates.
    """
    trainer, generator, mean = step.Trainer(config), np.random.default_rng(config.learner.seed), centre(part)
    rows, known = part.rows, part.lists
    now, column = int(rows.at_s.max()) * 1000, trainer.table.columns.of(base.geometry(config).item)
    for _ in range(epochs):
        order = generator.permutation(len(known))
        for at in range(0, len(order), USERS):
            tasks = [_cut(known[k], generator) for k in order[at : at + USERS]]
            absent = generator.random(len(tasks)) < hidden if column >= 0 else None
            done = trainer.step(cold_states.batch(rows, tasks, mean, absent, column), now)
            if done.skipped:
                raise FloatingPointError(f"{done.skipped}; lower the rates in [optimizer] or [meta]")
        yield trainer


def _cut(rows: I64, generator: np.random.Generator) -> cold_states.Task:
    """A user's rows in two parts at random, of random size."""
    mixed, at = generator.permutation(rows), int(generator.integers(1, len(rows)))
    return cold_states.Task(mixed[:at], mixed[at:])


def variant_of(config: configuration.Config, variant: str, settings: Settings) -> configuration.Config:
    """The configuration that a trained variant runs with."""
    return configured(config, {**FIXED[variant], **settings.config})


def measure(
    config: configuration.Config, draw: Draw, variants: Sequence[str], chosen: Mapping[str, Settings], seed: int, say: Say
) -> dict[str, Told]:
    """Figures of the variants, trained with `seed`; no adaptation beside fine-tuning."""
    found: dict[str, Told] = {}
    for variant in variants:
        own = chosen.get(variant, Settings())
        if variant == USER_MEAN:
            found[variant] = _joined(user_mean(part) for part in draw)
        elif variant == BIASES:
            found[variant] = _joined(biases(part, own.user_prior, own.item_prior) for part in draw)
        elif variant in TRAINED:
            run = configured(variant_of(config, variant, own), {"learner.seed": seed})
            told = [_trained(run, part, variant, own.epochs) for part in draw]
            found[variant] = _joined(adapted for adapted, _ in told)
            if variant == FINE_TUNE:
                found[NONE] = _joined(plain for _, plain in told)
        if variant in found:
            say(f"seed {seed}, {variant}: {line(found[variant])}")
    return {v: found[v] for v in VARIANTS if v in found}


def _trained(run: configuration.Config, part: Part, variant: str, epochs: int) -> tuple[Told, Told]:
    *_, trainer = train(run, part, *((MELU_EPOCHS, 1.0) if variant == MELU else (epochs, HIDDEN)))
    return scores(trainer, part)


def _joined(told: Iterable[Told]) -> Told:
    """Figures of all quadrants from those of each part."""
    return {name: figures for part in told for name, figures in part.items()}


def line(told: Told) -> str:
    """Error and nDCG@1 by quadrant, for people."""
    return ", ".join(f"{name} {f['mae']:.4f} / {f['ndcg1']:.4f}" for name, f in told.items())


def choose(config: configuration.Config, draws: Sequence[Draw], variants: Sequence[str], say: Say) -> dict[str, Settings]:
    """Settings of every variant by its mean worth on `draws` of quadrants inside what may be learned from; seed 0.

    See `cold_states.inner`: new movies are asked by few users there, so one draw says little.
    """
    chosen: dict[str, Settings] = {}
    for variant in variants:
        if variant == BIASES:
            tried = {
                (u, i): float(np.mean([cold_states.worth(_joined(biases(part, u, i) for part in draw)) for draw in draws]))
                for u in PRIORS for i in PRIORS
            }  # fmt: skip
            user, item = max(tried, key=lambda priors: tried[priors])
            chosen[variant] = Settings(user_prior=user, item_prior=item, worth=tried[user, item])
            say(f"{variant}: priors {user:g} and {item:g}, worth {tried[user, item]:.4f}")
        elif variant in GRIDS:
            chosen[variant] = _search(config, draws, variant, say)
    return chosen


def _search(config: configuration.Config, draws: Sequence[Draw], variant: str, say: Say) -> Settings:
    """The best settings of one trained variant, and after how many passes to stop."""

    def attempt(settings: dict[str, Any]) -> tuple[float, int]:
        run, worth = variant_of(config, variant, Settings(settings)), dict[int, list[float]]()
        for draw in draws:
            for epoch, trainers in enumerate(zip(*(train(run, part, EPOCHS) for part in draw), strict=True), 1):
                if epoch % EVERY == 0:
                    told = _joined(scores(trainer, part)[0] for trainer, part in zip(trainers, draw, strict=True))
                    worth.setdefault(epoch, []).append(cold_states.worth(told))
                    say(f"{variant}, {settings}, {epoch} passes: worth {worth[epoch][-1]:.4f}; {line(told)}")
        return max((float(np.mean(values)), epoch) for epoch, values in worth.items())

    best: dict[str, Any] = {}
    found = (float("-inf"), 0)
    for key, values in GRIDS[variant].items():
        tried = {value: attempt({**best, key: value}) for value in values}
        value = max(tried, key=lambda v: tried[v])
        say(f"{variant}, {key} = {value}: worth {tried[value][0]:.4f} after {tried[value][1]} passes")
        if tried[value] > found:
            best, found = {**best, key: value}, tried[value]
    return Settings(best, found[1], worth=found[0])
