"""How training batches are made and handed to the ranks, and how all of them end when one cannot load its own."""

from __future__ import annotations

import atexit
from functools import cache, partial
from typing import Any

import torch.distributed as dist
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import seed_worker

from ..data.batching import TokenBudgetBatchSampler, row_lengths
from ..data.collator import DataCollatorForStructureAlignment
from ..data.streaming import ProteinStream
from ..objectives.distributed import is_distributed


def token_budget(trainer: Trainer) -> int:
    """Positions of a micro-batch; where `auto_find_batch_size` has lowered the number of proteins, less by as much."""
    args = trainer.args
    return max(1, args.tokens_per_batch * trainer._train_batch_size // args.train_batch_size)


def token_budget_sampler(trainer: Trainer) -> TokenBudgetBatchSampler:
    """The batches of `trainer.args.batching` for its training set and collator."""
    args, dataset, collator = trainer.args, trainer.train_dataset, trainer.data_collator
    check_token_collator(args.batching, collator)
    return TokenBudgetBatchSampler(
        row_lengths(dataset, collator.max_length, collator.num_special_tokens),
        token_budget(trainer),
        packed=args.batching == "packed",
        multiple_of=trainer.accelerator.num_processes * args.gradient_accumulation_steps,
        pad_to_multiple_of=collator.pad_to_multiple_of,
        seed=data_seed(trainer),
    )


def default_collator(processing_class: Any) -> DataCollatorForStructureAlignment:
    """The collator of a Trainer that was given none."""
    if not isinstance(processing_class, PreTrainedTokenizerBase):
        raise ValueError(
            f"There is no data_collator, and processing_class is a {type(processing_class).__name__}; give a "
            "DataCollatorForStructureAlignment, or the tokenizer as processing_class."
        )
    return DataCollatorForStructureAlignment(processing_class)


def check_token_collator(batching: str, collator: Any) -> None:
    """Raises `ValueError` where a collator does not say how long its rows become, and whether it can pack them."""
    needed = ["max_length", "num_special_tokens", "pad_to_multiple_of"]
    needed += ["for_packing"] if batching == "packed" else []
    if missing := [name for name in needed if not hasattr(collator, name)]:
        raise ValueError(
            f"batching={batching!r} needs a DataCollatorForStructureAlignment; this Trainer's collator has no "
            f"{missing}. Use batching='proteins'."
        )


def token_budget_loader(trainer: Trainer, sampler: TokenBudgetBatchSampler) -> DataLoader:
    """[`Trainer.get_train_dataloader`] with these batches; Accelerate gives each rank every n-th."""
    loader = DataLoader(
        trainer.train_dataset,
        batch_sampler=sampler,
        collate_fn=trainer.data_collator,
        **_loader_options(trainer),
    )
    return trainer.accelerator.prepare(loader)


def stream_loader(trainer: Trainer, pgnn: str | None) -> DataLoader:
    """The same for a training set without a length. Each rank reads its own share of the rows."""
    args = trainer.args
    if args.batching != "proteins":
        check_token_collator(args.batching, trainer.data_collator)
    stream = ProteinStream(
        trainer.train_dataset,
        trainer.data_collator,
        args.batching,
        batch_size=trainer._train_batch_size,
        max_tokens=token_budget(trainer),
        seed=data_seed(trainer),
        drop_last=args.dataloader_drop_last,
        pgnn=pgnn,
        rank=args.process_index,
        world_size=args.world_size,
    )
    return DataLoader(stream, batch_size=None, **_loader_options(trainer))


def data_seed(trainer: Trainer) -> int:
    return trainer.args.data_seed if trainer.args.data_seed is not None else trainer.args.seed


def _loader_options(trainer: Trainer) -> dict[str, Any]:
    args = trainer.args
    return {
        "num_workers": args.dataloader_num_workers,
        "pin_memory": args.dataloader_pin_memory,
        "persistent_workers": args.dataloader_persistent_workers,
        "prefetch_factor": args.dataloader_prefetch_factor,
        "multiprocessing_context": args.dataloader_multiprocessing_context,
        "in_order": args.dataloader_in_order,
        "worker_init_fn": partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
    }


class RankCheck:
    """
    Lets every rank know of an error on one, so that none waits for it in a collective. A context: it may hold a group.

    Over gloo, whatever the ranks use otherwise: asking a GPU would make every step wait for the one before.
    """

    def __init__(self) -> None:
        self._group: dist.ProcessGroup | None = None

    def __enter__(self) -> RankCheck:
        if is_distributed():
            if dist.get_backend() == "gloo":
                _leave_at_exit()
            else:
                self._group = dist.new_group(backend="gloo")
        return self

    def __exit__(self, *error: object) -> None:
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None

    def all_well(self, error: Exception | None) -> None:
        """
        To be called by every rank at the same place, with what went wrong there.

        Raises:
            RuntimeError: On the ranks where nothing went wrong, if it did on another; that one raises its own error.
        """
        if not is_distributed():
            if error is not None:
                raise error
            return
        errors: list[Any] = [None] * dist.get_world_size()
        message = None if error is None else f"{type(error).__name__}: {error}"
        # Without a group of its own: the default one, which is gloo.
        dist.all_gather_object(errors, message, group=self._group)
        if error is not None:
            raise error
        failed = {rank: text for rank, text in enumerate(errors) if text is not None}
        if failed:
            listed = "; ".join(f"rank {rank}: {text}" for rank, text in failed.items())
            raise RuntimeError(f"This rank stops because another could not load its batch ({listed}).")


@cache
def _leave_at_exit() -> None:
    """A gloo group that is left to the interpreter's end aborts the process now and then, by its threads (SIGABRT)."""
    atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())
