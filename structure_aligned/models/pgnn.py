"""Loading a protein graph neural network by path, whatever wrote it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from .gearnet import GearNetModel


def load_pgnn(
    path: str | os.PathLike, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> GearNetModel:
    """
    A frozen pGNN, ready to embed.

    Args:
        path (`str` or `os.PathLike`): A folder written by `save_pretrained`, or a weights file of torchdrug such as
            `mc_gearnet_edge.pth`.
        device, dtype: Where and in which precision it computes.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(
            f"There is no pGNN at {path}. Give a folder written by GearNetModel.save_pretrained, or a weights file as "
            "published by the GearNet authors (mc_gearnet_edge.pth, Zenodo record 7593637)."
        )
    pgnn = GearNetModel.from_pretrained(path) if path.is_dir() else GearNetModel.from_torchdrug(path)
    return pgnn.eval().requires_grad_(False).to(device=device, dtype=dtype)
