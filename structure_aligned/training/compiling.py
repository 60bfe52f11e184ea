"""`torch.compile` for what a training step spends its time in: the layers of the language model."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging


logger = logging.get_logger(__name__)


def trunk_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers of a language model: the modules that gradient checkpointing works by."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def compile_trunk(model: PreTrainedModel, backend: str | None = None, mode: str | None = None) -> int:
    """
    Compiles each layer where it is: parameters keep their names, and whoever calls the model runs the compiled code.

    By layer and not as a whole, because equal layers share what is compiled once, and because the heads and losses
    choose residues by masks, whose number a compiled graph would have to be made for.

    Args:
        model (`PreTrainedModel`): Any language model; changed in place.
        backend, mode (`str`, *optional*): Of `torch.compile`.

    Returns:
        `int`: Number of layers.
    """
    layers = trunk_layers(model)
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no GradientCheckpointingLayer, the layers that would be compiled; leave "
            "compile_trunk out."
        )
    for layer in layers:
        # Batches by tokens differ in both sizes: without `dynamic` each would be compiled anew.
        layer.compile(backend=backend or "inductor", mode=mode, dynamic=True)
    logger.info(f"{len(layers)} layers of {type(model).__name__} are compiled in their first pass.")
    return len(layers)
