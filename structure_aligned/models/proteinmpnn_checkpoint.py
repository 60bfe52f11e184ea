"""Reading ProteinMPNN's checkpoints: safely, the encoder alone, and refusing what is not one with the reason."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from structure_aligned.structure.backbone_graph import ATOM_PAIRS

from .weights import check_tensors, read_tensors, some_names


_NOT_ENCODER = ("decoder_layers.", "W_s.", "W_out.")
_CA_ONLY_PAIRS, _CA_ONLY_FRAME = 9, 7  # distances among three CA each, and how the two frames are turned
_RELEASED = "a checkpoint of ProteinMPNN such as vanilla_model_weights/v_48_020.pt"


def read_checkpoint(path: str | Path) -> tuple[dict[str, torch.Tensor], int | None]:
    """
    The encoder's tensors and the number of neighbours, `None` where the file does not say.

    Args:
        path (`str` or `Path`): As released (a torch file with `model_state_dict` and `num_edges`), or a bare state
            dict, torch or `.safetensors`. Nothing but tensors and plain values is unpickled. What belongs to the
            decoder and to the sequence is left out.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is cut off, holds objects that could run code, or is no state dict.
    """
    content = read_tensors(path, f"{_RELEASED}, or a bare state dict")
    neighbors = None
    state = content
    if "model_state_dict" in content:
        state, neighbors = content["model_state_dict"], content.get("num_edges")
        if not isinstance(state, Mapping):
            raise ValueError(f"model_state_dict in {path} is a {type(state).__name__}; expected named tensors.")
        if neighbors is not None and (type(neighbors) is not int or neighbors < 1):
            raise ValueError(
                f"num_edges in {path} is {neighbors!r}; expected the number of neighbours, 48 as released."
            )
    others = sorted(str(name) for name, value in state.items() if not isinstance(value, torch.Tensor))
    if others:
        raise ValueError(f"{some_names(others)} in {path} are no tensors; expected {_RELEASED}, or a bare state dict.")
    state = {str(name): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in state.items() if not name.startswith(_NOT_ENCODER)}, neighbors


def settings_from_encoder(state: Mapping[str, torch.Tensor], path: str | Path) -> dict[str, Any]:
    """
    The fields of `ProteinMPNNConfig` that the names and shapes of the encoder's tensors determine.

    Raises:
        ValueError: They are not those of an encoder over N, CA, C, O and a virtual CB.
    """
    prefixes = sorted({name[: match.start()] for name in state if (match := re.search(r"\bencoder_layers\.", name))})
    if prefixes and "" not in prefixes:
        raise ValueError(
            f"The names in {path} begin with {prefixes[0]!r}; expected such as 'encoder_layers.0.W1.weight'. Take "
            "that prefix off and drop what does not carry it."
        )
    shapes = {}
    for name in ("features.edge_embedding.weight", "features.embeddings.linear.weight"):
        if name not in state:
            raise ValueError(f"{path} has no {name} but {some_names(list(state)) or 'nothing'}; expected {_RELEASED}.")
        if state[name].ndim != 2:
            raise ValueError(f"{name} in {path} has shape {tuple(state[name].shape)}; expected a matrix.")
        shapes[name] = tuple(state[name].shape)
    (width, inputs), (positional, classes) = shapes.values()
    basis = inputs - positional
    ca_only = basis > _CA_ONLY_FRAME and (basis - _CA_ONLY_FRAME) % _CA_ONLY_PAIRS == 0 and basis % len(ATOM_PAIRS)
    if "features.node_embedding.weight" in state or ca_only:
        raise ValueError(
            f"{path} is a CA-only ProteinMPNN (edge features of width {inputs}); expected one over the whole backbone "
            f"(width {positional + 16 * len(ATOM_PAIRS)} as released). Take the file of the same name from "
            "vanilla_model_weights or soluble_model_weights."
        )
    if basis < len(ATOM_PAIRS) or basis % len(ATOM_PAIRS):
        raise ValueError(
            f"{path} takes edge features of width {inputs}, {positional} of them for the position; expected a "
            f"multiple of {len(ATOM_PAIRS)} atom pairs besides."
        )
    if classes < 4 or classes % 2:
        raise ValueError(
            f"{path} tells {classes} relative positions apart; expected an even number, 66 as released: −32 … 32 and "
            "another chain."
        )
    found = [re.match(r"encoder_layers\.(\d{1,4})\.", name) for name in state]
    layers = max((int(match[1]) + 1 for match in found if match), default=0)
    if not layers or layers > len(state):
        raise ValueError(
            f"{path} has no complete encoder layers, such as encoder_layers.0.W1.weight; expected {_RELEASED}."
        )
    return {
        "hidden_size": width,
        "num_encoder_layers": layers,
        "num_rbf": basis // len(ATOM_PAIRS),
        "num_positional_embeddings": positional,
        "max_relative_position": classes // 2 - 1,
    }


def check_encoder(state: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]], path: str | Path) -> None:
    """Raises `ValueError` unless names and shapes are exactly those expected."""
    check_tensors(state, shapes, path, "the encoder that its features describe", _RELEASED)
