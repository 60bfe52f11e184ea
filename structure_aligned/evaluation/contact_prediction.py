"""Contact maps of sequences, and their precision over the chains of a test set."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets.utils import tqdm
from transformers import EsmModel, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..data.tokenizing import sequence_batches
from ..models.trunks import tokenizer_of, trunk_of
from ..structure.chain import ProteinChain
from .contact_heads import DEFAULT_MAX_TOKENS, ContactHead, ContactRegression
from .contacts import CONTACT_THRESHOLD, contact_map, contact_precision
from .pair_head import PairHead
from .trunk_outputs import attention_shape


logger = logging.get_logger(__name__)


def predict_contacts(
    model: PreTrainedModel,
    sequences: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    head: ContactHead | str | os.PathLike | None = None,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    progress: bool = False,
) -> list[torch.Tensor]:
    """
    Contact probabilities of sequences, whatever attention implementation the model runs with.

    Attentions are read layer by layer, so that memory holds one layer's: `heads · batch_size · length²` numbers and
    what the softmax needs, not all layers' at once.

    Args:
        model ([`PreTrainedModel`]): An ESM2 or AMPLIFY, with the masked-LM head, the alignment heads or neither.
        sequences (`Sequence[str]`): One-letter codes, upper-case.
        tokenizer ([`PreTrainedTokenizerBase`], *optional*): The family's by default.
        head ([`ContactHead`] or path, *optional*): A fitted [`ContactRegression`] or [`PairHead`], or the folder that
            one was saved to. By default the checkpoint's own: see [`checkpoint_contact_head`].
        max_tokens (`int`, *optional*, defaults to 1024): Of a batch, padding included. A longer sequence goes alone.
        progress (`bool`, *optional*, defaults to `False`): Whether to show a progress bar.

    Returns:
        `list[torch.Tensor]`: For each sequence the symmetric probabilities `(L, L)`, float32 on the CPU. Residues are
        L letters of the sequence; special tokens are left out. Heads are fitted on pairs of |i − j| ≥ 6, and what
        stands nearer to the diagonal means little.

    Raises:
        ValueError: The checkpoint has no contact head and none was given, or the one given does not fit.
    """
    contacts: list[torch.Tensor] = [torch.empty(0)] * len(sequences)
    for index, prediction in _predictions(model, sequences, tokenizer, head, max_tokens, progress):
        contacts[index] = prediction
    return contacts


def _predictions(
    model: PreTrainedModel,
    sequences: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None,
    head: ContactHead | str | os.PathLike | None,
    max_tokens: int,
    progress: bool,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Maps with the indices of their sequences, as they come."""
    if isinstance(sequences, str):
        raise ValueError(f"sequences is the string {sequences[:20]!r}; expected a list of sequences, as [sequence].")
    tokenizer = tokenizer_of(model.config) if tokenizer is None else tokenizer
    if head is None:
        head = checkpoint_contact_head(model)
    elif isinstance(head, (str, os.PathLike)):
        head = load_contact_head(head)
    head.check_model(model)
    with tqdm(total=len(sequences), desc="Contacts", unit="chain", disable=not progress) as bar:
        for batch in sequence_batches(sequences, tokenizer, max_tokens):
            for index, prediction in zip(batch.indices, head.predict_batch(model, batch.to(model.device))):
                if not prediction.isfinite().all():
                    raise ValueError(
                        f"The predicted contacts of sequence {index} ({sequences[index][:20]}…) hold NaN or infinity; "
                        "check the model's weights, or run it in float32."
                    )
                yield index, prediction
            bar.update(len(batch.indices))


def load_contact_head(folder: str | os.PathLike) -> ContactHead:
    """
    The [`ContactRegression`] or [`PairHead`] that was saved to a folder.

    Raises:
        ValueError: The folder has neither or both, or its files are damaged.
    """
    found = [kind for kind in (ContactRegression, PairHead) if (Path(folder) / f"{kind.file_name}.json").is_file()]
    if len(found) != 1:
        names = " and ".join(kind.__name__ for kind in found) or "no contact head"
        raise ValueError(
            f"{folder} holds {names}; expected a ContactRegression or a PairHead, as their save_pretrained writes it. "
            "Where there are both, load the one with its from_pretrained."
        )
    return found[0].from_pretrained(folder)


def checkpoint_contact_head(model: PreTrainedModel) -> ContactRegression:
    """
    The contact head that came with a model: a [`ContactRegression`] saved into the folder that it was loaded from,
    else the `contact_head` of an ESM2.

    An ESM2's own head was fitted on the attentions of the published trunk. A warning says where the trunk has been
    aligned since, as then the head does not fit any more.

    Raises:
        ValueError: There is none, as with AMPLIFY, whose checkpoints have no contact head; or its bias is exactly 0,
            as that of a fresh one is: Transformers makes one for checkpoints that have none.
    """
    folder = model.name_or_path
    if folder and (Path(folder) / f"{ContactRegression.file_name}.json").is_file():
        return ContactRegression.from_pretrained(folder)
    advice = "Fit one with ContactRegression.fit(model, chains), about 20 chains, and give it as head=."
    trunk = trunk_of(model)
    if not isinstance(trunk, EsmModel):
        raise ValueError(f"{type(model).__name__} has no contact head in its checkpoint. {advice}")
    linear = trunk.contact_head.regression
    alignment = getattr(trunk.config, "structure_alignment", None) or {}
    if linear.bias is not None and linear.bias.item() == 0:
        raise ValueError(
            f"The contact head of this {type(model).__name__} has never been fitted: its bias is exactly 0, as that "
            f"of a fresh one, which Transformers makes where a checkpoint has none. {advice}"
        )
    elif alignment.get("pgnn") is not None:
        logger.warning(
            "The contact head of this checkpoint was fitted before its trunk was aligned with "
            f"{alignment['pgnn']}, and attentions have changed since. {advice}"
        )
    return ContactRegression.from_linear(linear, *attention_shape(model))


def evaluate_contacts(
    model: PreTrainedModel,
    chains: Sequence[ProteinChain],
    head: ContactHead | str | os.PathLike | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    threshold: float = CONTACT_THRESHOLD,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    progress: bool = True,
    receive: Callable[[ProteinChain, torch.Tensor, np.ndarray, np.ndarray], None] | None = None,
) -> list[dict[str, Any]]:
    """
    Precision of predicted contacts, protein by protein: what statistics over models are made of.

    Args:
        model, head, tokenizer, max_tokens, progress: As for [`predict_contacts`].
        chains (`Sequence[ProteinChain]`): As [`read_chains`] gives them; chains that the head was fitted on, and those
            alike them, do not belong here.
        threshold (`float`, *optional*, defaults to 8.0): Of contacts, in Å.
        receive (`Callable`, *optional*): Called with each chain, its predicted map, its contacts and which pairs have
            a label (see [`contact_map`]), in no particular order; what it does not keep is let go of.

    Returns:
        `list[dict[str, Any]]`: A row per chain, in their order, with `id`, `length` and what [`contact_precision`]
        gives. [`contact_summary`] makes means of them.

    Raises:
        ValueError: There are no chains, or as for [`predict_contacts`].
    """
    chains = list(chains)
    if not chains:
        raise ValueError("There are no chains to evaluate; expected at least one.")
    rows: list[dict[str, Any]] = [{}] * len(chains)
    sequences = [chain.sequence for chain in chains]
    for index, prediction in _predictions(model, sequences, tokenizer, head, max_tokens, progress):
        chain = chains[index]
        labels = contact_map(chain.coords, chain.sequence, threshold)
        rows[index] = {"id": chain.id, "length": len(chain), **contact_precision(prediction, *labels)}
        if receive is not None:
            receive(chain, prediction, *labels)
    return rows
