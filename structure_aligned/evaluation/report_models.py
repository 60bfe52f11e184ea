"""Checkpoints to evaluate: which weights they are, and which heads came with them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..models.alignment import AutoModelForStructureAlignment
from ..models.digest import digest_of_tensors
from ..models.modes import without_load_report
from ..models.trunks import tokenizer_of, trunk_digest


_NOT_USED = ("contact_head", "pooler", "position_ids", "inv_freq")
"""Weights that no task reads: contact heads are fitted anew for every model."""

_LM_HEADS = ("lm_head", "decoder", "layer_norm_2")

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
        with without_load_report():
            loaded = AutoModelForStructureAlignment.from_pretrained(self.facts.path, dtype=self.model.dtype)
        return loaded.to(self.model.device).eval()


def load_checkpoint(
    name: str, path: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> LoadedCheckpoint:
    """
    Loads what `AutoModelForMaskedLM` loads, a checkpoint of a bare trunk too, always in the same precision: what two
    files are stored in must not decide between them.

    Raises:
        ValueError: It is no ESM2 or AMPLIFY, or weights of its trunk are missing.
        OSError: There is no such checkpoint.
    """
    with without_load_report():
        model, info = AutoModelForMaskedLM.from_pretrained(path, dtype=dtype, output_loading_info=True)
    missing = [key for key in info["missing_keys"] if not any(part in key for part in _NOT_USED)]
    missing_head = [key for key in missing if key.split(".")[0] in _LM_HEADS]
    if len(missing_head) < len(missing):
        other = sorted(set(missing) - set(missing_head))
        raise ValueError(
            f"{path} ({name}) lacks {len(other)} weights of its trunk, such as {other[0]}; they would be random. "
            "Give a complete checkpoint."
        )
    has_lm_head = not missing_head
    model.to(device).eval()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError, TypeError):  # saved without one: all checkpoints of a family share it
        tokenizer = tokenizer_of(model.config)
    weights = [
        (key, tensor)
        for key, tensor in model.named_parameters()
        if not any(part in key for part in _NOT_USED) and (has_lm_head or key.split(".")[0] not in _LM_HEADS)
    ]
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
            ((key, tensor) for key, tensor in weights if key.split(".")[0] not in _LM_HEADS), {"config": config}
        ),
        alignment_digest=_alignment_digest(path, dtype, info["unexpected_keys"]),
        has_lm_head=has_lm_head,
        aligned_with=settings.get("pgnn") if isinstance(settings, dict) else None,
    )
    return LoadedCheckpoint(facts, model, tokenizer)


def _alignment_digest(path: str, dtype: torch.dtype, unexpected: Any) -> str | None:
    if not any(key.split(".")[0] == "alignment" for key in unexpected):
        return None
    with without_load_report():
        model, info = AutoModelForStructureAlignment.from_pretrained(path, dtype=dtype, output_loading_info=True)
    if any(key.split(".")[0] == "alignment" for key in info["missing_keys"]):
        return None
    heads = ((key, tensor) for key, tensor in model.named_parameters() if key.split(".")[0] == "alignment")
    return digest_of_tensors(heads, {})
