"""3Di structure tokens of sequences, by the token head of an aligned model: no structure is needed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from datasets.utils import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..evaluation.trunk_outputs import run_trunk
from ..models.alignment import StructureAlignmentMixin
from ..models.modes import evaluating
from ..models.trunks import tokenizer_of
from ..structure.tokens import STRUCTURE_ALPHABET_3DI
from .fasta import clean_sequences
from .windows import Assembly, split_rows, window_batches


logger = logging.get_logger(__name__)


def predict_structure_tokens(
    model: PreTrainedModel,
    sequences: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    probabilities: bool = False,
    max_residues: int = 1022,
    max_tokens: int = 4096,
    progress: bool = True,
) -> list[str] | list[tuple[str, np.ndarray]]:
    """
    The most probable 3Di letter of every residue, as Foldseek writes them.

    The first and the last residue get letters too, though of a structure they have none. Long proteins and odd letters
    are treated as by [`embed_sequences`].

    Args:
        model ([`PreTrainedModel`]): What `AutoModelForStructureAlignment` loads from an aligned checkpoint.
        sequences (`Sequence[str]`): One-letter codes.
        tokenizer ([`PreTrainedTokenizerBase`], *optional*): The family's by default.
        probabilities (`bool`, *optional*, defaults to `False`): Whether to give the probabilities too.
        max_residues (`int`, *optional*, defaults to 1022): Of a window.
        max_tokens (`int`, *optional*, defaults to 4096): Of a batch, padding included; a longer window goes alone.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar.

    Returns:
        `list[str]`: As long as the sequences, in the order given; with `probabilities` a list of pairs of the string
        and a float32 array `(L, 20)` in the order of [`STRUCTURE_ALPHABET_3DI`].

    Raises:
        ValueError: The model has no token head, or one for other tokens than 3Di.
    """
    aligned = _aligned(model)
    cleaned = clean_sequences(sequences)
    tokenizer = tokenizer_of(model.config) if tokenizer is None else tokenizer
    letters = np.frombuffer(STRUCTURE_ALPHABET_3DI.encode(), dtype=np.uint8)
    found: list = [None] * len(cleaned)
    assembly = Assembly()
    with evaluating(model), tqdm(total=len(cleaned), desc="3Di", unit="protein", disable=not progress) as bar:
        for windows, batch in window_batches(cleaned, tokenizer, max_residues, max_tokens):
            batch = batch.to(model.device)
            hidden = run_trunk(model, batch)
            with torch.no_grad():
                logits = aligned.alignment(hidden)[0][batch.residue_mask]
                predicted = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1).float()
            if not predicted.isfinite().all():
                raise ValueError(
                    f"The model's output is not finite (in {model.dtype}); run it in float32 or bfloat16, and check "
                    "that the checkpoint's own weights are finite."
                )
            for window, rows in zip(windows, split_rows(predicted, windows)):
                if (whole := assembly.add(window, rows)) is not None:
                    string = letters[whole.argmax(1)].tobytes().decode()
                    found[window.index] = (string, whole.copy()) if probabilities else string
                    bar.update()
    return found


def _aligned(model: PreTrainedModel) -> StructureAlignmentMixin:
    """The model with the heads, whatever adapters are around it."""
    for module in model.modules():
        if isinstance(module, StructureAlignmentMixin):
            settings = module.config.structure_alignment
            if settings["num_structure_tokens"] != len(STRUCTURE_ALPHABET_3DI):
                raise ValueError(
                    f"The model's token head has {settings['num_structure_tokens']} classes; expected the "
                    f"{len(STRUCTURE_ALPHABET_3DI)} of 3Di."
                )
            if settings.get("pgnn") is None:
                logger.warning(
                    "Nothing in the checkpoint says that its heads were trained (they are fresh where a plain ESM2 or "
                    "AMPLIFY, or a published SaESM2 or SaAMPLIFY, was loaded): the structure tokens may be random."
                )
            return module
    raise ValueError(
        f"{type(model).__name__} has no token head; load an aligned checkpoint with "
        "AutoModelForStructureAlignment.from_pretrained."
    )
