"""
Triton kernels of the contrastive losses against the plain losses in float64.

On a GPU the tests run compiled. Without one they run in Triton's interpreter, which has to be chosen before Triton is
imported: `test_in_the_interpreter` runs this file in a process of its own, and the others are skipped outside of it.
"""

import os
import subprocess
import sys

import pytest
import torch

from structure_aligned.objectives.contrastive import contrastive_losses
from structure_aligned.objectives.losses import residue_contrastive_losses

from .test_contrastive import assert_no_worse, own_set, results, rounding_of_logits, unit_vectors, upstream


pytest.importorskip("triton", reason="Triton is not installed")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
COMPILED = torch.cuda.is_available() and not INTERPRETED
DEVICE = "cuda" if COMPILED else "cpu"
TILE = 128 if COMPILED else 32
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# Beyond the plain losses' own error. Losses: in units in the last place of the largest logit; three tf32 products lose
# about 8 where float32 ones lose 1 or 2. Gradients: those of the logits are rounded to bfloat16, or for float16 inputs
# cut off to tf32, before they meet the vectors.
UNITS = 16
GRADIENTS = {torch.float32: 2**-20, torch.bfloat16: 2**-8, torch.float16: 2**-9}

kernels = pytest.mark.skipif(
    not (INTERPRETED or COMPILED), reason="no GPU: test_in_the_interpreter runs this in a process of its own"
)


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
def test_in_the_interpreter():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and " passed" in result.stdout, result.stdout + result.stderr


def triton_losses(**inputs):
    return contrastive_losses(**inputs, backend="triton")


def compare(inputs, weights, scale, offset=0, **options):
    """Runs the kernels; their errors may be those of the plain losses plus the tolerances above."""
    inputs = {name: tensor.to(DEVICE) for name, tensor in inputs.items()}
    weights = weights.float().to(DEVICE)
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    exact = results(residue_contrastive_losses, exact, weights, offset=offset)
    plain = results(residue_contrastive_losses, inputs, weights, offset=offset)
    actual = results(triton_losses, inputs, weights, offset=offset, **options)
    gradients = GRADIENTS[inputs["sequence"].dtype]
    assert_no_worse(actual, plain, exact, rounding_of_logits(scale, UNITS), gradients, weights.abs().sum().item())
    return actual


def inputs_of(count, dim, dtype=torch.float32, scale=14.3, candidates=None):
    inputs = own_set(count, dim, dtype=dtype) | {"scale": torch.tensor(scale)}
    if candidates is not None:
        names = ("sequence_candidates", "structure_candidates")
        inputs |= {name: unit_vectors(candidates, dim, seed, dtype) for seed, name in enumerate(names, start=3)}
    return inputs


@kernels
@pytest.mark.parametrize(("dtype", "dropped"), [
    (torch.float32, 0.0), (torch.float32, 0.4), (torch.float32, 1.0), (torch.bfloat16, 0.4), (torch.float16, 0.4),
])  # fmt: skip
def test_own_set(dtype, dropped):
    """Two and a bit tiles each way, in blocks of one tile: both a last tile and a last block that are not full."""
    count = 2 * TILE + 5
    compare(inputs_of(count, 24, dtype), upstream(count, dropped), 14.3, chunk_size=TILE)


@kernels
@pytest.mark.parametrize(("dtype", "dropped", "candidates", "offset"), [
    (torch.float32, 0.0, 2 * TILE + 1, TILE - 9), (torch.float32, 0.4, 2 * TILE + 1, TILE - 9),
    (torch.bfloat16, 0.4, 2 * TILE + 1, TILE - 9), (torch.float16, 0.4, 2 * TILE + 1, TILE - 9),
    (torch.float32, 0.4, TILE + 7, 0),
])  # fmt: skip
def test_candidates_with_an_offset(dtype, dropped, candidates, offset):
    count = TILE + 7
    weights = upstream(count, dropped)
    actual = compare(inputs_of(count, 24, dtype, candidates=candidates), weights, 14.3, offset, chunk_size=2 * TILE)
    # Alone against its candidates, an anchor that was dropped has no gradient at all.
    for name, kept in zip(("sequence", "structure"), weights):
        assert torch.equal(actual[name].cpu().abs().sum(1) == 0, kept == 0)


@kernels
@pytest.mark.parametrize("name", ["sequence_candidates", "structure_candidates"])
def test_candidates_on_one_side_only(name):
    compare(inputs_of(9, 6) | {name: unit_vectors(13, 6, 3, torch.float32)}, upstream(9, 0.3), 14.3)


@kernels
@pytest.mark.parametrize(("count", "dim"), [(0, 4), (1, 1), (1, 16), (TILE, 64), (TILE + 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_sets_and_dimensions(count, dim, dtype):
    compare(inputs_of(count, dim, dtype), upstream(count), 14.3)


@kernels
@pytest.mark.parametrize("dim", [80, 320, 1280])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_widths_of_protein_models(dim, dtype):
    compare(inputs_of(6, dim, dtype), upstream(6), 14.3)


@kernels
def test_no_anchors_among_candidates():
    actual = compare(inputs_of(0, 5, candidates=4), upstream(0), 14.3, offset=3)
    assert not actual["structure_candidates"].any()


@kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("candidates", [None, TILE + 30])
def test_logits_of_ten_thousand(dtype, candidates):
    """Nothing overflows, a row far below the others keeps its own peak, and no loss is below zero."""
    count = TILE + 3
    inputs = inputs_of(count, 8, dtype, scale=1e4, candidates=candidates)
    targets = inputs["structure" if candidates is None else "structure_candidates"]
    targets[:10] = inputs["sequence"][:10]
    targets[10:20] = -inputs["sequence"][10:20]
    actual = compare(inputs, upstream(count, 0.2), 1e4)
    assert actual["to_structure"].max() > 9e3 and actual["to_structure"].min() >= 0


@kernels
def test_losses_next_to_nothing_keep_their_gradients_digits():
    """Softmax − 1 of a positive that has won is rounded to bfloat16, not the softmax: 1 − 1e-4 would become 1."""
    inputs = inputs_of(40, 64, torch.bfloat16, scale=12.0)
    inputs["structure"] = inputs["sequence"].clone()
    inputs = {name: tensor.to(DEVICE) for name, tensor in inputs.items()}
    weights = torch.ones(2, 40, device=DEVICE)
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    exact = results(residue_contrastive_losses, exact, weights)["sequence"]
    actual = results(triton_losses, inputs, weights)["sequence"]
    assert 1e-4 < exact.abs().max() < 12 * 2**-9
    assert (actual.double() - exact).abs().max() <= 2**-7 * exact.abs().max()


@kernels
def test_gradients_only_where_asked():
    everything = {name: tensor.to(DEVICE) for name, tensor in inputs_of(TILE + 4, 8).items()}
    weights = upstream(TILE + 4, dtype=torch.float32).to(DEVICE)
    weights[1] = 0.0
    expected = results(residue_contrastive_losses, everything, weights)
    for wanted in everything:
        inputs = {name: tensor.clone().requires_grad_(name == wanted) for name, tensor in everything.items()}
        triton_losses(**inputs)[0].backward(weights[0])
        for name, tensor in inputs.items():
            if name == wanted:
                torch.testing.assert_close(tensor.grad, expected[name], rtol=1e-4, atol=1e-4)
            else:
                assert tensor.grad is None


@kernels
def test_what_only_dropped_residues_need_is_not_computed(monkeypatch):
    """Dropped rows × dropped columns: the kernel leaves those tiles as they were, and nothing reads them."""
    from structure_aligned.objectives import contrastive_triton

    blocks = []

    def poisoned(size, like):
        blocks.append(torch.full((size,), float("nan"), dtype=like.dtype, device=like.device))
        return blocks[-1]

    monkeypatch.setattr(contrastive_triton, "_room_for_gradients", poisoned)
    count = 4 * TILE
    weights = upstream(count)
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    weights[0, shuffled[: 2 * TILE]] = 0.0
    weights[1, shuffled[TILE : 2 * TILE + 3]] = 0.0
    compare(inputs_of(count, 8), weights, 14.3)
    written = ~blocks[0].view(4, TILE, 4, TILE).isnan()
    assert torch.equal(written.all(3).all(1), written.any(3).any(1))
    # Kept rows fill 2 tiles of 4; kept columns 3 tiles, the third but for 3 of them.
    assert written[:, 0, :, 0].tolist() == [[True] * 4] * 2 + [[True, True, True, False]] * 2
    blocks.clear()
    # Against candidates there is nothing to do for a dropped row.
    weights[1] = 0.0
    compare(inputs_of(count, 8, candidates=count), weights, 14.3)
    by_direction = sorted((~block).view(4, TILE, 4, TILE)[:, 0, :, 0].tolist() for block in map(torch.isnan, blocks))
    assert by_direction == [[[False] * 4] * 4, [[True] * 4] * 2 + [[False] * 4] * 2]


@kernels
def test_bands_of_the_forward_pass(monkeypatch):
    """With little room for the parts of the sums, columns are put together over several bands of rows."""
    from structure_aligned.objectives import contrastive_triton

    count = 2 * TILE + 2
    inputs, weights = inputs_of(count, 8), upstream(count)
    whole = compare(inputs, weights, 14.3)
    monkeypatch.setattr(contrastive_triton, "PART_BYTES", 1)
    for name, value in compare(inputs, weights, 14.3).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-4, atol=1e-5)


@kernels
def test_two_runs_are_equal_to_the_bit():
    inputs, weights = inputs_of(TILE + 9, 16, torch.bfloat16), upstream(TILE + 9, 0.3)
    first, second = (compare(inputs, weights, 14.3) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@kernels
def test_dtypes_and_layouts():
    """Mixed inputs take the wider dtype; rows need not lie next to each other; each gradient has its input's dtype."""
    inputs = inputs_of(20, 8, torch.bfloat16)
    mixed = inputs | {"structure": inputs["structure"].float()}
    assert compare(mixed, upstream(20), 14.3)["sequence"].dtype == torch.bfloat16
    apart = torch.stack([inputs["sequence"], inputs["structure"]], dim=2)
    apart = {"sequence": apart[..., 0], "structure": apart[..., 1], "scale": torch.tensor(14.3)}
    assert not apart["sequence"].is_contiguous()
    losses = triton_losses(**{name: tensor.to(DEVICE) for name, tensor in apart.items()})
    expected = triton_losses(**{name: tensor.to(DEVICE) for name, tensor in inputs.items()})
    assert all(map(torch.equal, losses, expected))


@kernels
def test_under_autocast_and_with_a_plain_number():
    inputs, weights = inputs_of(20, 8), upstream(20)
    expected = compare(inputs, weights, 14.3)
    inputs = {name: inputs[name].to(DEVICE).requires_grad_() for name in ("sequence", "structure")}
    with torch.autocast(DEVICE, torch.bfloat16):
        losses = triton_losses(**inputs, scale=14.3)
        torch.autograd.backward(losses, list(weights.float().to(DEVICE)))
    torch.testing.assert_close(losses[0], expected["to_structure"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(inputs["structure"].grad, expected["structure"], rtol=1e-4, atol=1e-5)


@kernels
def test_errors():
    vectors = torch.eye(3, device=DEVICE)
    with pytest.raises(ValueError, match="float64.*chunked"):
        triton_losses(sequence=vectors.double(), structure=vectors.double(), scale=1.0)
    with pytest.raises(ValueError, match="chunk_size is 0"):
        triton_losses(sequence=vectors, structure=vectors, scale=1.0, chunk_size=0)
    with pytest.raises(ValueError, match="do not fit"):
        triton_losses(sequence=vectors, structure=vectors, scale=1.0, offset=1)


@pytest.mark.skipif(not COMPILED, reason="needs a GPU")
@pytest.mark.parametrize("dtype", DTYPES)
def test_at_size_on_the_gpu(dtype):
    """More residues than one block holds, D = 512, most of it compiled as in training; nothing waits for the GPU."""
    inputs, weights = inputs_of(9000, 512, dtype), upstream(9000, 0.2)
    compare(inputs, weights, 14.3)
    inputs = {name: tensor.cuda().requires_grad_() for name, tensor in inputs.items()}
    weights = list(weights.float().cuda())
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.autograd.backward(triton_losses(**inputs), weights)
    finally:
        torch.cuda.set_sync_debug_mode("default")
