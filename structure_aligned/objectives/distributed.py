"""Values of all ranks, for decisions that every rank has to take alike."""

from __future__ import annotations

import torch
import torch.distributed as dist


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
    size = torch.tensor([len(values)], device=values.device)
    sizes = [torch.empty_like(size) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, size)
    sizes = torch.cat(sizes).tolist()
    # Collectives want equal shapes: padded to the longest and cut again.
    padded = values.new_zeros(max(sizes), *values.shape[1:])
    padded[: len(values)] = values
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, sizes)]), sum(sizes[: dist.get_rank()])
