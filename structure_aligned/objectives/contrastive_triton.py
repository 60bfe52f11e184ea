"""
The residue contrastive losses in fused tiles on the GPU. Imported on demand: the package does not need Triton.

Forward: each program makes one tile of the similarities in registers and writes its rows' and columns' parts of the
log-sum-exps, so both directions cost one product. As independent tiles rather than programs that run along a row,
they fill a GPU at any number of residues, and one tile's exponentials run beside another's product.

Backward: a block of at most `CHUNK`² gradients of the logits (bfloat16 for bfloat16 inputs: 128 MiB) is made from the
tiles computed again, and two products take it to the vectors. It is the one thing of a tile's kind that goes through
memory, and bounded. Keeping it in registers as well was rejected on paper for D = 512 (not measured): a program that
owns 64 rows needs half of an H100's registers for its sums and reads 32 bytes per clock and multiprocessor, more than
the L2 gives; and each side would make the similarities once more, 10 N²D instead of 8 N²D operations.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
import triton
from torch.autograd.function import once_differentiable

from . import contrastive_kernels as kernels
from .losses import contrastive_inputs


INTERPRETED = not isinstance(kernels.sums_kernel, triton.JITFunction)
"""Whether the environment variable TRITON_INTERPRET=1 made the kernels run on the CPU, for tests."""

TILE = 32 if INTERPRETED else 128

# 8,192 rows in blocks of 128, times 512 / 256, are 128 programs for the 132 multiprocessors of an H100.
CHUNK = 8192

PART_BYTES = 2**27
"""Room for the parts of the log-sum-exps; with more rows and columns than fit, the forward pass goes in bands."""

LARGE_FROM = 512
"""Number of tiles from which a configuration is chosen anew: what a few tiles prefer does not fill a GPU."""

# Not measured: no GPU was at hand; for sm_90 they compile to wgmma with 64 to 192 KiB of shared memory. Four warps
# leave room for two programs per multiprocessor: one's exponentials hide behind the other's product.
_TILE_CONFIGS = [(8, 3), (4, 3), (8, 4), (8, 2)]  # warps, stages
_PRODUCT_CONFIGS = [(8, 3), (8, 4), (8, 2)]


def _tuned(kernel: Any, configs: list[tuple[int, int]], key: list[str], **options: Any) -> Any:
    if INTERPRETED:
        return kernel
    choices = [triton.Config({}, num_warps=warps, num_stages=stages) for warps, stages in configs]
    return triton.autotune(choices, key=key, **options)(kernel)


_sums = _tuned(kernels.sums_kernel, _TILE_CONFIGS, ["dim", "BOTH", "LARGE"])
_gradient_tile = _tuned(kernels.gradient_tile_kernel, _TILE_CONFIGS, ["dim", "BOTH", "LARGE"])
_gradient_product = _tuned(
    kernels.gradient_product_kernel, _PRODUCT_CONFIGS, ["dim", "OWN", "LARGE"], restore_value=["result_ptr"]
)


def triton_contrastive_losses(
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
    [`residue_contrastive_losses`] by Triton kernels, in O(chunk_size² + (N + M) · D) memory; differentiable once.

    bfloat16 vectors stay bfloat16: products are summed in float32, logits and losses are float32, and the gradient of
    each logit is rounded to bfloat16 before it meets the vectors. float16 vectors are multiplied in tf32, which holds
    them exactly; float32 ones in three tf32 products each, which keeps float32's digits.

    Args:
        sequence, structure (`torch.Tensor` of shape `(N, D)`): L2-normalised projections on an NVIDIA GPU, bfloat16,
            float16 or float32; row i of both is residue i. With two dtypes, both take the wider one.
        scale (`torch.Tensor` or `float`): Multiplier of the cosine similarity, `exp(logit_scale)`; a single number.
        sequence_candidates, structure_candidates (`torch.Tensor` of shape `(M, D)`, *optional*):
            What the anchors are compared with when that is more than themselves. Without them, each similarity is
            computed once for both directions.
        offset (`int`, *optional*, defaults to 0): Row of the candidates that holds residue 0.
        chunk_size (`int`, *optional*, defaults to 8192): Rows and columns of the gradients held at a time in the
            backward pass, rounded up to whole tiles of 128.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`, each of shape `(N,)`: Losses sequence → structure and structure →
        sequence, in nats; float32.
    """
    no_candidates = all(
        candidates is None or candidates is own
        for candidates, own in ((sequence_candidates, sequence), (structure_candidates, structure))
    )
    sequence, structure, sequence_candidates, structure_candidates = contrastive_inputs(
        sequence, structure, sequence_candidates, structure_candidates, offset, keep_dtype=True
    )
    if sequence.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(
            f"The Triton backend takes bfloat16, float16 or float32 vectors, not {sequence.dtype}; "
            'use backend="chunked" for float64.'
        )
    if not (sequence.is_cuda or INTERPRETED):
        raise ValueError(
            f"The Triton backend needs tensors on a GPU, these are on {sequence.device}; "
            'use backend="chunked" or "auto" there.'
        )
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; expected at least 1 row per block, or None for the default.")
    precision = "tf32x3" if sequence.dtype == torch.float32 else "tf32"  # bfloat16: without a meaning
    if sequence.dtype == torch.float16:
        # Gradients of the logits are near 1/N², below the smallest float16.
        own = (sequence.float(), structure.float())
        sequence_candidates = own[0] if sequence_candidates is sequence else sequence_candidates.float()
        structure_candidates = own[1] if structure_candidates is structure else structure_candidates.float()
        sequence, structure = own
    scale = torch.as_tensor(scale, dtype=torch.float32, device=sequence.device).reshape(())
    chunk = _whole_tiles(chunk_size or CHUNK)
    if no_candidates:
        return _TritonLosses.apply(sequence, structure, scale, 0, chunk, True, precision)
    return (
        _TritonLosses.apply(sequence, structure_candidates, scale, offset, chunk, False, precision)[0],
        _TritonLosses.apply(structure, sequence_candidates, scale, offset, chunk, False, precision)[0],
    )


class _TritonLosses(torch.autograd.Function):
    """As `_TiledLosses` of the chunked backend; peaks are in units of log2."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        columns: torch.Tensor,
        scale: torch.Tensor,
        offset: int,
        chunk: int,
        both: bool,
        precision: str,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        rows, columns = rows.contiguous(), columns.contiguous()
        ctx.offset, ctx.chunk, ctx.both, ctx.precision = offset, chunk, both, precision
        with _device_of(rows):
            positive, row_sums, column_sums = _log_sums(rows, columns, scale, offset, both, precision)
        if not both:
            ctx.save_for_backward(rows, columns, scale, *row_sums)
            return _losses(positive, *row_sums), None
        ctx.save_for_backward(rows, columns, scale, *row_sums, *column_sums)
        return _losses(positive, *row_sums), _losses(positive, *column_sums)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, row_gradient: torch.Tensor, column_gradient: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        rows, columns, scale, row_peak, row_total, *column_sums = ctx.saved_tensors
        need_rows, need_columns, need_scale = ctx.needs_input_grad[:3]
        pull = row_gradient + column_gradient if ctx.both else row_gradient
        row_side = _SortedSide(rows, row_gradient, row_peak, row_total)
        column_side = _SortedSide(columns, column_gradient, *column_sums) if ctx.both else _SortedSide(columns)
        with _device_of(rows):
            row_sum, column_sum = _gradients(
                row_side,
                column_side,
                scale,
                pull,
                offset=ctx.offset,
                chunk=ctx.chunk,
                precision=ctx.precision,
                wanted=(need_rows or need_scale, need_columns),
            )
        scale_grad = None
        if need_scale:
            # From the rows' sums: in the kernel, it would take a tile's registers. In pieces: the product of all rows
            # would be one more matrix of the inputs' size.
            pieces = zip(row_sum.split(ctx.chunk), row_side.vectors.split(ctx.chunk))
            scale_grad = sum(((gradient * vectors).sum() for gradient, vectors in pieces), torch.zeros_like(scale))
        row_grad = row_side.restore(row_sum.mul_(scale), rows) if need_rows else None
        del row_sum
        column_grad = column_side.restore(column_sum.mul_(scale), columns) if need_columns else None
        return row_grad, column_grad, scale_grad, None, None, None, None


class _SortedSide:
    """
    Rows or columns of the similarities in the backward pass, those with a gradient first. How many these are stays on
    the device, where each program compares its place with it: nothing waits for the GPU.
    """

    def __init__(
        self,
        vectors: torch.Tensor,
        gradient: torch.Tensor | None = None,
        peak: torch.Tensor | None = None,
        total: torch.Tensor | None = None,
    ) -> None:
        self.order, self.vectors, self.peak, self.weight = None, vectors, peak, None
        if gradient is None:
            self.kept = torch.zeros((), dtype=torch.int32, device=vectors.device)
            return
        nonzero = gradient != 0
        self.kept = nonzero.sum(dtype=torch.int32)
        self.order = torch.argsort(nonzero.to(torch.uint8), descending=True, stable=True)
        self.vectors, self.peak = vectors[self.order], peak[self.order]
        self.weight = (gradient.float() / total)[self.order]

    def numbers(self) -> torch.Tensor:
        """Which residue each entry is, int32."""
        order = torch.arange(len(self.vectors), device=self.vectors.device) if self.order is None else self.order
        return order.to(torch.int32)

    def restore(self, values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """`values` in the first order, in the dtype of `like`."""
        values = values.to(like.dtype)
        return values if self.order is None else torch.empty_like(values).index_copy_(0, self.order, values)


def _log_sums(
    rows: torch.Tensor, columns: torch.Tensor, scale: torch.Tensor, offset: int, both: bool, precision: str
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor] | None]:
    """Positives, and peak and total of the rows and, if `both`, of the columns."""
    num_rows, num_columns = len(rows), len(columns)
    single = {"dtype": torch.float32, "device": rows.device}
    positive, row_peak, row_total = (torch.empty(num_rows, **single) for _ in range(3))
    column_peak = torch.full((num_columns,), -math.inf, **single)
    column_total = torch.zeros(num_columns, **single)
    column_tiles = triton.cdiv(num_columns, TILE)
    bytes_per_tile_of_rows = 8 * (TILE * column_tiles + both * num_columns)
    band = max(1, PART_BYTES // max(1, bytes_per_tile_of_rows)) * TILE
    for first in range(0, num_rows, band):
        stop = min(first + band, num_rows)
        row_tiles = triton.cdiv(stop - first, TILE)
        row_parts = torch.empty(2, column_tiles, stop - first, **single)
        # The first entry is what the bands before have given.
        column_parts = torch.empty(2, row_tiles + 1 if both else 0, num_columns, **single)
        if both:
            column_parts[0, 0], column_parts[1, 0] = column_peak, column_total
        _sums[(row_tiles * column_tiles,)](
            rows,
            columns,
            scale,
            positive,
            row_parts[0],
            row_parts[1],
            column_parts[0, 1:],
            column_parts[1, 1:],
            first_row=first,
            stop_row=stop,
            num_rows=num_rows,
            num_columns=num_columns,
            dim=rows.shape[1],
            offset=offset,
            BOTH=both,
            GROUP=8,
            LARGE=row_tiles * column_tiles >= LARGE_FROM,
            **_constants(rows, precision),
        )
        row_peak[first:stop], row_total[first:stop] = _combined(*row_parts)
        if both:
            column_peak, column_total = _combined(*column_parts)
    return positive, (row_peak, row_total), (column_peak, column_total) if both else None


def _combined(peaks: torch.Tensor, totals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Peak and total of what lies along the first axis in parts, which are used up."""
    peak = peaks.amax(0)
    return peak, peaks.sub_(peak).exp2_().mul_(totals).sum(0)


def _losses(positive: torch.Tensor, peak: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    # In this order: the difference is exact where the positive is the largest, and the loss next to nothing.
    return (peak - positive).add_(total.log2()).mul_(math.log(2))


def _gradients(
    row_side: _SortedSide,
    column_side: _SortedSide,
    scale: torch.Tensor,
    pull: torch.Tensor,
    *,
    offset: int,
    chunk: int,
    precision: str,
    wanted: tuple[bool, bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of rows and columns in the sides' order, before they are multiplied by the scale; float32."""
    rows, columns, both = row_side.vectors, column_side.vectors, column_side.weight is not None
    results = [
        torch.empty(vectors.shape, dtype=torch.float32, device=rows.device) if wish else None
        for vectors, wish in zip((rows, columns), wanted)
    ]
    if len(rows) == 0:
        return results[0], None if results[1] is None else results[1].zero_()
    kept = torch.stack([row_side.kept, column_side.kept])
    size = min(chunk, _whole_tiles(len(rows))) * min(chunk, _whole_tiles(len(columns)))
    buffer = _room_for_gradients(size, rows)
    pull = pull.float()[row_side.order]
    targets, identities = row_side.numbers() + offset, column_side.numbers()
    constants = _constants(rows, precision)
    width, step = _product_width(rows), min(TILE, 64 if rows.dtype == torch.bfloat16 else 32)
    product_constants = constants | {"STEP": step, "WIDTH": width, "EVEN": rows.shape[1] % width == 0}
    for first_row in range(0, len(rows), chunk):
        stop_row = min(first_row + chunk, len(rows))
        for first_column in range(0, len(columns), chunk):
            stop_column = min(first_column + chunk, len(columns))
            row_tiles = triton.cdiv(stop_row - first_row, TILE)
            column_tiles = triton.cdiv(stop_column - first_column, TILE)
            stride = column_tiles * TILE
            _gradient_tile[(row_tiles * column_tiles,)](
                rows,
                columns,
                scale,
                row_side.peak,
                row_side.weight,
                pull,
                targets,
                # Without a gradient of their own, the kernel reads none of the columns' numbers.
                column_side.peak if both else row_side.peak,
                column_side.weight if both else row_side.weight,
                identities,
                kept,
                buffer,
                first_row=first_row,
                first_column=first_column,
                stop_row=stop_row,
                stop_column=stop_column,
                width=stride,
                num_rows=len(rows),
                num_columns=len(columns),
                dim=rows.shape[1],
                BOTH=both,
                GROUP=8,
                LARGE=row_tiles * column_tiles >= LARGE_FROM,
                **constants,
            )
            row_part, column_part = (first_row, stop_row, row_tiles), (first_column, stop_column, column_tiles)
            by_row = (columns, (stride, 1), row_part, column_part)
            by_column = (rows, (1, stride), column_part, row_part)
            for own, (vectors, strides, mine, others) in enumerate((by_row, by_column)):
                if results[own] is None:
                    continue
                _gradient_product[(mine[2] * triton.cdiv(rows.shape[1], width),)](
                    buffer,
                    vectors,
                    results[own],
                    kept,
                    first_own=mine[0],
                    first_other=others[0],
                    stop_own=mine[1],
                    stop_other=others[1],
                    own_stride=strides[0],
                    other_stride=strides[1],
                    num_other=len(vectors),
                    dim=rows.shape[1],
                    OWN=own,
                    ADD=others[0] > 0,
                    LARGE=row_tiles * column_tiles >= LARGE_FROM,
                    **product_constants,
                )
    return results[0], results[1]


def _room_for_gradients(size: int, like: torch.Tensor) -> torch.Tensor:
    return torch.empty(size, dtype=like.dtype, device=like.device)


def _constants(vectors: torch.Tensor, precision: str) -> dict[str, Any]:
    """What all kernels are compiled for. A step of 128 bytes along D: what one shared-memory swizzle spans."""
    dim = vectors.shape[1]
    step = min(64 if vectors.dtype == torch.bfloat16 else 32, max(16, triton.next_power_of_2(dim)))
    return {
        "TILE": TILE,
        "STEP": step,
        "EVEN": dim % step == 0,
        "PRECISION": precision,
        "EMULATED": INTERPRETED,
        # A fused multiply-subtract would not round a logit as its peak was rounded.
        "enable_fp_fusion": False,
    }


def _product_width(vectors: torch.Tensor) -> int:
    """Values of D that a program of the products sums: 256 where that covers no more than 128 would (not D = 320)."""
    dim = vectors.shape[1]
    # float32 takes twice the shared memory.
    wide = vectors.dtype == torch.bfloat16 and triton.cdiv(dim, 256) * 256 == triton.cdiv(dim, 128) * 128
    return min(256 if wide else 128, max(16, triton.next_power_of_2(dim)))


def _whole_tiles(count: int) -> int:
    return triton.cdiv(count, TILE) * TILE


def _device_of(tensor: torch.Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current GPU, which need not be the tensors'."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
