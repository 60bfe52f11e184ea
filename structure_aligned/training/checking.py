"""What the Trainer refuses as soon as it is made, with what to do instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import datasets
from torch import nn
from transformers import TrainingArguments

from ..data.builder import dataset_pgnn, embedding_dim
from ..data.streaming import first_row, is_stream
from ..models.alignment import StructureAlignmentMixin


if TYPE_CHECKING:
    from .arguments import StructureAlignmentTrainingArguments


def check_model(model: nn.Module) -> None:
    """Raises `TypeError` for a model that is not an alignment model, with or without adapters."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(base, StructureAlignmentMixin):
        raise TypeError(
            f"The model is a {type(base).__name__}, which has no alignment heads. Load it with "
            "AutoModelForStructureAlignment.from_pretrained, which adds them; in a model_init function too."
        )


def dataset_embeddings(dataset: Any) -> tuple[str, int] | None:
    """The pGNN that a dataset's embeddings come from and their width; `None` where it has no embeddings."""
    row = None if dataset is None else first_row(dataset)
    if isinstance(dataset, (datasets.Dataset, datasets.IterableDataset)) and not isinstance(row, Mapping | None):
        raise ValueError(
            f"The rows of the dataset are of the type {type(row).__name__}; expected dicts. Take its format off with "
            "dataset.with_format(None)."
        )
    if isinstance(dataset, datasets.Dataset):
        return (dataset_pgnn(dataset), embedding_dim(dataset)) if "pgnn" in dataset.column_names else None
    # The first row stands for all. A stream checks the others as they come.
    if not isinstance(row, Mapping) or row.get("pgnn") is None:
        return None
    return row["pgnn"], int(row["structure_embedding_shape"][1])


def check_embeddings(embeddings: tuple[str, int] | None, settings: dict[str, Any]) -> None:
    """Embeddings must come from the pGNN that the heads know; heads that know none take the dataset's."""
    if embeddings is None:
        return
    (found, width), expected = embeddings, settings["pgnn"]
    if expected is not None and found != expected:
        raise ValueError(
            f"The dataset's embeddings come from the pGNN {found} but the model was aligned with {expected}. "
            "Build the dataset with that pGNN, or start from the trunk, with fresh heads."
        )
    if width != settings["structure_dim"]:
        raise ValueError(
            f"The dataset's embeddings are {width} wide but the model's heads expect "
            f"{settings['structure_dim']}; load it with structure_alignment={{'structure_dim': {width}}}."
        )
    settings["pgnn"] = found


def check_training_stream(args: StructureAlignmentTrainingArguments, dataset: Any) -> None:
    """Raises `ValueError` for options that a training set without a length cannot follow."""
    if not is_stream(dataset):
        return
    if args.max_steps <= 0:
        raise ValueError(
            f"The training set is a stream ({type(dataset).__name__}) and max_steps is {args.max_steps}; a stream "
            "has no length from which the number of steps would follow. Set max_steps."
        )
    for name in ("eval_strategy", "save_strategy", "logging_strategy"):
        if getattr(args, name) == "epoch":
            raise ValueError(
                f"{name} is 'epoch' and the training set a stream, which goes on until max_steps without an end of "
                "an epoch; use 'steps'."
            )
    if args.batching == "proteins" and args.train_sampling_strategy not in ("random", "sequential"):
        raise ValueError(
            f"train_sampling_strategy is {str(args.train_sampling_strategy)!r} and the training set a stream, whose "
            "rows come in their own order; use batching='tokens', which finds proteins of similar length in a buffer."
        )
    if args.accelerator_config.split_batches:
        raise ValueError(
            "accelerator_config has split_batches=True and the training set is a stream, which every process reads "
            "its own share of; set per_device_train_batch_size to the share of one process."
        )


def check_evaluation_set(args: StructureAlignmentTrainingArguments, dataset: Any, settings: dict[str, Any]) -> None:
    """Raises `ValueError` for a stream on several ranks, and as [`check_embeddings`] does."""
    check_embeddings(dataset_embeddings(dataset), settings)
    if args.world_size > 1 and is_stream(dataset):
        raise ValueError(
            f"The evaluation set is a stream ({type(dataset).__name__}) and there are {args.world_size} processes, "
            "whose last batches would count some proteins twice. Make a dataset of it: "
            "datasets.Dataset.from_list(list(stream))."
        )


def check_loss_function(args: TrainingArguments, compute_loss_func: Any) -> None:
    """
    Raises `ValueError` for label smoothing, which the losses here do not have, and for a loss function: it would get
    one set of labels, of three, and none of the selection.
    """
    if args.label_smoothing_factor:
        raise ValueError(
            f"label_smoothing_factor is {args.label_smoothing_factor}, which this objective does not have; leave it "
            "out."
        )
    if compute_loss_func is not None:
        raise ValueError(
            "compute_loss_func is not supported: the loss of this Trainer has three tasks with labels of their own. "
            "Weigh them with mlm_weight, physical_weight and latent_weight, or override compute_loss in a subclass."
        )
