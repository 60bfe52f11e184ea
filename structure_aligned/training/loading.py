"""How training batches are made and handed to the ranks, and how all of them end when one cannot load its own."""

from __future__ import annotations

import atexit
from functools import cache, partial
from typing import Any

import torch.distributed as dist
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer
from transformers.trainer_utils import seed_worker

from ..data.batching import TokenBudgetBatchSampler, row_lengths
from ..objectives.distributed import is_distributed


def token_budget_sampler(trainer: Trainer) -> TokenBudgetBatchSampler:
    """The batches of `trainer.args.batching` for its training set and collator."""
    args, dataset, collator = trainer.args, trainer.train_dataset, trainer.data_collator
    missing = [
        name for name in ("max_length", "num_special_tokens", "pad_to_multiple_of") if not hasattr(collator, name)
    ]
    if isinstance(dataset, IterableDataset) or missing:
        reason = f"its collator has no {missing}" if missing else "its rows have no lengths before they are read"
        raise ValueError(
            f"batching={args.batching!r} needs a dataset with a length and a DataCollatorForStructureAlignment; for "
            f"this Trainer {reason}. Use batching='proteins'."
        )
    return TokenBudgetBatchSampler(
        row_lengths(dataset, collator.max_length, collator.num_special_tokens),
        args.tokens_per_batch,
        packed=args.batching == "packed",
        multiple_of=trainer.accelerator.num_processes * args.gradient_accumulation_steps,
        pad_to_multiple_of=collator.pad_to_multiple_of,
        seed=args.data_seed if args.data_seed is not None else args.seed,
    )


def token_budget_loader(trainer: Trainer, sampler: TokenBudgetBatchSampler) -> DataLoader:
    """[`Trainer.get_train_dataloader`] with these batches; Accelerate gives each rank every n-th."""
    args = trainer.args
    loader = DataLoader(
        trainer.train_dataset,
        batch_sampler=sampler,
        collate_fn=trainer.data_collator,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        worker_init_fn=partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
    )
    return trainer.accelerator.prepare(loader)


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
