"""
Several proteins in one row, without padding between them and without attention from one to another.

`sequence_ids` of shape `(batch_size, length)` say which protein of its row a token belongs to: 0, 1, 2 …, −1 for
padding. Positions start again with each protein. The attention implementation `"packed"`, registered here, works on
each protein by itself: through variable-length flash attention on GPUs in half precision, elsewhere one protein after
the other through sdpa. `"sdpa"` and `"eager"` get a mask of blocks instead, with the same result and the cost of
attention over the whole row; `"flash_attention_2"` and later get the same bounds as `"packed"`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


PACKED_ATTENTION = "packed"


@dataclass
class PackedLayout:
    """
    Where the proteins of packed rows lie. Made once for a forward pass.

    Args:
        sequence_ids (`torch.LongTensor` of shape `(batch_size, length)`): See above.
        position_ids (`torch.LongTensor` of shape `(batch_size, length)`): 0, 1, 2 … within each protein.
        protein_of (`torch.LongTensor` of shape `(batch_size, length)`): Number of the protein in all of the batch;
            the padding of a row counts as one.
        lengths (`list[int]`): Tokens of every protein, in that order.
    """

    sequence_ids: torch.Tensor
    position_ids: torch.Tensor
    protein_of: torch.Tensor
    lengths: list[int]

    @classmethod
    def from_sequence_ids(cls, sequence_ids: torch.Tensor) -> PackedLayout:
        """Waits for the device once, for the lengths."""
        if sequence_ids.ndim != 2:
            raise ValueError(
                f"sequence_ids have shape {tuple(sequence_ids.shape)}; expected (batch_size, length), the number of "
                "the protein in its row for every token."
            )
        begins = torch.ones_like(sequence_ids, dtype=torch.bool)
        begins[:, 1:] = sequence_ids[:, 1:] != sequence_ids[:, :-1]
        columns = torch.arange(sequence_ids.shape[1], device=sequence_ids.device).expand_as(sequence_ids)
        starts = torch.where(begins, columns, 0).cummax(dim=1).values
        protein_of = begins.flatten().cumsum(0).sub_(1).view_as(sequence_ids)
        lengths = torch.bincount(protein_of.flatten()).tolist()
        return cls(sequence_ids, columns - starts, protein_of, lengths)

    def attention_inputs(self, implementation: str) -> tuple[torch.Tensor | None, dict[str, Any]]:
        """The attention mask of the implementation, and what else it is told."""
        if implementation == PACKED_ATTENTION or implementation.startswith("flash_attention"):
            counts = torch.tensor([0, *self.lengths], dtype=torch.int32)
            bounds = counts.cumsum(0, dtype=torch.int32).to(self.sequence_ids.device, non_blocking=True)
            longest = max(self.lengths)
            options: dict[str, Any] = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
            options |= {"max_length_q": longest, "max_length_k": longest}
            if implementation == PACKED_ATTENTION:
                options["protein_lengths"] = self.lengths
            return None, options
        if implementation not in ("sdpa", "eager"):
            raise ValueError(
                f"The attention implementation {implementation!r} cannot keep packed proteins apart; expected packed, "
                "sdpa, eager or flash_attention_2: model.set_attn_implementation('packed')."
            )
        # Padding sees itself: a row of nothing but False would become NaN.
        same = self.protein_of[:, :, None] == self.protein_of[:, None, :]
        return same.unsqueeze(1), {}

    def mask_ratio(self, is_mask: torch.Tensor) -> torch.Tensor:
        """Fraction of mask tokens in the protein of every token, of the shape of `is_mask`, float32."""
        counts = torch.zeros(len(self.lengths), device=is_mask.device)
        counts.index_add_(0, self.protein_of.flatten(), is_mask.flatten().float())
        lengths = torch.tensor(self.lengths, dtype=torch.float32).to(is_mask.device, non_blocking=True)
        return (counts / lengths)[self.protein_of]


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    protein_lengths: list[int] | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """
    Attention within each protein of packed rows; plain sdpa where the rows are not packed.

    Args:
        query, key, value (`torch.Tensor` of shape `(batch_size, heads, length, head_dim)`): Rows laid end to end are
            the proteins laid end to end.
        protein_lengths (`list[int]`, *optional*): Tokens of every protein. Without it nothing is packed.
        cu_seq_lens_q (`torch.IntTensor` of shape `(num_proteins + 1,)`, *optional*): Where they begin and end.
    """
    if protein_lengths is None:
        for name in ("cu_seq_lens_k", "max_length_k"):
            kwargs.pop(name, None)
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    batch_size, heads, length, head_dim = query.shape
    rows = [tensor.transpose(1, 2).reshape(batch_size * length, heads, head_dim) for tensor in (query, key, value)]
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and not dropout:
        from torch.nn.attention.varlen import varlen_attn

        attended = varlen_attn(
            *(tensor.contiguous() for tensor in rows),
            cu_seq_lens_q,
            cu_seq_lens_q,
            max_length_q,
            max_length_q,
            scale=scaling,
        )
    else:
        parts = zip(*(tensor.transpose(0, 1).split(protein_lengths, dim=1) for tensor in rows))
        attended = [
            nn.functional.scaled_dot_product_attention(*(part[None] for part in one), dropout_p=dropout, scale=scaling)
            for one in parts
        ]
        attended = torch.cat(attended, dim=2)[0].transpose(0, 1)
    return attended.reshape(batch_size, length, heads, head_dim), None


def packed_esm_embeddings(embeddings: nn.Module, input_ids: torch.Tensor, layout: PackedLayout) -> torch.Tensor:
    """
    What `EsmEmbeddings` gives, which scales a whole row by its masked fraction; here each protein is scaled by its
    own. Of shape `(batch_size, length, hidden_size)`.
    """
    if embeddings.position_embedding_type != "rotary":
        raise ValueError(
            f"Packed rows need rotary positions, as ESM2 has them; this model's are "
            f"{embeddings.position_embedding_type!r}. Train it with padded batches."
        )
    hidden = embeddings.word_embeddings(input_ids)
    if embeddings.token_dropout:
        is_mask = input_ids == embeddings.mask_token_id
        trained_ratio = 0.15 * 0.8  # ESM's own constant: what it was pre-trained with
        unmasked = 1 - layout.mask_ratio(is_mask).unsqueeze(-1)
        scaled = hidden.masked_fill(is_mask.unsqueeze(-1), 0.0) * (1 - trained_ratio) / unmasked
        hidden = scaled.to(hidden.dtype)
    if embeddings.layer_norm is not None:
        hidden = embeddings.layer_norm(hidden)
    return (hidden * (layout.sequence_ids >= 0).unsqueeze(-1)).to(hidden.dtype)


def use_packed_attention(model: PreTrainedModel) -> None:
    """Lets a model work on packed rows protein by protein, unless it was given another attention than sdpa."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(PACKED_ATTENTION)


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, sdpa_mask)
