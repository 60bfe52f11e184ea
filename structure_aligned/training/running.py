"""Sums that a training loop logs now and then: kept on the device, so that no step waits for a number to print."""

from __future__ import annotations

from itertools import combinations

import torch
from accelerate import Accelerator

from ..objectives.losses import ResidueLosses


LOSS_NAMES = ResidueLosses.names()
SELECTED_LOSSES = ("token", "seq_to_struct", "struct_to_seq")
"""The losses that residues are selected for; masked language modelling never is."""

_PAIRS = tuple(combinations(SELECTED_LOSSES, 2))


class RunningSums:
    """Named sums over steps, reduced over the ranks when they are fetched."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        names = ["residues"]
        names += [f"{kind}/{name}" for name in LOSS_NAMES for kind in ("sum", "count")]
        names += [
            f"{kind}/{name}"
            for name in SELECTED_LOSSES
            for kind in ("kept", "dropped", "kept_excess", "dropped_excess")
        ]
        names += [f"{kind}/{a}/{b}" for a, b in _PAIRS for kind in ("both", "either")]
        self._index = {name: index for index, name in enumerate(names)}
        self._values = torch.zeros(len(names), device=device, dtype=dtype)

    def add(self, values: dict[str, torch.Tensor | int]) -> None:
        """Add to some of the sums, without waiting for the device."""
        row = [torch.as_tensor(values.get(name, 0), device=self._values.device) for name in self._index]
        self._values += torch.stack([value.to(self._values.dtype) for value in row])

    def fetch(self, accelerator: Accelerator) -> dict[str, float]:
        """The sums over all ranks; they start again from zero."""
        values = accelerator.reduce(self._values, reduction="sum").tolist()
        self._values.zero_()
        return dict(zip(self._index, values))


def selection_sums(
    kept: dict[str, torch.Tensor], excess: dict[str, torch.Tensor], positions: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """
    What is logged of one batch's selection.

    Args:
        kept, excess (`dict[str, torch.Tensor]`, each of shape `(N,)`): Mask and signed excess per loss.
        positions (`dict[str, torch.Tensor]`, each of shape `(batch_size, length)`): Where the residues of each loss
            are, with N of them True.
    """
    sums, full = {}, {}
    for name, mask in kept.items():
        sums[f"kept/{name}"], sums[f"dropped/{name}"] = mask.sum(), (~mask).sum()
        sums[f"kept_excess/{name}"] = torch.where(mask, excess[name], 0.0).sum()
        sums[f"dropped_excess/{name}"] = torch.where(mask, 0.0, excess[name]).sum()
        full[name] = torch.zeros_like(positions[name]).masked_scatter_(positions[name], mask)
    for a, b in _PAIRS:
        if a in full and b in full:
            # Of the residues that both losses are selected for.
            common = positions[a] & positions[b]
            sums[f"both/{a}/{b}"] = (full[a] & full[b] & common).sum()
            sums[f"either/{a}/{b}"] = ((full[a] | full[b]) & common).sum()
    return sums


def selection_logs(sums: dict[str, float]) -> dict[str, float]:
    """
    Log entries of fetched sums: per loss the fraction kept and the mean excess of kept and dropped residues, and per
    pair of losses the Jaccard overlap of what they keep. Empty where nothing was dropped.
    """
    logs = {}
    for name in SELECTED_LOSSES:
        kept, dropped = sums[f"kept/{name}"], sums[f"dropped/{name}"]
        if kept and dropped:
            logs[f"selection/{name}_kept"] = kept / (kept + dropped)
            logs[f"selection/{name}_excess_kept"] = sums[f"kept_excess/{name}"] / kept
            logs[f"selection/{name}_excess_dropped"] = sums[f"dropped_excess/{name}"] / dropped
    if logs:
        for a, b in _PAIRS:
            if sums[f"either/{a}/{b}"]:
                logs[f"selection/{a}_{b}_overlap"] = sums[f"both/{a}/{b}"] / sums[f"either/{a}/{b}"]
    return logs
