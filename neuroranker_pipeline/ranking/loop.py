"""The training loop of both models: plain AdamW steps over lists, resumable to the bit on a CPU.

A step neither waits for the device nor reads from it: what it gave stays there until the loop settles it, at every line
of the history and before an evaluation or a checkpoint. Its random numbers depend on the seed, its number and the
process alone, so that a resumed run draws what an uninterrupted one would.
"""

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

from neuroranker_pipeline.errors import BadInput, NeuroRankerError
from neuroranker_pipeline.progress import Progress, silent
from neuroranker_pipeline.ranking.batching import epoch_order
from neuroranker_pipeline.ranking.checkpoint import load_checkpoint, save_checkpoint
from neuroranker_pipeline.ranking.device import Compute
from neuroranker_pipeline.ranking.distributed import World
from neuroranker_pipeline.ranking.forward import compile_layers, compiles
from neuroranker_pipeline.ranking.models import BiEncoder, CrossEncoder
from neuroranker_pipeline.ranking.optimizer import build_optimizer, freeze, is_head
from neuroranker_pipeline.ranking.settings import TrainingSettings

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

    def loss(self, lists: np.ndarray, world: World = World()) -> tuple[torch.Tensor, torch.Tensor]:
        """This process's share of the mean loss over ``lists``, and the scores of its own lists.

        The shares (scalars) of all processes add up to the mean loss; own lists are ``world.share(lists)``, their
        scores (own lists, candidates).
        """

    def evaluate(self) -> float | None:
        """Dev MRR@10, or ``None`` without dev queries."""


@dataclass
class TrainingResult:
    """What a training run did.

    history: {step, loss, lr, examples_per_second} every few steps and {step, dev_mrr} at evaluations, in order;
    steps: steps taken, fewer than planned where ``patience`` ran out; examples: query-passage pairs seen, by all
    processes; seconds: wall time of the steps, without evaluations and checkpoints, summed over resumed runs.
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


@dataclass
class _Window:
    """What has been settled since the last line of the history."""

    losses: list[float] = field(default_factory=list)
    examples: int = 0
    seconds: float = 0.0


def fit(
    task: Task,
    settings: TrainingSettings,
    seed: int,
    compute: Compute,
    work: Path,
    progress: Progress = silent,
    label: str = "training",
    world: World = World(),
) -> TrainingResult:
    """Fit ``task.model`` in place and leave it with its best (or last) weights.

    ``work`` holds the checkpoints: called again after a crash with the same arguments, the run goes on where the last
    one was saved, and on a CPU its losses equal those of a run never interrupted. Every process of ``world`` calls this
    with the same arguments and ends with the same weights; the first one writes the checkpoints and reports progress.

    Raises ``TrainingDiverged``, and ``BadInput`` when the processes differ in their data, settings or checkpoints.
    """
    devices = [compute.device] if compute.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        run = _Run(task, settings, seed, compute, label, world)
        if compiles(settings.compile, compute, run.total):
            compile_layers(task.model)
        run.restore(work)
        while not run.done:
            run.advance()
            if run.settling_due():
                run.settle()
            if run.evaluation_due():
                run.evaluate()
            if run.checkpoint_due():
                run.save(work)
            if world.main:
                progress(label, run.step, run.total)
        return run.finish()


class _Run:
    """One run of the loop: what a checkpoint has to hold is in ``result``, ``window``, ``flat`` and the tensors."""

    def __init__(
        self, task: Task, settings: TrainingSettings, seed: int, compute: Compute, label: str, world: World
    ) -> None:
        self.task, self.settings, self.seed, self.compute = task, settings, seed, compute
        self.label, self.world = label, world
        size = min(settings.lists_per_step, len(task))
        if size // settings.accumulate < world.size:
            raise BadInput(
                f"training.lists_per_step: {size} lists a step in {settings.accumulate} parts are too few for "
                f"{world.size} processes; give each process at least one list of every part"
            )
        self.fingerprint = _fingerprint(task, settings, seed)
        freeze(task.model, settings)
        task.model.to(compute.device)
        self.trained = {name: p for name, p in task.model.named_parameters() if p.requires_grad}
        self.optimizer = build_optimizer(self.trained, settings)
        self.steps_per_epoch = max(1, len(task) // settings.lists_per_step)
        planned = self.steps_per_epoch * settings.epochs
        self.total = min(planned, settings.max_steps or planned)
        self.result = TrainingResult(lists=len(task), device=str(compute))
        self.best: dict[str, torch.Tensor] = {}
        self.window = _Window()
        self.unsettled: list[torch.Tensor] = []  # (3,) loss, spread and gradient norm of each step not yet settled
        self.flat = 0  # steps in a row whose scores were all alike
        self.order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))
        self.overdue = False  # the seconds between two checkpoints are over
        self.last_save = self.clock = time.monotonic()

    @property
    def step(self) -> int:
        return self.result.steps

    @property
    def done(self) -> bool:
        """At the last step, or after ``patience`` evaluations without a better one."""
        best, patience = self.result.best_step, self.settings.patience
        worse = sum("dev_mrr" in line and line["step"] > best for line in self.result.history)
        return self.step >= self.total or (patience is not None and worse >= patience)

    def advance(self) -> None:
        """One optimizer step."""
        _seed(self.seed, self.step, self.world.rank, self.compute.device)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * self._rate(self.step)
        self.task.model.train()
        rows = self._rows()
        loss = spread = torch.zeros((), device=self.compute.device)
        for part in np.array_split(rows, min(self.settings.accumulate, len(rows))):
            with self.compute.autocast():
                part_loss, scores = self.task.loss(part, self.world)
            share = len(part) / len(rows)
            (part_loss * share).backward()
            loss = loss + part_loss.detach() * share
            spread = spread + _spread(scores) * (scores.shape[0] / len(rows))
            self.window.examples += len(part) * scores.shape[1]
        self.world.sum_gradients(self.trained.values())
        norm = nn.utils.clip_grad_norm_(self.trained.values(), self.settings.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.unsettled.append(torch.stack([loss, spread, norm.detach() / self.world.size]))
        self.result.steps += 1

    def _rows(self) -> np.ndarray:
        """The lists of this step: the sampler's position is the step number itself."""
        epoch, place = divmod(self.step, self.steps_per_epoch)
        if self.order[0] != epoch:
            self.order = epoch, epoch_order(len(self.task), self.seed, epoch)
        size = self.settings.lists_per_step
        return self.order[1][place * size : (place + 1) * size]

    def _rate(self, step: int) -> float:
        """The share of the peak learning rate that ``step``, from 0, is taken with."""
        warm = self.settings.warmup * self.total
        return min((step + 1) / max(1.0, warm), (self.total - step) / max(1.0, self.total - warm))

    def settling_due(self) -> bool:
        steps = self.settings.checkpoint_steps
        return self._line_due() or self.evaluation_due() or (steps > 0 and self.step % steps == 0)

    def _line_due(self) -> bool:
        return self.step % self.settings.log_every == 0 or self.step == self.total

    def settle(self) -> None:
        """Read what the steps since the last time gave, and stop when they diverged.

        The numbers are sums over the processes, so all of them decide alike, and none waits for one that has stopped.
        """
        every = self.settings.checkpoint_seconds
        overdue = self.world.main and every > 0 and time.monotonic() - self.last_save >= every
        sent = [torch.stack(self.unsettled).ravel(), torch.full((1,), float(overdue), device=self.compute.device)]
        *values, overdue = self.world.all_sum(torch.cat(sent)).tolist()
        self.overdue = self.overdue or bool(overdue)
        first = self.step - len(self.unsettled) + 1
        self.unsettled = []
        for step, (loss, spread, norm) in enumerate(zip(values[::3], values[1::3], values[2::3], strict=True), first):
            self._stop_if_diverged(step, loss, spread, norm)
            self.window.losses.append(loss)
        now = time.monotonic()
        self.window.seconds += now - self.clock
        self.clock = now
        if self._line_due():
            self._write_line()

    def _stop_if_diverged(self, step: int, loss: float, spread: float, norm: float) -> None:
        where = f"{self.label} diverged at step {step} of {self.total}"
        lower = f"lower learning_rate (now {self.settings.learning_rate:g})"
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingDiverged(
                f"{where}: the loss is {loss}, the gradient {norm}; {lower} or use precision float32"
            )
        self.flat = self.flat + 1 if spread < FLAT_SPREAD else 0
        if self.flat >= FLAT_STEPS:
            if any(map(is_head, self.trained)):
                lower += f" or head_learning_rate (now {self.settings.head_learning_rate:g})"
            raise TrainingDiverged(
                f"{where}: every candidate has got the same score for {self.flat} steps; {lower}, "
                "or train on more queries"
            )

    def _write_line(self) -> None:
        """Close the window: one line of the history."""
        window, self.window = self.window, _Window()
        rate = self.settings.learning_rate * self._rate(self.step - 1)
        speed = window.examples / max(window.seconds, 1e-9)
        line = {"step": self.step, "loss": float(np.mean(window.losses)), "lr": rate, "examples_per_second": speed}
        self.result.history.append(line)
        self.result.examples += window.examples
        self.result.seconds += window.seconds

    def evaluation_due(self) -> bool:
        every = self.settings.eval_every
        return self.step == self.total or (every > 0 and self.step % every == 0)

    def evaluate(self) -> None:
        """Measure on dev, remember the weights when they are the best so far, and see whether to go on."""
        mrr = self.task.evaluate()
        if mrr is not None:
            mrr = float(self.world.gather(np.array([mrr]))[0])  # one figure for all, whatever they round to
            self.result.history.append({"step": self.step, "dev_mrr": mrr})
            if self.result.dev_mrr is None or mrr > self.result.dev_mrr:
                self.result.dev_mrr, self.result.best_step = mrr, self.step
                self.best = {name: p.detach().cpu().clone() for name, p in self.trained.items()}
            if self.done and self.window.losses:
                self._write_line()
        self.clock = time.monotonic()

    def finish(self) -> TrainingResult:
        if self.best and self.result.best_step != self.step:
            _copy_into(self.trained, self.best)
        self.result.best_step = self.result.best_step or self.step
        return self.result

    def checkpoint_due(self) -> bool:
        """By steps, by seconds, and always at the end, so that a crash while saving the model costs nothing."""
        steps, seconds = self.settings.checkpoint_steps, self.settings.checkpoint_seconds
        return self.overdue or (steps > 0 and (self.step % steps == 0 or self.done)) or (seconds > 0 and self.done)

    def save(self, work: Path) -> None:
        if self.world.main:
            tensors = {f"weight/{name}": p.detach() for name, p in self.trained.items()}
            tensors |= {f"best/{name}": tensor for name, tensor in self.best.items()}
            for name, p in self.trained.items():
                for key, value in self.optimizer.state.get(p, {}).items():
                    tensors[f"moment/{key}/{name}"] = value
            state = {
                "fingerprint": self.fingerprint,
                "result": dataclasses.asdict(self.result),
                "window": dataclasses.asdict(self.window),
                "flat": self.flat,
            }
            save_checkpoint(work, self.step, tensors, state)
        self.world.barrier()
        self.overdue = False
        self.last_save = self.clock = time.monotonic()

    def restore(self, work: Path) -> None:
        """Go on from the newest checkpoint of this very run, if there is one; the same in every process."""
        if not self.world.main:
            self.world.barrier()  # the first process removes the checkpoints of other runs before anyone reads
        found = load_checkpoint(work, self.fingerprint)
        if self.world.main:
            self.world.barrier()
        if found is not None:
            self._take_up(*found)
        mine = np.array([self.step, int(self.fingerprint[:12], 16)], dtype=np.float64)
        if (self.world.gather(mine).reshape(-1, 2) != mine).any():
            raise BadInput(
                f"{work}: the processes differ in their data, settings or checkpoints; give all of them the same "
                "files, and a work folder that every machine sees"
            )
        self.last_save = self.clock = time.monotonic()

    def _take_up(self, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        groups: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            kind, _, name = key.partition("/")
            groups.setdefault(kind, {})[name] = tensor
        _copy_into(self.trained, groups["weight"])
        self.best = groups.get("best", {})
        for key, tensor in groups.get("moment", {}).items():
            kind, _, name = key.partition("/")
            home = self.trained[name].device
            self.optimizer.state[self.trained[name]][kind] = tensor.to(home)
        self.result, self.window = TrainingResult(**state["result"]), _Window(**state["window"])
        self.flat = state["flat"]


def _seed(seed: int, step: int, rank: int, device: torch.device) -> None:
    """Seed PyTorch for one step of one process."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    value = int.from_bytes(digest, "big")
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.manual_seed(value)


def _spread(scores: torch.Tensor) -> torch.Tensor:
    """The mean standard deviation of the scores within a list; lists of one passage cannot collapse."""
    if scores.shape[1] == 1:
        return scores.new_full((), math.inf, dtype=torch.float32)
    return scores.detach().float().std(dim=1).mean()


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
