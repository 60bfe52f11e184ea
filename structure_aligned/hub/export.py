"""Trunks without heads, in the layout that their family's users load."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..models.alignment import AutoModelForStructureAlignment
from ..models.folders import holds_adapters, tokenizer_beside, whole_folder
from ..utils.files import read_json, write_json


ARCHITECTURES = {"esm": "EsmForMaskedLM", "AMPLIFY": "AMPLIFY"}
"""By model type, what the published configurations call the class."""

_TIED = "lm_head.decoder.weight"
_ROTARY_TABLE = "esm.rotary_embeddings.inv_freq"
_TABLE_OF_LAYER = "esm.encoder.layer.{}.attention.self.rotary_embeddings.inv_freq"

_OWN_FIELDS = {"AMPLIFY": {"beyond_max_length": "error", "rope_theta": 10_000.0}}
"""Fields that the published configurations have not, and the values that they go without saying."""


def export_trunk(
    model_or_folder: PreTrainedModel | str | os.PathLike,
    output: str | os.PathLike,
    *,
    dtype: torch.dtype | str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    base: PreTrainedModel | str | os.PathLike | None = None,
    overwrite: bool = False,
) -> Path:
    """
    Writes the language model of an alignment model, masked-LM head included and alignment heads left out, as a folder
    that takes the place of the published ones.

    An ESM2 becomes what `EsmForMaskedLM` and `AutoModel` of plain Transformers load. An AMPLIFY gets the names and
    fields of the published checkpoints; it is loaded after `import structure_aligned`, or with its authors' code.

    Args:
        model_or_folder (`PreTrainedModel`, `PeftModel`, `str` or `os.PathLike`): An alignment model, or the name or
            folder of one; adapters are merged.
        output (`str` or `os.PathLike`): Folder to write; it appears complete or not at all.
        dtype (`torch.dtype` or `str`, *optional*): Precision of the weights, such as `"bfloat16"`; by default the one
            they have. Rotary tables stay in float32, as published.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): By default the one in the folder, or else its family's.
        base (`PreTrainedModel`, `str` or `os.PathLike`, *optional*): For a folder of adapters, what they adapt.
        overwrite (`bool`, *optional*, defaults to `False`): Replace a model in `output`.

    Returns:
        `Path`: `output`.

    Raises:
        ValueError: `output` is not empty, `dtype` is none of floating point, models of this type have no layout, or
            there is a `base` and no adapters.
    """
    dtype = _dtype_of(dtype)
    source = None if isinstance(model_or_folder, torch.nn.Module) else model_or_folder
    with whole_folder(output, overwrite, source) as folder:  # first, so that a refusal comes before the work
        model = _load(model_or_folder, base)
        _check(model)
        tensors = _plain_tensors(model, dtype)
        # One file where it has less than 50 GB, as Transformers' own.
        save_torch_state_dict(tensors, folder, max_shard_size="50GB")
        _write_config(model, folder, next(iter(tensors.values())).dtype if dtype is None else dtype)
        if tokenizer is None:
            tokenizer = tokenizer_beside(model, source)
        tokenizer.save_pretrained(folder)
    return Path(output)


def _load(model_or_folder: Any, base: Any) -> PreTrainedModel:
    is_model = isinstance(model_or_folder, torch.nn.Module)
    if hasattr(model_or_folder, "peft_config") if is_model else holds_adapters(model_or_folder):
        from ..training.adapters import merge_adapters  # imports PEFT, which nothing else here needs

        return merge_adapters(model_or_folder, base=base)
    if base is not None:
        raise ValueError(f"base is {base!r}, but there are no adapters to put on it; leave it out.")
    if is_model:
        return model_or_folder
    return AutoModelForStructureAlignment.from_pretrained(model_or_folder, dtype="auto")


def _check(model: PreTrainedModel) -> None:
    found = getattr(getattr(model, "config", None), "model_type", None)
    if found not in ARCHITECTURES:
        raise ValueError(
            f"There is no plain layout for a {type(model).__name__} of type {found!r}; expected a model of one of the "
            f"types {', '.join(ARCHITECTURES)}."
        )
    if not hasattr(model, "lm_head" if found == "esm" else "decoder"):
        raise ValueError(
            f"The {type(model).__name__} has no masked-LM head, so it cannot take a published checkpoint's place; "
            "give an alignment model or a masked-LM model."
        )
    if getattr(model, "is_quantized", False):
        raise ValueError("The model is quantised, and its weights are rounded; load it as it is and export that.")


def _plain_tensors(model: PreTrainedModel, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """Under the published names, on the CPU."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("alignment.") or (name == _TIED and model.config.tie_word_embeddings):
            continue
        if name == _ROTARY_TABLE:
            # One for each layer, as in the published files: older versions of Transformers look for them there.
            layers = range(model.config.num_hidden_layers)
            tensors |= {_TABLE_OF_LAYER.format(layer): tensor.cpu().float().clone() for layer in layers}
            continue
        changes = dtype is not None and tensor.is_floating_point() and "rotary_embeddings" not in name
        tensors[name] = tensor.detach().cpu().to(dtype if changes else tensor.dtype).contiguous()
    return tensors


def _write_config(model: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
    model_type = model.config.model_type
    model.config.save_pretrained(folder)
    path = folder / "config.json"
    fields = read_json(path)
    fields.pop("structure_alignment", None)
    for name, value in _OWN_FIELDS.get(model_type, {}).items():
        if fields.get(name) == value:
            del fields[name]
    fields |= {"architectures": [ARCHITECTURES[model_type]], "dtype": str(dtype).removeprefix("torch.")}
    write_json(path, dict(sorted(fields.items())))


def _dtype_of(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if dtype is None:
        return None
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype is {dtype!r}; expected one of floating point, such as float32, bfloat16 or float16.")
    return found
