"""Sequence trunks: configuration and tokenizer of a family by its name, and the trunk in a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import EsmModel, PreTrainedConfig, PreTrainedTokenizerBase

from .amplify import AmplifyModel
from .amplify_tokenizer import amplify_tokenizer
from .configuration import AmplifyConfig
from .digest import digest_of_tensors
from .esm2 import esm2_config, esm2_tokenizer


_FAMILIES: dict[str, tuple[Callable[..., PreTrainedConfig], Callable[[], PreTrainedTokenizerBase]]] = {
    "esm": (esm2_config, esm2_tokenizer),
    "AMPLIFY": (AmplifyConfig, amplify_tokenizer),
}


_HEADS = ("alignment", "contact_head", "decoder", "layer_norm_2", "pooler")
"""Parts of what `trunk_of` gives that neither attentions nor the last hidden state go through."""


def fresh_trunk(
    model_type: str, num_hidden_layers: int, hidden_size: int, num_attention_heads: int, **options: Any
) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """
    Configuration and tokenizer for a model without pre-trained weights, as in
    `AutoModelForStructureAlignment.from_config(config)`.

    Args:
        model_type (`str`): `"esm"` (ESM2) or `"AMPLIFY"`, in any case.
        options (`Any`): Further fields of the family's configuration, such as
            `structure_alignment={"structure_dim": 512}`.
    """
    config, tokenizer = _family(model_type)
    sizes = {
        "num_hidden_layers": num_hidden_layers,
        "hidden_size": hidden_size,
        "num_attention_heads": num_attention_heads,
    }
    return config(**sizes, **options), tokenizer()


def tokenizer_of(config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """
    The tokenizer of a model's family, which all of its checkpoints share.

    Raises:
        ValueError: The model has another vocabulary; load the tokenizer that was saved with it.
    """
    tokenizer = _family(config.model_type)[1]()
    if len(tokenizer) != config.vocab_size:
        raise ValueError(
            f"The model has {config.vocab_size} tokens and the tokenizer of {config.model_type!r} {len(tokenizer)}; "
            "give the tokenizer that was saved with the model."
        )
    return tokenizer


def trunk_of(model: nn.Module) -> EsmModel | AmplifyModel:
    """
    The ESM2 or AMPLIFY in a model, whatever heads, adapters (PEFT) or wrappers it has; for AMPLIFY, whose trunk is no
    module of its own, with its heads.

    Raises:
        ValueError: There is none.
    """
    for module in model.modules():
        if isinstance(module, (EsmModel, AmplifyModel)):
            return module
    raise ValueError(f"{type(model).__name__} holds neither an ESM2 nor an AMPLIFY, the families that are known here.")


def trunk_digest(model: nn.Module) -> str:
    """
    SHA-256 over the weights that the attentions and the last hidden state of a protein language model depend on.

    It is the same whatever heads the trunk is loaded with, and in float32 as in bfloat16: weights are rounded to
    bfloat16 first. So it says whether a head was fitted on this trunk, not whether outputs are equal to the last bit.
    """
    trunk = trunk_of(model)
    weights = ((name, tensor) for name, tensor in trunk.named_parameters() if name.split(".")[0] not in _HEADS)
    return digest_of_tensors(weights, {"model_type": trunk.config.model_type}, torch.bfloat16)


def _family(model_type: str) -> tuple[Callable[..., PreTrainedConfig], Callable[[], PreTrainedTokenizerBase]]:
    by_name = {name.lower(): family for name, family in _FAMILIES.items()}
    if model_type.lower() not in by_name:
        raise ValueError(f"model_type is {model_type!r}; expected one of {', '.join(_FAMILIES)}.")
    return by_name[model_type.lower()]
