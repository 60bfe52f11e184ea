"""Configurations of the networks that are not in Transformers."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from structure_aligned.structure.graph import edge_feature_dim, num_relations


EMBEDDING_LAYERS = ("last", "all")
AMPLIFY_ACTIVATIONS = ("swiglu", "relu", "gelu")
BEYOND_MAX_LENGTH = ("error", "extend")


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
        use_residue_types (`bool`, *optional*, defaults to `True`): Without, every residue counts as unknown, and
            embeddings are of the geometry alone.
        radius (`float`, *optional*, defaults to 10.0): Reach of the spatial edges in Å.
        num_neighbors (`int`, *optional*, defaults to 10): Nearest neighbours of each residue.
        min_distance (`int`, *optional*, defaults to 5): Least sequence separation of those two kinds of edges.
        max_sequential_distance (`int`, *optional*, defaults to 2): Reach of the sequential edges; the number of
            relations follows from it.
        output_hidden_states (`bool`, *optional*, defaults to `True`): Whether `forward` returns every layer.
    """

    model_type = "gearnet"

    hidden_dims: list[int] | tuple[int, ...] = (512,) * 6
    num_angle_bin: int | None = 8
    short_cut: bool = True
    embedding_layers: str = "last"
    use_residue_types: bool = True
    radius: float | int = 10.0
    num_neighbors: int = 10
    min_distance: int = 5
    max_sequential_distance: int = 2
    output_hidden_states: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        self.hidden_dims = list(self.hidden_dims)
        if not self.hidden_dims or not all(isinstance(width, int) and width > 0 for width in self.hidden_dims):
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


@strict
class AmplifyConfig(PreTrainedConfig):
    """
    Configuration of the AMPLIFY models, with the fields of the published checkpoints (`chandar-lab/AMPLIFY_120M`,
    `AMPLIFY_350M`, `SaAMPLIFY_*`; Fournier et al., doi:10.1101/2024.09.23.614603). The defaults are those of 120M.

    Args:
        vocab_size (`int`, *optional*, defaults to 27): Tokens.
        hidden_size, num_hidden_layers, num_attention_heads (`int`, *optional*, default to 640, 24 and 10): Sizes.
        intermediate_size (`int`, *optional*): Width of the feed-forward network, `4 · hidden_size` by default. SwiGLU
            has two thirds of it, rounded up to a multiple of 8, so that its parameters are as many.
        hidden_act (`str`, *optional*, defaults to `"SwiGLU"`): `"SwiGLU"`, `"ReLU"` or `"GELU"`.
        dropout_prob (`float`, *optional*, defaults to 0): Of attention weights and residual branches.
        embedding_init_range, decoder_init_range (`float`, *optional*, default to 0.02): Fresh embeddings and matrices
            are uniform within ± this.
        rms_norm (`bool`, *optional*, defaults to `True`): RMSNorm instead of LayerNorm.
        norm_eps (`float`, *optional*, defaults to 1e-5): Inside the root of either.
        layer_norm_after_embedding, layer_norm_before_last_layer (`bool`, *optional*, default to `False` and `True`):
            Normalisations after the embedding and before the decoder.
        ffn_bias, att_bias (`bool`, *optional*, default to `False`): Biases of the feed-forward and attention matrices.
        max_length (`int`, *optional*, defaults to 2048): Positions that the checkpoint was trained on, special tokens
            included.
        beyond_max_length (`str`, *optional*, defaults to `"error"`): What longer inputs do. `"extend"` goes on with
            rotary positions that the model has not seen in training.
        rope_theta (`float`, *optional*, defaults to 10000): Base of the rotary frequencies.
    """

    model_type = "AMPLIFY"

    vocab_size: int = 27
    hidden_size: int = 640
    num_hidden_layers: int = 24
    num_attention_heads: int = 10
    intermediate_size: int | None = None
    hidden_act: str = "SwiGLU"
    dropout_prob: float | int = 0.0
    embedding_init_range: float | int = 0.02
    decoder_init_range: float | int = 0.02
    rms_norm: bool = True
    norm_eps: float | int = 1e-5
    layer_norm_after_embedding: bool = False
    layer_norm_before_last_layer: bool = True
    ffn_bias: bool = False
    att_bias: bool = False
    max_length: int = 2048
    beyond_max_length: str = "error"
    rope_theta: float | int = 10_000.0
    pad_token_id: int | None = 0
    unk_token_id: int | None = 1
    mask_token_id: int | None = 2
    bos_token_id: int | None = 3
    eos_token_id: int | list[int] | None = 4
    vocab_path: str | None = None
    other_special_token_ids: list[int] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        if self.hidden_size % self.num_attention_heads or self.head_dim % 2:
            raise ValueError(
                f"hidden_size {self.hidden_size} over {self.num_attention_heads} heads gives no even head width, "
                "which rotary positions need; change one of them."
            )
        if self.hidden_act.lower() not in AMPLIFY_ACTIVATIONS:
            raise ValueError(f"hidden_act is {self.hidden_act!r}; expected one of {AMPLIFY_ACTIVATIONS}.")
        if self.beyond_max_length not in BEYOND_MAX_LENGTH:
            raise ValueError(f"beyond_max_length is {self.beyond_max_length!r}; expected one of {BEYOND_MAX_LENGTH}.")
        # It names the remote code that lies beside published weights. Saved again it would point to files that are
        # not there, and this package needs none.
        kwargs.pop("auto_map", None)
        super().__post_init__(**kwargs)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def ffn_dim(self) -> int:
        """Inner width of the feed-forward network as it is built."""
        if self.hidden_act.lower() != "swiglu":
            return self.intermediate_size
        return -(-int(2 * self.intermediate_size / 3) // 8) * 8


@strict
class ProteinMPNNConfig(PreTrainedConfig):
    """
    Configuration of `ProteinMPNNEncoder`. The defaults are the released `v_48_*` networks (Dauparas et al.,
    doi:10.1126/science.add2187).

    Args:
        hidden_size (`int`, *optional*, defaults to 128): Width of residues and edges.
        num_encoder_layers (`int`, *optional*, defaults to 3): Message-passing layers.
        num_neighbors (`int`, *optional*, defaults to 48): Nearest residues by CA distance, the residue itself among
            them; the checkpoint's `num_edges`.
        num_rbf (`int`, *optional*, defaults to 16): Radial basis functions per pair of atoms.
        num_positional_embeddings (`int`, *optional*, defaults to 16): Width of the relative position.
        max_relative_position (`int`, *optional*, defaults to 32): Larger sequence separations count as this one.
        message_scale (`float`, *optional*, defaults to 30.0): Sums over neighbours are divided by it.
        dropout (`float`, *optional*, defaults to 0.1): In training mode; embedding never drops.
    """

    model_type = "protein_mpnn"

    hidden_size: int = 128
    num_encoder_layers: int = 3
    num_neighbors: int = 48
    num_rbf: int = 16
    num_positional_embeddings: int = 16
    max_relative_position: int = 32
    message_scale: float | int = 30.0
    dropout: float | int = 0.1

    def __post_init__(self, **kwargs: Any) -> None:
        names = ("hidden_size", "num_encoder_layers", "num_neighbors", "num_rbf", "num_positional_embeddings")
        for name in (*names, "max_relative_position"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")
        super().__post_init__(**kwargs)


for _config_class in (GearNetConfig, AmplifyConfig, ProteinMPNNConfig):
    AutoConfig.register(_config_class.model_type, _config_class, exist_ok=True)
