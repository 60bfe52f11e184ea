"""A training that goes wrong in its numbers ends, says at which step and with which rows, and saves nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from transformers.trainer_utils import TrainOutput

from ..models.weights import check_finite
from ..utils.names import plain_text


ROW_IDS = "row_ids"
"""Of a batch: the ids of its rows as bytes of utf-8, so that they travel as every other tensor does."""

CHECK_EVERY = 64
"""Micro-batches after which the numbers are looked at, if nothing else asks for them before."""

_MAX_ID = 64
_NEVER = 2**31 - 1


class NonFiniteError(ValueError):
    """Losses, gradients or weights hold NaN or infinity."""


class WithRowIds:
    """A collator whose batches say which rows they are made of."""

    def __init__(self, collator: Callable[[list[dict]], dict[str, torch.Tensor]]) -> None:
        self.collator = collator

    def __getattr__(self, name: str) -> Any:
        if name == "collator":  # before it is set, when a copy is unpickled
            raise AttributeError(name)
        return getattr(self.collator, name)

    def at_epoch(self, epoch: int) -> WithRowIds:
        return WithRowIds(self.collator.at_epoch(epoch) if hasattr(self.collator, "at_epoch") else self.collator)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = self.collator(rows)
        ids = np.array(
            [str(row.get("id", "")).encode(errors="replace")[:_MAX_ID] for row in rows], dtype=f"S{_MAX_ID}"
        )
        batch[ROW_IDS] = torch.from_numpy(ids.view(np.uint8).reshape(len(rows), -1).copy())
        return batch


class _Watch:
    """
    Remembers, on the device, the first number that was not finite. The device is asked only in `check`, so that no
    step waits for the one before.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.first = torch.tensor(_NEVER, device=accelerator.device)
        self.seen: list[tuple[str, int, torch.Tensor | None]] = []

    def add(self, what: str, step: int, value: torch.Tensor, row_ids: torch.Tensor | None = None) -> None:
        finite = torch.isfinite(value.detach()).all().to(self.first.device)
        self.first = torch.where(finite, self.first, self.first.clamp(max=len(self.seen)))
        self.seen.append((what, step, row_ids))

    def check(self) -> None:
        """
        To be called by all ranks at the same place.

        Raises:
            NonFiniteError: On every rank, if a number on one of them was not finite.
        """
        seen, self.seen = self.seen, []
        first, self.first = self.first, torch.full_like(self.first, _NEVER)
        if int(self.accelerator.gather(first.reshape(1)).min()) == _NEVER:
            return
        found = [self._describe(seen, int(first))] if int(first) < len(seen) else []
        raise NonFiniteError(
            f"{'; '.join(gather_object(found))}. The training ends here, and weights of this step or later ones are "
            "not saved. Look at these rows; otherwise lower the learning rate or train in float32 or bfloat16, and go "
            "on from the last checkpoint."
        )

    def _describe(self, seen: list[tuple[str, int, torch.Tensor | None]], index: int) -> str:
        what, step, row_ids = seen[index]
        # A gradient is of all micro-batches of its step.
        batches = [own for _, other, own in seen if other == step] if row_ids is None else [row_ids]
        ids = [
            plain_text(bytes(row).rstrip(b"\0").decode(errors="replace"))
            for own in batches
            if own is not None
            for row in own.cpu().numpy()
        ]
        listed = ", ".join(ids[:16]) + (f" and {len(ids) - 16} more" if len(ids) > 16 else "")
        return f"The {what} of step {step} is not finite, in the batch of {listed or 'rows without an id'}"


class StopsWhereNotFinite:
    """
    Goes before [`Trainer`] among the base classes. The loss of every micro-batch and the norm of the gradient are
    noted on the device, and looked at before anything is logged, evaluated or saved, every `CHECK_EVERY`
    micro-batches, and at the end: the steps in between are lost anyway, and asking at each would slow down all others.
    """

    _watch: _Watch | None = None

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        row_ids = inputs.pop(ROW_IDS, None)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._watch = self._watch or _Watch(self.accelerator)
        self._watch.add("loss", self.state.global_step + 1, loss, row_ids)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        # With float16 a scaler skips the steps whose gradients overflow.
        if self._watch is not None and isinstance(norm, torch.Tensor) and self.accelerator.scaler is None:
            whole = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
            self._watch.add("gradient", self.state.global_step + 1, whole)
        return norm

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        asked = self.control.should_log or self.control.should_evaluate or self.control.should_save
        if self._watch is not None and (asked or len(self._watch.seen) >= CHECK_EVERY):
            self._watch.check()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        self._watch = None
        output = super().train(*args, **kwargs)
        if self._watch is not None:
            self._watch.check()
        return output

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in Transformers; weights that are not finite are refused."""
        error = None
        try:
            # Where each process holds a part of the model, it looks at its own.
            check_finite(self.model.named_parameters(), "the model")
        except ValueError as raised:
            error = raised
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            failed = torch.tensor(float(error is not None), device=self.accelerator.device)
            if self.accelerator.reduce(failed, reduction="sum") and error is None:
                error = ValueError("The part of another process holds NaN or infinity.")
        if error is not None:
            raise NonFiniteError(f"The model is not saved to {output_dir or self.args.output_dir}: {error}")
        super().save_model(output_dir, _internal_call)
