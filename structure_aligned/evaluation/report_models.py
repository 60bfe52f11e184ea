"""Checkpoints to evaluate: which weights they are, and which heads came with them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from ..models.digest import digest_of_tensors
from ..models.folders import holds_adapters
from ..models.modes import without_load_report
from ..models.trunks import trunk_digest
from ..models.weights import ALIGNMENT_HEADS, LM_HEADS, UNUSED_WEIGHTS, check_loaded, load_auto
from ..training.pretrained import load_aligned_model, load_tokenizer


_NOT_OUTPUT = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "structure_alignment"}


@dataclass(frozen=True)
class Checkpoint:
    """
    Facts about a checkpoint, as the report shows them.

    Args:
        name, path (`str`): As given.
        model_type (`str`): Such as `esm`.
        parameters (`int`): Of the trunk and masked-LM head.
        dtype (`str`): That it was run in.
        digest (`str`): SHA-256 of all weights that results depend on, as stored, and of the configuration.
        trunk_digest (`str`): See [`trunk_digest`]; it rounds to bfloat16.
        exact_trunk_digest (`str`): As `digest`, without the masked-LM head.
        alignment_digest (`str`, *optional*): Of the alignment heads, where the checkpoint has them.
        has_lm_head (`bool`): Whether the checkpoint holds a masked-LM head.
        aligned_with (`str`, *optional*): Digest of the pGNN, where the configuration names one.
    """

    name: str
    path: str
    model_type: str
    parameters: int
    dtype: str
    digest: str
    trunk_digest: str
    exact_trunk_digest: str
    alignment_digest: str | None
    has_lm_head: bool
    aligned_with: str | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class LoadedCheckpoint:
    """A checkpoint in memory; `aligned_model` gives it with its alignment heads, sharing nothing with `model`."""

    facts: Checkpoint
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def aligned_model(self) -> PreTrainedModel:
        if self.facts.alignment_digest is None:
            raise ValueError(f"{self.facts.name} has no alignment heads.")
        return load_aligned_model(self.facts.path, self.model.dtype).to(self.model.device).eval()


def load_checkpoint(
    name: str, path: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> LoadedCheckpoint:
    """
    Loads what `AutoModelForMaskedLM` loads, a checkpoint of a bare trunk too, always in the same precision: what two
    files are stored in must not decide between them.

    Raises:
        ValueError: It is no ESM2 or AMPLIFY, or weights of its trunk are missing or not finite.
        OSError: There is no such checkpoint.
    """
    if holds_adapters(path):
        model, has_lm_head, aligned = load_aligned_model(path, dtype), True, True
    else:
        with without_load_report():
            model, info = load_auto(
                AutoModelForMaskedLM, path, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
            )
        check_loaded(model, info, f"{path} ({name})", (*UNUSED_WEIGHTS, *LM_HEADS))
        has_lm_head = not any(key.split(".")[0] in LM_HEADS for key in info["missing_keys"])
        aligned = any(key.split(".")[0] == ALIGNMENT_HEADS for key in info["unexpected_keys"])
    model.to(device).eval()
    tokenizer = load_tokenizer(path, model)
    not_read = (ALIGNMENT_HEADS, *UNUSED_WEIGHTS, *(() if has_lm_head else LM_HEADS))
    weights = [(key, tensor) for key, tensor in model.named_parameters() if not set(key.split(".")) & set(not_read)]
    config = {key: value for key, value in model.config.to_dict().items() if key not in _NOT_OUTPUT}
    settings = getattr(model.config, "structure_alignment", None) or {}
    facts = Checkpoint(
        name=name,
        path=str(path),
        model_type=model.config.model_type,
        parameters=sum(tensor.numel() for _, tensor in weights),
        dtype=str(dtype).removeprefix("torch."),
        digest=digest_of_tensors(weights, {"config": config, "lm_head": has_lm_head}),
        trunk_digest=trunk_digest(model),
        exact_trunk_digest=digest_of_tensors(
            ((key, tensor) for key, tensor in weights if key.split(".")[0] not in LM_HEADS), {"config": config}
        ),
        alignment_digest=_alignment_digest(path, dtype) if aligned else None,
        has_lm_head=has_lm_head,
        aligned_with=settings.get("pgnn") if isinstance(settings, dict) else None,
    )
    return LoadedCheckpoint(facts, model, tokenizer)


def _alignment_digest(path: str, dtype: torch.dtype) -> str:
    model = load_aligned_model(path, dtype)
    heads = ((key, tensor) for key, tensor in model.named_parameters() if key.split(".")[0] == ALIGNMENT_HEADS)
    return digest_of_tensors(heads, {})
