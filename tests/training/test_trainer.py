"""The Trainer: counts over micro-batches, learning rates, logs, evaluation, what it refuses."""

import numpy as np
import pytest
import torch

from structure_aligned.data.collator import DataCollatorForStructureAlignment
from structure_aligned.models.esm2 import esm2_tokenizer
from structure_aligned.objectives.losses import IGNORE_INDEX
from structure_aligned.training.arguments import StructureAlignmentTrainingArguments, check_processes
from structure_aligned.training.running import LOSS_NAMES
from structure_aligned.training.trainer import StructureAlignmentTrainer
from tests import tiny
from tests.closeness import assert_same_but_rounding


def make_trainer(tmp_path, model=None, train=None, evaluation=None, **options):
    arguments = StructureAlignmentTrainingArguments(
        **({"output_dir": str(tmp_path), "use_cpu": True, "report_to": [], "disable_tqdm": True} | options)
    )
    tokenizer = esm2_tokenizer()
    return StructureAlignmentTrainer(
        model or tiny.esm_model(),
        arguments,
        DataCollatorForStructureAlignment(tokenizer),
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=tokenizer,
    )


def accumulated(trainer, rows, batch_size):
    """Loss sum and gradients of `rows`, cut into micro-batches as the training loop does it."""
    batches = [trainer.data_collator(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]
    counts = trainer._get_num_items_in_batch(batches, trainer.args.device)
    trainer.model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=counts)
        loss.backward()
        total += loss.item()
    return total, {
        name: parameter.grad.clone()
        for name, parameter in trainer.model.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (1.0, 0.5)])
def test_mlm_and_token_gradients_do_not_depend_on_the_micro_batches(tmp_path, weights):
    trainer = make_trainer(
        tmp_path, tiny.esm_model().double(), mlm_weight=weights[0], physical_weight=weights[1], latent_weight=0.0
    )
    rows = [tiny.row(index) for index in range(7)]
    whole, expected = accumulated(trainer, rows, 7)
    assert whole > 1
    for batch_size in (1, 2, 3):
        total, gradients = accumulated(trainer, rows, batch_size)
        assert total == pytest.approx(whole, rel=1e-10)
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            scale = expected[name].abs().max().clamp(min=1e-30)
            assert ((gradient - expected[name]).abs().max() / scale).item() < 1e-10, name


def test_a_whole_batch_equals_the_plain_mean_of_the_model_itself(tmp_path):
    trainer = make_trainer(tmp_path, tiny.esm_model().double())
    batch = trainer.data_collator([tiny.row(index) for index in range(4)])
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(
        trainer.model(**batch).loss.item(), rel=1e-12
    )


@pytest.mark.parametrize(("ratio", "keep"), [(0.8, "largest"), (0.3, "smallest"), (0.01, "largest"), (0.5, "all")])
def test_announced_counts_are_the_kept_counts(tmp_path, ratio, keep):
    trainer = make_trainer(tmp_path, selection_ratio=ratio, selection_keep=keep)
    batches = [trainer.data_collator([tiny.row(index), tiny.row(index + 1)]) for index in range(3)]
    counts = trainer._get_num_items_in_batch(batches, trainer.args.device)
    trainer.model.train()
    for batch in batches:
        trainer.compute_loss(trainer.model, batch, num_items_in_batch=counts)
    recorded = trainer._running.fetch(trainer.accelerator)
    assert [recorded[f"count/{name}"] for name in LOSS_NAMES] == counts.tolist()


def test_no_masked_residue_and_no_structure_still_train(tmp_path):
    trainer = make_trainer(tmp_path)
    row = tiny.row(0)
    row["structure_embedding_mask"] = np.zeros(row["length"], dtype=bool)
    row["structure_token_mask"] = np.zeros(row["length"], dtype=bool)
    batch = trainer.data_collator([row])
    batch["labels"][:] = IGNORE_INDEX
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.zeros(4, dtype=torch.float64))
    loss.backward()
    assert loss.item() == 0
    # Every parameter takes part in the reduction over ranks, or DDP would wait for it.
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trainer.model.parameters() if p.requires_grad)


def test_training_changes_what_it_should(tmp_path):
    model = tiny.esm_model()
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = make_trainer(
        tmp_path,
        model,
        train=tiny.dataset(8),
        evaluation=tiny.dataset(4),
        max_steps=2,
        warmup_steps=0,
        logging_steps=1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        eval_strategy="steps",
        eval_steps=1,
    )
    trainer.train()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, start[name])}
    frozen = {name for name in start if "contact_head" in name}
    assert frozen and changed == set(start) - frozen
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 2
    for entry in logs:
        assert {"mlm_loss", "token_loss", "seq_to_struct_loss", "struct_to_seq_loss"} <= entry.keys()
        assert entry["residues_per_second"] > 0
        parts = entry["mlm_loss"] + 0.5 * entry["token_loss"]
        parts += 0.25 * (entry["seq_to_struct_loss"] + entry["struct_to_seq_loss"])
        assert entry["loss"] == pytest.approx(parts, rel=1e-4)
    assert trainer.model.config.structure_alignment["pgnn"] == "tiny"


def test_a_latent_task_of_weight_0_is_not_computed_and_changes_nothing(tmp_path):
    rows = [tiny.row(index) for index in range(4)]
    model = tiny.esm_model().double()
    expected = accumulated(make_trainer(tmp_path, model, latent_weight=1e-300), rows, 4)[1]
    trainer = make_trainer(tmp_path, model, train=tiny.dataset(8), latent_weight=0.0, max_steps=2, logging_steps=1)
    heads = {
        name for name, parameter in model.named_parameters() if not parameter.requires_grad and "alignment" in name
    }
    assert {name.split(".")[1] for name in heads} == {"sequence_projection", "structure_projection", "logit_scale"}
    model.train()
    found = accumulated(trainer, rows, 4)[1]
    assert found.keys() == expected.keys() - heads
    for name, gradient in found.items():
        assert_same_but_rounding(gradient, expected[name], msg=name)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters() if name in heads}
    trainer.train()
    assert all(torch.equal(model.get_parameter(name), value) for name, value in start.items())
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logs and not any("seq_to_struct_loss" in entry for entry in logs)
    assert "eval_seq_to_struct_loss" in trainer.evaluate(tiny.dataset(4))


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_heads_have_their_own_learning_rate(tmp_path, family):
    model = tiny.FAMILIES[family].model()
    trainer = make_trainer(tmp_path, model, learning_rate=1e-4, head_learning_rate=3e-3)
    groups = trainer.create_optimizer().param_groups
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    rate = {names[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}
    assert {name for name, value in rate.items() if value == 3e-3} == {n for n in names.values() if "alignment." in n}
    assert len(rate) == sum(parameter.requires_grad for parameter in trainer.model.parameters())
    decay = {names[id(parameter)]: group["weight_decay"] for group in groups for parameter in group["params"]}
    assert decay["alignment.logit_scale"] == 0
    assert not any(rate for name, rate in decay.items() if "norm" in name.lower() or name.endswith("bias"))
    assert decay["alignment.sequence_projection.weight"] == 0.01


def test_evaluation_metrics_are_means_over_residues(tmp_path):
    rows = [tiny.row(index) for index in range(5)]
    trainer = make_trainer(tmp_path, evaluation=tiny.dataset(5), per_device_eval_batch_size=2)
    metrics = trainer.evaluate()
    assert trainer.evaluate()["eval_loss"] == metrics["eval_loss"]  # fixed masks
    collator = trainer.data_collator.for_evaluation()
    sums, hits, found, chance, counts = np.zeros(4), 0, 0, 0.0, np.zeros(4)
    for batch in (collator(rows[:2]), collator(rows[2:4]), collator(rows[4:])):
        with torch.no_grad():
            outputs = trainer.model(**{k: v for k, v in batch.items() if k not in ("labels", "structure_labels")})
            losses = trainer._residue_losses(outputs, batch)
        sums += [values.sum().item() for _, values in losses.items()]
        counts += [len(values) for _, values in losses.items()]
        labels = batch["structure_labels"]
        hits += (outputs.structure_logits.argmax(-1) == labels)[labels != IGNORE_INDEX].sum().item()
        mask = batch["residue_mask"]
        nearest = outputs.sequence_projection[mask] @ outputs.structure_projection[mask].T
        found += (nearest.argmax(1) == torch.arange(len(nearest))).sum().item()
        chance += 1.0
    assert metrics["eval_token_accuracy"] == pytest.approx(hits / counts[1])
    assert metrics["eval_retrieval_at_1"] == pytest.approx(found / counts[2])
    assert metrics["eval_retrieval_chance"] == pytest.approx(chance / counts[2], rel=1e-5)
    for name, total, count in zip(("mlm", "token", "seq_to_struct", "struct_to_seq"), sums, counts):
        assert metrics[f"eval_{name}_loss"] == pytest.approx(total / count, rel=1e-5)
    expected = (sums / counts) @ np.array([1, 0.5, 0.25, 0.25])
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batching", ["proteins", "packed"])
def test_a_batch_without_any_embedding_counts_for_the_other_tasks(tmp_path, batching):
    """A chain without any CA, alone in its batch, in evaluation and in training."""
    masks = [[False] * length for length in tiny.dataset(3)["length"]]
    rows = tiny.dataset(3)
    some = rows.map(lambda row, i: {"structure_embedding_mask": masks[i]} if i == 1 else {}, with_indices=True)
    none = rows.map(lambda row, i: {"structure_embedding_mask": masks[i]}, with_indices=True)
    options = {"batching": batching, "per_device_eval_batch_size": 1, "per_device_train_batch_size": 1}
    options |= {"tokens_per_batch": 8, "max_steps": 3, "save_strategy": "no", "selection_ratio": 0.5}
    trainer = make_trainer(tmp_path, train=some, evaluation=some, **options)
    metrics = trainer.evaluate()
    whole = make_trainer(tmp_path, evaluation=rows.select([0, 2]), **options).evaluate()
    for name in ("seq_to_struct_loss", "struct_to_seq_loss", "retrieval_at_1", "retrieval_chance"):
        assert metrics[f"eval_{name}"] == pytest.approx(whole[f"eval_{name}"], rel=1e-6)
    assert metrics["eval_token_loss"] != whole["eval_token_loss"]  # the protein is there
    assert "eval_retrieval_at_1" not in trainer.evaluate(none)
    assert np.isfinite(trainer.train().training_loss)
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


def test_refuses_embeddings_of_another_pgnn(tmp_path):
    model = tiny.esm_model()
    make_trainer(tmp_path, model, train=tiny.dataset(2, pgnn="one"))
    with pytest.raises(ValueError, match="come from the pGNN two but the model was aligned with one"):
        make_trainer(tmp_path, model, train=tiny.dataset(2, pgnn="two"))
    narrow = tiny.esm_model(structure_alignment={"structure_dim": 8})
    with pytest.raises(ValueError, match="24 wide but the model's heads expect 8"):
        make_trainer(tmp_path, narrow, train=tiny.dataset(2))


def test_arguments_have_the_papers_defaults_and_refuse_nonsense(tmp_path):
    arguments = StructureAlignmentTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert (arguments.learning_rate, arguments.head_learning_rate) == (1e-4, 1e-3)
    assert (arguments.adam_beta1, arguments.adam_beta2, arguments.weight_decay) == (0.9, 0.95, 0.01)
    assert arguments.lr_scheduler_type == "cosine" and arguments.get_warmup_steps(1000) == 80
    weights = arguments.loss_weights
    assert (weights.mlm, weights.physical, weights.latent) == (1.0, 0.5, 0.5)
    for options in (
        {"mlm_weight": -1},
        {"selection_ratio": 1.5},
        {"selection_keep": "x"},
        {"remove_unused_columns": True},
        {"selection_scope": "node"},
        {"reference_mode": "sometimes"},
        {"missing_reference": "zero"},
    ):
        with pytest.raises(ValueError):
            StructureAlignmentTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **options)


def test_processes_that_were_not_joined_are_refused():
    check_processes(started=1, joined=1)
    check_processes(started=2, joined=2)
    with pytest.raises(ValueError, match="2 processes were started but each would train on its own"):
        check_processes(started=2, joined=1)
