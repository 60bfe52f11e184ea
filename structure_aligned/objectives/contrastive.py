"""
The residue-level contrastive losses without their N×N matrix.

The similarities are made tile by tile: the forward pass keeps an online log-sum-exp of every row and column, the
backward pass makes each tile again (but for a few thousand residues, whose similarities are kept). Residues that
selection dropped have a gradient of exactly zero, and what only they would need is not made again.
Source: Cut Cross-Entropy, arXiv 2411.09009 (recomputation, skipping); Inf-CL, arXiv 2410.17243 (tiles, online sums).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers.utils import logging

from .losses import contrastive_inputs, residue_contrastive_losses


logger = logging.get_logger(__name__)

BACKENDS = ("auto", "reference", "chunked", "triton")

# Figures of benchmarks/bench_contrastive.py, D = 512, float32, one thread of an AMD EPYC. Other devices: not measured.
# Tiles of 512² to 1024² stay in the cache and were equally fast; one of 2048² took about 15 % longer at N = 2,000.
TILE_BYTES = {"cpu": 2**22}
DEFAULT_TILE_BYTES = 2**28

# `"auto"` takes the tiles from this number squared of similarities. Without candidates they were 1.1 to 1.7 times as
# fast as the reference (N = 250 to 4,000), but below 1,000 a training step would not show it; with 4 N candidates they
# took 1.2 times as long at N = 250, 1.06 at 500 and the same time at 1,000.
CHUNKED_FROM = {"cpu": 1000}
DEFAULT_CHUNKED_FROM = 4096

KEEP_BYTES = 2**26
"""Similarities that take no more than this are kept for the backward pass, instead of being made again: a third of its
products less. 4,096 residues in float32."""

WORTH_SKIPPING = 0.125
"""Share of the similarities that nothing needs from which sorting costs less than it saves; 0.1 to 0.16 broke even."""


def contrastive_losses(
    sequence: torch.Tensor,
    structure: torch.Tensor,
    scale: torch.Tensor | float,
    *,
    sequence_candidates: torch.Tensor | None = None,
    structure_candidates: torch.Tensor | None = None,
    offset: int = 0,
    backend: str = "auto",
    chunk_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Symmetric residue-level InfoNCE by the backend asked for. Inputs are those of [`residue_contrastive_losses`].

    Args:
        backend (`str`, *optional*, defaults to `"auto"`): `"reference"` ([`residue_contrastive_losses`], which holds
            several N×M matrices), `"chunked"` ([`chunked_contrastive_losses`], any device), `"triton"` (kernels for
            NVIDIA GPUs, which keep bfloat16 inputs in bfloat16), or the better one for this size and device.
        chunk_size (`int`, *optional*): Rows and columns of similarities held at a time by `"chunked"` (see there) and
            in the backward pass of `"triton"` (8192 by default); the reference has no use for it.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`, each of shape `(N,)`: Losses sequence → structure and structure →
        sequence, in nats. Similarities are float32 or wider with every backend, under autocast too.

    Raises:
        `ValueError`: For `"triton"`, if the tensors are not on a GPU or are float64.
        `ImportError`: For `"triton"`, if Triton is not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; choose one of {', '.join(map(repr, BACKENDS))}.")
    if backend == "auto":
        given = [tensor for tensor in (sequence_candidates, structure_candidates) if tensor is not None]
        backend = _best_backend(sequence, structure, *given)
    candidates = {
        "sequence_candidates": sequence_candidates,
        "structure_candidates": structure_candidates,
        "offset": offset,
    }
    if backend == "chunked":
        return chunked_contrastive_losses(sequence, structure, scale, **candidates, chunk_size=chunk_size)
    if backend == "triton":
        if not _has_triton():
            raise ImportError('backend="triton" needs Triton (pip install triton); "chunked" works without it.')
        from .contrastive_triton import triton_contrastive_losses

        return triton_contrastive_losses(sequence, structure, scale, **candidates, chunk_size=chunk_size)
    # bf16 similarities times a scale of up to 100 would be off by tenths of a nat.
    with torch.autocast(sequence.device.type, enabled=False):
        return residue_contrastive_losses(sequence, structure, scale, **candidates)


def _best_backend(sequence: torch.Tensor, structure: torch.Tensor, *candidates: torch.Tensor) -> str:
    most = max(len(tensor) for tensor in (sequence, *candidates))
    chunked_from = CHUNKED_FROM.get(sequence.device.type, DEFAULT_CHUNKED_FROM)
    if len(sequence) * most < chunked_from**2:
        return "reference"
    if not sequence.is_cuda or any(t.dtype == torch.float64 for t in (sequence, structure, *candidates)):
        return "chunked"
    # Tensor cores for bfloat16 and tf32 came with 8.0; on AMD the kernels were never compiled.
    if torch.version.hip or torch.cuda.get_device_capability(sequence.device) < (8, 0):
        return "chunked"
    if _has_triton():
        return "triton"
    logger.warning_once(
        "Triton is not installed: the residue contrastive losses use plain PyTorch tiles on the GPU. They give the "
        "same losses; `pip install triton` for the fused kernels."
    )
    return "chunked"


def _has_triton() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def chunked_contrastive_losses(
    sequence: torch.Tensor,
    structure: torch.Tensor,
    scale: torch.Tensor | float,
    *,
    sequence_candidates: torch.Tensor | None = None,
    structure_candidates: torch.Tensor | None = None,
    offset: int = 0,
    chunk_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    [`residue_contrastive_losses`] in O(chunk_size² + (N + M) · D) memory and 64 MiB; differentiable once.

    Args:
        sequence, structure (`torch.Tensor` of shape `(N, D)`): L2-normalised projections; row i of both is residue i.
        scale (`torch.Tensor` or `float`): Multiplier of the cosine similarity, `exp(logit_scale)`; a single number.
        sequence_candidates, structure_candidates (`torch.Tensor` of shape `(M, D)`, *optional*):
            What the anchors are compared with when that is more than themselves. Without them, each similarity is
            computed once for both directions.
        offset (`int`, *optional*, defaults to 0): Row of the candidates that holds residue 0.
        chunk_size (`int`, *optional*): Rows and columns of a tile, two of which are held at a time. By default a tile
            takes 4 MiB on the CPU and 256 MiB on other devices.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`, each of shape `(N,)`: Losses sequence → structure and structure →
        sequence, in nats; float32, or float64 for float64 inputs.
    """
    no_candidates = all(
        candidates is None or candidates is own
        for candidates, own in ((sequence_candidates, sequence), (structure_candidates, structure))
    )
    sequence, structure, sequence_candidates, structure_candidates = contrastive_inputs(
        sequence, structure, sequence_candidates, structure_candidates, offset
    )
    if chunk_size is None:
        tile_bytes = TILE_BYTES.get(sequence.device.type, DEFAULT_TILE_BYTES)
        chunk_size = math.isqrt(tile_bytes // sequence.element_size())
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; expected at least 1 row per tile, or None for the default.")
    scale = torch.as_tensor(scale, dtype=sequence.dtype, device=sequence.device).reshape(())
    if no_candidates:
        return _TiledLosses.apply(sequence, structure, scale, 0, chunk_size, True)
    return (
        _TiledLosses.apply(sequence, structure_candidates, scale, offset, chunk_size, False)[0],
        _TiledLosses.apply(structure, sequence_candidates, scale, offset, chunk_size, False)[0],
    )


class _TiledLosses(torch.autograd.Function):
    """
    Cross-entropy of the rows of `scale · rows @ columns.T`, whose targets are on the diagonal `offset`, and, if
    `both`, of its columns. Shapes `(N, D)` and `(M, D)`; with `both`, M = N and `offset` = 0.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        columns: torch.Tensor,
        scale: torch.Tensor,
        offset: int,
        chunk: int,
        both: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        with torch.autocast(rows.device.type, enabled=False):
            scaled = scale * rows
            tile, work = _buffers(rows, chunk, len(rows), len(columns))
            kept = None
            if len(rows) * len(columns) * rows.element_size() <= KEEP_BYTES and any(ctx.needs_input_grad[:3]):
                kept = rows.new_empty(len(rows), len(columns))
            positive = rows.new_empty(len(rows))
            row_sums = _OnlineSums(rows)
            column_sums = _OnlineSums(columns) if both else None
            for i in _blocks(0, len(rows), chunk):
                for j in _blocks(0, len(columns), chunk):
                    out = _part(tile, i, j) if kept is None else kept[i, j]
                    logits = torch.mm(scaled[i], columns[j].T, out=out)
                    scratch = _part(work, i, j)
                    row_sums.add(i, logits, 1, scratch)
                    if both:
                        column_sums.add(j, logits, 0, scratch)
                    # From the tile, not from a product of its own: rounded alike, so that no loss is below zero.
                    shift = i.start + offset - j.start
                    if -len(logits) < shift < logits.shape[1]:
                        diagonal = logits.diagonal(shift)
                        first = i.start + max(0, -shift)
                        positive[first : first + len(diagonal)] = diagonal
        losses = row_sums.minus(positive)
        ctx.offset, ctx.chunk, ctx.both = offset, chunk, both
        sums = (row_sums.peak, row_sums.total)
        if not both:
            ctx.save_for_backward(kept, rows, columns, scale, *sums)
            return losses, None
        ctx.save_for_backward(kept, rows, columns, scale, *sums, column_sums.peak, column_sums.total)
        return losses, column_sums.minus(positive)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, row_gradient: torch.Tensor, column_gradient: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        kept, rows, columns, scale, row_peak, row_total, *column_sums = ctx.saved_tensors
        need_rows, need_columns, need_scale = ctx.needs_input_grad[:3]
        # Softmax times gradient is exp(logit − peak) · gradient / total: peaks are exact where a log-sum-exp of
        # scale 100 would be rounded to 1e-5.
        row_side = _Side(rows, row_gradient, row_peak, row_total)
        column_side = _Side(columns, column_gradient, *column_sums) if ctx.both else _Side(columns)
        _set_apart_dropped(row_side, column_side)
        row_grad = torch.zeros_like(rows) if need_rows or need_scale else None
        column_grad = torch.zeros_like(columns) if need_columns else None
        with torch.autocast(rows.device.type, enabled=False):
            scaled = scale * row_side.vectors
            tile, work = _buffers(rows, ctx.chunk, len(rows), len(columns))
            # In another order than they were made in, the kept ones are of no use.
            if row_side.order is not None or column_side.order is not None:
                kept = None
            for i, by_row in row_side.blocks(ctx.chunk):
                for j, by_column in column_side.blocks(ctx.chunk):
                    if not (by_row or by_column):
                        continue
                    gradient = _part(tile, i, j)
                    logits = (
                        torch.mm(scaled[i], column_side.vectors[j].T, out=gradient) if kept is None else kept[i, j]
                    )
                    if by_row and by_column:
                        row_part = torch.sub(logits, row_side.peak[i, None], out=_part(work, i, j)).exp_()
                        row_part.mul_(row_side.weight[i, None])
                        torch.sub(logits, column_side.peak[j], out=gradient).exp_().mul_(column_side.weight[j])
                        gradient.add_(row_part)
                    elif by_row:
                        torch.sub(logits, row_side.peak[i, None], out=gradient).exp_().mul_(row_side.weight[i, None])
                    else:
                        torch.sub(logits, column_side.peak[j], out=gradient).exp_().mul_(column_side.weight[j])
                    if row_grad is not None:
                        row_grad[i].addmm_(gradient, column_side.vectors[j])
                    if column_grad is not None:
                        column_grad[j].addmm_(gradient.T, row_side.vectors[i])
        # The positives: every residue pulls at its own partner with the gradient of both its losses.
        pull = (row_gradient + column_gradient if ctx.both else row_gradient)[:, None]
        partners = slice(ctx.offset, ctx.offset + len(rows))
        scale_grad = None
        if row_grad is not None:
            row_grad = row_side.restore(row_grad).addcmul_(pull, columns[partners], value=-1)
            scale_grad = (row_grad * rows).sum() if need_scale else None
            row_grad = row_grad.mul_(scale) if need_rows else None
        if column_grad is not None:
            column_grad = column_side.restore(column_grad)
            column_grad[partners].addcmul_(pull, rows, value=-1)
            column_grad.mul_(scale)
        return row_grad, column_grad, scale_grad, None, None, None


class _OnlineSums:
    """Log-sum-exps of rows or columns that are seen piece by piece: the largest logit, and the sum relative to it."""

    def __init__(self, vectors: torch.Tensor) -> None:
        self.peak = vectors.new_full((len(vectors),), -math.inf)
        self.total = vectors.new_zeros(len(vectors))

    def add(self, part: slice, logits: torch.Tensor, dim: int, scratch: torch.Tensor) -> None:
        peak, total = self.peak[part], self.total[part]
        higher = torch.maximum(peak, logits.amax(dim))
        total.mul_(peak.sub_(higher).exp_())
        total.add_(torch.sub(logits, higher.unsqueeze(dim), out=scratch).exp_().sum(dim))
        peak.copy_(higher)

    def minus(self, positive: torch.Tensor) -> torch.Tensor:
        # In this order: the difference is exact where the positive is the largest, and the loss next to nothing.
        return (self.peak - positive).add_(self.total.log())


class _Side:
    """Rows or columns of the similarities in the backward pass, in the order they are worked through."""

    def __init__(
        self,
        vectors: torch.Tensor,
        gradient: torch.Tensor | None = None,
        peak: torch.Tensor | None = None,
        total: torch.Tensor | None = None,
    ) -> None:
        self.vectors, self.peak = vectors, peak
        self.weight = None if gradient is None else gradient / total
        self.nonzero = None if gradient is None else gradient != 0
        self.kept = 0
        self.order = None

    def sort(self) -> None:
        """Puts the entries that have a gradient first."""
        self.order = torch.argsort(self.nonzero.to(torch.uint8), descending=True, stable=True)
        self.vectors, self.peak, self.weight = (
            values[self.order] for values in (self.vectors, self.peak, self.weight)
        )

    def blocks(self, chunk: int) -> list[tuple[slice, bool]]:
        """Slices of at most `chunk`, with whether they have a gradient. None holds both kinds."""
        kept = [(part, True) for part in _blocks(0, self.kept, chunk)]
        return kept + [(part, False) for part in _blocks(self.kept, len(self.vectors), chunk)]

    def restore(self, values: torch.Tensor) -> torch.Tensor:
        return values if self.order is None else values[torch.argsort(self.order)]


def _set_apart_dropped(*sides: _Side) -> None:
    """Sorts the sides, if it pays, so that what needs no gradient lies in tiles of its own. One device transfer."""
    with_gradient = [side for side in sides if side.nonzero is not None]
    counts = torch.stack([side.nonzero.sum() for side in with_gradient]).tolist()
    for side, kept in zip(with_gradient, counts):
        side.kept = kept
    skipped = math.prod(1 - side.kept / max(1, len(side.vectors)) for side in sides)
    for side in with_gradient:
        if 0 < side.kept < len(side.vectors):
            if skipped >= WORTH_SKIPPING:
                side.sort()
            else:
                side.kept = len(side.vectors)


def _blocks(start: int, stop: int, chunk: int) -> list[slice]:
    """As few slices as possible of at most `chunk` each, about equally long: thin products are slow ones."""
    if start == stop:
        return []
    size = math.ceil((stop - start) / math.ceil((stop - start) / chunk))
    return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]


def _buffers(like: torch.Tensor, chunk: int, num_rows: int, num_columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for a tile and for what is made of it; new memory for each would cost the CPU as much as the sums."""
    size = min(chunk, num_rows) * min(chunk, num_columns)
    return like.new_empty(size), like.new_empty(size)


def _part(buffer: torch.Tensor, rows: slice, columns: slice) -> torch.Tensor:
    height, width = rows.stop - rows.start, columns.stop - columns.start
    return buffer[: height * width].view(height, width)
