"""Folders of model files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..utils.files import atomic_file
from .trunks import tokenizer_of
from .weights import load_auto, read_tensors


ADAPTER_CONFIG = "adapter_config.json"
MODEL_FILES = ("config.json", ADAPTER_CONFIG)
"""One of these is in every folder that holds a model."""


@contextmanager
def whole_folder(output: str | Path, overwrite: bool = False, source: str | Path | None = None) -> Iterator[Path]:
    """
    A folder to write to, which gets its name when the block ends, and vanishes when the block raises.

    Args:
        output (`str` or `Path`): The name.
        overwrite (`bool`, *optional*, defaults to `False`): Whether the folder of a model that has this name is
            replaced, with everything in it. It is there until the new one is complete.
        source (`str` or `Path`, *optional*): Where the block reads from.

    Raises:
        ValueError: There is something of this name and `overwrite` is not set; or it holds no model, or `source`.
    """
    output = Path(output).absolute()
    inside = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; give the name of a folder.")
    if inside and not overwrite:
        raise ValueError(
            f"{output} is not empty (it holds {', '.join(inside[:3])}); give a new folder, or replace it with "
            "overwrite=True."
        )
    if inside and not set(MODEL_FILES) & set(inside):
        raise ValueError(
            f"{output} is not empty and holds no model ({' or '.join(MODEL_FILES)}), so it is not overwritten; give a "
            "new folder, or delete it yourself."
        )
    if source is not None and output.resolve() in (Path(source).resolve(), *Path(source).resolve().parents):
        raise ValueError(f"{output} is where {source} is read from, and would be lost; give another folder.")
    output.parent.mkdir(parents=True, exist_ok=True)
    unique = uuid.uuid4().hex
    temporary, replaced = (output.with_name(f".{output.name}.{unique}.{kind}") for kind in ("tmp", "old"))
    temporary.mkdir()
    try:
        yield temporary
        if output.exists():
            output.rename(replaced)
        try:
            temporary.rename(output)
        except OSError:
            if replaced.exists():
                replaced.rename(output)
            raise
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def halve_stored_weights(folder: str | os.PathLike) -> None:
    """
    Rewrites the weights of a saved model in float16: half the bytes, and still a float32 model for whoever loads it,
    because its configuration goes on to say so.

    Raises:
        ValueError: The folder holds no `model.safetensors`, or a weight that float16 does not hold.
    """
    path = Path(folder) / "model.safetensors"
    if not path.is_file():
        raise ValueError(f"{folder} has no {path.name}; save the model there first, in one file.")
    state = read_tensors(path, "the weights of a model")
    halved = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    if beyond := [
        name for name, tensor in halved.items() if tensor.is_floating_point() and not tensor.isfinite().all()
    ]:
        raise ValueError(f"{path}: {beyond[:3]} have numbers beyond the range of float16; leave them in float32.")
    with atomic_file(path) as file:
        file.write(save(halved, metadata={"format": "pt"}))


def holds_adapters(path: str | os.PathLike) -> bool:
    """Whether a folder holds adapters (PEFT) rather than a whole model."""
    return (Path(path) / ADAPTER_CONFIG).is_file()


def refuse_adapters(path: str | os.PathLike) -> None:
    """Raises `ValueError` for a folder of adapters, where a whole model is expected."""
    if holds_adapters(path):
        raise ValueError(
            f"{path} holds adapters (LoRA) and no whole model. load_adapters(None, folder) gives the model that they "
            "adapt with them; merge_adapters(folder, output), or examples/export.py --with_heads, makes an ordinary "
            "checkpoint of both."
        )


def tokenizer_beside(model: PreTrainedModel, folder: str | os.PathLike | None) -> PreTrainedTokenizerBase:
    """The tokenizer that was saved in a folder; where there is none, that of the model's family."""
    if folder is not None and (Path(folder) / "tokenizer_config.json").is_file():
        return load_auto(AutoTokenizer, folder)
    return tokenizer_of(model.config)
