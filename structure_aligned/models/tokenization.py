"""Tokenizers from the fixed vocabularies of the trunks, for models that come from no checkpoint and work offline."""

from __future__ import annotations

import tempfile
from pathlib import Path

from transformers import EsmTokenizer


ESM2_VOCABULARY = (
    *("<cls>", "<pad>", "<eos>", "<unk>"),
    *"LAGVSERTIDPKQNFYMHWCXBUZO.-",
    *("<null_1>", "<mask>"),
)
"""All 33 tokens of ESM2 in the order of their ids."""


def esm2_tokenizer() -> EsmTokenizer:
    """The tokenizer that every ESM2 checkpoint has, made from its vocabulary."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        path.write_text("\n".join(ESM2_VOCABULARY))
        return EsmTokenizer(str(path))
