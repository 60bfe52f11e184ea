"""Sequence trunks from nothing: configuration and tokenizer of a family by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from .amplify_tokenizer import amplify_tokenizer
from .configuration import AmplifyConfig
from .esm2 import esm2_config, esm2_tokenizer


_FAMILIES: dict[str, tuple[Callable[..., PreTrainedConfig], Callable[[], PreTrainedTokenizerBase]]] = {
    "esm": (esm2_config, esm2_tokenizer),
    "AMPLIFY": (AmplifyConfig, amplify_tokenizer),
}


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


def _family(model_type: str) -> tuple[Callable[..., PreTrainedConfig], Callable[[], PreTrainedTokenizerBase]]:
    by_name = {name.lower(): family for name, family in _FAMILIES.items()}
    if model_type.lower() not in by_name:
        raise ValueError(f"model_type is {model_type!r}; expected one of {', '.join(_FAMILIES)}.")
    return by_name[model_type.lower()]
