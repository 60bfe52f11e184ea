"""Losses against plain references in float64, and against the authors' own numbers."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from structure_aligned.models.alignment import EsmForStructureAlignment, compute_residue_losses
from structure_aligned.objectives.losses import (
    IGNORE_INDEX,
    LossWeights,
    ResidueLosses,
    combine_losses,
    labelled_cross_entropy,
    residue_contrastive_losses,
)
from structure_aligned.objectives.selection import select_residues


def unit_vectors(count, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=generator, dtype=torch.float64), dim=-1)


def contrastive_reference(sequence, structure, scale):
    """One residue at a time."""
    to_structure, to_sequence = [], []
    for i in range(len(sequence)):
        row = torch.stack([scale * sequence[i].dot(structure[j]) for j in range(len(structure))])
        column = torch.stack([scale * structure[i].dot(sequence[j]) for j in range(len(sequence))])
        to_structure.append(-(row[i] - row.exp().sum().log()))
        to_sequence.append(-(column[i] - column.exp().sum().log()))
    return torch.stack(to_structure), torch.stack(to_sequence)


def test_contrastive_losses_and_gradients_equal_the_reference():
    inputs = [unit_vectors(9, 5, 0), unit_vectors(9, 5, 1), torch.tensor(14.0, dtype=torch.float64)]
    results = []
    for function in (residue_contrastive_losses, contrastive_reference):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        losses = function(*leaves)
        weights = torch.linspace(0, 1, 9, dtype=torch.float64)
        (losses[0] @ weights + losses[1] @ weights.flip(0)).backward()
        results.append([*losses, *(leaf.grad for leaf in leaves)])
    for fast, reference in zip(*results):
        torch.testing.assert_close(fast, reference, rtol=1e-12, atol=1e-12)


def test_extra_candidates_equal_the_rows_of_the_whole_problem():
    sequence, structure = unit_vectors(12, 6, 2), unit_vectors(12, 6, 3)
    whole = residue_contrastive_losses(sequence, structure, 10.0)
    part = residue_contrastive_losses(
        sequence[4:9],
        structure[4:9],
        10.0,
        sequence_candidates=sequence,
        structure_candidates=structure,
        offset=4,
    )
    for all_rows, some_rows in zip(whole, part):
        torch.testing.assert_close(some_rows, all_rows[4:9], rtol=1e-12, atol=1e-12)


def test_contrastive_losses_refuse_what_cannot_be_aligned():
    a, b = unit_vectors(4, 3, 0), unit_vectors(5, 3, 1)
    with pytest.raises(ValueError, match=r"\(4, 3\).*\(5, 3\)"):
        residue_contrastive_losses(a, b, 1.0)
    with pytest.raises(ValueError, match="at offset 2 do not fit into 5"):
        residue_contrastive_losses(a, a, 1.0, structure_candidates=b, sequence_candidates=b, offset=2)


def test_no_residue_gives_an_empty_loss_with_a_gradient():
    sequence = torch.zeros(0, 4, requires_grad=True)
    losses = ResidueLosses(*residue_contrastive_losses(sequence, torch.zeros(0, 4), 5.0))
    total, _ = combine_losses(losses)
    total.backward()
    assert total.item() == 0.0
    assert sequence.grad is not None


def test_labelled_cross_entropy_is_row_major_and_float32():
    logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.tensor([[IGNORE_INDEX, 4, IGNORE_INDEX], [0, IGNORE_INDEX, 6]])
    losses = labelled_cross_entropy(logits, labels)
    expected = [-logits[b, i].float().log_softmax(-1)[c] for b, i, c in ((0, 1, 4), (1, 0, 0), (1, 2, 6))]
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, torch.stack(expected))
    with pytest.raises(ValueError, match="labels"):
        labelled_cross_entropy(logits, labels[:, :2])


def test_combine_weighs_selects_and_divides():
    losses = ResidueLosses(torch.tensor([2.0, 4.0]), torch.tensor([1.0, 9.0]), torch.ones(2), 3 * torch.ones(2))
    total, sums = combine_losses(losses)
    assert total.item() == pytest.approx(3 + 0.5 * 5 + 0.25 * 1 + 0.25 * 3)
    assert sums["token"].item() == 10
    kept = {"token": torch.tensor([False, True])}
    total, _ = combine_losses(losses, LossWeights(0, 1, 0), kept)
    assert total.item() == pytest.approx(9)
    counts = dict.fromkeys(ResidueLosses.names(), torch.tensor(4.0))
    total, _ = combine_losses(losses, LossWeights(1, 0, 0), normalizers=counts)
    assert total.item() == pytest.approx(1.5)
    with pytest.raises(ValueError, match="nothing to combine"):
        combine_losses(ResidueLosses())


# The authors' own code on a tiny trunk.


HEAD_NAMES = {
    "classifier.0": "token_classifier.0",
    "classifier.2": "token_classifier.2",
    "cl_model.linear_seq": "sequence_projection",
    "cl_model.linear_struct": "structure_projection",
    "cl_model.logit_scale": "logit_scale",
}


def authors_model(folder, name):
    weights = load_file(folder / f"{name}.safetensors")
    config = AutoConfig.from_pretrained(folder / f"{name}_config.json")
    config.structure_alignment = {
        "structure_dim": weights["cl_model.linear_struct.weight"].shape[1],
        "num_structure_tokens": len(weights["classifier.2.bias"]),
    }
    state = {key.removeprefix("trunk."): value for key, value in weights.items() if key.startswith("trunk.")}
    for theirs, ours in HEAD_NAMES.items():
        state |= {
            key.replace(theirs, f"alignment.{ours}"): value for key, value in weights.items() if key.startswith(theirs)
        }
    state["alignment.logit_scale"] = state["alignment.logit_scale"].reshape(1)
    model = EsmForStructureAlignment(config).eval()
    model.load_state_dict(state)
    return model


@pytest.fixture(scope="module")
def authors(golden):
    folder = golden("official_losses")
    return folder, load_file(folder / "expected.safetensors"), json.loads((folder / "expected.json").read_text())


def authors_losses(folder, expected, name):
    residue_mask = expected["residue_mask"].bool()
    embeddings = torch.zeros(*residue_mask.shape, expected["pgnn_embeddings"].shape[1])
    embeddings[residue_mask] = expected["pgnn_embeddings"]
    structure_labels = expected["structure_labels"].masked_fill(~residue_mask, IGNORE_INDEX)
    with torch.no_grad():
        outputs = authors_model(folder, name)(
            expected["input_ids"], expected["attention_mask"], structure_embeddings=embeddings
        )
        return outputs, compute_residue_losses(outputs, expected["mlm_labels"], structure_labels, residue_mask)


def test_per_residue_losses_equal_the_authors(authors):
    folder, expected, _ = authors
    outputs, losses = authors_losses(folder, expected, "model")
    torch.testing.assert_close(outputs.logits, expected["mlm_logits"], rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs.structure_logits, expected["token_logits"], rtol=0, atol=1e-5)
    for name, values in losses.items():
        torch.testing.assert_close(values, expected[f"loss_{name}"], rtol=0, atol=1e-5)
    _, reference = authors_losses(folder, expected, "reference")
    for name in ("token", "seq_to_struct", "struct_to_seq"):
        torch.testing.assert_close(getattr(reference, name), expected[f"ref_loss_{name}"], rtol=0, atol=1e-5)


def test_selection_and_both_totals_equal_the_authors(authors):
    folder, expected, numbers = authors
    _, losses = authors_losses(folder, expected, "model")
    _, reference = authors_losses(folder, expected, "reference")
    kept = {}
    for name in ("token", "seq_to_struct", "struct_to_seq"):
        kept[name] = select_residues(getattr(losses, name), getattr(reference, name), ratio=numbers["ratio"])
        assert kept[name].nonzero()[:, 0].tolist() == expected[f"selected_{name}"].tolist()

    proteins = len(numbers["sequences"])
    structure = 240.5055 * proteins * numbers["ratio"]
    constants = {"mlm": 240.5055 * proteins * 0.15} | dict.fromkeys(kept, structure)
    for normalizers, key in (
        (constants, "totals_with_official_constant_normaliser"),
        (None, "totals_divided_by_selected_count"),
    ):
        parts = {
            "mlm": LossWeights(1, 0, 0),
            "intra": LossWeights(0, 1, 0),
            "inter": LossWeights(0, 0, 1),
            "total": LossWeights(*numbers["weights"]),
        }
        for part, weights in parts.items():
            total, _ = combine_losses(losses, weights, kept, normalizers)
            assert total.item() == pytest.approx(numbers[key][part], abs=1e-5), (key, part)
