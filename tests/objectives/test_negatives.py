"""Negatives of all ranks: several gloo processes against one that has all residues."""

import pytest
import torch
from torch.nn.functional import normalize

from structure_aligned.objectives.distributed import gather_with_gradient
from structure_aligned.objectives.losses import residue_contrastive_losses
from structure_aligned.objectives.negatives import residue_losses_among
from tests.objectives.gloo import run_on_processes


def make_case(sizes, seed, backend="chunked", chunk_size=7, kept=1.0, dim=12):
    generator = torch.Generator().manual_seed(seed)
    total = sum(sizes)
    sequence, structure = normalize(torch.randn(2, total, dim, generator=generator, dtype=torch.float64), dim=-1)
    weights = torch.rand(2, total, generator=generator, dtype=torch.float64)
    weights *= torch.rand(2, total, generator=generator) <= kept  # what selection drops has a weight of zero
    return {
        "sizes": list(sizes),
        "sequence": sequence,
        "structure": structure,
        "scale": torch.tensor(14.3, dtype=torch.float64),
        "weights": weights,
        "backend": backend,
        "chunk_size": chunk_size,
    }


def on_one_process(case):
    sequence, structure, scale = (case[name].clone().requires_grad_() for name in ("sequence", "structure", "scale"))
    losses = residue_contrastive_losses(sequence, structure, scale)
    sum((loss * weight).sum() for loss, weight in zip(losses, case["weights"])).backward()
    return {
        "to_structure": losses[0].detach(),
        "to_sequence": losses[1].detach(),
        "sequence": sequence.grad,
        "structure": structure.grad,
        "scale": scale.grad,
    }


def relative_error(found, expected):
    if expected.numel() == 0:
        assert found.shape == expected.shape
        return 0.0
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-300)).item()


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_losses_and_gradients_equal_one_process(tmp_path, processes):
    uneven = [(13, 40), (0, 25), (25, 0), (1, 1), (9, 9)]
    if processes == 4:
        uneven = [(13, 40, 7, 1), (0, 25, 3, 0), (25, 0, 0, 0), (1, 1, 1, 1)]
    cases = {f"{sizes}": make_case(sizes, seed) for seed, sizes in enumerate(uneven)}
    cases["plain"] = make_case(uneven[0], 10, backend="reference")
    cases["selected"] = make_case(uneven[0], 11, kept=0.3)
    torch.save(cases, tmp_path / "cases.pt")
    run_on_processes("tests.objectives.negatives_job", processes, tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(processes)]
    for name, case in cases.items():
        for key, expected in on_one_process(case).items():
            parts = [rank[name][key] for rank in ranks]
            # The temperature is a parameter: ranks add their gradients up, as DDP does.
            found = sum(parts) if key == "scale" else torch.cat(parts)
            assert relative_error(found, expected) < 1e-10, (name, key)


def test_alone_global_is_batch():
    case = make_case((30,), 0)
    inputs = case["sequence"], case["structure"], case["scale"]
    for one, other in zip(residue_losses_among(*inputs, "global"), residue_losses_among(*inputs)):
        assert torch.equal(one, other)
    values = torch.ones(3, requires_grad=True)
    assert gather_with_gradient(values) == (values, 0)


def test_unknown_negatives_are_refused():
    with pytest.raises(ValueError, match="negatives is 'all'; choose one of 'batch', 'global'"):
        residue_losses_among(torch.ones(1, 2), torch.ones(1, 2), 1.0, "all")
