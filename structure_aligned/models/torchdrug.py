"""Reading GearNet state dicts written by torchdrug: safely, and refusing what is not one of them with the reason."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from structure_aligned.structure.graph import NODE_FEATURE_DIM, edge_feature_dim, num_relations

from .weights import check_tensors, read_tensors, some_names


_RELATIONS = num_relations()


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """A bare dict of named tensors from `.safetensors`, or from a torch file of which only tensors are unpickled."""
    state = read_tensors(path, "a bare state dict of named tensors, as the authors of GearNet publish it")
    others = sorted(str(name) for name, value in state.items() if not isinstance(value, torch.Tensor))
    if others:
        raise ValueError(
            f"{path} is not a bare state dict: {some_names(others)} are no tensors. If it is a training checkpoint, "
            "save the state dict of the model in it under its own name and load that."
        )
    return dict(state)


def settings_from_state_dict(state: Mapping[str, torch.Tensor], path: str | Path) -> dict[str, Any]:
    """
    The fields of `GearNetConfig` that the names and shapes of a state dict determine.

    Raises:
        ValueError: They are not those of a GearNet or GearNet-Edge over the seven relations of a residue graph.
    """
    if foreign := [name for name in state if "ieconv" in name.lower()]:
        raise ValueError(
            f"{path} is of the IEConv family ({some_names(foreign)}), another network. "
            "Expected a GearNet or GearNet-Edge, such as mc_gearnet.pth or mc_gearnet_edge.pth."
        )
    prefixes = sorted({name[: match.start()] for name in state if (match := re.search(r"\blayers\.\d+\.", name))})
    if prefixes and "" not in prefixes:
        raise ValueError(
            f"The names in {path} begin with {prefixes[0]!r}; expected a bare state dict, such as "
            f"'layers.0.linear.weight'. Take that prefix off and drop what does not carry it."
        )
    count = _count(state, "layers")
    if not count:
        raise ValueError(f"{path} has no layers.0.linear.weight but {some_names(list(state))}; it is no GearNet.")
    shapes = {}
    for family, length in (("layers", count), ("edge_layers", _count(state, "edge_layers"))):
        for index in range(length):
            for part in ("self_loop", "linear"):
                name = f"{family}.{index}.{part}.weight"
                if name not in state:
                    raise ValueError(
                        f"{path} has no {name}. Expected self_loop and linear weights in every layer of a GearNet; "
                        "without self_loop it is of the IEConv or another family, which cannot be loaded."
                    )
                if state[name].ndim != 2:
                    raise ValueError(f"{name} in {path} has shape {tuple(state[name].shape)}; expected a matrix.")
                shapes[family, index, part] = tuple(state[name].shape)

    input_dim = shapes["layers", 0, "self_loop"][1]
    if input_dim != NODE_FEATURE_DIM:
        raise ValueError(
            f"{path} takes node features of width {input_dim}; expected {NODE_FEATURE_DIM}, a one-hot of the residue "
            "type. Networks over atoms or other features cannot be loaded."
        )
    relations = _ratio(shapes, "layers", 0, path)
    if relations != _RELATIONS:
        raise ValueError(
            f"{path} has {relations} relations; expected {_RELATIONS}: sequential −2 … 2, spatial, nearest neighbours."
        )
    settings: dict[str, Any] = {
        "hidden_dims": [shapes["layers", index, "linear"][0] for index in range(count)],
        "num_angle_bin": None,
    }
    if ("edge_layers", 0, "linear") in shapes:
        edge_dim = shapes["edge_layers", 0, "self_loop"][1]
        if edge_dim != edge_feature_dim(_RELATIONS):
            raise ValueError(
                f"{path} takes edge features of width {edge_dim}; expected {edge_feature_dim(_RELATIONS)}: residue "
                "types of both ends, relation, sequence separation and distance."
            )
        settings["num_angle_bin"] = _ratio(shapes, "edge_layers", 0, path)
    return settings


def check_state_dict(
    state: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]], path: str | Path
) -> None:
    """Raises `ValueError` unless names and shapes are exactly those expected."""
    expected = "the complete state dict of one GearNet or GearNet-Edge with batch normalisation"
    check_tensors(state, shapes, path, "the GearNet that its first layers describe", expected)


def _count(state: Mapping[str, torch.Tensor], family: str) -> int:
    found = [re.match(rf"{family}\.(\d+)\.", name) for name in state]
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _ratio(shapes: Mapping[tuple[str, int, str], tuple[int, ...]], family: str, index: int, path: str | Path) -> int:
    """How many relations the input of `linear` is made of."""
    width, own = shapes[family, index, "linear"][1], shapes[family, index, "self_loop"][1]
    if own == 0 or width % own:
        raise ValueError(
            f"{family}.{index} in {path} takes {own} features per node and {width} summed ones; expected a multiple, "
            "one share for each relation."
        )
    return width // own
