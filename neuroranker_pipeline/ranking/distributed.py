"""One training run in several processes, started by PyTorch's own launcher ``torchrun``.

Every process holds the whole model and the whole list order, and computes its share of each step; summing the shares
makes two processes equal to one. Without the launcher the world is one process, and nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import distributed as dist

from neuroranker_pipeline.errors import BadInput

BUCKET = 1 << 25  # numbers in one flat gradient bucket: few messages, and little memory beside the gradients


@dataclass(frozen=True)
class World:
    """The processes of one training run: this one's number, and how many there are."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and reports progress."""
        return self.rank == 0

    def share(self, rows: np.ndarray) -> np.ndarray:
        """This process's part of ``rows``: consecutive, and at most one row larger than another's."""
        return np.array_split(rows, self.size)[self.rank]

    def all_sum(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of ``x`` over the processes, shaped like it; differentiable.

        The gradient of every process's ``x`` is the sum of the gradients that the processes have for the result.
        """
        return x if self.size == 1 else _AllSum.apply(x)

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sum ``.grad`` of all ``parameters`` over the processes, in place; a missing gradient counts as zeros."""
        if self.size == 1:
            return
        for bucket in _buckets(parameters):
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).ravel() for p in bucket])
            dist.all_reduce(flat)
            for p, grad in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                p.grad = grad.view_as(p)

    def gather(self, values: np.ndarray) -> np.ndarray:
        """The 1-d float arrays of all processes, of whatever lengths, one after the other; the same on each."""
        if self.size == 1:
            return values
        device = _device()
        lengths = torch.zeros(self.size, dtype=torch.int64, device=device)
        lengths[self.rank] = len(values)
        dist.all_reduce(lengths)
        padded = torch.zeros(int(lengths.max()), dtype=torch.float64, device=device)
        padded[: len(values)] = torch.from_numpy(np.asarray(values, dtype=np.float64))
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        filled = [part[: int(length)] for part, length in zip(parts, lengths, strict=True)]
        return torch.cat(filled).cpu().numpy().astype(values.dtype)

    def barrier(self) -> None:
        """Wait until every process has come here."""
        if self.size > 1:
            dist.all_reduce(torch.zeros(1, device=_device()))


def join_world(device: str = "auto") -> World:
    """This process's place among those that ``torchrun`` started; a world of one without the launcher.

    Joins the process group the first time (NCCL with one GPU per process, Gloo on a CPU). Raises ``BadInput`` when
    there are fewer GPUs than processes on this machine.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
        if here > gpus:
            raise BadInput(f"--nproc-per-node: {here} processes for {gpus} GPUs; start {gpus}, or use device 'cpu'")
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo")
    return World(rank, size)


def leave_world() -> None:
    """Leave the process group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


class _AllSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient):
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def _buckets(parameters: Iterable[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    bucket: list[torch.nn.Parameter] = []
    for p in parameters:
        if bucket and sum(q.numel() for q in bucket) + p.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(p)
    if bucket:
        yield bucket


def _device() -> torch.device:
    """Where the process group's backend wants its tensors."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
