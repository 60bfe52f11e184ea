"""Configurations of the networks that are not in Transformers."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from structure_aligned.structure.graph import edge_feature_dim, num_relations


EMBEDDING_LAYERS = ("last", "all")


@strict
class GearNetConfig(PreTrainedConfig):
    """
    Configuration of `GearNetModel`. The defaults are the published GearNet-Edge (Zhang et al., arXiv:2203.06125).

    Args:
        hidden_dims (`list[int]`, *optional*, defaults to six times 512): Width of each layer.
        num_angle_bin (`int`, *optional*, defaults to 8): Angle bins of the line graph; `None` leaves the messages
            between edges out (GearNet instead of GearNet-Edge).
        short_cut (`bool`, *optional*, defaults to `True`): Residual connections between layers of equal width.
        embedding_layers (`str`, *optional*, defaults to `"last"`): What `embed` and `embed_batch` return, the `"last"`
            layer or `"all"` of them side by side. No weight depends on it.
        radius (`float`, *optional*, defaults to 10.0): Reach of the spatial edges in Å.
        num_neighbors (`int`, *optional*, defaults to 10): Nearest neighbours of each residue.
        min_distance (`int`, *optional*, defaults to 5): Least sequence separation of those two kinds of edges.
        max_sequential_distance (`int`, *optional*, defaults to 2): Reach of the sequential edges; the number of
            relations follows from it.
    """

    model_type = "gearnet"

    hidden_dims: list[int] | tuple[int, ...] = (512,) * 6
    num_angle_bin: int | None = 8
    short_cut: bool = True
    embedding_layers: str = "last"
    radius: float | int = 10.0
    num_neighbors: int = 10
    min_distance: int = 5
    max_sequential_distance: int = 2

    def __post_init__(self, **kwargs: Any) -> None:
        self.hidden_dims = list(self.hidden_dims)
        if not self.hidden_dims or min(self.hidden_dims) < 1:
            raise ValueError(f"hidden_dims is {self.hidden_dims}; expected the width of at least one layer.")
        if self.num_angle_bin is not None and self.num_angle_bin < 1:
            raise ValueError(
                f"num_angle_bin is {self.num_angle_bin}; expected at least 1, or None for a GearNet without messages "
                "between edges."
            )
        if self.embedding_layers not in EMBEDDING_LAYERS:
            raise ValueError(f"embedding_layers is {self.embedding_layers!r}; expected one of {EMBEDDING_LAYERS}.")
        super().__post_init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """Width of the last layer."""
        return self.hidden_dims[-1]

    @property
    def num_relation(self) -> int:
        """Relations of the residue graph."""
        return num_relations(self.max_sequential_distance)

    @property
    def edge_input_dim(self) -> int:
        """Width of the edge feature."""
        return edge_feature_dim(self.num_relation)

    @property
    def graph_options(self) -> dict[str, float | int]:
        """Keyword arguments of `residue_graph` that this configuration stands for."""
        return {
            "radius": self.radius,
            "k": self.num_neighbors,
            "min_distance": self.min_distance,
            "max_sequential_distance": self.max_sequential_distance,
        }
