"""The two structure tasks' heads, their settings and the output they share: the same for every trunk."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig, initialization
from transformers.utils import ModelOutput

from ..objectives.losses import ResidueLosses, labelled_cross_entropy
from ..objectives.negatives import residue_losses_among


NUM_STRUCTURE_TOKENS = 20
INITIAL_LOGIT_SCALE = math.log(1 / 0.07)
MIN_LOGIT_SCALE = math.log(0.01)


@dataclass
class StructureAlignmentSettings:
    """
    Sizes and provenance of the alignment heads; stored as the dict `config.structure_alignment`.

    Args:
        structure_dim (`int`, *optional*, defaults to 512): Width of the pGNN's residue embedding.
        projection_dim (`int`, *optional*): Width of the shared space; `min(hidden_size, structure_dim)` by default.
        num_structure_tokens (`int`, *optional*, defaults to 20): Classes of the token head; 20 for Foldseek 3Di.
        loss_weights (`list[float]`, *optional*, defaults to `[1.0, 0.5, 0.5]`): MLM, physical and latent task.
        pgnn (`str`, *optional*): Identity of the pGNN that the heads were trained with (name, layers, digest).
    """

    structure_dim: int = 512
    projection_dim: int | None = None
    num_structure_tokens: int = NUM_STRUCTURE_TOKENS
    loss_weights: list[float] = field(default_factory=lambda: [1.0, 0.5, 0.5])
    pgnn: str | None = None

    def __post_init__(self) -> None:
        sizes = ("structure_dim", "num_structure_tokens") + (("projection_dim",) if self.projection_dim else ())
        for name in sizes:
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(
                    f"structure_alignment[{name!r}] is {getattr(self, name)!r}; expected a positive integer."
                )
        if len(self.loss_weights) != 3 or not all(0 <= weight < math.inf for weight in self.loss_weights):
            raise ValueError(
                f"structure_alignment['loss_weights'] is {self.loss_weights}; expected three numbers, none below 0: "
                "MLM, physical (3Di), latent (contrastive)."
            )

    @classmethod
    def from_config(cls, config: PreTrainedConfig) -> StructureAlignmentSettings:
        """Settings of `config`; defaults where the checkpoint was never aligned."""
        stored = getattr(config, "structure_alignment", None) or {}
        known = {item.name for item in fields(cls)}
        if unknown := sorted(set(stored) - known):
            raise ValueError(
                f"structure_alignment has unknown keys {unknown}; expected some of {sorted(known)}. "
                "Was it written by a newer version of structure_aligned?"
            )
        return cls(**stored)

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass
class StructureAlignmentOutput(ModelOutput):
    """
    Output of the alignment models. Positions are those of `input_ids`, special tokens and padding included.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*): Weighted, unselected total of the tasks whose labels
            were given.
        logits (`torch.FloatTensor` of shape `(batch_size, length, vocab_size)`): Masked language modelling.
        structure_logits (`torch.FloatTensor` of shape `(batch_size, length, num_structure_tokens)`): 3Di tokens.
        sequence_projection (`torch.FloatTensor` of shape `(batch_size, length, projection_dim)`): L2-normalised.
        structure_projection (`torch.FloatTensor` of shape `(batch_size, length, projection_dim)`, *optional*):
            L2-normalised; meaningless outside `residue_mask`.
        logit_scale (`torch.FloatTensor`, scalar): Logarithm of the similarity's multiplier, never below ln 0.01.
        hidden_states, attentions (`tuple(torch.FloatTensor)`, *optional*): As for any Transformers model.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    structure_logits: torch.FloatTensor | None = None
    sequence_projection: torch.FloatTensor | None = None
    structure_projection: torch.FloatTensor | None = None
    logit_scale: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class StructureAlignmentHeads(nn.Module):
    """
    Token classifier (physical level) and projection pair with its temperature (latent level).

    Both read the trunk's last hidden state after L2 normalisation per residue. `logit_scale` lives here rather than
    on the model so that adapters (PEFT's `modules_to_save`) train and save it with the heads.
    """

    def __init__(self, hidden_size: int, settings: StructureAlignmentSettings) -> None:
        super().__init__()
        projection_dim = settings.projection_dim or min(hidden_size, settings.structure_dim)
        self.token_classifier = nn.Sequential(
            nn.Linear(hidden_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, settings.num_structure_tokens)
        )
        self.sequence_projection = nn.Linear(hidden_size, projection_dim)
        self.structure_projection = nn.Linear(settings.structure_dim, projection_dim)
        # Of shape (1,): FSDP2 refuses scalars.
        self.logit_scale = nn.Parameter(torch.tensor([INITIAL_LOGIT_SCALE]))

    @torch.no_grad()
    def initialize(self) -> None:
        """
        PyTorch's own Linear initialisation, as the authors use, and ln(1/0.07).

        Called from `_init_weights`, because `from_pretrained` leaves parameters that a checkpoint lacks as
        uninitialised memory; Transformers' `initialization` functions spare the ones it has.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                bound = 1 / math.sqrt(module.in_features)
                initialization.uniform_(module.weight, -bound, bound)
                initialization.uniform_(module.bias, -bound, bound)
        initialization.constant_(self.logit_scale, INITIAL_LOGIT_SCALE)

    def forward(
        self, hidden_state: torch.Tensor, structure_embeddings: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """
        Args:
            hidden_state (`torch.Tensor` of shape `(batch_size, length, hidden_size)`): The trunk's last one.
            structure_embeddings (`torch.Tensor` of shape `(batch_size, length, structure_dim)`, *optional*):
                The pGNN's, not normalised.

        Returns:
            Token logits, sequence projection, structure projection (or `None`) and clamped `logit_scale`.
        """
        hidden_state = F.normalize(hidden_state, dim=-1)
        token_logits = self.token_classifier(hidden_state)
        structure_projection = None
        if structure_embeddings is not None:
            expected = self.structure_projection.in_features
            if structure_embeddings.shape[-1] != expected:
                raise ValueError(
                    f"structure_embeddings are {structure_embeddings.shape[-1]} wide but this model's heads expect "
                    f"{expected}; load the model with structure_alignment={{'structure_dim': "
                    f"{structure_embeddings.shape[-1]}}} or build the dataset with the pGNN it was aligned with."
                )
            structure_projection = self._project(self.structure_projection, structure_embeddings)
        sequence_projection = self._project(self.sequence_projection, hidden_state)
        logit_scale = self.logit_scale.clamp(min=MIN_LOGIT_SCALE).squeeze(0)
        return token_logits, sequence_projection, structure_projection, logit_scale

    @staticmethod
    def _project(linear: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
        # In the weights' own precision even under autocast: a cosine with bfloat16's 8 bits, times a scale of 14 and
        # more, would be off by as much as the differences it is to tell apart.
        with torch.autocast(inputs.device.type, enabled=False):
            return F.normalize(linear(inputs.to(linear.weight.dtype)), dim=-1)


def compute_residue_losses(
    outputs: StructureAlignmentOutput,
    labels: torch.Tensor | None = None,
    structure_labels: torch.Tensor | None = None,
    residue_mask: torch.Tensor | None = None,
    negatives: str = "batch",
) -> ResidueLosses:
    """
    Unreduced losses of every task whose labels are given.

    Args:
        outputs ([`StructureAlignmentOutput`]): With `structure_projection` where the latent task is wanted.
        labels, structure_labels (`torch.LongTensor` of shape `(batch_size, length)`, *optional*): −100 elsewhere.
        residue_mask (`torch.BoolTensor` of shape `(batch_size, length)`, *optional*): Residues of the latent task.
        negatives (`str`, *optional*, defaults to `"batch"`): Whose residues they are told apart from: see
            [`residue_losses_among`].
    """
    losses = ResidueLosses()
    if labels is not None:
        losses.mlm = labelled_cross_entropy(outputs.logits, labels)
    if structure_labels is not None:
        losses.token = labelled_cross_entropy(outputs.structure_logits, structure_labels)
    if outputs.structure_projection is not None:
        if residue_mask is None:
            raise ValueError(
                "structure_embeddings came without residue_mask; pass the (batch_size, length) mask of the positions "
                "that hold a residue with an embedding, as DataCollatorForStructureAlignment does."
            )
        residue_mask = residue_mask.bool()
        losses.seq_to_struct, losses.struct_to_seq = residue_losses_among(
            outputs.sequence_projection[residue_mask],
            outputs.structure_projection[residue_mask],
            outputs.logit_scale.exp(),
            negatives,
        )
    return losses
