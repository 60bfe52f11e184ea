"""Tiled contrastive losses against the plain ones: values, gradients, memory and the number of matrix products."""

import math
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from structure_aligned.objectives import contrastive
from structure_aligned.objectives.contrastive import BACKENDS, chunked_contrastive_losses, contrastive_losses
from structure_aligned.objectives.losses import residue_contrastive_losses


ON_ANY_DEVICE = [backend for backend in BACKENDS if backend != "triton"]


def unit_vectors(count, dim, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, dim, generator=generator, dtype=torch.float64), dim=-1).to(dtype)


def upstream(count, dropped=0.0, seed=0, dtype=torch.float64):
    """Random gradients of both losses, exactly zero for some residues of each."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(2, count, generator=generator, dtype=dtype)
    return weights * (torch.rand(2, count, generator=generator) >= dropped)


def results(function, inputs, weights, **options):
    """Losses and the gradients of all inputs, which are given by name."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in inputs.items()}
    losses = function(**leaves, **options)
    torch.autograd.backward(losses, list(weights.to(losses[0].dtype)))
    return {"to_structure": losses[0], "to_sequence": losses[1]} | {name: leaf.grad for name, leaf in leaves.items()}


def assert_same(actual, expected, rtol=1e-10, atol=1e-10):
    assert actual.keys() == expected.keys()
    for name in actual:
        assert actual[name].dtype == expected[name].dtype, name
        torch.testing.assert_close(
            actual[name], expected[name], rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )


def assert_no_worse(actual, plain, exact, tolerance, gradient_tolerance=0.0, total_weight=0.0):
    """
    Errors against float64 are those of the plain losses in the same dtype, plus `tolerance` times the largest value
    (or 1), plus for gradients `gradient_tolerance` times the largest. That of the scale is a sum over all residues, of
    which most cancels: the sum of the upstream gradients' sizes stands for its size.
    """
    for name, value in actual.items():
        assert value.dtype == plain[name].dtype and value.isfinite().all(), name
        if value.numel() == 0:
            continue
        error, allowed = ((result.double() - exact[name]).abs().max().item() for result in (value, plain[name]))
        largest = max(1.0, exact[name].abs().max().item(), total_weight if name == "scale" else 0.0)
        allowed += (tolerance + (0.0 if name.startswith("to_") else gradient_tolerance)) * largest
        assert error <= allowed, f"{name}: {error:.2e}, allowed {allowed:.2e}"


def rounding_of_logits(scale, units=4):
    """`units` in the last place of float32 at the largest logit: an error of the softmax of as much."""
    return units * 2.0**-24 * scale


def own_set(count, dim, scale=14.0, dtype=torch.float64):
    return {
        "sequence": unit_vectors(count, dim, 1, dtype),
        "structure": unit_vectors(count, dim, 2, dtype),
        "scale": torch.tensor(scale, dtype=dtype),
    }


class Watch(TorchDispatchMode):
    """Counts matrix products and the largest tensor that any operation gives."""

    def __init__(self):
        super().__init__()
        self.products, self.largest = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.products += function._schema.name in ("aten::mm", "aten::addmm", "aten::addmm_")
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.fixture(autouse=True)
def made_again(monkeypatch):
    """At the sizes of tests all similarities would be kept for the backward pass."""
    monkeypatch.setattr(contrastive, "KEEP_BYTES", 0)


@pytest.fixture(params=["kept", "made again"])
def both_ways(request, made_again, monkeypatch):
    if request.param == "kept":
        monkeypatch.setattr(contrastive, "KEEP_BYTES", 2**26)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("dropped", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("chunk", [1, 4, 7, 23, 100, None])
def test_own_set_equals_the_plain_losses(chunk, dropped):
    inputs, weights = own_set(23, 5), upstream(23, dropped)
    expected = results(residue_contrastive_losses, inputs, weights)
    assert_same(results(chunked_contrastive_losses, inputs, weights, chunk_size=chunk), expected)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize(("count", "dim"), [(0, 4), (1, 4), (1, 1), (9, 1), (2, 3)])
def test_small_sets_and_dimensions(count, dim):
    inputs, weights = own_set(count, dim), upstream(count)
    for chunk in (1, 4):
        expected = results(residue_contrastive_losses, inputs, weights)
        assert_same(results(chunked_contrastive_losses, inputs, weights, chunk_size=chunk), expected)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("dropped", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("chunk", [1, 4, 9, 100])
@pytest.mark.parametrize(("count", "more_sequences", "more_structures", "offset"), [
    (11, 26, 26, 0), (11, 26, 26, 15), (11, 26, 19, 6), (11, 11, 11, 0), (0, 5, 5, 3), (1, 6, 6, 5),
])  # fmt: skip
def test_candidates_equal_the_plain_losses(count, more_sequences, more_structures, offset, chunk, dropped):
    """The candidates need not hold the anchors' values: gradients of both are taken apart."""
    inputs = own_set(count, 6) | {
        "sequence_candidates": unit_vectors(more_sequences, 6, 3),
        "structure_candidates": unit_vectors(more_structures, 6, 4),
    }
    weights = upstream(count, dropped)
    expected = results(residue_contrastive_losses, inputs, weights, offset=offset)
    assert_same(results(chunked_contrastive_losses, inputs, weights, offset=offset, chunk_size=chunk), expected)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("name", ["sequence_candidates", "structure_candidates"])
def test_candidates_on_one_side_only(name):
    inputs, weights = own_set(8, 6) | {name: unit_vectors(13, 6, 3)}, upstream(8, 0.3)
    expected = results(residue_contrastive_losses, inputs, weights)
    assert_same(results(chunked_contrastive_losses, inputs, weights, chunk_size=3), expected)


@pytest.mark.usefixtures("both_ways")
def test_one_direction_alone_and_frozen_inputs():
    """What needs no gradient gets none, and the others do not change."""
    everything = own_set(10, 4)
    weights = upstream(10)
    weights[1] = 0.0
    expected = results(residue_contrastive_losses, everything, weights)
    for wanted in everything:
        inputs = {name: tensor.clone().requires_grad_(name == wanted) for name, tensor in everything.items()}
        losses = chunked_contrastive_losses(**inputs, chunk_size=4)
        losses[0].backward(weights[0])
        for name, tensor in inputs.items():
            if name == wanted:
                torch.testing.assert_close(tensor.grad, expected[name], rtol=1e-10, atol=1e-10)
            else:
                assert tensor.grad is None


def test_scale_as_a_number_and_without_a_gradient():
    inputs = own_set(10, 4)
    expected = residue_contrastive_losses(**inputs)
    leaf = inputs["sequence"].clone().requires_grad_()
    inputs |= {"scale": 14.0, "sequence": leaf}
    with torch.no_grad():
        for actual, plain in zip(chunked_contrastive_losses(**inputs, chunk_size=3), expected):
            torch.testing.assert_close(actual, plain, rtol=1e-12, atol=1e-12)
            assert not actual.requires_grad
    assert all(losses.requires_grad for losses in chunked_contrastive_losses(**inputs, chunk_size=3))


@pytest.mark.usefixtures("both_ways")
def test_large_scale_is_as_exact_as_the_plain_losses():
    """Scale 100 with partners that agree: logits overflow without a peak, and losses are next to nothing."""
    exact = own_set(60, 8, scale=100.0)
    exact["structure"][:40] = normalize(exact["sequence"][:40] + 0.05 * exact["structure"][:40], dim=-1)
    weights = upstream(60, 0.2)
    expected = results(residue_contrastive_losses, exact, weights)
    single = {name: tensor.float() for name, tensor in exact.items()}
    plain = results(residue_contrastive_losses, single, weights)
    tiled = results(chunked_contrastive_losses, single, weights, chunk_size=16)
    assert tiled["to_structure"].min() >= 0 and tiled["to_sequence"].min() >= 0
    for name, value in tiled.items():
        assert value.isfinite().all()
        # Both round logits near 100 to 1e-5; whose rounding is luckier is not the matter here.
        error, allowed = ((result.double() - expected[name]).abs().max() for result in (value, plain[name]))
        assert error <= 5 * allowed + 1e-4 * expected[name].abs().max(), name


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("with_candidates", [False, True])
@pytest.mark.parametrize("dropped", [0.0, 0.4])
def test_logits_of_ten_thousand(with_candidates, dropped):
    """Most of the softmax is exactly 0 or 1, and nothing overflows."""
    inputs = own_set(23, 5, scale=1e4)
    inputs["structure"][:8] = inputs["sequence"][:8]
    inputs["structure"][8:12] = -inputs["sequence"][8:12]
    if with_candidates:
        more = {name: torch.cat([inputs[name], unit_vectors(9, 5, 7)]) for name in ("sequence", "structure")}
        inputs |= {f"{name}_candidates": vectors for name, vectors in more.items()}
    weights = upstream(23, dropped)
    expected = results(residue_contrastive_losses, inputs, weights)
    assert expected["to_structure"].max() > 9e3
    for chunk in (4, 7, 100):
        for name, value in results(chunked_contrastive_losses, inputs, weights, chunk_size=chunk).items():
            # Relative to the largest: softmax − 1 of a positive that has won is the difference of two numbers near 1.
            largest = expected[name].abs().max().item()
            torch.testing.assert_close(value, expected[name], rtol=0.0, atol=1e-10 * largest)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [14.3, 100.0, 1e4])
@pytest.mark.parametrize("with_candidates", [False, True])
def test_errors_of_low_precision_are_those_of_the_plain_losses(dtype, scale, with_candidates):
    """Against float64 on the same rounded inputs; in addition 4 units in the last place of the largest logit."""
    inputs, offset = own_set(90, 24, dtype=dtype) | {"scale": torch.tensor(scale)}, 0
    if with_candidates:
        inputs |= {f"{name}_candidates": unit_vectors(130, 24, 5, dtype) for name in ("sequence", "structure")}
        offset = 17
    weights = upstream(90, 0.2).float()
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    exact = results(residue_contrastive_losses, exact, weights, offset=offset)
    plain = results(residue_contrastive_losses, inputs, weights, offset=offset)
    tiled = results(chunked_contrastive_losses, inputs, weights, offset=offset, chunk_size=32)
    assert_no_worse(tiled, plain, exact, rounding_of_logits(scale))


@pytest.mark.usefixtures("both_ways")
def test_far_apart_rows_do_not_underflow():
    """A row whose logits are all far below those of another has its own peak."""
    sequence = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], dtype=torch.float32)
    inputs = {"sequence": sequence, "structure": torch.eye(2)[[0, 0, 0]], "scale": torch.tensor(1000.0)}
    for chunk in (1, 2):
        tiled = results(chunked_contrastive_losses, inputs, torch.ones(2, 3), chunk_size=chunk)
        assert_same(tiled, results(residue_contrastive_losses, inputs, torch.ones(2, 3)), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(tiled["to_structure"], torch.full((3,), math.log(3)))


@pytest.mark.parametrize("with_candidates", [False, True])
def test_float32_tolerance(with_candidates):
    inputs = own_set(150, 32, dtype=torch.float32)
    if with_candidates:
        inputs |= {f"{name}_candidates": unit_vectors(210, 32, 5, torch.float32) for name in ("sequence", "structure")}
    weights = upstream(150, 0.2)
    expected = results(residue_contrastive_losses, inputs, weights)
    tiled = results(chunked_contrastive_losses, inputs, weights, chunk_size=64)
    assert tiled["to_structure"].dtype == torch.float32
    assert_same(tiled, expected, rtol=1e-4, atol=1e-4)


def test_low_precision_inputs_and_autocast():
    """Similarities are float32 either way; the gradients come back in the dtype of the inputs."""
    for dtype in (torch.bfloat16, torch.float16):
        inputs, weights = own_set(40, 16, dtype=dtype) | {"scale": torch.tensor(20.0)}, upstream(40, 0.2)
        expected = results(residue_contrastive_losses, inputs, weights)
        assert_same(results(chunked_contrastive_losses, inputs, weights, chunk_size=16), expected, 2e-2, 1e-3)
    inputs = own_set(40, 16, dtype=torch.float32)
    expected = results(residue_contrastive_losses, inputs, weights)

    def under_autocast(**inputs):
        with torch.autocast("cpu", torch.bfloat16):
            return contrastive_losses(**inputs)

    for backend in ON_ANY_DEVICE:
        tiled = results(under_autocast, inputs, weights, backend=backend, chunk_size=16)
        assert_same(tiled, expected, 1e-4, 1e-4)
    with torch.autocast("cpu", torch.bfloat16):  # and a backward pass that somebody left in it
        assert_same(results(chunked_contrastive_losses, inputs, weights, chunk_size=16), expected, 1e-4, 1e-4)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("chunk", [2, 10])
def test_gradcheck(chunk):
    leaves = [tensor.requires_grad_() for tensor in own_set(5, 3, scale=3.0).values()]
    assert torch.autograd.gradcheck(lambda *args: chunked_contrastive_losses(*args, chunk_size=chunk), leaves)
    leaves += [unit_vectors(7, 3, seed).requires_grad_() for seed in (5, 6)]

    def with_candidates(sequence, structure, scale, sequences, structures):
        return chunked_contrastive_losses(
            sequence,
            structure,
            scale,
            sequence_candidates=sequences,
            structure_candidates=structures,
            offset=1,
            chunk_size=chunk,
        )

    assert torch.autograd.gradcheck(with_candidates, leaves)


def test_second_derivatives_are_refused():
    leaf = unit_vectors(4, 3, 0).requires_grad_()
    losses, _ = chunked_contrastive_losses(leaf, unit_vectors(4, 3, 1), 5.0)
    (gradient,) = torch.autograd.grad(losses.square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("reentrant", [False, True])
def test_under_gradient_checkpointing(reentrant):
    inputs, weights = own_set(12, 4), upstream(12, 0.3)

    def checkpointed(sequence, structure, scale):
        return checkpoint(
            lambda *args: chunked_contrastive_losses(*args, chunk_size=5),
            sequence,
            structure,
            scale,
            use_reentrant=reentrant,
        )

    assert_same(results(checkpointed, inputs, weights), results(residue_contrastive_losses, inputs, weights))


def test_two_runs_are_equal_to_the_bit():
    inputs, weights = own_set(70, 16, dtype=torch.float32), upstream(70, 0.3)
    first, second = (results(chunked_contrastive_losses, inputs, weights, chunk_size=32) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("with_candidates", [False, True])
def test_no_tensor_is_larger_than_a_tile_or_the_inputs(with_candidates):
    count, dim, chunk = 3000, 16, 256
    inputs = own_set(count, dim, dtype=torch.float32)
    if with_candidates:
        inputs |= {f"{name}_candidates": inputs[name].clone() for name in ("sequence", "structure")}
    for dropped in (0.0, 0.2, 0.5):
        with Watch() as watch:
            results(chunked_contrastive_losses, inputs, upstream(count, dropped), chunk_size=chunk)
        assert watch.largest == max(chunk**2, count * dim) < count**2 / 100
    with Watch() as watch:
        results(residue_contrastive_losses, own_set(300, dim), upstream(300))
    assert watch.largest == 300**2  # so the watch sees what it should


def test_each_tile_is_one_product_for_both_directions():
    count, chunk, dim = 50, 8, 4
    inputs = {name: tensor.requires_grad_() for name, tensor in own_set(count, dim).items()}
    tiles = math.ceil(count / chunk) ** 2
    with Watch() as forward:
        losses = chunked_contrastive_losses(**inputs, chunk_size=chunk)
    assert forward.products == tiles
    with Watch() as backward:
        (losses[0] + losses[1]).sum().backward()
    assert backward.products == 3 * tiles  # the tile again, and the gradients of its two sides


def test_kept_similarities_are_not_made_again_and_can_be_used_twice(monkeypatch):
    monkeypatch.setattr(contrastive, "KEEP_BYTES", 50 * 50 * 8)
    count, chunk = 50, 8
    inputs = {name: tensor.requires_grad_() for name, tensor in own_set(count, 4).items()}
    tiles = math.ceil(count / chunk) ** 2
    losses = chunked_contrastive_losses(**inputs, chunk_size=chunk)
    leaves = list(inputs.values())
    with Watch() as backward:
        first = torch.autograd.grad(sum(losses).sum(), leaves, retain_graph=True)
    assert backward.products == 2 * tiles
    assert all(torch.equal(one, other) for one, other in zip(first, torch.autograd.grad(sum(losses).sum(), leaves)))
    # One more residue is too many.
    larger = {name: tensor.requires_grad_() for name, tensor in own_set(count + 1, 4).items()}
    losses = chunked_contrastive_losses(**larger, chunk_size=chunk)
    with Watch() as backward:
        sum(losses).sum().backward()
    assert backward.products == 3 * tiles


@pytest.mark.parametrize("num_dropped", [0, 21, 47, 50])
def test_dropped_residues_are_not_computed_again(num_dropped):
    """Scattered over all tiles, yet what lies between dropped rows and dropped columns is left out."""
    count, chunk, dim = 50, 8, 4
    inputs = own_set(count, dim)
    weights = upstream(count)
    weights[:, torch.randperm(count, generator=torch.Generator().manual_seed(0))[:num_dropped]] = 0.0
    expected = results(residue_contrastive_losses, inputs, weights)
    kept, dropped = math.ceil((count - num_dropped) / chunk), math.ceil(num_dropped / chunk)
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    losses = chunked_contrastive_losses(**leaves, chunk_size=chunk)
    with Watch() as watch:
        torch.autograd.backward(losses, list(weights))
    assert watch.products == 3 * ((kept + dropped) ** 2 - dropped**2)
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, expected[name], rtol=1e-10, atol=1e-10)
    # Against candidates each direction is on its own: a dropped row costs nothing at all.
    candidates = {f"{name}_candidates": inputs[name].detach() for name in ("sequence", "structure")}
    losses = chunked_contrastive_losses(**leaves, **candidates, chunk_size=chunk)
    with Watch() as watch:
        torch.autograd.backward(losses, list(weights))
    assert watch.products == 2 * 2 * kept * math.ceil(count / chunk)


def test_few_dropped_residues_are_not_worth_sorting():
    """0.2² of the similarities are of no use: the tiles stay as they are, and dropped residues count for nothing."""
    inputs, weights = own_set(50, 4), upstream(50)
    weights[:, ::5] = 0.0
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    losses = chunked_contrastive_losses(**leaves, chunk_size=8)
    with Watch() as watch:
        torch.autograd.backward(losses, list(weights))
    assert watch.products == 3 * math.ceil(50 / 8) ** 2
    expected = results(residue_contrastive_losses, inputs, weights)
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, expected[name], rtol=1e-10, atol=1e-10)


def test_errors_are_those_of_the_plain_losses():
    a, b = unit_vectors(4, 3, 0), unit_vectors(5, 3, 1)
    cases = [
        ((a, b, 1.0), {}),
        ((a[0], a[0], 1.0), {}),
        ((a, a, 1.0), {"sequence_candidates": b, "structure_candidates": b, "offset": 2}),
        ((a, a, 1.0), {"structure_candidates": b, "offset": 1}),
        ((a, a, 1.0), {"offset": -1}),
    ]
    for args, options in cases:
        messages = []
        for function in (residue_contrastive_losses, chunked_contrastive_losses):
            with pytest.raises(ValueError) as caught:
                function(*args, **options)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]
    with pytest.raises(ValueError, match="chunk_size is 0"):
        chunked_contrastive_losses(a, a, 1.0, chunk_size=0)
    with pytest.raises(ValueError, match="'fused'.*'auto', 'reference', 'chunked', 'triton'"):
        contrastive_losses(a, a, 1.0, backend="fused")


def test_auto_goes_by_the_number_of_similarities(monkeypatch):
    called = []
    for name in ("residue_contrastive_losses", "chunked_contrastive_losses"):
        function = getattr(contrastive, name)

        def record(*args, function=function, name=name, **kwargs):
            called.append(name.split("_")[0])
            return function(*args, **kwargs)

        monkeypatch.setattr(contrastive, name, record)
    monkeypatch.setitem(contrastive.CHUNKED_FROM, "cpu", 10)
    a, b = unit_vectors(9, 3, 0), unit_vectors(12, 3, 1)
    values = [contrastive_losses(a, a, 5.0, backend=backend) for backend in ON_ANY_DEVICE]
    contrastive_losses(b, b, 5.0)
    contrastive_losses(a, a, 5.0, sequence_candidates=b)
    assert called == ["residue", "residue", "chunked", "chunked", "chunked"]
    for losses in zip(*values):
        for other in losses[1:]:
            torch.testing.assert_close(other, losses[0], rtol=1e-12, atol=1e-12)


class OnGpu:
    """What the choice of a backend asks of a tensor."""

    def __init__(self, length, dtype=torch.float32):
        self.length, self.dtype, self.is_cuda, self.device = length, dtype, True, torch.device("cuda")

    def __len__(self):
        return self.length


def test_auto_on_a_gpu(monkeypatch):
    messages = []
    monkeypatch.setattr(contrastive.logger, "warning_once", messages.append)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.version, "hip", None)
    large, small = OnGpu(5000), OnGpu(100)
    for installed, expected in ((True, "triton"), (False, "chunked")):
        monkeypatch.setattr(contrastive, "_has_triton", lambda installed=installed: installed)
        assert contrastive._best_backend(small, small) == "reference"
        assert contrastive._best_backend(OnGpu(5000, torch.float64), large) == "chunked"
        assert messages == []
        assert contrastive._best_backend(large, large) == expected
        assert contrastive._best_backend(OnGpu(1000), OnGpu(1000), OnGpu(20000)) == expected
    assert len(messages) == 2 and "Triton is not installed" in messages[0]
    monkeypatch.setattr(contrastive, "_has_triton", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert contrastive._best_backend(large, large) == "chunked"


def test_without_triton():
    """In a process of its own: Triton cannot be taken out of one that has imported it."""
    script = """if True:
        import sys
        sys.modules["triton"] = None
        import torch
        from structure_aligned import contrastive_losses
        vectors = torch.eye(4)
        contrastive_losses(vectors, vectors, 5.0, backend="chunked")
        try:
            contrastive_losses(vectors, vectors, 5.0, backend="triton")
        except ImportError as error:
            assert "pip install triton" in str(error)
        else:
            raise AssertionError("no error")
    """
    subprocess.run([sys.executable, "-c", script], check=True)


def test_triton_says_what_it_cannot_take():
    pytest.importorskip("triton", reason="Triton is not installed")
    vectors = unit_vectors(4, 3, 0)
    with pytest.raises(ValueError, match="float64.*chunked"):
        contrastive_losses(vectors, vectors, 5.0, backend="triton")
    with pytest.raises(ValueError, match="GPU.*cpu.*chunked"):
        contrastive_losses(vectors.float(), vectors.float(), 5.0, backend="triton")
