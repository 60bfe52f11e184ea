"""FSDP2 by itself, on two gloo processes: Accelerate silently runs DDP on a CPU that is asked for FSDP."""

import pytest
import torch

from structure_aligned.data.collator import DataCollatorForStructureAlignment
from structure_aligned.models.alignment import compute_residue_losses
from structure_aligned.objectives.losses import combine_losses
from tests import tiny
from tests.objectives.gloo import run_on_processes


@pytest.mark.parametrize("family", ["esm", pytest.param("AMPLIFY", marks=pytest.mark.slow)])
def test_sharded_parameters_give_the_gradients_of_one_process(tmp_path, family):
    """With the negatives of both ranks, so that the collectives of the loss and of FSDP have to get along."""
    run_on_processes("tests.training.fsdp_job", 2, tmp_path, family)
    model = tiny.FAMILIES[family].model().double().train()
    batch = DataCollatorForStructureAlignment(tiny.FAMILIES[family].tokenizer())([tiny.row(i) for i in range(6)])
    batch["structure_embeddings"] = batch["structure_embeddings"].double()
    outputs = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "structure_embeddings")})
    losses = compute_residue_losses(outputs, batch["labels"], batch["structure_labels"], batch["residue_mask"])
    total, _ = combine_losses(losses)
    total.backward()
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert all(all(rank["sharded"].values()) for rank in ranks)
    torch.testing.assert_close(sum(rank["total"] for rank in ranks), total.detach(), atol=1e-10, rtol=1e-10)
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(expected) > 20
    for rank in ranks:
        assert rank["gradients"].keys() == expected.keys()
        for name, gradient in expected.items():
            scale = gradient.abs().max().clamp(min=1e-12)
            assert (rank["gradients"][name] - gradient).abs().max() / scale < 1e-9, name
