"""The one typed configuration file: every setting of every process, with its default and its meaning.

`docs/configuration.md` is generated from this module, so a description here is the reference.
"""

import os
import pathlib
import tomllib
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from state import consistency, spec


class Kafka(spec.Section, frozen=True):
    """How every process reaches the brokers."""

    bootstrap: Annotated[str, Meta(description="host:port list of the brokers")] = "127.0.0.1:9092"
    partitions: Annotated[int, Meta(ge=1, le=4096, description="partitions of every data topic (co-partitioned)")] = 4
    replication: Annotated[int, Meta(ge=1, le=9, description="replication factor of every topic")] = 1
    group: Annotated[str, Meta(min_length=1, description="prefix of the consumer groups")] = "thousandfold"
    session_timeout_s: Annotated[
        float, Meta(ge=1, description="seconds after which a silent stream worker loses its partitions")
    ] = 6.0
    fetch_wait_ms: Annotated[int, Meta(ge=1, le=5000, description="milliseconds a stream worker's fetch may wait for data")] = 20


class Topics(spec.Section, frozen=True):
    """Names and retention. `impressions` and `clicks` are the truth; the rest can be rebuilt by replay."""

    impressions: Annotated[str, Meta(min_length=1, description="topic of shown lists, keyed by user")] = "impressions"
    clicks: Annotated[str, Meta(min_length=1, description="topic of actions, keyed by user")] = "clicks"
    enriched: Annotated[str, Meta(min_length=1, description="topic of lists with their features, and of actions")] = "enriched"
    samples: Annotated[str, Meta(min_length=1, description="topic of labelled lists")] = "samples"
    episodes: Annotated[str, Meta(min_length=1, description="topic of labelled lists with their support")] = "episodes"
    plan: Annotated[str, Meta(min_length=1, description="topic of what each step consumes; one partition")] = "plan"
    snapshots: Annotated[str, Meta(min_length=1, description="topic of manifests; one partition")] = "snapshots"
    deltas: Annotated[str, Meta(min_length=1, description="topic of changed rows between snapshots; one partition")] = "deltas"
    control: Annotated[
        str, Meta(min_length=1, description="topic of switches that the learner obeys; one partition, compacted")
    ] = "control"
    dead_letters: Annotated[str, Meta(min_length=1, description="topic of what nobody could use; one partition")] = "dead-letters"
    raw_retention_hours: Annotated[float, Meta(gt=0, description="hours that impressions and clicks are kept")] = 168.0
    derived_retention_hours: Annotated[float, Meta(gt=0, description="hours that derived topics are kept")] = 48.0
    max_message_bytes: Annotated[
        int, Meta(ge=10_000, le=100_000_000, description="largest input message; a larger one is dead-lettered")
    ] = 1_000_000


class Store(spec.Section, frozen=True):
    """Redis or Valkey: counters, user rows, fences and support sets."""

    url: Annotated[str, Meta(description="redis://host:port/db, or unix:///path")] = "redis://127.0.0.1:6379/0"
    prefix: Annotated[str, Meta(description="prefix of every key, for a shared server")] = ""
    cache_age_s: Annotated[float, Meta(ge=0, description="age bound of cached shared counters, in streams and in serving")] = 1.0
    count_interval_s: Annotated[
        float, Meta(ge=0, le=10, description="seconds of counting that are summed into one store call")
    ] = 0.25


class Objective(spec.Section, frozen=True):
    """One label to predict."""

    name: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]*$", description="column name of the label")]
    action: Annotated[str, Meta(min_length=1, description="kind of action that makes the label")]
    min_value: Annotated[float, Meta(description="an action below this value does not count")] = 0.0
    kind: Annotated[
        Literal["binary", "multiclass", "regression", "ranking"],
        Meta(
            description="binary: 1 with the action, else 0; multiclass: the action's value is the class; regression: the "
            "action's value is what to predict (both are learned from rows with the action only); ranking: rows that were "
            "acted on above the others of their list. Of several actions the greatest counts"
        ),
    ] = "binary"
    classes: Annotated[int, Meta(ge=0, le=1000, description="multiclass: number of classes, 0 to classes - 1")] = 0
    transform: Annotated[Literal["none", "log1p"], Meta(description="regression: what the loss sees of the value")] = "none"
    scale: Annotated[float, Meta(gt=0, description="regression: the loss sees the transformed value divided by this")] = 1.0
    weights: Annotated[
        dict[str, Annotated[float, Meta(gt=0, le=1e6)]],
        Meta(description="ranking: further kinds of action and how much each counts (`action`: 1); empty: an action's own value"),
    ] = {}
    scenarios: Annotated[
        tuple[str, ...], Meta(description="of `scenarios.known`, those in which the objective exists; empty: in all")
    ] = ()
    layers: Annotated[
        int,
        Meta(
            ge=0,
            le=8,
            description="further hidden layers of its own before the tower, as wide as what enters that; not in fm, lr and "
            "two_tower, nor in the native or the written form, so slower",
        ),
    ] = 0
    loss_weight: Annotated[
        float,
        Meta(
            gt=0,
            le=1e4,
            description="how much its loss counts in the sum over the objectives; metrics and adaptation to a task do not "
            "know of it",
        ),
    ] = 1.0
    loss: Annotated[
        str,
        Meta(
            description='a loss of your own instead of the kind\'s, "package.module:function": labels (n,) and logits '
            "(n, outputs) to a loss per row (n,) (docs/tutorials/your-own-model.md); labels and predictions stay the kind's"
        ),
    ] = ""

    @property
    def outputs(self) -> int:
        """Logit columns: one for each class, else one."""
        return self.classes if self.kind == "multiclass" else 1

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of action that make its label."""
        return tuple(dict.fromkeys((self.action, *self.weights)))

    def exists(self, scenario: str) -> bool:
        """Whether it is an objective of this scenario."""
        return not self.scenarios or scenario in self.scenarios


class Scenarios(spec.Section, frozen=True):
    """Entry points. An unseen scenario is learned from its first sample; names here fix the display order."""

    known: Annotated[tuple[str, ...], Meta(description="names that are shown even before they have data")] = ()
    max_shown: Annotated[int, Meta(ge=1, description="scenarios with metrics of their own; more share `other`")] = 256
    slots: Annotated[
        int,
        Meta(
            ge=1,
            le=1024,
            description="scenarios that a model can give parameters of their own; more are served as shared. May be raised later",
        ),
    ] = 16
    prior_rows: Annotated[
        float, Meta(gt=0, description="a scenario's own parameters count n / (n + this) after n training rows")
    ] = 10_000.0
    negative_sampling: Annotated[
        dict[str, Annotated[float, Meta(gt=0, le=1)]],
        Meta(
            description="share of the rows without an action that a producer kept, by scenario (`*`: those that are not named); "
            "moments of numbers by scenario count such a row 1 / share times, and serving's probabilities are those of all rows. "
            "Not known: all were kept"
        ),
    ] = {}


class Actions(spec.Section, frozen=True):
    """Kinds of action accepted on `clicks` beside those of the objectives."""

    other: Annotated[tuple[str, ...], Meta(description="kinds that are no label but feed features")] = ()


TaskPart = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]*$")]


class Task(spec.Section, frozen=True):
    """The unit that gets its own adapted model."""

    key: Annotated[
        tuple[TaskPart, ...],
        Meta(min_length=1, max_length=3, description='any of "user", "item", "scenario" or a declared category'),
    ] = ("user",)


class Join(spec.Section, frozen=True):
    """The label join, in event time."""

    mode: Annotated[
        Literal["window", "eager"],
        Meta(description="window: wait, emit once; eager: emit the negative at once, a revision on the action"),
    ] = "window"
    window_s: Annotated[float, Meta(gt=0, description="seconds after an impression in which an action is its label")] = 600.0
    lateness_s: Annotated[float, Meta(ge=0, description="allowed disorder: the watermark trails the newest event by it")] = 5.0
    idle_timeout_s: Annotated[
        float,
        Meta(
            gt=0,
            description="wall seconds without input, and after the brokers were away or a start, after which a partition's "
            "watermark moves on",
        ),
    ] = 5.0
    retention_s: Annotated[float, Meta(gt=0, description="an event older than this on arrival is dead-lettered")] = 604_800.0
    future_s: Annotated[float, Meta(gt=0, description="an event further ahead of the clock is dead-lettered")] = 86_400.0
    max_items: Annotated[int, Meta(ge=1, le=100_000, description="longest shown list accepted")] = 1000


class Support(spec.Section, frozen=True):
    """A task's support set."""

    mode: Annotated[
        Literal["features", "meta_inputs"],
        Meta(
            description="what serving adapts on: features of the samples, through its own trunk; or what the learner's trunk "
            "made of them, which it writes to the store after a step"
        ),
    ] = "features"
    max_drift: Annotated[
        float,
        Meta(
            gt=0,
            description="meta_inputs: a row is ignored once the trunk has moved by more since it was written, as the sum over "
            "snapshots of the relative change of meta inputs",
        ),
    ] = 0.5
    size: Annotated[int, Meta(ge=0, le=1024, description="newest samples kept (K)")] = 32
    max_age_s: Annotated[float, Meta(gt=0, description="older samples are evicted by event time, keys by expiry")] = 2_592_000.0


class Model(spec.Section, frozen=True):
    """Which network, and its size."""

    name: Annotated[
        str,
        Meta(description='a name in the MODELS table, or "package.module:Model" of your own (docs/tutorials/your-own-model.md)'),
    ] = "pepnet"
    native: Annotated[
        bool | Literal["auto"],
        Meta(
            description="score and train by the network's native form: auto: where it has one (pepnet with both gates, stopped "
            'gradients and two layers or more, binary objectives of every scenario, meta.algorithm = "fomaml"); true: refuse to '
            "start without it; false: a trunk by torch, equal within 1e-5 and slower"
        ),
    ] = "auto"
    embedding_width: Annotated[int, Meta(ge=1, le=256, description="numbers per embedding row")] = 16
    embedding_widths: Annotated[
        dict[str, Annotated[int, Meta(ge=1)]],
        Meta(
            description="categories that use fewer of these numbers, at most `embedding_width`: the others are 0 and never "
            "learned; a category that shares another's embeddings goes with it"
        ),
    ] = {}
    hidden: Annotated[tuple[int, ...], Meta(min_length=1, description="widths of the tower's hidden layers")] = (64, 32)
    gate_hidden: Annotated[int, Meta(ge=1, description="width of the hidden layer of each Gate NU")] = 32
    gamma: Annotated[float, Meta(gt=0, description="scale of a gate; 2 centres it on 1")] = 2.0
    use_epnet: Annotated[bool, Meta(description="gate the embeddings by scenario")] = True
    use_ppnet: Annotated[bool, Meta(description="gate the hidden layers by user and item")] = True
    stop_gradient: Annotated[bool, Meta(description="gates do not change what they read, only what they own")] = True
    scenario_features: Annotated[
        tuple[str, ...], Meta(description="feature columns that tell scenarios apart: what gates by scenario read")
    ] = ("scenario",)
    personal_features: Annotated[tuple[str, ...], Meta(description="category columns that the PPNet gate reads")] = (
        "user",
        "item",
    )
    adapter_rank: Annotated[
        int, Meta(ge=1, description="HAMUR: rows and columns of the matrix that is generated per instance")
    ] = 8
    adapter_width: Annotated[int, Meta(ge=1, description="HAMUR: width that an adapter narrows a layer to")] = 16
    prune_below: Annotated[float, Meta(ge=0, description="AdaSparse: a neuron with a smaller factor is left out")] = 0.25
    prune_least: Annotated[float, Meta(ge=0, lt=1, description="AdaSparse: share of a layer that is left out in any case")] = 0.15
    prune_most: Annotated[float, Meta(ge=0, lt=1, description="AdaSparse: share of a layer that may be left out")] = 0.25
    dropout: Annotated[
        float,
        Meta(
            ge=0,
            lt=1,
            description="share of what enters the tower that a training step leaves out, drawn from `learner.seed` and the "
            "number of the step; scores have all of it. Steps are by autograd then, with a second pass for scores; serving "
            "stays native",
        ),
    ] = 0.0
    own_towers: Annotated[
        bool, Meta(description="scenarios have towers of their own, as changes of the shared one that their rows have to earn")
    ] = True
    objective_towers: Annotated[
        bool,
        Meta(
            description="with several objectives: each has hidden layers of its own in the tower, as a change of the shared ones "
            "that starts at nothing; not in the native or the written form, so slower"
        ),
    ] = False
    experts: Annotated[int, Meta(ge=1, le=64, description="experts that all scenarios share (mmoe, trs; ple: at each level)")] = 4
    own_experts: Annotated[
        int,
        Meta(
            ge=1,
            le=16,
            description="experts that each scenario has of its own (trs: above 1 a group with a gate of its own; ple: at each "
            "level, and as many for each objective)",
        ),
    ] = 1
    own_gates: Annotated[
        bool,
        Meta(
            description="the expert that a scenario has of its own is a PEPNet, with gates on its embeddings, its layers and the "
            "tower (trs, of one own expert)"
        ),
    ] = False
    expert_hidden: Annotated[
        tuple[Annotated[int, Meta(ge=1)], ...],
        Meta(description="widths of an expert's layers; empty: the hidden layers before the last, at least one"),
    ] = ()
    levels: Annotated[int, Meta(ge=1, le=8, description="extraction layers (ple)")] = 2
    common_features: Annotated[
        tuple[str, ...],
        Meta(description="feature columns that the shared experts read (trs); empty: all, those of single scenarios too"),
    ] = ()
    own_rows: Annotated[
        tuple[str, ...],
        Meta(
            description="categories whose ids have an embedding of their own in every scenario, so that models that were trained "
            "apart can be merged without loss (`thousandfold migrate`); empty: scenarios share embeddings"
        ),
    ] = ()
    star_tower: Annotated[
        bool,
        Meta(
            description="own towers multiply the shared one instead of adding to it (trs): for several scenarios with several "
            "objectives, not for one objective or for objectives of one product"
        ),
    ] = False
    sequence_hidden: Annotated[int, Meta(ge=1, le=1024, description="width of the state that reads the last actions (dupn)")] = 64
    attention_hidden: Annotated[
        int, Meta(ge=1, le=1024, description="width of the hidden layer that weighs the last actions (dupn)")
    ] = 32
    wide: Annotated[
        Literal["off", "product", "fm"],
        Meta(
            description="beside the network: nothing; a first-order weight per id and the user . item product; or a whole "
            "factorisation machine over ids and numbers"
        ),
    ] = "product"
    moments: Annotated[
        Literal["shared", "scenario"],
        Meta(
            description="numbers are standardised by the running moments of all rows, or by those of each scenario, which count "
            "as its own parameters do (`scenarios.prior_rows`)"
        ),
    ] = "shared"


class Embedding(spec.Section, frozen=True):
    """The fused embedding table."""

    capacity: Annotated[int, Meta(ge=1024, description="rows; the least recently seen is evicted beyond it")] = 1_000_000
    admit_after: Annotated[int, Meta(ge=1, le=255, description="sightings before an id gets a row of its own")] = 1
    max_idle_s: Annotated[float, Meta(gt=0, description="a row unseen for this event time is evicted")] = 7_776_000.0
    init_scale: Annotated[float, Meta(ge=0, description="standard deviation of a new row; near zero is safe for cold ids")] = 0.01
    cold: Annotated[
        Literal["off", "meta"],
        Meta(
            description="meta: an item without a row is read as a learned map of its attributes says, and its row begins there "
            "(docs/cold_start.md); off: the shared row, then `init_scale`"
        ),
    ] = "off"
    cold_rate: Annotated[float, Meta(gt=0, description="learning rate of that map, AdaGrad")] = 0.01


class MetaLearning(spec.Section, frozen=True):
    """Adaptation of the tower to each task, and learning for it (T2 to T5)."""

    mode: Annotated[
        Literal["on", "off", "fine_tune_only", "auto"],
        Meta(
            description="fine_tune_only adapts at serving without meta-training; auto is on only while the gain of a scenario is "
            "significant"
        ),
    ] = "on"
    scenarios: Annotated[
        dict[str, Literal["on", "off", "fine_tune_only", "auto"]], Meta(description="mode of single scenarios, over `mode`")
    ] = {}
    auto_alarm_rate: Annotated[
        float,
        Meta(gt=0, le=0.5, description="auto: probability at most with which a scenario that gains nothing is ever turned on"),
    ] = 0.01
    auto_patience: Annotated[
        float,
        Meta(
            ge=1,
            description="auto: a scenario goes off when its gain did not show again within so many times the lists that it took",
        ),
    ] = 4.0
    auto_trial_share: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="auto: share of the lists of scenarios that are off which meta-learn all the same, by hash, so that what "
            "only a prepared tower gains can show",
        ),
    ] = 0.1
    algorithm: Annotated[
        Literal[
            "anil",
            "bias",
            "cavia",
            "film",
            "fomaml",
            "learned_update",
            "maml",
            "meta_sgd",
            "paml",
            "reptile",
            "ridge",
        ],
        Meta(description="what is adapted and how (docs/meta_learning.md); a native network knows `fomaml` only"),
    ] = "fomaml"
    weight: Annotated[float, Meta(ge=0, description="loss = original + weight x meta loss")] = 0.5
    inner_rate: Annotated[float, Meta(ge=0, description="step size of the adaptation")] = 0.05
    inner_steps: Annotated[int, Meta(ge=1, le=5, description="steps of the adaptation")] = 1
    inner_decay: Annotated[
        float, Meta(ge=0, description="decay towards the shared tower: a step first shrinks the change by `inner_rate` x this")
    ] = 0.0
    half_life_s: Annotated[
        float, Meta(ge=0, description="a support row counts half as much as one that is so much newer; 0: all count the same")
    ] = 0.0
    prior_rows: Annotated[
        float,
        Meta(ge=0, description="a task with n support rows is adapted at n / (n + this) of the rate, so that few move little"),
    ] = 0.0
    context: Annotated[int, Meta(ge=1, le=256, description="numbers of a task's context vector (cavia)")] = 8
    rank: Annotated[int, Meta(ge=1, le=64, description="columns of the learned update's maps (learned_update)")] = 4
    min_support: Annotated[int, Meta(ge=1, description="tasks with fewer rows are not adapted")] = 1
    unadapted: Annotated[
        Literal["meta", "original"],
        Meta(
            description="lists whose task has too few rows to be adapted: add to both losses, by the plain tower, so that "
            "users without history do not lose; or to the original loss only"
        ),
    ] = "meta"
    task_share: Annotated[
        float,
        Meta(gt=0, le=1, description="share of the lists that meta-learn, by hash; the others add to the original loss only"),
    ] = 1.0
    support_rows: Annotated[
        int, Meta(ge=1, le=1024, description="newest support rows that an adaptation uses, in training and serving alike")
    ] = 16


class Optimizer(spec.Section, frozen=True):
    """AdaGrad for embeddings, Adam or AdaGrad for dense parameters."""

    embedding_rate: Annotated[float, Meta(gt=0, description="learning rate of row-wise AdaGrad")] = 0.05
    embedding_accumulator: Annotated[float, Meta(ge=0, description="initial accumulator of row-wise AdaGrad")] = 1e-6
    dense: Annotated[
        Literal["adam", "adagrad"],
        Meta(description="rule of the dense parameters; AdaGrad's steps shrink with time, from `embedding_accumulator`"),
    ] = "adam"
    dense_rate: Annotated[
        float, Meta(gt=0, description="learning rate of `dense`; AdaGrad wants about 10 to 40 times Adam's")
    ] = 0.001
    wide_rate: Annotated[
        float, Meta(gt=0, description='learning rate of AdaGrad on what `model.wide = "fm"` learns of numbers')
    ] = 0.02
    scale_rate: Annotated[
        float,
        Meta(
            ge=0,
            description="with several objectives: learning rate of AdaGrad on how much of the wide part's sums each of them "
            "takes, and with which sign; 0: as with one objective, by `dense`",
        ),
    ] = 0.1
    start_rows: Annotated[
        int,
        Meta(
            ge=0,
            description="with several objectives: rows of each over which its output's bias follows the log odds of its labels "
            "(regression: their mean), so that a rare one need not push down what all share (`models/starts.py`); 0: as with one "
            "objective, it begins at 0 and learns like everything else",
        ),
    ] = 5_000
    gain_rate: Annotated[
        float,
        Meta(
            ge=0,
            description="learning rate of what a scenario makes of each number of the shared embeddings (`models/own_gains.py`); "
            "0: all read them as they are",
        ),
    ] = 1.0
    average: Annotated[
        float,
        Meta(
            ge=0,
            lt=1,
            description="what is published is an average of the dense parameters: the share of it that a step leaves, so about "
            "the last 1 / (1 - this) steps; 0 publishes the newest ones",
        ),
    ] = 0.998
    beta1: Annotated[float, Meta(ge=0, lt=1, description="decay of Adam's first moment")] = 0.9
    beta2: Annotated[float, Meta(ge=0, lt=1, description="decay of Adam's second moment")] = 0.999
    weight_decay: Annotated[
        float, Meta(ge=0, description="decay of dense parameters, beside the step: a step shrinks them by `dense_rate` x this")
    ] = 0.0
    l2: Annotated[
        float, Meta(ge=0, description="penalty on dense parameters within the loss: their gradient gets this x the parameter")
    ] = 0.0
    max_gradient_norm: Annotated[float, Meta(gt=0, description="dense gradients are scaled down to this norm")] = 10.0


class Learner(spec.Section, frozen=True):
    """The continuous learner."""

    rows_per_step: Annotated[int, Meta(ge=1, le=100_000, description="row budget of a minibatch of whole lists")] = 50
    fetch_messages: Annotated[int, Meta(ge=1, le=10_000, description="messages that one plan record may cover")] = 16
    deadline_ms: Annotated[int, Meta(ge=1, description="longest wait for a full fetch, in milliseconds")] = 200
    threads: Annotated[int, Meta(ge=1, le=64, description="torch threads; part of what makes a run repeatable")] = 1
    products: Annotated[
        Literal["auto", "mkl", "onednn"],
        Meta(
            description="which library multiplies torch's matrices: auto measures speed and error at start, with row counts that "
            "vary; name the one that the log names to repeat a run byte by byte. Native steps use neither"
        ),
    ] = "auto"
    seed: Annotated[int, Meta(ge=0, description="seed of the parameters")] = 0
    window_rows: Annotated[int, Meta(ge=100, description="rows of the windowed metrics")] = 50_000
    baseline: Annotated[
        Literal["river", "off"], Meta(description="river logistic regression on the same stream, shown beside the model")
    ] = "river"
    baseline_share: Annotated[
        float, Meta(ge=0, le=1, description="share of the users, by hash, on which the baseline runs; it takes about 70 us a row")
    ] = 1.0
    dedup_rows: Annotated[int, Meta(ge=1024, description="impressions remembered to skip redelivered ones")] = 2_000_000
    propensity_clip: Annotated[
        float,
        Meta(
            ge=0,
            description="rows whose impression logged a propensity p weigh min(1 / p, this) in the loss (docs/serving.md); at "
            "least 1, or 0: propensities are not used",
        ),
    ] = 0.0
    ips_clip: Annotated[
        float,
        Meta(
            ge=1,
            description="rows weigh min(1 / p, this) in the live figures by inverse propensities (docs/serving.md), not in the "
            "loss",
        ),
    ] = 200.0
    device: Annotated[
        Literal["cpu", "cuda", "auto"],
        Meta(
            description="where passes over the network run: cpu is the reference and repeats byte by byte; cuda runs them by "
            "autograd on the first GPU, the embedding table stays in memory; auto takes cuda where there is one"
        ),
    ] = "cpu"
    metrics_port: Annotated[int, Meta(ge=0, le=65535, description="Prometheus port, 0 for none")] = 9102


class Retrieval(spec.Section, frozen=True):
    """Finding items with two towers (`model.name = "two_tower"`, docs/retrieval.md)."""

    loss: Annotated[
        Literal["objectives", "softmax"],
        Meta(
            description="what two towers learn by: the loss of their objectives, as other models do; or telling a row that was "
            "acted on from others of the stream (sampled softmax with logQ), adapted to what the user acted on before, which "
            'wants one objective, kind = "ranking"'
        ),
    ] = "objectives"
    queue: Annotated[
        int, Meta(ge=1, le=1_000_000, description="newest actions whose items may be negatives of others (softmax)")
    ] = 4096
    candidates: Annotated[
        int, Meta(ge=0, le=100_000, description="items of the queue that compete in a minibatch, beside its own (softmax)")
    ] = 512
    negatives: Annotated[
        int,
        Meta(
            ge=1,
            le=64,
            description="rows of the queue beside each action of a support set (softmax); `meta.support_rows` counts both",
        ),
    ] = 2
    max_items: Annotated[
        int, Meta(ge=16, le=100_000_000, description="items that a snapshot names; the longest unseen is forgotten beyond it")
    ] = 100_000
    max_idle_s: Annotated[
        float, Meta(gt=0, description="an item that nobody was shown for this event time is not found any more")
    ] = 2_592_000.0


class Snapshot(spec.Section, frozen=True):
    """What the learner publishes."""

    directory: Annotated[str, Meta(description="folder shared with serving")] = "snapshots"
    every_s: Annotated[float, Meta(gt=0, description="seconds between snapshots")] = 30.0
    every_steps: Annotated[int, Meta(ge=0, description="steps between snapshots; 0 leaves it to seconds")] = 0
    keep: Annotated[int, Meta(ge=1, description="newest snapshots kept")] = 5


class Exploration(spec.Section, frozen=True):
    """A share of traffic for new items by Thompson sampling; replies then say in which order to show, and how likely that was."""

    share: Annotated[float, Meta(ge=0, le=0.5, description="share of the requests that put a new item forward; 0: none")] = 0.0
    count: Annotated[
        str, Meta(description='the statistic with kind = "count", key = ["item"] and window = "all" that says what is new')
    ] = ""
    new_below: Annotated[float, Meta(gt=0, description="an item is new while it was shown less often than this")] = 100.0
    place: Annotated[int, Meta(ge=0, description="the place, from 0, at which the new item is shown")] = 0
    prior: Annotated[float, Meta(ge=0, description="exposures that the model's own score of an unseen item counts as")] = 10.0
    seed: Annotated[int, Meta(ge=0, description="of the draws, which depend on it and on the request alone")] = 0


class Merging(spec.Section, frozen=True):
    """Requests that arrive together are scored in one pass, each as it would be alone."""

    max_requests: Annotated[int, Meta(ge=1, le=256, description="most requests of a pass; 1: none are merged")] = 1
    max_wait_ms: Annotated[
        float,
        Meta(
            ge=0,
            le=100,
            description="longest wait of a request for others; 0: only those are merged that are ready at the same turn of the "
            "event loop",
        ),
    ] = 0.0


class Serving(spec.Section, frozen=True):
    """The scoring service."""

    host: Annotated[str, Meta(description="address to listen on; loopback by default")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="port of the API, 0 for any free one")] = 8080
    admin_port: Annotated[int, Meta(ge=0, le=65535, description="metrics and administration, 0 for none")] = 8081
    max_candidates: Annotated[int, Meta(ge=1, description="most candidates of a request")] = 1000
    max_body_bytes: Annotated[int, Meta(ge=1024, description="largest request body")] = 1_048_576
    store_timeout_ms: Annotated[float, Meta(gt=0, description="deadline of a read from the store")] = 10.0
    breaker_failures: Annotated[int, Meta(ge=1, description="failures in a row that open the circuit breaker")] = 5
    breaker_open_s: Annotated[float, Meta(gt=0, description="seconds the breaker stays open")] = 2.0
    poll_s: Annotated[float, Meta(gt=0, description="seconds between looks for a new snapshot")] = 0.5
    threads: Annotated[int, Meta(ge=1, le=64, description="torch threads")] = 1
    exploration: Exploration = Exploration()
    merging: Merging = Merging()


class Divergence(spec.Section, frozen=True):
    """Serving compares the numbers that it scores with those that the model was trained on, by number and scenario."""

    every: Annotated[int, Meta(ge=0, description="one of so many requests is looked at; 0: none")] = 10
    top: Annotated[
        int,
        Meta(ge=0, description="of a request only the best scored candidates, as many as are shown (what training sees); 0: all"),
    ] = 0
    half_life_requests: Annotated[float, Meta(gt=0, description="what was looked at halves its weight after so many")] = 2000.0
    min_requests: Annotated[int, Meta(ge=1, description="requests looked at in a scenario before it is compared")] = 200
    min_rows: Annotated[float, Meta(gt=0, description="rows that a scenario must have been trained on to be compared")] = 1000.0
    mean: Annotated[float, Meta(gt=0, description="alarm: the means differ by so many standard deviations")] = 0.5
    deviation: Annotated[float, Meta(gt=0, description="alarm: logarithm of the ratio of the deviations, either way")] = 0.7
    missing: Annotated[float, Meta(gt=0, le=1, description="alarm: the shares of absent or zero values differ by so much")] = 0.1


class Streams(spec.Section, frozen=True):
    """The Faust worker."""

    batch_lists: Annotated[int, Meta(ge=1, le=10_000, description="shown lists of a micro-batch")] = 512
    batch_ms: Annotated[float, Meta(gt=0, description="longest wait for a full micro-batch")] = 40.0
    in_flight: Annotated[int, Meta(ge=1, le=64, description="micro-batches on their way, finished in order")] = 4
    lists_per_message: Annotated[int, Meta(ge=1, le=10_000, description="most lists in a derived message")] = 128
    metrics_port: Annotated[int, Meta(ge=0, le=65535, description="Prometheus port, 0 for none")] = 9101


class Security(spec.Section, frozen=True):
    """Secrets come from the environment, or from the file that a variable of the same name with `_FILE` at its end names."""

    kafka_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"], Meta(description="how brokers are spoken to")
    ] = "PLAINTEXT"
    kafka_mechanism: Annotated[
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"], Meta(description="how a SASL protocol sends the password")
    ] = "PLAIN"
    kafka_username_env: Annotated[str, Meta(description="environment variable with the user name")] = (
        "THOUSANDFOLD_KAFKA_USERNAME"
    )
    kafka_password_env: Annotated[str, Meta(description="environment variable with the password")] = "THOUSANDFOLD_KAFKA_PASSWORD"
    kafka_ca_file: Annotated[str, Meta(description="certificate authority of the brokers; none: the system's")] = ""
    kafka_certificate_file: Annotated[str, Meta(description="our certificate, for brokers that ask for one")] = ""
    kafka_key_file: Annotated[str, Meta(description="the key of that certificate, without a passphrase")] = ""
    store_password_env: Annotated[str, Meta(description="environment variable with the store's password")] = (
        "THOUSANDFOLD_STORE_PASSWORD"
    )
    store_ca_file: Annotated[str, Meta(description="certificate authority of a store at `rediss://`; none: the system's")] = ""


class Quality(spec.Section, frozen=True):
    """`thousandfold bench quality`. The rates are of the baselines; `--choose` finds them on the first fifth of a log."""

    group: Annotated[
        tuple[TaskPart, ...],
        Meta(
            min_length=1, max_length=3, description='GAUC ranks within it: of "user", "item", "scenario", "request", categories'
        ),
    ] = ("user",)
    block_rows: Annotated[int, Meta(ge=1, description="rows that are scored before the first of them is trained on")] = 1000
    burn_in: Annotated[float, Meta(ge=0, lt=1, description="share of the rows that no figure counts")] = 0.1
    river_rate: Annotated[float, Meta(gt=0, description="river logistic regression: rate of SGD")] = 0.01
    bias_rate: Annotated[float, Meta(gt=0, description="user and item bias: rate of SGD")] = 0.05
    fm_rate: Annotated[float, Meta(gt=0, description="factorisation machine at batch 32: rate of AdaGrad")] = 0.05
    fm_live_rate: Annotated[float, Meta(gt=0, description="the same where it does not wait for blocks")] = 0.05
    fm_width: Annotated[int, Meta(ge=1, le=256, description="factorisation machine: numbers per factor")] = 16
    bias_tuning_rate: Annotated[float, Meta(gt=0, description="one bias per task on the shared model: rate of SGD")] = 0.05


class Config(spec.Section, frozen=True):
    """The whole file. `features` has no default: what a sample is must be said."""

    kafka: Kafka = Kafka()
    topics: Topics = Topics()
    store: Store = Store()
    scenarios: Scenarios = Scenarios()
    objectives: Annotated[
        tuple[Objective, ...], Meta(min_length=1, description="labels to predict, in the order of their columns")
    ] = (Objective(name="click", action="click"),)
    actions: Actions = Actions()
    task: Task = Task()
    join: Join = Join()
    support: Support = Support()
    features: spec.Features = spec.Features()
    model: Model = Model()
    embedding: Embedding = Embedding()
    meta: MetaLearning = MetaLearning()
    optimizer: Optimizer = Optimizer()
    learner: Learner = Learner()
    retrieval: Retrieval = Retrieval()
    snapshot: Snapshot = Snapshot()
    serving: Serving = Serving()
    divergence: Divergence = Divergence()
    streams: Streams = Streams()
    security: Security = Security()
    quality: Quality = Quality()

    @property
    def action_kinds(self) -> tuple[str, ...]:
        """Accepted kinds of action; a kind's index here is its code in every packed record."""
        kinds = dict.fromkeys(kind for o in self.objectives for kind in o.kinds)
        return tuple(kinds | dict.fromkeys(self.actions.other))

    @property
    def names_items(self) -> bool:
        """Whether derived messages carry the ids of items as they were sent, which replies of retrieval name."""
        return self.model.name == "two_tower"


class Refused(Exception):
    """What was asked cannot be done; the message says why and what to do. A command prints it as one line and exits 2."""


class ConfigError(Refused, ValueError):
    """The configuration cannot be used; the message names file, key, value and what is allowed."""


def load(path: str | os.PathLike[str]) -> Config:
    """Read, check and return the configuration.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown, a value has the wrong type or
            range, or two settings contradict each other.
    """
    file = pathlib.Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror}); name a file with --config") from error
    return parse(text, str(file))


def parse(text: str, name: str = "thousandfold.toml") -> Config:
    """Like `load`, from the text itself; `name` is what errors call the file."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: not valid TOML: {error}") from error
    try:
        config = msgspec.convert(raw, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{name}: {consistency.explain(str(error), raw, Config)}") from error
    for key, problem in consistency.contradictions(config):
        raise ConfigError(f"{name}: {key}: {problem}")
    return config
