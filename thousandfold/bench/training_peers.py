"""What the training step is compared with: plain torch as one would write it, torch-rechub, fbgemm's embedding tables.

All read the same minibatches, and have a table for each field, in the sizes and widths of ours. torch-rechub and fbgemm-gpu-cpu
are used when they are installed.
"""

import importlib
import importlib.util
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

Step = Callable[[], None]
RATE, DENSE_RATE = 0.05, 0.001
ACCUMULATOR = 1e-6


class Size(NamedTuple):
    """Of all candidates: rows of each field's table, its width, experts, gates and layers, scenarios and objectives."""

    rows: tuple[int, ...]
    width: int
    experts: int
    expert_hidden: tuple[int, ...]
    hidden: tuple[int, ...]
    gate_hidden: int
    scenarios: int
    objectives: int

    @property
    def inputs(self) -> int:
        """Numbers of all embeddings of a row."""
        return len(self.rows) * self.width


class Minibatch(NamedTuple):
    """Ids (B, F) int64 from 0 in each field, scenarios (B,) int64, labels (B, O) float32."""

    ids: torch.Tensor
    scenario: torch.Tensor
    label: torch.Tensor


class Cycle:
    """Minibatches one after the other, from the start again after the last."""

    def __init__(self, made: Sequence[Any]) -> None:
        self.made, self.at = made, -1

    def __call__(self) -> Any:
        """The next one."""
        self.at = (self.at + 1) % len(self.made)
        return self.made[self.at]


def _layers(widths: Sequence[int], last: bool) -> nn.Sequential:
    """Linear layers from width to width, rectified; the last one only if `last`."""
    found: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        found += [nn.Linear(a, b), *([nn.ReLU()] if last or i < len(widths) - 2 else [])]
    return nn.Sequential(*found)


class Mixture(nn.Module):
    """MMoE: a module for every expert, and a gate and a tower for every scenario and objective."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        tasks = range(size.scenarios * size.objectives)
        self.experts = nn.ModuleList(_layers((size.inputs, *size.expert_hidden), last=True) for _ in range(size.experts))
        self.gates = nn.ModuleList(nn.Linear(size.inputs, size.experts) for _ in tasks)
        self.towers = nn.ModuleList(_layers((size.expert_hidden[-1], size.hidden[-1], 1), last=False) for _ in tasks)

    def forward(self, x: torch.Tensor, scenario: torch.Tensor) -> torch.Tensor:
        """Logits (B, O) of inputs (B, F x E)."""
        experts = torch.stack([expert(x) for expert in self.experts], 1)
        outputs = [
            tower((torch.softmax(gate(x), 1).unsqueeze(2) * experts).sum(1))
            for gate, tower in zip(self.gates, self.towers, strict=True)
        ]
        return of_scenario(torch.cat(outputs, 1), scenario, self.size)


class Gated(nn.Module):
    """PEPNet with a tower for all scenarios: EPNet over the embeddings, PPNet with a gate per layer and objective."""

    def __init__(self, size: Size, scenario: int, personal: Sequence[int]) -> None:
        """`scenario`, `personal`: fields."""
        super().__init__()
        self.size, self.scenario, self.personal = size, scenario, personal
        own = size.inputs + len(personal) * size.width
        self.epnet = _layers((size.inputs, size.gate_hidden, size.inputs), last=False)
        self.hidden = nn.ModuleList(
            _layers(pair, last=True) for pair in zip((size.inputs, *size.hidden), size.hidden, strict=False)
        )
        self.ppnet = nn.ModuleList(
            nn.ModuleList(_layers((own, size.gate_hidden, width), last=False) for width in size.hidden)
            for _ in range(size.objectives)
        )
        self.output = nn.ModuleList(nn.Linear(size.hidden[-1], 1) for _ in range(size.objectives))

    def forward(self, x: torch.Tensor, scenario: torch.Tensor) -> torch.Tensor:
        """Logits (B, O) of inputs (B, F x E); which scenario it is stands in them."""
        del scenario
        fields = x.view(len(x), -1, self.size.width)
        seen = fields.detach().clone()
        seen[:, self.scenario] = fields[:, self.scenario]
        entry = x * 2 * torch.sigmoid(self.epnet(seen.flatten(1)))
        personal = torch.cat([entry.detach(), *(fields[:, f] for f in self.personal)], 1)
        outputs = []
        for gates, output in zip(self.ppnet, self.output, strict=True):
            hidden = entry
            for layer, gate in zip(self.hidden, gates, strict=True):  # type: ignore[call-overload]
                hidden = layer(hidden) * 2 * torch.sigmoid(gate(personal))
            outputs.append(output(hidden))
        return torch.cat(outputs, 1)


def of_scenario(outputs: torch.Tensor, scenario: torch.Tensor, size: Size) -> torch.Tensor:
    """Of outputs (B, S x O) each row's own scenario's (B, O)."""
    every = outputs.view(-1, size.scenarios, size.objectives)
    return every.gather(1, scenario.view(-1, 1, 1).expand(-1, 1, size.objectives)).squeeze(1)


def naive(size: Size, dense: nn.Module, made: Sequence[Minibatch]) -> Step:
    """Plain torch: an `nn.Embedding(sparse=True)` for each field with Adagrad, modules, Adam."""
    tables = nn.ModuleList(nn.Embedding(rows, size.width, sparse=True) for rows in size.rows)
    for table in tables:
        nn.init.normal_(table.weight, std=0.01)  # type: ignore[arg-type]
    sparse = torch.optim.Adagrad(tables.parameters(), RATE, initial_accumulator_value=ACCUMULATOR)
    adam, following = torch.optim.Adam(dense.parameters(), DENSE_RATE), Cycle(made)

    def step() -> None:
        batch = following()
        x = torch.cat([table(batch.ids[:, f]) for f, table in enumerate(tables)], 1)
        loss = functional.binary_cross_entropy_with_logits(dense(x, batch.scenario), batch.label)
        sparse.zero_grad()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        sparse.step()
        adam.step()

    return step


def rechub(size: Size, made: Sequence[Minibatch]) -> Step | None:
    """The body of torch-rechub's training loop for its MMoE, with its trainer's optimiser; None: not installed."""
    if importlib.util.find_spec("torch_rechub") is None:
        return None
    features = importlib.import_module("torch_rechub.basic.features")
    tasks = size.scenarios * size.objectives
    model = importlib.import_module("torch_rechub.models.multi_task").MMOE(
        [features.SparseFeature(f"f{f}", rows, size.width) for f, rows in enumerate(size.rows)],
        ["classification"] * tasks, size.experts, {"dims": list(size.expert_hidden), "activation": "relu"},
        [{"dims": [size.hidden[-1]], "activation": "relu"}] * tasks,
    )  # fmt: skip
    adam, cost, following = torch.optim.Adam(model.parameters(), DENSE_RATE, weight_decay=1e-5), nn.BCELoss(), Cycle(made)

    def step() -> None:
        batch = following()
        predicted = of_scenario(model({f"f{f}": batch.ids[:, f] for f in range(len(size.rows))}), batch.scenario, size)
        losses = [cost(predicted[:, o], batch.label[:, o]) for o in range(size.objectives)]
        loss = sum(losses[1:], losses[0]) / size.objectives
        adam.zero_grad()
        loss.backward()
        adam.step()

    return step


def embeddings(size: Size, made: Sequence[Minibatch], gradient: torch.Tensor) -> Step:
    """Lookup and update alone, by a sparse `nn.Embedding` for each field and Adagrad; gradient (B, F x E)."""
    tables = nn.ModuleList(nn.Embedding(rows, size.width, sparse=True) for rows in size.rows)
    sparse, following = torch.optim.Adagrad(tables.parameters(), RATE, initial_accumulator_value=ACCUMULATOR), Cycle(made)

    def step() -> None:
        ids = following().ids
        sparse.zero_grad()
        torch.cat([table(ids[:, f]) for f, table in enumerate(tables)], 1).backward(gradient)  # type: ignore[no-untyped-call]
        sparse.step()

    return step


def fbgemm(size: Size, made: Sequence[Minibatch], gradient: torch.Tensor) -> Step | None:
    """The same by fbgemm's table-batched embeddings with exact row-wise AdaGrad; None: not installed."""
    if importlib.util.find_spec("fbgemm_gpu") is None:
        return None
    training = importlib.import_module("fbgemm_gpu.split_table_batched_embeddings_ops_training")
    common = importlib.import_module("fbgemm_gpu.split_table_batched_embeddings_ops_common")
    optimiser = importlib.import_module("fbgemm_gpu.split_embedding_configs").EmbOptimType.EXACT_ROWWISE_ADAGRAD
    place = common.EmbeddingLocation.HOST, training.ComputeDevice.CPU
    tables = training.SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, size.width, *place) for rows in size.rows], optimizer=optimiser, learning_rate=RATE, eps=1e-8,
        pooling_mode=common.PoolingMode.SUM, device=torch.device("cpu"),
    )  # fmt: skip
    offsets, following = torch.arange(gradient.shape[0] * len(size.rows) + 1), Cycle(made)

    def step() -> None:
        tables(following().ids.t().reshape(-1), offsets).backward(gradient)

    return step
