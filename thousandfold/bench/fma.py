"""What a training step costs at least: its multiply-adds over the machine's measured peak of fused multiply-adds.

The peak is a native loop of independent fused multiply-adds on registers, without memory: 12 chains, more than the processor has
in flight, of vectors of 8 and of 16 float32 numbers; the faster width counts.
"""

import itertools
import time
from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from models import base
from state import config
from state.kernels import kernel

CHAINS = 12
LANES = (8, 16)
PROBE = 10_000
START = 2.0
"""Of the first chain; one that begins at 1 stays there, and a compiler leaves out what it can foresee."""


def _chains(lanes: int) -> Callable[[int], float]:
    """A native function of n: n rounds of a fused multiply-add on each of `CHAINS` vectors; returns what is left of them."""
    vector = ir.VectorType(ir.FloatType(), lanes)

    def constant(value: float) -> Any:
        return ir.Constant(vector, [value] * lanes)

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(vector, [vector] * 3)
        fused = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{lanes}f32")  # type: ignore[no-untyped-call]
        sums = [cgutils.alloca_once_value(builder, constant(i + START)) for i in range(CHAINS)]  # type: ignore[no-untyped-call]
        # The factor is near 1 and the summand small, so that no number ever becomes denormal or infinite.
        with cgutils.for_range(builder, arguments[0], intp=arguments[0].type):
            for place in sums:
                builder.store(builder.call(fused, [builder.load(place), constant(0.999), constant(0.001)]), place)
        total = builder.load(sums[0])
        for place in sums[1:]:
            total = builder.fadd(total, builder.load(place))
        left = builder.extract_element(total, ir.Constant(ir.IntType(32), 0))
        for i in range(1, lanes):
            left = builder.fadd(left, builder.extract_element(total, ir.Constant(ir.IntType(32), i)))
        return left

    def chains(_typing: Any, n: Any) -> Any:
        del n
        return types.float32(types.int64), generate

    return cast("Callable[[int], float]", intrinsic(chains))


_eight, _sixteen = (_chains(lanes) for lanes in LANES)


@kernel
def eight(n: int) -> float:
    """`CHAINS` x 8 x n multiply-adds."""
    return _eight(n)


@kernel
def sixteen(n: int) -> float:
    """`CHAINS` x 16 x n multiply-adds."""
    return _sixteen(n)


def peak(slice_s: float = 0.05, clock: Callable[[], float] = time.perf_counter) -> float:
    """Multiply-adds per second of one thread, of float32 numbers, over about `slice_s` seconds for each width."""
    found = []
    for lanes, run in zip(LANES, (eight, sixteen), strict=True):
        run(1)
        began = clock()
        run(PROBE)
        rounds = max(PROBE, round(PROBE * slice_s / (clock() - began)))
        began = clock()
        run(rounds)
        found.append(CHAINS * lanes * rounds / (clock() - began))
    return max(found)


def pepnet(settings: config.Config) -> int:
    """Multiply-adds of a row in PEPNet's products: forward, and the gradients of weights and of inputs that have one.

    Of the gates' inputs only the scenario's and the personal embeddings have a gradient. What is done number by number
    is left out.
    """
    g, model = base.geometry(settings), settings.model
    objectives, gates = g.objectives, model.gate_hidden
    first = model.hidden[0]
    own = len([n for n in model.personal_features if n in g.categories]) * g.width
    seen = len([n for n in model.scenario_features if n in g.categories]) * g.width
    total = 2 * g.dense * gates + seen * gates + 3 * gates * g.embedded
    within = len(model.hidden) * objectives * gates
    total += 2 * (g.dense + own) * within + own * within + 3 * objectives * gates * sum(model.hidden)
    total += 2 * g.dense * first + g.embedded * first
    for i, width in enumerate(model.hidden[1:]):
        total += 3 * objectives * model.hidden[i] * width
    return total + 3 * objectives * model.hidden[-1]


def mmoe(settings: config.Config) -> int:
    """The same for MMoE: experts, and for each objective a gate, a mixture and a tower.

    What a scenario changes of gates and towers is added to the shared weights before rows are read, so that it costs no product.
    """
    g, model = base.geometry(settings), settings.model
    sizes = (g.dense, *(model.expert_hidden or model.hidden[:-1] or model.hidden))
    experts = model.experts * sum(a * b for a, b in itertools.pairwise(sizes))
    gates = g.dense * g.objectives * model.experts
    mixture = g.objectives * model.experts * sizes[-1]
    towers = g.objectives * sizes[-1] * model.hidden[-1]
    # Numbers are no parameters: their columns of the first layers need no gradient.
    numbers = len(g.numbers) * (model.experts * sizes[1] + g.objectives * model.experts)
    return 3 * (experts + gates + mixture + towers + g.objectives * model.hidden[-1]) - numbers
