"""Reading other people's weights files: safely, and refusing what is not one with the reason."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file


def read_tensors(path: str | Path, expected: str) -> Mapping[str, Any]:
    """
    The content of a `.safetensors` file, or of a torch file of which only tensors and plain values are unpickled.

    Args:
        path (`str` or `Path`): The file.
        expected (`str`): What the file should be, for the errors.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is cut off or damaged, holds objects that could run code, or is no dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is no file; give the path of the downloaded weights.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        SafetensorError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        OverflowError,
        AssertionError,
    ) as error:
        # What a damaged file raises depends on where it is damaged.
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(
            f"{path} cannot be read as tensors ({reason}). Expected {expected}; if it is one, download it again. "
            "Files with other pickled objects can run code and are never loaded: where the origin is trusted, load it "
            "yourself and save model.state_dict() alone."
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected {expected}.")
    return content


def check_tensors(
    state: Mapping[str, torch.Tensor],
    shapes: Mapping[str, Sequence[int]],
    path: str | Path,
    network: str,
    expected: str,
) -> None:
    """
    Raises `ValueError` unless names and shapes are exactly those of the network.

    Args:
        state (`dict[str, torch.Tensor]`): What the file holds.
        shapes (`dict[str, Sequence[int]]`): What the network has.
        network, expected (`str`): What it was taken for, and what the file should be, for the error.
    """
    problems = []
    if missing := sorted(set(shapes) - set(state)):
        problems.append(f"missing are {some_names(missing)}")
    if unexpected := sorted(set(state) - set(shapes)):
        problems.append(f"not part of it are {some_names(unexpected)}")
    wrong = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(shape)}"
        for name, shape in shapes.items()
        if name in state and tuple(state[name].shape) != tuple(shape)
    ]
    if wrong:
        problems.append(f"of another shape are {some_names(wrong)}")
    if problems:
        raise ValueError(f"{path} does not fit {network}: {'; '.join(problems)}. Expected {expected}.")


def some_names(names: list[str]) -> str:
    """The first three of them."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
