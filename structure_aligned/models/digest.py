"""Digest of what a network's outputs depend on: part of the keys under which they are cached."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


_NOT_OF_THE_TRUNK = ("alignment", "contact_head", "decoder", "layer_norm_2", "lm_head", "pooler")


def digest_of(model: nn.Module, fields: Mapping[str, Any]) -> str:
    """
    SHA-256 over configuration fields and weights as they are stored, so that bfloat16 has another digest than float32.

    Args:
        model (`nn.Module`): All of its state counts, except how many batches a normalisation has seen.
        fields (`dict`): What else the outputs depend on; must be JSON.
    """
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if name.endswith("num_batches_tracked"):  # counts training steps; no output depends on it
            continue
        _add(digest, name, tensor)
    return digest.hexdigest()


def trunk_digest(model: PreTrainedModel) -> str:
    """
    SHA-256 over the weights that the attentions and the last hidden state of a protein language model depend on.

    It is the same whatever heads the trunk is loaded with, and in float32 as in bfloat16: weights are rounded to
    bfloat16 first. So it says whether a head was fitted on this trunk, not whether outputs are equal to the last bit.
    """
    digest = hashlib.sha256()
    prefix = f"{model.base_model_prefix}."
    for name, tensor in sorted((name.removeprefix(prefix), tensor) for name, tensor in model.named_parameters()):
        if name.split(".")[0] not in _NOT_OF_THE_TRUNK:
            _add(digest, name, tensor.to(torch.bfloat16))
    return digest.hexdigest()


def _add(digest: hashlib._Hash, name: str, tensor: torch.Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
