"""Streams in the Trainer: as the dataset of the same rows, in the same order."""

import itertools

import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import TrainerCallback

from structure_aligned.data.collator import DataCollatorForStructureAlignment
from structure_aligned.hub.run_facts import RunFacts
from structure_aligned.models.esm2 import esm2_tokenizer
from structure_aligned.training.arguments import StructureAlignmentTrainingArguments
from structure_aligned.training.trainer import StructureAlignmentTrainer
from tests import tiny


class Stream(IterableDataset):
    """The plain PyTorch one."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


STREAMS = {
    "datasets": lambda rows: rows.to_iterable_dataset(num_shards=2),
    "torch": lambda rows: Stream(list(rows)),
    "tensors": lambda rows: rows.to_iterable_dataset().with_format("torch"),
}


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def make_trainer(tmp_path, train, evaluation=None, callbacks=None, reference_model=None, **options):
    defaults = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
    return StructureAlignmentTrainer(
        tiny.esm_model(),
        StructureAlignmentTrainingArguments(str(tmp_path), **(defaults | options)),
        DataCollatorForStructureAlignment(esm2_tokenizer()),
        train_dataset=train,
        eval_dataset=evaluation,
        callbacks=callbacks,
        reference_model=reference_model,
    )


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("kind", list(STREAMS))
@pytest.mark.parametrize(
    "options",
    [
        {"batching": "proteins", "train_sampling_strategy": "sequential", "per_device_train_batch_size": 2},
        {"batching": "tokens", "tokens_per_batch": 100},
        {"batching": "packed", "tokens_per_batch": 100},
    ],
    ids=lambda options: options["batching"],
)
def test_a_stream_trains_as_the_dataset_does(tmp_path, kind, options):
    """Over three epochs, each with masks of its own; all rows fit into the buffer."""
    rows = tiny.dataset(5)
    expected = make_trainer(tmp_path, rows, max_steps=8, **options)
    expected.train()
    trainer = make_trainer(tmp_path, STREAMS[kind](rows), STREAMS[kind](rows), max_steps=8, **options)
    trainer.train()
    assert len(losses(expected)) == 8 and losses(trainer) == losses(expected)
    assert trainer.model.config.structure_alignment["pgnn"] == "tiny"
    metrics, plain = trainer.evaluate(), expected.evaluate(rows)
    assert metrics["eval_loss"] == pytest.approx(plain["eval_loss"], rel=1e-6)
    assert metrics["eval_token_accuracy"] == plain["eval_token_accuracy"]


def test_a_stream_goes_on_where_the_checkpoint_was(tmp_path):
    """In the third epoch, in the middle of it, with another order in each."""
    stream = tiny.dataset(7).to_iterable_dataset().shuffle(seed=1, buffer_size=4)
    options = {"batching": "proteins", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    options |= {"max_steps": 7, "save_strategy": "steps", "save_steps": 5}
    whole = make_trainer(tmp_path / "whole", stream, **options)
    whole.train()
    make_trainer(tmp_path / "stopped", stream, callbacks=[StopAt(5)], **options).train()
    resumed = make_trainer(tmp_path / "stopped", stream, **options)
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == losses(whole)
    for (name, value), other in zip(whole.model.named_parameters(), resumed.model.parameters()):
        assert torch.equal(value, other), name


def test_workers_share_the_rows_of_a_stream(tmp_path):
    stream = tiny.dataset(8).to_iterable_dataset(num_shards=2)
    trainer = make_trainer(
        tmp_path, stream, max_steps=4, batching="proteins", per_device_train_batch_size=2, dataloader_num_workers=3
    )
    batches = list(itertools.islice(trainer.get_train_dataloader(), 4))  # one epoch; a worker has no share
    lengths = sorted(int(mask.sum()) - 2 for batch in batches for mask in batch["attention_mask"])
    assert lengths == sorted(tiny.dataset(8)["length"])


def test_what_a_stream_cannot_do_is_refused(tmp_path):
    stream = tiny.dataset(4).to_iterable_dataset()
    with pytest.raises(ValueError, match=r"is a stream \(IterableDataset\) and max_steps is -1"):
        make_trainer(tmp_path, stream)
    for name in ("save_strategy", "logging_strategy", "eval_strategy"):
        with pytest.raises(ValueError, match=f"{name} is 'epoch' and the training set a stream"):
            make_trainer(tmp_path, stream, tiny.dataset(2), max_steps=2, **{name: "epoch"})
    with pytest.raises(ValueError, match="'group_by_length' and the training set a stream"):
        make_trainer(tmp_path, stream, max_steps=2, batching="proteins", train_sampling_strategy="group_by_length")
    options = {"accelerator_config": {"split_batches": True}, "batching": "proteins"}
    with pytest.raises(ValueError, match="split_batches=True and the training set is a stream"):
        make_trainer(tmp_path, stream, max_steps=2, **options)


def test_a_stream_of_another_pgnn_is_refused(tmp_path):
    rows = [tiny.row(0), tiny.row(1), tiny.row(2, pgnn="two")]
    with pytest.raises(ValueError, match="come from the pGNN two but the model was aligned with one"):
        trainer = make_trainer(tmp_path, Stream([tiny.row(0, pgnn="one")]), max_steps=1)
        trainer.evaluate(Stream(rows[2:]))
    trainer = make_trainer(tmp_path, Stream(rows), max_steps=4, batching="proteins")
    with pytest.raises(ValueError, match="row2_A comes from the pGNN two, but the model was aligned with tiny"):
        trainer.train()


@pytest.mark.parametrize("rows", [[], iter([tiny.row(0), tiny.row(1)])], ids=["empty", "once only"])
def test_a_stream_that_ends_is_no_training(tmp_path, rows):
    trainer = make_trainer(tmp_path, Stream(rows), max_steps=9, batching="proteins", per_device_train_batch_size=1)
    with pytest.raises(ValueError, match="The training stream has no more rows after step [01] of 9"):
        trainer.train()


def test_reference_losses_of_a_stream_are_used(tmp_path):
    """Also where only the rows say that there are any."""
    rows = [tiny.row(index) | {"reference_losses": bytes(4 * 6 * tiny.row(index)["length"])} for index in range(3)]
    trainer = make_trainer(tmp_path, Stream(rows), max_steps=1)
    assert type(trainer.reference).__name__ == "PrecomputedReference" and trainer.selection_ratio == 0.8
    trainer.train()
    facts = RunFacts.of_trainer(trainer)  # for the model card
    assert facts.reference == "losses computed before the training"
    assert facts.data["train"]["chains"] is None


def test_an_online_reference_of_a_stream_must_be_allowed(tmp_path):
    stream, options = Stream([tiny.row(0)]), {"max_steps": 1, "reference_mode": "online"}
    reference = tiny.esm_model(structure_alignment={"structure_dim": tiny.STRUCTURE_DIM, "pgnn": "tiny"})
    with pytest.raises(ValueError, match="training set a stream, so nobody can tell beforehand .* leave_out_seen"):
        make_trainer(tmp_path, stream, reference_model=reference, **options)
    make_trainer(tmp_path, stream, reference_model=reference, reference_allow_seen=True, **options).train()
