"""How well a model's own head predicts 3Di structure tokens, protein by protein."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import datasets
import numpy as np
import torch
from datasets.utils import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.tokenizing import sequence_batches
from ..models.modes import evaluating
from ..models.trunks import tokenizer_of
from ..structure.chain import ProteinChain
from ..structure.tokens import encode_3di


_COLUMNS = ["id", "sequence", "structure_tokens", "structure_token_mask"]


def evaluate_structure_tokens(
    model: PreTrainedModel,
    data: datasets.Dataset | Iterable[ProteinChain | Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    max_tokens: int = 4096,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """
    Accuracy of the 3Di tokens that an alignment model's head gives for whole, unmasked sequences.

    (`token_accuracy` of [`StructureAlignmentTrainer`] is of masked sequences, and a mean over residues.)

    Args:
        model ([`EsmForStructureAlignment`] or another alignment class): With its heads.
        data (`datasets.Dataset` or `Iterable`): Chains, whose tokens [`encode_3di`] gives; or a dataset of
            [`StructureDatasetBuilder`], or some of its rows.
        tokenizer ([`PreTrainedTokenizerBase`], *optional*): The family's by default.
        max_tokens (`int`, *optional*, defaults to 4096): Of a batch, padding included.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar.

    Returns:
        `list[dict[str, Any]]`: A row per protein, in their order: `id`, `length`, `residues` (with a token),
        `token_accuracy` over these, and `token_accuracy_majority`, the accuracy of always giving the most frequent
        token of the proteins given. Both are NaN for a protein without any token.

    Raises:
        ValueError: There are no proteins, the model has no token head, or its head knows fewer tokens.
    """
    if isinstance(data, datasets.Dataset):
        data = data.with_format(None).select_columns(_COLUMNS)
    proteins = [_tokens_of(item) for item in data]
    if not proteins:
        raise ValueError("There are no proteins to evaluate; expected at least one.")
    tokenizer = tokenizer_of(model.config) if tokenizer is None else tokenizer
    counts = sum(np.bincount(tokens[valid], minlength=256) for _, _, tokens, valid in proteins)
    rows: list[dict[str, Any]] = [{}] * len(proteins)
    sequences = [sequence for _, sequence, _, _ in proteins]
    bar = tqdm(total=len(proteins), desc="3Di tokens", unit="chain", disable=not progress)
    with bar, evaluating(model), torch.no_grad():
        for batch in sequence_batches(sequences, tokenizer, max_tokens):
            batch = batch.to(model.device)
            output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            logits = getattr(output, "structure_logits", None)
            if logits is None:
                raise ValueError(
                    f"{type(model).__name__} has no head for structure tokens; load the checkpoint with "
                    "AutoModelForStructureAlignment."
                )
            predictions = logits.argmax(-1).cpu().numpy()
            for index, predicted, mask in zip(batch.indices, predictions, batch.residue_mask.cpu().numpy()):
                name, sequence, tokens, valid = proteins[index]
                if valid.any() and tokens[valid].max() >= logits.shape[-1]:
                    raise ValueError(
                        f"{name} has the structure token {tokens[valid].max()} but the model's head knows "
                        f"{logits.shape[-1]}; expected tokens of the alphabet that it was trained with."
                    )
                right = predicted[mask][valid] == tokens[valid]
                usual = tokens[valid] == counts.argmax()
                rows[index] = {
                    "id": name,
                    "length": len(sequence),
                    "residues": len(right),
                    "token_accuracy": float(right.mean()) if len(right) else float("nan"),
                    "token_accuracy_majority": float(usual.mean()) if len(right) else float("nan"),
                }
            bar.update(len(batch.indices))
    return rows


def _tokens_of(item: ProteinChain | Mapping[str, Any]) -> tuple[str, str, np.ndarray, np.ndarray]:
    if isinstance(item, ProteinChain):
        return item.id, item.sequence, *encode_3di(item.coords)
    if missing := [name for name in _COLUMNS if name not in item]:
        raise ValueError(
            f"A row has the columns {', '.join(item)} but no {', '.join(missing)}; expected chains, or rows of "
            "StructureDatasetBuilder."
        )
    tokens, valid = np.asarray(item["structure_tokens"]), np.asarray(item["structure_token_mask"], dtype=bool)
    return item["id"], item["sequence"], tokens, valid
