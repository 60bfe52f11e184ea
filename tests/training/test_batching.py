"""Batches by tokens and packed rows in the Trainer; errors of one rank; compiled layers."""

import json
from itertools import chain

import numpy as np
import pytest
import torch
from transformers import AutoModel

from structure_aligned.data.collator import DataCollatorForStructureAlignment, count_proteins
from structure_aligned.training.arguments import StructureAlignmentTrainingArguments
from structure_aligned.training.compiling import compile_trunk, trunk_layers
from structure_aligned.training.trainer import StructureAlignmentTrainer
from tests import tiny
from tests.closeness import assert_same_but_rounding


def with_reference(dataset):
    rng = np.random.default_rng(0)
    losses = [rng.normal(size=(length, 6)).astype(np.float32).tobytes() for length in dataset["length"]]
    return dataset.add_column("reference_losses", losses)


def make_trainer(tmp_path, family="esm", dataset=None, model=None, collator=None, **options):
    arguments = StructureAlignmentTrainingArguments(
        **({"output_dir": str(tmp_path), "use_cpu": True, "report_to": [], "disable_tqdm": True} | options)
    )
    family = tiny.FAMILIES[family]
    return StructureAlignmentTrainer(
        model or family.model(),
        arguments,
        collator or DataCollatorForStructureAlignment(family.tokenizer()),
        train_dataset=tiny.dataset(12) if dataset is None else dataset,
        eval_dataset=tiny.dataset(3),
    )


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_packed_collation_and_losses_equal_padded_ones(family, tmp_path):
    """Same masks, same logits, same four losses per residue, same reference, same total: for both families."""
    dataset = with_reference(tiny.dataset(7))
    padded, packed = (
        make_trainer(tmp_path, family, dataset, batching=batching, selection_ratio=0.6)
        for batching in ("tokens", "packed")
    )
    assert packed.model.config._attn_implementation == "packed"
    batches = [trainer.data_collator(list(dataset)) for trainer in (padded, packed)]
    assert batches[1]["input_ids"].shape[0] == 1
    assert batches[1]["input_ids"].shape[1] < 8 + (batches[0]["attention_mask"] == 1).sum()
    assert count_proteins(batches[0]) == count_proteins(batches[1]) == 7
    for name in ("input_ids", "labels", "structure_labels", "structure_embeddings", "residue_mask"):
        there, here = (batch[name][batch["attention_mask"].bool()] for batch in batches)
        assert torch.equal(there, here), name
    results = []
    for trainer, batch in zip((padded, packed), batches):
        outputs = trainer._forward(trainer.model, batch)
        losses = trainer._residue_losses(outputs, batch)
        kept, _ = trainer.select(losses, batch)
        results.append((outputs.logits[batch["attention_mask"].bool()], losses, kept, trainer.reference(batch)))
    assert_same_but_rounding(results[1][0], results[0][0])
    for name, losses in results[0][1].items():
        assert_same_but_rounding(getattr(results[1][1], name), losses)
        if name != "mlm":
            assert torch.equal(results[0][2][name], results[1][2][name])
            assert_same_but_rounding(getattr(results[1][3], name), getattr(results[0][3], name), 8)
    totals = [trainer.compute_loss(trainer.model, batch) for trainer, batch in zip((padded, packed), batches)]
    torch.testing.assert_close(totals[0], totals[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batching", ["tokens", "packed"])
def test_training_sees_every_protein_once_an_epoch(tmp_path, batching):
    seen = []

    class Watching(DataCollatorForStructureAlignment):
        def __call__(self, rows):
            seen.append([row["id"] for row in rows])
            return super().__call__(rows)

    trainer = make_trainer(
        tmp_path,
        collator=Watching(tiny.FAMILIES["esm"].tokenizer()),
        batching=batching,
        tokens_per_batch=96,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
        logging_steps=1,
        save_strategy="no",
    )
    trainer.train()
    per_epoch = len(seen) // 2
    epochs = [list(chain.from_iterable(batches)) for batches in (seen[:per_epoch], seen[per_epoch:])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(f"row{index}_A" for index in range(12))
    assert epochs[0] != epochs[1]
    assert len(seen) == 2 * trainer.state.max_steps
    assert all(np.isfinite(log["loss"]) for log in trainer.state.log_history if "loss" in log)
    assert all(log["residues_per_second"] > 0 for log in trainer.state.log_history if "loss" in log)


def test_a_packed_run_saves_an_ordinary_checkpoint(tmp_path):
    trainer = make_trainer(tmp_path, batching="packed", max_steps=1, save_strategy="no")
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
    trainer.save_model(tmp_path / "saved")
    assert "packed" not in (tmp_path / "saved" / "config.json").read_text()
    model = AutoModel.from_pretrained(tmp_path / "saved")
    assert model.config._attn_implementation == "sdpa"


def test_what_cannot_be_batched_by_tokens_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has an order of its own"):
        make_trainer(tmp_path, train_sampling_strategy="sequential")
    with pytest.raises(ValueError, match="tokens_per_batch is 0"):
        make_trainer(tmp_path, tokens_per_batch=0)
    with pytest.raises(ValueError, match="batching is 'rows'; choose one of tokens, packed, proteins"):
        make_trainer(tmp_path, batching="rows")
    with pytest.raises(ValueError, match="negatives is 'some'"):
        make_trainer(tmp_path, negatives="some")
    trainer = make_trainer(tmp_path, collator=lambda rows: rows)
    with pytest.raises(ValueError, match="Use batching='proteins'"):
        trainer.get_train_dataloader()


def test_default_budget_follows_the_number_of_proteins(tmp_path):
    assert make_trainer(tmp_path, per_device_train_batch_size=4).args.tokens_per_batch == 1024
    loader = make_trainer(tmp_path, per_device_train_batch_size=4, batching="proteins").get_train_dataloader()
    assert all(len(batch["input_ids"]) == 4 for batch in loader)


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_compiled_layers_are_what_runs(tmp_path, family):
    """A backend that counts: every layer of every step goes through what was compiled, and changes nothing."""
    calls = []

    def counting(graph, example_inputs):
        def run(*inputs):
            calls.append(1)
            return graph(*inputs)

        return run

    torch._dynamo.reset()
    plain, compiled = tiny.FAMILIES[family].model(), tiny.FAMILIES[family].model()
    names = [name for name, _ in compiled.named_parameters()]
    assert compile_trunk(compiled, counting) == len(trunk_layers(compiled)) == 2
    assert [name for name, _ in compiled.named_parameters()] == names
    losses = []
    for model in (plain, compiled):
        trainer = make_trainer(tmp_path, family, model=model, max_steps=3, save_strategy="no", logging_steps=1)
        trainer.train()
        losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert len(calls) >= 2 * 3
    torch._dynamo.reset()


@pytest.mark.slow
def test_inductor_compiles_the_trunk_by_option(tmp_path):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    plain = make_trainer(tmp_path, max_steps=4, save_strategy="no", logging_steps=1, tokens_per_batch=96)
    compiled = make_trainer(
        tmp_path, max_steps=4, save_strategy="no", logging_steps=1, tokens_per_batch=96, compile_trunk=True
    )
    losses = []
    for trainer in (plain, compiled):
        trainer.train()
        losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    # The layers share their code; each size of batch does not make a graph of its own.
    assert 1 <= counters["stats"]["unique_graphs"] <= 4, json.dumps(counters["stats"])


def test_compiling_what_has_no_layers_is_refused():
    with pytest.raises(ValueError, match="no GradientCheckpointingLayer"):
        compile_trunk(torch.nn.Linear(2, 2))
