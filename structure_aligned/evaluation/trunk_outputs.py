"""What heads read of a protein language model: attentions, one layer at a time, and the last hidden state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from datasets.utils import tqdm
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.esm.modeling_esm import EsmSelfAttention

from ..data.tokenizing import SequenceBatch, sequence_batches
from ..models.amplify import AmplifyBlock, AmplifyModel
from ..models.modes import evaluating
from ..models.trunks import trunk_of


@contextmanager
def eager_attention(model: nn.Module) -> Iterator[None]:
    """The eager attention inside, which alone has weights to give; every part's own is put back, after errors too."""
    configs = {id(part.config): part.config for part in model.modules() if isinstance(part, PreTrainedModel)}
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation = "eager"
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]


def attention_shape(model: PreTrainedModel) -> tuple[int, int]:
    """
    Number of layers and heads.

    Raises:
        ValueError: The model is no ESM2 or AMPLIFY, or one with other attentions.
    """
    config, layers = trunk_of(model).config, len(_attention_modules(model))
    if layers != config.num_hidden_layers:
        raise ValueError(
            f"{type(model).__name__} has {config.num_hidden_layers} layers but {layers} attention modules of ESM2 or "
            "AMPLIFY; expected one for each. Was a part of it replaced?"
        )
    return layers, config.num_attention_heads


def _attention_modules(model: PreTrainedModel) -> list[nn.Module]:
    # Both return (output, attention weights).
    return [module for module in model.modules() if isinstance(module, (EsmSelfAttention, AmplifyBlock))]


def run_trunk(model: PreTrainedModel, batch: SequenceBatch) -> torch.Tensor:
    """
    Last hidden state `(batch_size, length, hidden_size)` of an ESM2 (after its final norm) or AMPLIFY (before
    `layer_norm_2`), with whatever heads it is loaded.
    """
    trunk = trunk_of(model)
    # What AMPLIFY's classes with heads return has no last_hidden_state; this does.
    run = trunk._encode if isinstance(trunk, AmplifyModel) else trunk
    with evaluating(model), torch.no_grad():
        return run(batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state


def stream_hidden_states(
    model: PreTrainedModel,
    sequences: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int = 4096,
    description: str | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """
    Last hidden state of each sequence's residues, one sequence after the other, so that nobody has to keep them all.

    Args:
        model ([`PreTrainedModel`]): An ESM2 or AMPLIFY.
        sequences (`Sequence[str]`): One-letter codes.
        tokenizer ([`PreTrainedTokenizerBase`]): Of the model.
        max_tokens (`int`, *optional*, defaults to 4096): Of a batch, padding included; a longer sequence goes alone.
        description (`str`, *optional*): Of a progress bar; none without.

    Yields:
        `tuple[int, np.ndarray]`: Index of a sequence, the longest first, and its states `(L, hidden_size)`, float32.

    Raises:
        ValueError: The model gives NaN or infinity.
    """
    with tqdm(total=len(sequences), desc=description, unit="chain", disable=description is None) as progress:
        for batch in sequence_batches(sequences, tokenizer, max_tokens):
            states = run_trunk(model, batch.to(model.device)).float().cpu()
            for index, own, mask in zip(batch.indices, states, batch.residue_mask):
                own = own[mask].numpy()
                if not np.isfinite(own).all():
                    raise ValueError(
                        f"The model's last hidden state of sequence {index} ({sequences[index][:20]}…) holds NaN or "
                        "infinity; was its training stopped by diverging? Give another checkpoint or precision."
                    )
                yield index, own
            progress.update(len(batch.indices))


def stream_attentions(
    model: PreTrainedModel, batch: SequenceBatch, receive: Callable[[int, torch.Tensor], None]
) -> None:
    """
    Runs the trunk and hands over each layer's attention weights as soon as they are there, then lets go of them: only
    one layer's are in memory at a time.

    Args:
        model ([`PreTrainedModel`]): An ESM2 or AMPLIFY with any attention implementation; eager attention is run.
        batch ([`SequenceBatch`]): On the model's device.
        receive (`Callable`): Called with the number of the layer and its attention weights, of shape `(batch_size,
            heads, length, length)` in float32 or wider.
    """
    attention_shape(model)

    def hand_over(layer: int) -> Callable:
        def hook(module: nn.Module, args: tuple, output: tuple[torch.Tensor, torch.Tensor]) -> tuple:
            weights = output[1]
            receive(layer, weights.to(torch.promote_types(weights.dtype, torch.float32)))
            return output[0], None

        return hook

    handles = []
    try:
        with eager_attention(model):
            for layer, module in enumerate(_attention_modules(model)):
                handles.append(module.register_forward_hook(hand_over(layer)))
            run_trunk(model, batch)
    finally:
        for handle in handles:
            handle.remove()


class ResidueAttention:
    """
    One layer's attention between residues, symmetrised and corrected for the average product (APC; Dunn et al.,
    doi:10.1093/bioinformatics/btm604), without ever writing that map out for every head.

    With A the attention among residues, S = A + Aᵀ, r its row sums and t its total, a head's corrected map is
    S − r rᵀ / t. What is special or padding counts in none of them.

    Args:
        attentions (`torch.Tensor` of shape `(batch_size, heads, length, length)`): Of one layer.
        residue_mask (`torch.BoolTensor` of shape `(batch_size, length)`): Where the residues are.
    """

    def __init__(self, attentions: torch.Tensor, residue_mask: torch.Tensor) -> None:
        self.attentions = attentions
        mask = residue_mask.to(attentions.dtype)[:, None]
        rows = (attentions @ mask.unsqueeze(-1)).squeeze(-1)
        columns = (mask.unsqueeze(-2) @ attentions).squeeze(-2)
        self.sums = (rows + columns) * mask  # (batch_size, heads, length)
        total = self.sums.sum(-1, keepdim=True)
        # Where all attention goes to special tokens there is nothing to correct.
        self.scaled_sums = torch.where(total > 0, self.sums / total, 0.0)

    def weighted_sum(self, weights: torch.Tensor) -> torch.Tensor:
        """Sum over heads `(batch_size, length, length)` with `weights` `(heads,)`; meaningful between residues."""
        plain = (weights @ self.attentions.flatten(2)).unflatten(-1, self.attentions.shape[2:])
        weighted = self.scaled_sums * weights[:, None]
        return plain + plain.transpose(-1, -2) - weighted.transpose(-1, -2) @ self.sums

    def at_pairs(self, row: int, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Corrected maps of all heads `(pairs, heads)` at token positions of one protein of the batch."""
        attentions, sums, scaled = self.attentions[row], self.sums[row], self.scaled_sums[row]
        symmetric = attentions[:, first, second] + attentions[:, second, first]
        return (symmetric - scaled[:, first] * sums[:, second]).T
