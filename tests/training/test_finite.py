"""A training whose numbers go wrong."""

import numpy as np
import pytest
import torch

from structure_aligned.data.collator import DataCollatorForStructureAlignment
from structure_aligned.models.esm2 import esm2_tokenizer
from structure_aligned.objectives.losses import LossWeights
from structure_aligned.training.arguments import StructureAlignmentTrainingArguments
from structure_aligned.training.finite import NonFiniteError
from structure_aligned.training.trainer import StructureAlignmentTrainer
from structure_aligned.utils.numbers import check_options
from tests import tiny


def make_trainer(folder, trainer_class=StructureAlignmentTrainer, rows=8, **options):
    defaults = {
        "max_steps": 6,
        "logging_steps": 2,
        "save_steps": 2,
        "eval_strategy": "no",
        "batching": "proteins",
        "per_device_train_batch_size": 2,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return trainer_class(
        tiny.esm_model(),
        StructureAlignmentTrainingArguments(output_dir=str(folder), **(defaults | options)),
        DataCollatorForStructureAlignment(esm2_tokenizer()),
        train_dataset=tiny.dataset(rows),
        eval_dataset=tiny.dataset(2),
    )


class SpoiltLoss(StructureAlignmentTrainer):
    """The loss of step 3 is NaN."""

    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        return loss * (torch.nan if self.state.global_step == 2 else 1.0)


@pytest.mark.parametrize("batching", ["proteins", "tokens", "packed"])
def test_a_loss_that_is_not_finite_ends_the_run_and_names_step_and_rows(tmp_path, batching):
    trainer = make_trainer(tmp_path, SpoiltLoss, batching=batching, tokens_per_batch=64)
    with pytest.raises(NonFiniteError, match=r"The loss of step 3 is not finite, in the batch of row\d+_A"):
        trainer.train()
    # The last checkpoint before is there and finite, and nothing is saved as a result.
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2"]
    again = type(trainer.model).from_pretrained(tmp_path / "checkpoint-2")
    assert all(parameter.isfinite().all() for parameter in again.parameters())
    with pytest.raises(NonFiniteError, match="is not saved to"):
        trainer.save_model()
    assert not (tmp_path / "model.safetensors").exists()


class SpoiltGradient(StructureAlignmentTrainer):
    """The gradient of step 3 is infinite, and its loss is not."""

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        if self.state.global_step == 2:
            next(p for p in self.model.parameters() if p.grad is not None).grad.view(-1)[0] = torch.inf
        return loss


def test_a_gradient_that_is_not_finite_ends_the_run(tmp_path):
    trainer = make_trainer(tmp_path, SpoiltGradient, logging_steps=100, save_strategy="no")
    with pytest.raises(NonFiniteError, match=r"The gradient of step 3 is not finite, in the batch of row\d+_A, row"):
        trainer.train()


def test_a_checkpoint_of_weights_that_are_not_finite_is_not_written(tmp_path):
    trainer = make_trainer(tmp_path)
    with torch.no_grad():
        trainer.model.esm.embeddings.word_embeddings.weight[5:24] = torch.nan
    with pytest.raises(NonFiniteError, match=r"word_embeddings.weight in the model holds NaN or infinity"):
        trainer._save_checkpoint(trainer.model, None)
    assert not list(tmp_path.glob("checkpoint-*/model*"))
    with pytest.raises(ValueError, match="The evaluation gives NaN or infinity for mlm"):
        trainer.evaluate()


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_embeddings_that_are_not_finite_are_refused_with_the_row(value):
    collator = DataCollatorForStructureAlignment(esm2_tokenizer())
    row = tiny.row(0)
    embedding = np.frombuffer(row["structure_embedding"], dtype=np.float16).reshape(row["structure_embedding_shape"])
    collator([row])  # NaN where the mask says that there is none
    spoilt = embedding.copy()
    spoilt[4, 3] = value
    with pytest.raises(ValueError, match="row0_A has NaN or infinity in structure_embedding"):
        collator([row | {"structure_embedding": spoilt.tobytes()}])
    losses = np.full((row["length"], 6), np.nan, dtype=np.float32)
    collator([row | {"reference_losses": losses.tobytes()}])
    losses[2] = np.inf
    with pytest.raises(ValueError, match="row0_A has an infinite number in reference_losses"):
        collator([row | {"reference_losses": losses.tobytes()}])


@pytest.mark.parametrize(
    ("option", "value", "match"),
    [
        ("mlm_weight", float("nan"), "mlm_weight is nan"),
        ("latent_weight", float("inf"), "latent_weight is inf"),
        ("physical_weight", -1.0, "loss weights are 1.0, -1.0, 0.5"),
        ("learning_rate", float("nan"), "learning_rate is nan"),
        ("learning_rate", -1e-4, "learning_rate is -0.0001"),
        ("head_learning_rate", float("inf"), "head_learning_rate is inf"),
        ("weight_decay", float("nan"), "weight_decay is nan"),
        ("warmup_steps", float("nan"), "warmup_steps is nan"),
        ("num_train_epochs", float("inf"), "num_train_epochs is inf"),
        ("max_grad_norm", float("nan"), "max_grad_norm is nan"),
        ("selection_ratio", float("nan"), "selection_ratio is nan"),
        ("lr_scheduler_kwargs", {"num_cycles": float("nan")}, r"lr_scheduler_kwargs\['num_cycles'\] is nan"),
        ("dataloader_drop_last", True, "dataloader_drop_last is set"),
    ],
)
def test_options_that_are_no_numbers_or_have_no_effect_are_refused(tmp_path, option, value, match):
    with pytest.raises(ValueError, match=match):
        StructureAlignmentTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{option: value})


def test_label_smoothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="label_smoothing_factor is 0.1, which this objective does not have"):
        make_trainer(tmp_path, label_smoothing_factor=0.1)


def test_weights_of_losses():
    with pytest.raises(ValueError, match="not all 0"):
        LossWeights(0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="expected three numbers"):
        tiny.esm_config(structure_alignment={"loss_weights": [1.0, float("nan"), 0.5]})
        tiny.esm_model(structure_alignment={"loss_weights": [1.0, float("nan"), 0.5]})
    with pytest.raises(ValueError, match=r"a\[1\] is inf"):
        check_options({"a": [1.0, float("inf")]})
