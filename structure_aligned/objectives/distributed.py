"""Values of all ranks: for decisions all have to take alike, and as candidates of the contrastive losses."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable


def is_distributed() -> bool:
    """Whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@torch.no_grad()
def gather_uneven(values: torch.Tensor) -> tuple[torch.Tensor, int]:
    """
    The values of all ranks one after the other, in the order of the ranks; without gradient.

    Args:
        values (`torch.Tensor` of shape `(N, …)`): N may differ between ranks and be 0; what follows it may not.

    Returns:
        `tuple[torch.Tensor, int]`: All of them, of shape `(M, …)`, and the row where this rank's begin.
    """
    if not is_distributed():
        return values, 0
    sizes = _sizes(values)
    return _gather(values, sizes), sum(sizes[: dist.get_rank()])


def gather_with_gradient(values: torch.Tensor) -> tuple[torch.Tensor, int]:
    """
    [`gather_uneven`] that gradients flow through: those which the ranks' losses have with respect to this rank's
    values come back to it, summed. Every rank must run the backward pass.
    """
    if not is_distributed():
        return values, 0
    sizes = _sizes(values)
    return _GatherWithGradient.apply(values, sizes), sum(sizes[: dist.get_rank()])


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        ctx.sizes = sizes
        return _gather(values, sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        sizes = ctx.sizes
        padded = gradient.new_zeros(len(sizes), max(sizes), *gradient.shape[1:])
        for rank, part in enumerate(gradient.split(sizes)):
            padded[rank, : len(part)] = part
        own = torch.empty_like(padded[0])
        dist.reduce_scatter_tensor(own, padded.flatten(0, 1))
        return own[: sizes[dist.get_rank()]], None


def _sizes(values: torch.Tensor) -> list[int]:
    size = torch.tensor([len(values)], device=values.device)
    sizes = [torch.empty_like(size) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, size)
    return torch.cat(sizes).tolist()


def _gather(values: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    # Collectives want equal shapes: padded to the longest and cut again.
    padded = values.new_zeros(max(sizes), *values.shape[1:])
    padded[: len(values)] = values
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, sizes)])
