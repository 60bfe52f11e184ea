"""
Triton kernels of the residue contrastive losses; [`contrastive_triton`] launches them.

Tiles are `TILE`² similarities. Offsets into vectors are 64 bits wide where they could pass 2³¹; logits are in units of
log2, so that `exp2`, which the hardware has, needs no multiplication of its own.
Source: the online log-sum-exp and recomputation of Cut Cross-Entropy, arXiv 2411.09009, and Inf-CL, arXiv 2410.17243.
"""
# ruff: noqa: ANN001, ANN201, ANN202

import triton
import triton.language as tl


LOG2_E = tl.constexpr(1.4426950408889634)

# Numbers of residues: other ones in every batch, and no batch should compile a kernel anew.
VARYING = ["first_row", "stop_row", "first_column", "stop_column", "num_rows", "num_columns", "offset"]
VARYING_OF_PRODUCT = ["first_own", "stop_own", "first_other", "stop_other", "num_other"]


@triton.jit
def _round_to_bfloat16(values):
    """To nearest even, kept in float32: what the hardware's cast does. Triton's interpreter cuts off instead."""
    bits = values.to(tl.uint32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _tile_of(program, row_tiles, column_tiles, GROUP: tl.constexpr):
    """Row and column of a tile, in bands of GROUP rows: programs that run together share their inputs in the L2."""
    in_band = GROUP * column_tiles
    first = (program // in_band) * GROUP
    height = min(row_tiles - first, GROUP)
    return first + (program % in_band) % height, (program % in_band) // height


@triton.jit
def _similarities(
    rows_ptr,
    columns_ptr,
    row,
    column,
    num_rows,
    num_columns,
    dim,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """`rows @ columns.T` of one tile, in float32. Rows and columns past the last repeat the last."""
    step = tl.arange(0, STEP)
    row = tl.minimum(row, num_rows - 1).to(tl.int64)
    column = tl.minimum(column, num_columns - 1).to(tl.int64)
    left_ptr = rows_ptr + row[:, None] * dim + step[None, :]
    right_ptr = columns_ptr + column[None, :] * dim + step[:, None]
    similarity = tl.zeros((TILE, TILE), dtype=tl.float32)
    for start in range(0, dim, STEP):
        if EVEN:
            left, right = tl.load(left_ptr), tl.load(right_ptr)
        else:
            left = tl.load(left_ptr, mask=step[None, :] < dim - start, other=0.0)
            right = tl.load(right_ptr, mask=step[:, None] < dim - start, other=0.0)
        if EMULATED:
            left, right = left.to(tl.float32), right.to(tl.float32)
        similarity = tl.dot(left, right, similarity, input_precision=PRECISION)
        left_ptr += STEP
        right_ptr += STEP
    return similarity


@triton.jit(do_not_specialize=[name for name in VARYING if not name.endswith("_column")])
def sums_kernel(
    rows_ptr,
    columns_ptr,
    scale_ptr,
    positive_ptr,
    row_peak_ptr,
    row_total_ptr,
    column_peak_ptr,
    column_total_ptr,
    first_row,
    stop_row,
    num_rows,
    num_columns,
    dim,
    offset,
    BOTH: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATED: tl.constexpr,
    GROUP: tl.constexpr,
    LARGE: tl.constexpr,  # only for the choice of the configuration
):
    """
    Largest logit and sum of exponentials of each row, and with BOTH of each column, within one tile; and positives.
    Row parts lie as (column tile, row − first_row), column parts as (row tile, column).
    """
    row_tiles = tl.cdiv(stop_row - first_row, TILE)
    column_tiles = tl.cdiv(num_columns, TILE)
    row_tile, column_tile = _tile_of(tl.program_id(0), row_tiles, column_tiles, GROUP)
    row = first_row + row_tile * TILE + tl.arange(0, TILE)
    column = column_tile * TILE + tl.arange(0, TILE)
    similarity = _similarities(
        rows_ptr,
        columns_ptr,
        row,
        column,
        num_rows,
        num_columns,
        dim,
        TILE,
        STEP,
        EVEN,
        PRECISION,
        EMULATED,
    )
    # Not before the product: the vectors would lose digits if they were scaled in bfloat16.
    logits = similarity * (tl.load(scale_ptr) * LOG2_E)
    row_inside, column_inside = row < stop_row, column < num_columns

    by_row = tl.where(column_inside[None, :], logits, -float("inf"))
    peak = tl.max(by_row, 1)
    total = tl.sum(tl.exp2(by_row - peak[:, None]), 1)
    part = column_tile.to(tl.int64) * (stop_row - first_row) + (row - first_row)
    tl.store(row_peak_ptr + part, peak, mask=row_inside)
    tl.store(row_total_ptr + part, total, mask=row_inside)
    if BOTH:
        by_column = tl.where(row_inside[:, None], logits, -float("inf"))
        peak = tl.max(by_column, 0)
        total = tl.sum(tl.exp2(by_column - peak[None, :]), 0)
        part = row_tile.to(tl.int64) * num_columns + column
        tl.store(column_peak_ptr + part, peak, mask=column_inside)
        tl.store(column_total_ptr + part, total, mask=column_inside)

    # From this tile, not from a product of their own: rounded alike, so that no loss is below zero.
    target = row + offset
    first_target = first_row + row_tile * TILE + offset
    if (first_target < (column_tile + 1) * TILE) & (first_target + TILE > column_tile * TILE):
        positive = tl.sum(tl.where(target[:, None] == column[None, :], logits, 0.0), 1)
        here = (target >= column_tile * TILE) & (target < (column_tile + 1) * TILE)
        tl.store(positive_ptr + row, positive, mask=row_inside & here)


@triton.jit(do_not_specialize=VARYING[:-1])
def gradient_tile_kernel(
    rows_ptr,
    columns_ptr,
    scale_ptr,
    row_peak_ptr,
    row_weight_ptr,
    row_pull_ptr,
    row_target_ptr,
    column_peak_ptr,
    column_weight_ptr,
    column_id_ptr,
    kept_ptr,
    tile_ptr,
    first_row,
    first_column,
    stop_row,
    stop_column,
    width,
    num_rows,
    num_columns,
    dim,
    BOTH: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATED: tl.constexpr,
    GROUP: tl.constexpr,
    LARGE: tl.constexpr,  # only for the choice of the configuration
):
    """
    Gradient of the logits [first_row:stop_row, first_column:stop_column], in the dtype of the buffer, whose rows hold
    `width` values; past the last row and column it gets zeros up to whole tiles. Tiles that only dropped residues
    would need stay as they are.
    """
    row_tiles = tl.cdiv(stop_row - first_row, TILE)
    column_tiles = tl.cdiv(stop_column - first_column, TILE)
    row_tile, column_tile = _tile_of(tl.program_id(0), row_tiles, column_tiles, GROUP)
    row_start = first_row + row_tile * TILE
    column_start = first_column + column_tile * TILE
    if (row_start >= tl.load(kept_ptr)) & (column_start >= tl.load(kept_ptr + 1)):
        return
    row = row_start + tl.arange(0, TILE)
    column = column_start + tl.arange(0, TILE)
    similarity = _similarities(
        rows_ptr,
        columns_ptr,
        row,
        column,
        num_rows,
        num_columns,
        dim,
        TILE,
        STEP,
        EVEN,
        PRECISION,
        EMULATED,
    )
    logits = similarity * (tl.load(scale_ptr) * LOG2_E)
    row_inside, column_inside = row < stop_row, column < stop_column
    # Past the end: weight 0 and a peak of infinity, of which exp2 makes 0.
    peak = tl.load(row_peak_ptr + row, mask=row_inside, other=float("inf"))
    weight = tl.load(row_weight_ptr + row, mask=row_inside, other=0.0)
    gradient = tl.exp2(logits - peak[:, None]) * weight[:, None]
    if BOTH:
        peak = tl.load(column_peak_ptr + column, mask=column_inside, other=float("inf"))
        weight = tl.load(column_weight_ptr + column, mask=column_inside, other=0.0)
        gradient += tl.exp2(logits - peak[None, :]) * weight[None, :]
    # The positives, before rounding: softmax − 1 of a residue that is nearly right is small and keeps its digits.
    target = tl.load(row_target_ptr + row, mask=row_inside, other=-1)
    pull = tl.load(row_pull_ptr + row, mask=row_inside, other=0.0)
    identity = tl.load(column_id_ptr + column, mask=column_inside, other=-2)
    gradient = tl.where(target[:, None] == identity[None, :], gradient - pull[:, None], gradient)
    gradient = tl.where(row_inside[:, None] & column_inside[None, :], gradient, 0.0)
    if EMULATED and tile_ptr.dtype.element_ty == tl.bfloat16:
        gradient = _round_to_bfloat16(gradient)
    local_row, local_column = row_tile * TILE + tl.arange(0, TILE), column_tile * TILE + tl.arange(0, TILE)
    at = local_row.to(tl.int64)[:, None] * width + local_column[None, :]
    tl.store(tile_ptr + at, gradient.to(tile_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=VARYING_OF_PRODUCT)
def gradient_product_kernel(
    tile_ptr,
    vectors_ptr,
    result_ptr,
    kept_ptr,
    first_own,
    first_other,
    stop_own,
    stop_other,
    own_stride,
    other_stride,
    num_other,
    dim,
    OWN: tl.constexpr,
    ADD: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
    WIDTH: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATED: tl.constexpr,
    LARGE: tl.constexpr,
):
    """
    `result[first_own:stop_own] (+)= tile @ vectors[first_other:stop_other]`, where the tile's strides say whether its
    rows or its columns are the own side: 0 or 1 in `kept`. Each program owns what it writes: no atomics, so two runs
    are equal to the bit. Own residues without a gradient only sum over the others that have one.
    """
    # The programs that read the same part of the tile run together.
    dim_tiles = tl.cdiv(dim, WIDTH)
    # Places in the tile apart from places among the vectors, whose start the compiler knows nothing about: from the
    # sum of both it could not tell that the tile's values are aligned, and would load them one by one.
    local = (tl.program_id(0) // dim_tiles) * TILE + tl.arange(0, TILE)
    own_start = first_own + (tl.program_id(0) // dim_tiles) * TILE
    own = first_own + local
    place = (tl.program_id(0) % dim_tiles) * WIDTH + tl.arange(0, WIDTH)
    step = tl.arange(0, STEP)
    stop = stop_other
    if own_start >= tl.load(kept_ptr + OWN):
        stop = tl.minimum(stop_other, tl.load(kept_ptr + (1 - OWN)))
    result_at = result_ptr + own.to(tl.int64)[:, None] * dim + place[None, :]
    inside = (own < stop_own)[:, None] & (place < dim)[None, :]
    if ADD:
        result = tl.load(result_at, mask=inside, other=0.0)
    else:
        result = tl.zeros((TILE, WIDTH), dtype=tl.float32)
    left_ptr = tile_ptr + local.to(tl.int64)[:, None] * own_stride + step[None, :] * other_stride
    # TILE is a multiple of STEP: the last step reads zeros of the tile that `stop` lies in, none that was left out.
    for start in range(first_other, stop, STEP):
        left = tl.load(left_ptr)
        other = tl.minimum(start + step, num_other - 1).to(tl.int64)
        right_ptr = vectors_ptr + other[:, None] * dim + place[None, :]
        if EVEN:
            right = tl.load(right_ptr)
        else:
            right = tl.load(right_ptr, mask=(place < dim)[None, :], other=0.0)
        if EMULATED:
            left, right = left.to(tl.float32), right.to(tl.float32)
        result = tl.dot(left, right, result, input_precision=PRECISION)
        left_ptr += STEP * other_stride
    tl.store(result_at, result, mask=inside)
