"""Language models by the name of a checkpoint, for whoever uses one: whole, finite, and with its adapters."""

from __future__ import annotations

import os

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..models.alignment import AutoModelForStructureAlignment
from ..models.folders import holds_adapters
from ..models.trunks import tokenizer_of
from ..models.weights import LM_HEADS, UNUSED_WEIGHTS, load_auto, load_whole


def load_language_model(
    name: str | os.PathLike, dtype: torch.dtype | str = "auto", *, lm_head: bool = True
) -> PreTrainedModel:
    """
    What `AutoModelForMaskedLM` loads, refused where weights that are used would be random or are not finite. Of a
    folder of adapters (LoRA) the alignment model that they adapt, with the adapters merged.

    Args:
        name (`str` or `os.PathLike`): Name or folder of an ESM2 or AMPLIFY, aligned or not, or folder of adapters.
        dtype (`torch.dtype` or `str`, *optional*, defaults to `"auto"`): Data type, by default the stored one.
        lm_head (`bool`, *optional*, defaults to `True`): Whether the masked-LM head is used. Embeddings need none.

    Raises:
        ValueError: See [`check_loaded`].
        OSError: There is no such checkpoint.
    """
    if holds_adapters(name):
        return load_aligned_model(name, dtype)
    may_be_fresh = UNUSED_WEIGHTS if lm_head else (*UNUSED_WEIGHTS, *LM_HEADS)
    return load_whole(AutoModelForMaskedLM, name, may_be_fresh, dtype=dtype)


def load_aligned_model(name: str | os.PathLike, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    """What `AutoModelForStructureAlignment` loads; of a folder of adapters (LoRA) with the adapters merged."""
    if not holds_adapters(name):
        return AutoModelForStructureAlignment.from_pretrained(name, dtype=dtype)
    from .adapters import load_adapters  # imports PEFT, which nothing else here needs

    return load_adapters(None, name, dtype=dtype).merge_and_unload().requires_grad_(True).eval()


def load_tokenizer(name: str | os.PathLike, model: PreTrainedModel | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint; where it was saved without one and there is a model, that of its family."""
    try:
        return load_auto(AutoTokenizer, name)
    except (OSError, ValueError, TypeError):
        if model is None:
            raise
        return tokenizer_of(model.config)
