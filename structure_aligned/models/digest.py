"""Digest of what a network's outputs depend on: part of the keys under which they are cached."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn


def digest_of(model: nn.Module, fields: Mapping[str, Any]) -> str:
    """
    SHA-256 over configuration fields and weights as they are stored, so that bfloat16 has another digest than float32.

    Args:
        model (`nn.Module`): All of its state counts, except how many batches a normalisation has seen.
        fields (`dict`): What else the outputs depend on; must be JSON.
    """
    state = model.state_dict().items()
    # num_batches_tracked counts training steps; no output depends on it
    kept = ((name, tensor) for name, tensor in state if not name.endswith("num_batches_tracked"))
    return digest_of_tensors(kept, fields)


def digest_of_tensors(
    tensors: Iterable[tuple[str, torch.Tensor]], fields: Mapping[str, Any], dtype: torch.dtype | None = None
) -> str:
    """SHA-256 over fields and named tensors, as they are or rounded to `dtype`, in whatever order these come."""
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        tensor = tensor if dtype is None else tensor.to(dtype)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
