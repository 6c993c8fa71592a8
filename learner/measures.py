"""What the learner makes of its own scores: live figures, the baseline beside them, drift, and whether adaptation pays.

It reads scores that were made before their rows were trained on, in the order of the stream. But for the drift detectors it is
part of the state that a snapshot keeps.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from learner import baseline, drift, episodes, evidence, explored, policy
from learner.prequential import VARIANTS, Prequential
from models import losses, modes
from state import config

F32 = npt.NDArray[np.float32]
Groups = Mapping[str, dict[str, npt.NDArray[Any]]]


class Measures:
    """Everything that is measured; `update` takes what was scored."""

    def __init__(self, settings: config.Config) -> None:
        """Nothing seen; there is a baseline where the configuration asks for one and an objective is binary."""
        learner, shown = settings.learner, settings.scenarios
        objectives, parts = tuple(o.name for o in settings.objectives), losses.plan(settings.objectives).parts
        self.figures = Prequential(objectives, shown.known, shown.max_shown, learner.window_rows, parts=parts)
        self.explored = explored.Figures(objectives, learner.window_rows, learner.ips_clip, parts)
        self.policy = policy.Policy(settings.meta)
        binary = {o: part.at for o, part in enumerate(parts) if part.kind == "binary"}
        self._binary, self._outputs = list(binary), list(binary.values())
        compared = learner.baseline == "river" and bool(binary)
        self.baseline = baseline.Baseline(settings.features, len(binary), learner.baseline_share) if compared else None
        self._drift = drift.Drift()

    def arrays(self) -> dict[str, dict[str, npt.NDArray[Any]]]:
        """The state by group, as views; what drift remembers is not kept."""
        groups = {"figures": self.figures.arrays(), "policy": self.policy.arrays(), "explored": self.explored.arrays()}
        return groups if self.baseline is None else groups | {"baseline": self.baseline.arrays()}

    def load(self, groups: Groups, in_force: modes.Modes) -> None:
        """Take over the groups of a snapshot; one that an older snapshot lacks starts anew."""
        self.figures.load(groups["figures"])
        if groups.get("explored"):
            self.explored.load(groups["explored"])
        if self.baseline is not None and groups.get("baseline"):
            self.baseline.load(groups["baseline"])
        if groups.get("policy"):
            self.policy.load(groups["policy"])
            self.keep_automatic(in_force)

    def keep_automatic(self, in_force: modes.Modes) -> None:
        """Forget what the policy knows of scenarios that are no longer `auto`."""
        self.policy.keep(lambda scenario: in_force.asked(scenario) == modes.AUTO)

    def update(
        self, lists: episodes.Lists, scores: F32, stops: list[int], in_force: modes.Modes, spent: Callable[[str], None]
    ) -> dict[str, int]:
        """Measure lists by the network's scores (variants, n, outputs), of which those of the baseline are added.

        `stops` are the rows at which minibatches end; `spent` is told of each stage that is over. Returns changes of the loss, by
        scenario.
        """
        c = lists.columns
        if self.baseline is not None:
            users = np.repeat(c["user"], c["n_items"])
            label, weight = c["label"][:, self._binary], c["weight"][:, self._binary]
            found = self.baseline.update(users, c["ids"], c["x"], label, weight, stops=stops)
            scores[VARIANTS.index("river")][:, self._outputs] = found
            spent("baseline")
        loss = self.figures.update(c["scenario"], c["user"], c["n_items"], scores, c["label"], c["weight"], lists.scenarios)
        self._judge(lists, scores, in_force)
        names = list(map(self.figures.name_of, c["scenario"].tolist()))
        if episodes.PROPENSITY in c:
            self.explored.update(names, c["n_items"], scores, c["label"], c["weight"], c[episodes.PROPENSITY])
        changed = self._drift.update(names, loss.tolist())
        spent("measure")
        return changed

    def _judge(self, lists: episodes.Lists, scores: F32, in_force: modes.Modes) -> None:
        """Tell the policy what adaptation gained in scenarios that are `auto`; it is obeyed from the next fetch on."""
        judged = in_force.automatic(lists.columns["scenario"])
        if not judged.any():
            return
        c = episodes.keep(lists, judged).columns
        adapted, unadapted = (scores[v][np.repeat(judged, lists.columns["n_items"])][:, self._outputs] for v in range(2))
        label, weight = c["label"][:, self._binary], c["weight"][:, self._binary]
        self.policy.update(c["scenario"], evidence.gains(c["n_items"], label, weight, adapted, unadapted), lists.scenarios)
