"""
AMPLIFY: a pre-norm transformer with rotary positions, RMSNorm and SwiGLU, named as its published checkpoints are.

Reference: Fournier et al., *Protein Language Models: Is Scaling Necessary?* (doi:10.1101/2024.09.23.614603).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedModel, initialization
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput, logging

from .configuration import AmplifyConfig


logger = logging.get_logger(__name__)


@dataclass
class AmplifyOutput(ModelOutput):
    """
    Output of `AmplifyModel` and `AmplifyForMaskedLM`. As a tuple it begins with `loss` where there are labels, then
    `logits`, as with the code published beside the weights.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*): Mean cross-entropy over labels that are not −100.
        logits (`torch.FloatTensor` of shape `(batch_size, length, vocab_size)`): Of the masked-LM decoder.
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, length, hidden_size)`): Output of the last block,
            before `layer_norm_2`; equal to `hidden_states[-1]`. (ESM2's last one is after its final norm.)
        hidden_states (`tuple[torch.FloatTensor]`, *optional*): Output of every block, `num_hidden_layers` in number;
            the embedding is not among them.
        attentions (`tuple[torch.FloatTensor]`, *optional*): Attention weights of every block, each of shape
            `(batch_size, num_attention_heads, length, length)`.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class AmplifyRMSNorm(nn.Module):
    """RMSNorm that normalises in float32 (float64 for such inputs) whatever the precision of the model."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        wide = hidden_state.to(torch.promote_types(hidden_state.dtype, torch.float32))
        normalised = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return normalised.to(hidden_state.dtype) * self.weight

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"


class AmplifySwiGLU(nn.Module):
    """`w3(silu(gate) · up)`; gate and up are the two halves of `w12`."""

    def __init__(self, config: AmplifyConfig) -> None:
        super().__init__()
        self.w12 = nn.Linear(config.hidden_size, 2 * config.ffn_dim, bias=config.ffn_bias)
        self.w3 = nn.Linear(config.ffn_dim, config.hidden_size, bias=config.ffn_bias)

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        gate, up = self.w12(hidden_state).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * up)


def rotary_table(position_ids: torch.Tensor, head_dim: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Cosines and sines of the rotary angles, float32, of shape `(…, length, head_dim // 2)`.

    Made anew in each forward pass, where it is shared by all blocks: a stored table would have to survive loading on
    the meta device, moving, casting and inputs longer than itself.
    """
    exponents = torch.arange(0, head_dim, 2, device=position_ids.device, dtype=torch.float32) / head_dim
    with torch.autocast(position_ids.device.type, enabled=False):
        angles = position_ids[..., None].float() * theta**-exponents
    return angles.cos(), angles.sin()


def apply_rotary(vectors: torch.Tensor, table: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """
    Rotates each *adjacent pair* of components, as AMPLIFY does; ESM2 and Llama pair the two halves of a head instead.

    Args:
        vectors (`torch.Tensor` of shape `(batch_size, heads, length, head_dim)`): Queries or keys.
        table: Of [`rotary_table`], each broadcastable to `(batch_size, heads, length, head_dim // 2)`.
    """
    cos, sin = table
    even, odd = vectors.to(torch.promote_types(vectors.dtype, torch.float32)).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(vectors.dtype)


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention with its weights written out; the softmax is in float32 or wider."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    output = F.dropout(weights, dropout, module.training) @ value
    return output.transpose(1, 2).contiguous(), weights


class AmplifyBlock(GradientCheckpointingLayer):
    """Pre-norm block: `x + wo(attention(norm(x)))`, then `x + ffn(norm(x))`."""

    def __init__(self, config: AmplifyConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.head_dim
        self.is_causal = False  # read by the attention functions of Transformers
        width, bias = config.hidden_size, config.att_bias
        self.q = nn.Linear(width, width, bias=bias)
        self.k = nn.Linear(width, width, bias=bias)
        self.v = nn.Linear(width, width, bias=bias)
        self.wo = nn.Linear(width, width, bias=bias)
        if config.hidden_act.lower() == "swiglu":
            self.ffn = AmplifySwiGLU(config)
        else:
            self.ffn = nn.Sequential(
                nn.Linear(width, config.ffn_dim, bias=config.ffn_bias),
                nn.ReLU() if config.hidden_act.lower() == "relu" else nn.GELU(),
                nn.Linear(config.ffn_dim, width, bias=config.ffn_bias),
            )
        self.attention_norm = _norm(config)
        self.ffn_norm = _norm(config)

    def forward(
        self,
        hidden_state: torch.Tensor,
        table: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        implementation: str,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        dropout = self.config.dropout_prob if self.training else 0.0
        normalised = self.attention_norm(hidden_state)
        query, key, value = (
            linear(normalised).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for linear in (self.q, self.k, self.v)
        )
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        attended, weights = attend(
            self,
            apply_rotary(query, table),
            apply_rotary(key, table),
            value,
            attention_mask,
            dropout=dropout,
            scaling=self.head_dim**-0.5,
            **kwargs,
        )
        attended = self.wo(attended.flatten(-2))
        hidden_state = hidden_state + F.dropout(attended, dropout, self.training)
        update = self.ffn(self.ffn_norm(hidden_state))
        return hidden_state + F.dropout(update, dropout, self.training), weights


class AmplifyPreTrainedModel(PreTrainedModel):
    config_class = AmplifyConfig
    base_model_prefix = ""  # the published names have no prefix; with none there is nothing to map
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["AmplifyBlock"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            bound = self.config.decoder_init_range
            initialization.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                initialization.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            bound = self.config.embedding_init_range
            initialization.uniform_(module.weight, -bound, bound)
        elif isinstance(module, (AmplifyRMSNorm, nn.LayerNorm)):
            initialization.ones_(module.weight)
            if getattr(module, "bias", None) is not None:
                initialization.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.encoder

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.encoder = value

    def get_output_embeddings(self) -> nn.Linear:
        return self.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.decoder = new_embeddings


class AmplifyModel(AmplifyPreTrainedModel):
    """
    AMPLIFY with its masked-LM decoder, as `AutoModel` gives it for published checkpoints. Takes ordinary 1/0 attention
    masks and every attention implementation of Transformers; needs neither xformers nor remote code.

    As published, its first output is the logits; so `pipeline("feature-extraction")`, which takes the first output,
    gives logits: read `last_hidden_state` for a representation of every residue.

    Example:

    ```python
    import structure_aligned  # registers AMPLIFY with the Auto classes
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained("chandar-lab/AMPLIFY_120M")
    tokenizer = AutoTokenizer.from_pretrained("chandar-lab/AMPLIFY_120M")
    logits = model(**tokenizer("MSVVGIDLGFQSCYVAV", return_tensors="pt")).logits
    ```
    """

    def __init__(self, config: AmplifyConfig) -> None:
        super().__init__(config)
        self.encoder = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        if config.layer_norm_after_embedding:
            self.layer_norm_1 = _norm(config)
        self.transformer_encoder = nn.ModuleList(AmplifyBlock(config) for _ in range(config.num_hidden_layers))
        if config.layer_norm_before_last_layer:
            self.layer_norm_2 = _norm(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> AmplifyOutput | tuple[torch.Tensor, ...]:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, length)`, *optional*): Tokens.
            attention_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*): 1 for tokens, 0 for padding;
                or of shape `(batch_size, 1, length, length)`, boolean, True where a query may see a key.
            position_ids (`torch.LongTensor` of shape `(batch_size, length)`, *optional*): 0, 1, 2 … by default.
            inputs_embeds (`torch.FloatTensor` of shape `(batch_size, length, hidden_size)`, *optional*): Instead of
                `input_ids`.
            output_attentions, output_hidden_states (`bool`, *optional*): See [`AmplifyOutput`]. Only the eager
                attention has weights to return, so asking for them runs it, whatever is set otherwise.
        """
        outputs = self._encode(
            input_ids, attention_mask, position_ids, inputs_embeds, output_attentions, output_hidden_states, **kwargs
        )
        return outputs if self._wants_dict(return_dict) else outputs.to_tuple()

    def _encode(
        self,
        input_ids: torch.LongTensor | None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> AmplifyOutput:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either input_ids or inputs_embeds, and not both.")
        config = self.config
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        hidden_state = self.encoder(input_ids) if inputs_embeds is None else inputs_embeds
        position_ids = self._positions(hidden_state, position_ids)
        if config.layer_norm_after_embedding:
            hidden_state = self.layer_norm_1(hidden_state)
        table = rotary_table(position_ids, config.head_dim, config.rope_theta)
        table = tuple(values.unsqueeze(1) for values in table)  # one for all heads

        implementation = config._attn_implementation
        if output_attentions and implementation != "eager":
            logger.warning_once(
                f"The attention implementation {implementation!r} has no attention weights to return; "
                "output_attentions=True runs the eager one instead."
            )
            implementation = "eager"
            config = copy.copy(config)
            config._attn_implementation = implementation  # decides on the form of the mask below
        _check_mask(attention_mask)
        mask = create_bidirectional_mask(config=config, inputs_embeds=hidden_state, attention_mask=attention_mask)
        hidden_states, attentions = (), ()
        for block in self.transformer_encoder:
            hidden_state, weights = block(hidden_state, table, mask, implementation, **kwargs)
            if output_hidden_states:
                hidden_states += (hidden_state,)
            if output_attentions:
                attentions += (weights,)
        normalised = self.layer_norm_2(hidden_state) if config.layer_norm_before_last_layer else hidden_state
        return AmplifyOutput(
            logits=self.decoder(normalised),
            last_hidden_state=hidden_state,
            hidden_states=hidden_states if output_hidden_states else None,
            attentions=attentions if output_attentions else None,
        )

    def _positions(self, hidden_state: torch.Tensor, position_ids: torch.LongTensor | None) -> torch.LongTensor:
        if position_ids is not None:
            return position_ids
        length, config = hidden_state.shape[1], self.config
        if length > config.max_length and config.beyond_max_length == "error":
            raise ValueError(
                f"The input has {length} tokens but this model was trained on at most {config.max_length} "
                "(config.max_length). Cut the sequence, or load the model with beyond_max_length='extend' to go on "
                "with rotary positions it has not seen in training."
            )
        return torch.arange(length, device=hidden_state.device)[None]

    def _wants_dict(self, return_dict: bool | None) -> bool:
        return self.config.return_dict if return_dict is None else return_dict


class AmplifyForMaskedLM(AmplifyModel):
    """[`AmplifyModel`] with the masked-LM loss. Their weights are the same."""

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Any,
    ) -> AmplifyOutput | tuple[torch.Tensor, ...]:
        """
        Args:
            labels (`torch.LongTensor` of shape `(batch_size, length)`, *optional*): Tokens to predict, −100 elsewhere.
            input_ids, attention_mask, position_ids, inputs_embeds, output_attentions, output_hidden_states,
                return_dict, kwargs: As for [`AmplifyModel`].
        """
        outputs = self._encode(
            input_ids, attention_mask, position_ids, inputs_embeds, output_attentions, output_hidden_states, **kwargs
        )
        if labels is not None:
            logits = outputs.logits.float().flatten(0, 1)
            # A new object, because the order of a tuple is the order in which the fields were set.
            outputs = AmplifyOutput(loss=F.cross_entropy(logits, labels.to(logits.device).flatten()), **outputs)
        return outputs if self._wants_dict(return_dict) else outputs.to_tuple()


def _norm(config: AmplifyConfig) -> nn.Module:
    kind = AmplifyRMSNorm if config.rms_norm else nn.LayerNorm
    return kind(config.hidden_size, eps=config.norm_eps)


def _check_mask(attention_mask: torch.Tensor | None) -> None:
    # Only the rare float masks are looked at: reading values makes a GPU wait.
    if attention_mask is not None and attention_mask.is_floating_point() and bool((attention_mask < 0).any()):
        raise ValueError(
            "attention_mask holds negative numbers, as the additive masks (0 and -inf) of AMPLIFY's first code do; "
            "expected 1 for tokens and 0 for padding, as tokenizers give it."
        )


AutoModel.register(AmplifyConfig, AmplifyModel, exist_ok=True)
AutoModelForMaskedLM.register(AmplifyConfig, AmplifyForMaskedLM, exist_ok=True)
