"""Reading weights: safely, whole and finite, and refusing what is not, with the reason and the name of the file."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from .modes import without_load_report


UNUSED_WEIGHTS = ("contact_head", "pooler", "position_ids", "inv_freq", "num_batches_tracked")
"""Parts of the names of weights that may be missing: nothing that this package computes reads them from a model."""

LM_HEADS = ("lm_head", "decoder", "layer_norm_2")
"""Parts of the names of masked-LM heads, which embeddings do not go through."""

ALIGNMENT_HEADS = "alignment"

_BAD_TEXT = (json.JSONDecodeError, UnicodeDecodeError)

_DAMAGED = (
    SafetensorError,
    pickle.UnpicklingError,
    EOFError,
    RuntimeError,
    KeyError,
    ZeroDivisionError,
    StrictDataclassError,
)
"""What loading raises where a configuration or weights do not hold what they should."""

_UNREADABLE = (
    pickle.UnpicklingError,
    SafetensorError,
    RuntimeError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    AssertionError,
)
"""What a damaged file raises depends on where it is damaged."""


class WholeWeights:
    """
    Lets `from_pretrained` of a model class refuse weights by the rule of [`check_loaded`]; to be named before
    [`PreTrainedModel`] among the base classes.

    With `output_loading_info=True` the caller gets the lists of what is missing instead, and judges them.
    """

    _may_be_fresh: tuple[str, ...] = UNUSED_WEIGHTS

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *args: Any,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As in Transformers, and a `ValueError` where weights are missing, of another shape, or not finite."""
        name = pretrained_model_name_or_path
        if name is None:  # no checkpoint, but a `state_dict` of the caller's own
            return super().from_pretrained(
                name,
                *args,
                output_loading_info=output_loading_info,
                ignore_mismatched_sizes=ignore_mismatched_sizes,
                **kwargs,
            )
        # The shapes are ours to refuse: Transformers' error does not name the tensors.
        kwargs["ignore_mismatched_sizes"] = ignore_mismatched_sizes or not output_loading_info
        with readable(name):
            model, info = super().from_pretrained(name, *args, output_loading_info=True, **kwargs)
        if output_loading_info:
            return model, info
        check_loaded(model, info, name, cls._may_be_fresh, ignore_mismatched_sizes)
        return model


def load_auto(auto_class: Any, name: str | os.PathLike, **options: Any) -> Any:
    """
    `auto_class.from_pretrained(name)` of an Auto class of Transformers. Code that comes with a checkpoint is never
    run, and nobody is asked whether to run it.

    Raises:
        ValueError: Only its own code could load it, or its files are damaged.
        OSError: There is no such checkpoint.
    """
    try:
        with readable(name):
            return auto_class.from_pretrained(name, trust_remote_code=False, **options)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{name} can only be loaded by code that comes with it, which is never run here. Give a checkpoint of "
            "ESM2 or AMPLIFY, or a pGNN that this package has saved."
        ) from None


def load_whole(
    auto_class: Any, name: str | os.PathLike, may_be_fresh: Collection[str] = UNUSED_WEIGHTS, **options: Any
) -> Any:
    """
    A model as [`load_auto`] gives it, checked by [`check_loaded`].

    Args:
        may_be_fresh (`Collection[str]`, *optional*): Parts of the names of weights that what follows does not read:
            with [`LM_HEADS`] for embeddings.
    """
    with without_load_report():
        model, info = load_auto(auto_class, name, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    check_loaded(model, info, name, may_be_fresh)
    return model


@contextmanager
def readable(name: Any) -> Iterator[None]:
    """What damaged files raise becomes a `ValueError` that names them."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (*_DAMAGED, *_BAD_TEXT) as error:
        if torch.get_default_device().type == "meta":
            raise  # Transformers refuses to load anything there, which is not the fault of a file
        reason = " ".join(str(error).strip().split("\n")[:2]) or type(error).__name__
        raise ValueError(
            f"The weights of {name} cannot be loaded ({reason}). Expected a complete checkpoint, as save_pretrained "
            "writes it; download or copy it again."
        ) from error
    except ValueError as error:
        if str(name) in str(error):
            raise
        raise ValueError(f"{name} cannot be loaded: {error}") from error


def check_loaded(
    model: nn.Module,
    info: Mapping[str, Any],
    name: Any,
    may_be_fresh: Collection[str] = UNUSED_WEIGHTS,
    ignore_mismatched_sizes: bool = False,
) -> None:
    """
    The rule for every model that is loaded: what is used is in the checkpoint, with the right shape, and finite.

    Args:
        model (`nn.Module`): As loaded.
        info (`Mapping`): What `from_pretrained(..., output_loading_info=True)` gave with it.
        name (`str`): The checkpoint, for the error.
        may_be_fresh (`Collection[str]`): Parts of the names of weights that may be missing. Of the alignment heads
            all may be, or none, and none of those that were trained with the pGNN that the configuration names.
        ignore_mismatched_sizes (`bool`, *optional*, defaults to `False`): Weights of another shape may be fresh where
            missing ones may.

    Raises:
        ValueError: Weights would be random, are left over although they belong to the same kind of layer, or are not
            finite.
    """
    # A layer beyond those of the configuration: without it the model is another one.
    layers = {re.sub(r"\d+", "#", key) for key, _ in model.named_parameters() if re.search(r"\d", key)}
    if beyond := sorted(key for key in info["unexpected_keys"] if re.sub(r"\d+", "#", key) in layers):
        raise ValueError(
            f"{name} has {len(beyond)} weights of layers that its configuration does not have, such as "
            f"{some_names(beyond)}; give a checkpoint whose config.json belongs to its weights."
        )
    mismatched = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    absent = set(info["missing_keys"]) | mismatched
    lacking = {key for key in absent if not set(key.split(".")) & set(may_be_fresh)}
    if not ignore_mismatched_sizes:
        lacking |= mismatched
    heads = {key for key, _ in model.named_parameters() if key.split(".")[0] == ALIGNMENT_HEADS}
    missing_heads = heads & set(info["missing_keys"])
    if missing_heads and (missing_heads != heads or model.config.structure_alignment.get("pgnn") is not None):
        lacking |= missing_heads
    if lacking:
        kind = "has other shapes for" if lacking <= mismatched else "lacks"
        raise ValueError(
            f"{name} {kind} {len(lacking)} of the weights that are needed, such as {some_names(sorted(lacking))}; "
            "they would be random. Give a complete checkpoint whose config.json belongs to its weights."
        )
    check_finite(chain(model.named_parameters(), model.named_buffers()), name, may_be_fresh)


def check_finite(
    tensors: Iterable[tuple[str, torch.Tensor]], name: Any, unused: Collection[str] = UNUSED_WEIGHTS
) -> None:
    """Raises `ValueError` for the first tensor that holds NaN or infinity, but for `unused` parts of names."""
    for key, tensor in tensors:
        if not set(key.split(".")) & set(unused) and not is_finite(tensor):
            raise ValueError(
                f"{key} in {name} holds NaN or infinity, so that its outputs would too (was its training stopped by "
                "diverging?). Give another checkpoint."
            )


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all that this process holds of a tensor is finite; whole numbers, as in packed 4-bit weights, are."""
    tensor = tensor.detach()
    tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    if tensor.is_meta or not tensor.is_floating_point():
        return True
    # Of 8 bits and less torch cannot tell.
    return bool(torch.isfinite(tensor.half() if tensor.element_size() == 1 else tensor).all())


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
    except (*_UNREADABLE, OSError, ValueError) as error:
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
    Raises `ValueError` unless names and shapes are exactly those of the network, and all numbers are finite.

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
    whole = [name for name in shapes if name in state and not _may_hold(name, state[name])]
    if whole:
        problems.append(f"of no floating-point type are {some_names(whole)}")
    if problems:
        raise ValueError(f"{path} does not fit {network}: {'; '.join(problems)}. Expected {expected}.")
    check_finite(state.items(), path, ())


def _may_hold(name: str, tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or name.endswith("num_batches_tracked")


def some_names(names: list[str]) -> str:
    """The first three of them."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
