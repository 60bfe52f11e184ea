"""ESM2 from nothing: the tokenizer and configurations of its published checkpoints, for use without the hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from transformers import EsmConfig, EsmTokenizer


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


def esm2_config(
    num_hidden_layers: int = 6, hidden_size: int = 320, num_attention_heads: int = 20, **options: Any
) -> EsmConfig:
    """
    Configuration of an ESM2; the defaults are those of `esm2_t6_8M_UR50D`.

    Args:
        options (`Any`): Further fields of [`EsmConfig`], such as `structure_alignment={"structure_dim": 512}`.
    """
    if hidden_size % num_attention_heads or (hidden_size // num_attention_heads) % 2:
        raise ValueError(
            f"hidden_size {hidden_size} over {num_attention_heads} heads gives no even head width, which rotary "
            "positions need; change one of them."
        )
    published = {
        "vocab_size": len(ESM2_VOCABULARY),
        "mask_token_id": ESM2_VOCABULARY.index("<mask>"),
        "pad_token_id": ESM2_VOCABULARY.index("<pad>"),
        "intermediate_size": 4 * hidden_size,
        "max_position_embeddings": 1026,
        "position_embedding_type": "rotary",
        "layer_norm_eps": 1e-5,
        "token_dropout": True,
        "emb_layer_norm_before": False,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    sizes = {
        "num_hidden_layers": num_hidden_layers,
        "hidden_size": hidden_size,
        "num_attention_heads": num_attention_heads,
    }
    return EsmConfig(**(sizes | published | options))
