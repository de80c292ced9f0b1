"""The training loop of both models: plain AdamW steps over lists, resumable to the bit on a CPU."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from neuroranker_pipeline.errors import NeuroRankerError, require
from neuroranker_pipeline.progress import Progress, silent
from neuroranker_pipeline.ranking.batching import epoch_order
from neuroranker_pipeline.ranking.checkpoint import load_checkpoint, save_checkpoint
from neuroranker_pipeline.ranking.device import Compute
from neuroranker_pipeline.ranking.models import BiEncoder, CrossEncoder
from neuroranker_pipeline.ranking.settings import TrainingSettings

HEAD = ("head.", "transformer.classifier.")
# A list whose scores differ by less than this is in no order; so many steps of it in a row is a collapse.
FLAT_SPREAD, FLAT_STEPS = 1e-3, 25


class TrainingDiverged(NeuroRankerError):
    """The loss is no longer finite, or the model gives every candidate the same score."""


class Task(Protocol):
    """What the loop fits: a model, its lists, their loss, and a dev measure."""

    @property
    def model(self) -> BiEncoder | CrossEncoder: ...

    def __len__(self) -> int: ...

    def digest(self) -> str:
        """A digest of the training examples."""

    def loss(self, lists: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean loss of some lists (a scalar) and the scores they got, (lists, candidates)."""

    def evaluate(self) -> float | None:
        """Dev MRR@10, or ``None`` without dev queries."""


@dataclass
class TrainingResult:
    """What a training run did.

    history: {step, loss, lr, examples_per_second} every few steps and {step, dev_mrr} at evaluations, in order;
    examples: query-passage pairs seen; seconds: time spent in training, summed over resumed runs.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    dev_mrr: float | None = None
    best_step: int = 0
    steps: int = 0
    examples: int = 0
    seconds: float = 0.0
    lists: int = 0
    skipped: int = 0
    device: str = ""


def fit(
    task: Task,
    settings: TrainingSettings,
    seed: int,
    compute: Compute,
    work: Path,
    progress: Progress = silent,
    label: str = "training",
) -> TrainingResult:
    """Fit ``task.model`` in place and leave it with its best (or last) weights.

    ``work`` holds the checkpoints: called again after a crash with the same arguments, the run goes on where the last
    one was saved, and on a CPU its losses equal those of a run never interrupted. Raises ``TrainingDiverged``.
    """
    devices = [compute.device] if compute.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        run = _Run(task, settings, seed, compute, label)
        run.restore(work)
        while run.step < run.total:
            run.advance()
            if run.evaluation_due():
                run.evaluate()
            if run.checkpoint_due():
                run.save(work)
            progress(label, run.step, run.total)
        return run.finish()


class _Run:
    """One run of the loop: what a checkpoint has to hold is in ``result``, ``window``, ``flat`` and the tensors."""

    def __init__(self, task: Task, settings: TrainingSettings, seed: int, compute: Compute, label: str) -> None:
        self.task, self.settings, self.seed, self.compute, self.label = task, settings, seed, compute, label
        self.fingerprint = _fingerprint(task, settings, seed)
        freeze(task.model, settings)
        task.model.to(compute.device)
        self.trained = {name: p for name, p in task.model.named_parameters() if p.requires_grad}
        self.optimizer = _optimizer(self.trained, settings)
        self.steps_per_epoch = max(1, len(task) // settings.lists_per_step)
        planned = self.steps_per_epoch * settings.epochs
        self.total = min(planned, settings.max_steps or planned)
        self.result = TrainingResult(lists=len(task), device=str(compute))
        self.best: dict[str, torch.Tensor] = {}
        self.window: list[float] = []  # losses since the last line of history
        self.window_seconds = 0.0
        self.flat = 0  # steps in a row whose scores were all alike
        self.last_save = time.monotonic()

    @property
    def step(self) -> int:
        return self.result.steps

    def advance(self) -> None:
        """One optimizer step."""
        start = time.monotonic()
        rate = self._set_learning_rate()
        self.task.model.train()
        rows = self._rows()
        loss, spread, pairs = 0.0, 0.0, 0
        for part in np.array_split(rows, min(self.settings.accumulate, len(rows))):
            with self.compute.autocast():
                part_loss, scores = self.task.loss(part)
            share = len(part) / len(rows)
            (part_loss * share).backward()
            loss += part_loss.item() * share
            spread += _spread(scores) * share
            pairs += scores.numel()
        norm = nn.utils.clip_grad_norm_(self.trained.values(), self.settings.max_grad_norm)
        self._stop_if_diverged(loss, float(norm), spread)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        seconds = time.monotonic() - start
        self.result.steps += 1
        self.result.examples += pairs
        self.result.seconds += seconds
        self._log(loss, rate, pairs, seconds)

    def _rows(self) -> np.ndarray:
        """The lists of this step: the sampler's position is the step number itself."""
        epoch, place = divmod(self.step, self.steps_per_epoch)
        size = self.settings.lists_per_step
        return epoch_order(len(self.task), self.seed, epoch)[place * size : (place + 1) * size]

    def _set_learning_rate(self) -> float:
        warm = self.settings.warmup * self.total
        factor = min((self.step + 1) / max(1.0, warm), (self.total - self.step) / max(1.0, self.total - warm))
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        return self.settings.learning_rate * factor

    def _stop_if_diverged(self, loss: float, norm: float, spread: float) -> None:
        where = f"{self.label} diverged at step {self.step + 1} of {self.total}"
        lower = f"lower learning_rate (now {self.settings.learning_rate:g})"
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingDiverged(
                f"{where}: the loss is {loss}, the gradient {norm}; {lower} or use precision float32"
            )
        self.flat = self.flat + 1 if spread < FLAT_SPREAD else 0
        if self.flat >= FLAT_STEPS:
            raise TrainingDiverged(
                f"{where}: every candidate has got the same score for {self.flat} steps; {lower} or "
                f"head_learning_rate (now {self.settings.head_learning_rate:g}), or train on more queries"
            )

    def _log(self, loss: float, rate: float, pairs: int, seconds: float) -> None:
        self.window.append(loss)
        self.window_seconds += seconds
        if len(self.window) < self.settings.log_every and self.step < self.total:
            return
        speed = pairs * len(self.window) / max(self.window_seconds, 1e-9)
        line = {"step": self.step, "loss": float(np.mean(self.window)), "lr": rate, "examples_per_second": speed}
        self.result.history.append(line)
        self.window, self.window_seconds = [], 0.0

    def evaluation_due(self) -> bool:
        every = self.settings.eval_every
        return self.step == self.total or (every > 0 and self.step % every == 0)

    def evaluate(self) -> None:
        """Measure on dev and remember the weights when they are the best so far."""
        mrr = self.task.evaluate()
        if mrr is None:
            return
        self.result.history.append({"step": self.step, "dev_mrr": mrr})
        if self.result.dev_mrr is None or mrr > self.result.dev_mrr:
            self.result.dev_mrr, self.result.best_step = mrr, self.step
            self.best = {name: p.detach().cpu().clone() for name, p in self.trained.items()}

    def finish(self) -> TrainingResult:
        if self.best and self.result.best_step != self.step:
            _copy_into(self.trained, self.best)
        self.result.best_step = self.result.best_step or self.step
        return self.result

    def checkpoint_due(self) -> bool:
        """By steps, by seconds, and always at the end, so that a crash while saving the model costs nothing."""
        steps, seconds = self.settings.checkpoint_steps, self.settings.checkpoint_seconds
        by_steps = steps > 0 and self.step % steps == 0
        by_seconds = seconds > 0 and time.monotonic() - self.last_save >= seconds
        return by_steps or by_seconds or (self.step == self.total and (steps > 0 or seconds > 0))

    def save(self, work: Path) -> None:
        tensors = {f"weight/{name}": p.detach() for name, p in self.trained.items()}
        tensors |= {f"best/{name}": tensor for name, tensor in self.best.items()}
        for name, p in self.trained.items():
            for key, value in self.optimizer.state.get(p, {}).items():
                tensors[f"moment/{key}/{name}"] = value
        tensors["rng/cpu"] = torch.get_rng_state()
        if self.compute.device.type == "cuda":
            tensors["rng/cuda"] = torch.cuda.get_rng_state(self.compute.device)
        state = {
            "fingerprint": self.fingerprint,
            "result": dataclasses.asdict(self.result),
            "window": self.window,
            "window_seconds": self.window_seconds,
            "flat": self.flat,
        }
        save_checkpoint(work, self.step, tensors, state)
        self.last_save = time.monotonic()

    def restore(self, work: Path) -> None:
        """Go on from the newest checkpoint of this very run, if there is one."""
        found = load_checkpoint(work, self.fingerprint)
        if found is None:
            return
        tensors, state = found
        groups: dict[str, dict[str, Any]] = {}
        for key, tensor in tensors.items():
            kind, _, name = key.partition("/")
            groups.setdefault(kind, {})[name] = tensor
        _copy_into(self.trained, groups["weight"])
        self.best = groups.get("best", {})
        for key, tensor in groups.get("moment", {}).items():
            kind, _, name = key.partition("/")
            home = self.trained[name].device
            self.optimizer.state[self.trained[name]][kind] = tensor.to(home)
        torch.set_rng_state(groups["rng"]["cpu"])
        if self.compute.device.type == "cuda" and "cuda" in groups["rng"]:
            torch.cuda.set_rng_state(groups["rng"]["cuda"], self.compute.device)
        self.result = TrainingResult(**state["result"])
        self.window, self.window_seconds, self.flat = state["window"], state["window_seconds"], state["flat"]


def _spread(scores: torch.Tensor) -> float:
    """The mean standard deviation of the scores within a list; lists of one passage cannot collapse."""
    return scores.detach().float().std(dim=1).mean().item() if scores.shape[1] > 1 else math.inf


def freeze(model: BiEncoder | CrossEncoder, settings: TrainingSettings) -> None:
    """Set the dropout and which parameters learn; autograd then skips frozen embeddings and layers by itself."""
    if settings.dropout is not None:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = settings.dropout
    encoder: Any = model.transformer.base_model
    frozen: list[nn.Module] = []
    reads_pooler = isinstance(model, CrossEncoder) and model.head is None
    if getattr(encoder, "pooler", None) is not None and not reads_pooler:
        frozen.append(encoder.pooler)
    if settings.freeze_embeddings:
        frozen.append(getattr(encoder, "embeddings", None) or encoder.get_input_embeddings())
    if settings.frozen_layers:
        stacks = (module for module in encoder.modules() if isinstance(module, nn.ModuleList))
        layers = next(stack for stack in stacks if len(stack) == encoder.config.num_hidden_layers)
        require(
            settings.frozen_layers <= len(layers), "frozen_layers", f"at most {len(layers)}", settings.frozen_layers
        )
        frozen += list(layers)[: settings.frozen_layers]
    for module in frozen:
        module.requires_grad_(False)


def _optimizer(trained: dict[str, nn.Parameter], settings: TrainingSettings) -> torch.optim.Optimizer:
    """AdamW (https://arxiv.org/abs/1711.05101); no weight decay on biases and normalizations, as in BERT."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, p in trained.items():
        is_head = name.startswith(HEAD)
        groups.setdefault((is_head, p.ndim >= 2), []).append(p)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "peak": settings.head_learning_rate if is_head else settings.learning_rate,
                "weight_decay": settings.weight_decay if decays else 0.0,
            }
            for (is_head, decays), parameters in groups.items()
        ],
        fused=True,
    )


def _copy_into(parameters: dict[str, nn.Parameter], tensors: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def _fingerprint(task: Task, settings: TrainingSettings, seed: int) -> str:
    """What must be equal for a checkpoint to belong to this run: settings, seed, examples, starting weights."""
    settings = dataclasses.replace(settings, checkpoint_steps=0, checkpoint_seconds=0.0)
    state = hashlib.sha256(json.dumps([dataclasses.asdict(settings), seed, task.digest()]).encode())
    for name, tensor in task.model.state_dict().items():
        state.update(name.encode())
        state.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()
