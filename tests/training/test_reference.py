"""Selection by a reference model inside the training step: online, precomputed, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file

from structure_aligned.data.collator import DataCollatorForStructureAlignment
from structure_aligned.data.reference import attach_reference_losses
from structure_aligned.data.relatives import chain_keys
from structure_aligned.objectives.losses import IGNORE_INDEX
from structure_aligned.training.arguments import StructureAlignmentTrainingArguments
from structure_aligned.training.reference import OnlineReference, PrecomputedReference
from structure_aligned.training.running import SELECTED_LOSSES
from structure_aligned.training.trainer import StructureAlignmentTrainer
from tests import tiny
from tests.objectives.test_losses import authors_model


def make_trainer(tmp_path, model=None, train=None, reference=None, **options):
    arguments = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": [], "disable_tqdm": True} | options
    return StructureAlignmentTrainer(
        model or tiny.esm_model(),
        StructureAlignmentTrainingArguments(**arguments),
        DataCollatorForStructureAlignment(tiny.FAMILIES["esm"].tokenizer()),
        reference_model=reference,
        train_dataset=train,
    )


def judge(seed=7, family="esm", pgnn="tiny"):
    settings = {"structure_dim": tiny.STRUCTURE_DIM, "pgnn": pgnn}
    model = tiny.FAMILIES[family].model(seed, structure_alignment=settings)
    model.training_chains = []
    return model


def test_an_online_step_equals_the_authors(golden, tmp_path):
    """Their model, their reference, their batch, through the Trainer's own step: same residues, same totals."""
    folder = golden("official_losses")
    expected = load_file(folder / "expected.safetensors")
    numbers = json.loads((folder / "expected.json").read_text())
    residue_mask = expected["residue_mask"].bool()
    embeddings = torch.zeros(*residue_mask.shape, expected["pgnn_embeddings"].shape[1])
    embeddings[residue_mask] = expected["pgnn_embeddings"]
    inputs = {
        "input_ids": expected["input_ids"],
        "attention_mask": expected["attention_mask"],
        "labels": expected["mlm_labels"],
        "structure_labels": expected["structure_labels"].masked_fill(~residue_mask, IGNORE_INDEX),
        "structure_embeddings": embeddings,
        "residue_mask": residue_mask,
    }
    trainer = make_trainer(tmp_path, authors_model(folder, "model"), reference=authors_model(folder, "reference"))
    assert isinstance(trainer.reference, OnlineReference) and trainer.selection_ratio == numbers["ratio"]
    losses = trainer._residue_losses(trainer._forward(trainer.model, inputs), inputs)
    kept, excess = trainer.select(losses, inputs)
    for name in SELECTED_LOSSES:
        assert kept[name].nonzero()[:, 0].tolist() == expected[f"selected_{name}"].tolist()
        theirs = expected[f"loss_{name}"] - expected[f"ref_loss_{name}"]
        torch.testing.assert_close(excess[name], theirs, rtol=0, atol=2e-5)
    total = trainer.compute_loss(trainer.model, inputs)
    assert total.item() == pytest.approx(numbers["totals_divided_by_selected_count"]["total"], abs=1e-5)


@pytest.mark.parametrize("mode", ["online", "precomputed", "none"])
def test_ratio_one_is_no_selection_exactly(tmp_path, mode):
    rows = tiny.dataset(4)
    attached = attach_reference_losses(rows, judge(), cache_dir=tmp_path / "cache")
    plain = make_trainer(tmp_path, train=rows)
    trainer = make_trainer(
        tmp_path,
        train=attached,
        reference=judge() if mode == "online" else None,
        reference_mode=mode,
        selection_ratio=1.0,
    )
    assert plain.reference is None and plain.selection_ratio == 1.0
    batch = plain.data_collator(list(rows))
    assert torch.equal(trainer.compute_loss(trainer.model, batch), plain.compute_loss(plain.model, batch))
    exact = plain.model.double()
    assert plain.compute_loss(exact, batch).item() == pytest.approx(exact(**batch).loss.item(), rel=1e-12)


def test_what_is_dropped_gets_no_gradient_and_mlm_all_of_its_own(tmp_path):
    rows = tiny.dataset(4)
    trainer = make_trainer(tmp_path, train=rows, reference=judge(), selection_ratio=0.4)
    batch = trainer.data_collator(list(rows))
    outputs = trainer._forward(trainer.model, batch)
    outputs.logits.retain_grad(), outputs.structure_logits.retain_grad()
    trainer._forward = lambda model, inputs: outputs
    losses = trainer._residue_losses(outputs, batch)
    for _, values in losses.items():
        values.retain_grad()
    trainer._residue_losses = lambda *_: losses
    kept, _ = trainer.select(losses, batch)
    trainer.compute_loss(trainer.model, batch).backward()
    for name in SELECTED_LOSSES:
        gradient = getattr(losses, name).grad
        assert (gradient[~kept[name]] == 0).all() and (~kept[name]).any()
        assert (gradient[kept[name]] > 0).all()
    labelled = batch["structure_labels"] != IGNORE_INDEX
    assert (outputs.structure_logits.grad[labelled][~kept["token"]] == 0).all()
    assert (outputs.structure_logits.grad[labelled][kept["token"]].abs().sum(-1) > 0).all()
    count = (batch["labels"] != IGNORE_INDEX).sum()
    torch.testing.assert_close(losses.mlm.grad, torch.full_like(losses.mlm, 1 / count))


def test_precomputed_equals_online_with_one_masking_and_the_batch_as_pool(tmp_path):
    rows, reference = tiny.dataset(5), judge()
    options = {"num_maskings": 1, "pool_size": 10_000, "cache_dir": tmp_path / "cache"}
    stored = make_trainer(tmp_path, train=attach_reference_losses(rows, reference, **options))
    online = make_trainer(tmp_path, train=rows, reference=reference)
    assert isinstance(stored.reference, PrecomputedReference)
    assert stored.selection_ratio == online.selection_ratio == 0.8
    batch = stored.data_collator(list(stored.train_dataset))  # epoch 0: the masks that the losses were computed with
    ours, theirs = stored.reference(batch), online.reference(batch)
    for name in SELECTED_LOSSES:
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=0, atol=2e-5)
    assert ours.mlm is None and theirs.mlm is None


def test_the_reference_is_frozen_and_leaves_the_model_alone(tmp_path):
    rows, reference = tiny.dataset(8), judge()
    start = {name: value.clone() for name, value in reference.state_dict().items()}
    model = tiny.esm_model()
    trainer = make_trainer(
        tmp_path, model, rows, reference, max_steps=2, per_device_train_batch_size=4, logging_steps=1, warmup_steps=0
    )
    trainer.train()
    assert all(torch.equal(value, start[name]) for name, value in reference.state_dict().items())
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert not any("reference" in name for name in model.state_dict())
    logged = next(entry for entry in trainer.state.log_history if "loss" in entry)
    for name in SELECTED_LOSSES:
        assert 0.7 < logged[f"selection/{name}_kept"] <= 0.8
        assert logged[f"selection/{name}_excess_kept"] > logged[f"selection/{name}_excess_dropped"]
    assert 0 < logged["selection/token_seq_to_struct_overlap"] <= 1
    assert {"selection/token_struct_to_seq_overlap", "selection/seq_to_struct_struct_to_seq_overlap"} <= set(logged)


def test_logged_overlap_and_excess_are_those_of_the_masks(tmp_path):
    rows = tiny.dataset(4)
    trainer = make_trainer(tmp_path, train=rows, reference=judge(), selection_ratio=0.5)
    batch = trainer.data_collator(list(rows))
    trainer.model.train()
    losses = trainer._residue_losses(trainer._forward(trainer.model, batch), batch)
    kept, excess = trainer.select(losses, batch)
    trainer.compute_loss(trainer.model, batch)
    logs = {"loss": 0.0}
    trainer.log(logs)
    full = {}
    for name in SELECTED_LOSSES:
        at = batch["structure_labels"] != IGNORE_INDEX if name == "token" else batch["residue_mask"]
        full[name] = {tuple(where): bool(k) for where, k in zip(at.nonzero().tolist(), kept[name])}
        assert logs[f"selection/{name}_excess_kept"] == pytest.approx(excess[name][kept[name]].mean().item(), rel=1e-5)
        assert logs[f"selection/{name}_kept"] == pytest.approx(kept[name].float().mean().item())
    common = set(full["token"]) & set(full["struct_to_seq"])
    both = sum(full["token"][where] and full["struct_to_seq"][where] for where in common)
    either = sum(full["token"][where] or full["struct_to_seq"][where] for where in common)
    assert logs["selection/token_struct_to_seq_overlap"] == pytest.approx(both / either)


def test_missing_reference_losses_raise_or_fall_back(tmp_path):
    rows = attach_reference_losses(tiny.dataset(3), judge(), cache_dir=tmp_path / "cache")
    incomplete = [dict(row) for row in rows]
    incomplete[1]["reference_losses"] = None
    for choice in ("raise", "own_loss"):
        trainer = make_trainer(tmp_path, train=rows, missing_reference=choice)
        batch = trainer.data_collator(incomplete)
        if choice == "raise":
            with pytest.raises(ValueError, match="reference losses are NaN.*missing_reference='own_loss'"):
                trainer.compute_loss(trainer.model, batch)
        else:
            assert trainer.compute_loss(trainer.model, batch).isfinite()
    with pytest.raises(ValueError, match="the batch has no reference_losses"):
        trainer.compute_loss(trainer.model, trainer.data_collator(list(tiny.dataset(3))))


def test_references_that_do_not_fit_are_refused(tmp_path):
    rows = tiny.dataset(3)
    with pytest.raises(ValueError, match="read different token ids"):
        make_trainer(tmp_path, train=rows, reference=judge(family="AMPLIFY"))
    with pytest.raises(ValueError, match="trained with the pGNN other"):
        make_trainer(tmp_path, train=rows, reference=judge(pgnn="other"))
    with pytest.raises(ValueError, match="no reference_losses; add them with attach_reference_losses"):
        make_trainer(tmp_path, train=rows, reference_mode="precomputed")
    with pytest.raises(ValueError, match="got no reference_model"):
        make_trainer(tmp_path, train=rows, reference_mode="online")
    seen = judge()
    seen.training_chains = chain_keys(rows.select([0]))
    with pytest.raises(ValueError, match="has seen 1 of 3 chains"):
        make_trainer(tmp_path, train=rows, reference=seen)
    make_trainer(tmp_path, train=rows, reference=seen, reference_allow_seen=True)
