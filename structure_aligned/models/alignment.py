"""Protein language models with the alignment heads. What they save stays a checkpoint of the trunk's own family."""

from __future__ import annotations

import copy
import os
from typing import Any, ClassVar

import torch
from transformers import AutoConfig, EsmConfig, EsmForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from ..objectives.losses import LossWeights, combine_losses
from .amplify import AmplifyForMaskedLM
from .configuration import AmplifyConfig
from .folders import refuse_adapters
from .heads import (
    StructureAlignmentHeads,
    StructureAlignmentOutput,
    StructureAlignmentSettings,
    compute_residue_losses,
)
from .packing import PackedLayout, packed_esm_embeddings
from .weights import ALIGNMENT_HEADS, UNUSED_WEIGHTS, WholeWeights, load_auto, readable


class StructureAlignmentMixin(WholeWeights):
    """What the alignment classes of all trunks share. Goes before the trunk's masked-LM class."""

    _may_be_fresh = (*UNUSED_WEIGHTS, ALIGNMENT_HEADS)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *args: Any,
        structure_alignment: dict | None = None,
        **kwargs: Any,
    ) -> StructureAlignmentMixin:
        """
        As in Transformers, from an aligned checkpoint or from a plain trunk, whose heads are then fresh.

        Args:
            structure_alignment (`dict`, *optional*): Fields of [`StructureAlignmentSettings`] that replace the
                checkpoint's, such as `{"structure_dim": 128}` for a pGNN of that width.
        """
        if structure_alignment is not None:
            config = kwargs.pop("config", None)
            if config is None:
                with readable(pretrained_model_name_or_path):
                    config = cls.config_class.from_pretrained(pretrained_model_name_or_path, **_hub_options(kwargs))
            config = copy.deepcopy(config)
            stored = getattr(config, "structure_alignment", None) or {}
            config.structure_alignment = {**stored, **structure_alignment}
            _check_same_pgnn(stored, structure_alignment)
            kwargs["config"] = config
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """
        As in Transformers, with every weight under the name it has in the model.

        Transformers 5 saves ESM's LayerNorms as `gamma` and `beta`. Its own loading renames them, but resuming and
        `load_best_model_at_end` do not: they would silently keep the LayerNorms as they are.
        """
        kwargs.setdefault("save_original_format", False)
        super().save_pretrained(save_directory, **kwargs)

    def _add_alignment_heads(self, config: PreTrainedConfig) -> None:
        settings = StructureAlignmentSettings.from_config(config)
        config.structure_alignment = settings.to_dict()
        self.alignment = StructureAlignmentHeads(config.hidden_size, settings)

    def _init_weights(self, module: torch.nn.Module) -> None:
        # Children come before their parents here, so the heads' Linears get the trunk's initialisation first and
        # keep the one of `initialize`.
        if isinstance(module, StructureAlignmentHeads):
            module.initialize()
        else:
            super()._init_weights(module)

    def _forward(
        self,
        trunk_inputs: dict[str, Any],
        labels: torch.LongTensor | None,
        structure_labels: torch.LongTensor | None,
        structure_embeddings: torch.Tensor | None,
        residue_mask: torch.Tensor | None,
        sequence_ids: torch.LongTensor | None,
        return_dict: bool | None,
    ) -> StructureAlignmentOutput | tuple[torch.Tensor, ...]:
        """`forward`, whose arguments have the order that the class before the mixin has, in one form for all."""
        # Transformers' trunks take what the configuration says for what is not given, and not for None.
        trunk_inputs = {name: value for name, value in trunk_inputs.items() if value is not None}
        if sequence_ids is not None:
            trunk_inputs["layout"] = self._packed_layout(sequence_ids, trunk_inputs)
        logits, trunk = self._run_trunk(**trunk_inputs)
        aligned = self._align(
            logits,
            trunk.last_hidden_state,
            labels,
            structure_labels,
            structure_embeddings,
            residue_mask,
            hidden_states=trunk.hidden_states,
            attentions=trunk.attentions,
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return aligned if return_dict else aligned.to_tuple()

    @staticmethod
    def _packed_layout(sequence_ids: torch.Tensor, trunk_inputs: dict[str, Any]) -> PackedLayout:
        input_ids = trunk_inputs.get("input_ids")
        if input_ids is None or sequence_ids.shape != input_ids.shape:
            found = None if input_ids is None else tuple(input_ids.shape)
            raise ValueError(
                f"sequence_ids have shape {tuple(sequence_ids.shape)} and input_ids {found}; packed rows need both, "
                "of the same shape."
            )
        if given := {"position_ids", "inputs_embeds"} & set(trunk_inputs):
            raise ValueError(f"{sorted(given)} came with sequence_ids, from which packed rows get their own.")
        return PackedLayout.from_sequence_ids(sequence_ids)

    def _run_trunk(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        layout: PackedLayout | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, ModelOutput]:
        """MLM logits, and the trunk's output with `last_hidden_state`, `hidden_states` and `attentions`."""
        raise NotImplementedError

    def _align(
        self,
        logits: torch.Tensor,
        last_hidden_state: torch.Tensor,
        labels: torch.Tensor | None,
        structure_labels: torch.Tensor | None,
        structure_embeddings: torch.Tensor | None,
        residue_mask: torch.Tensor | None,
        **recorded: Any,
    ) -> StructureAlignmentOutput:
        """Heads and loss on top of a trunk's logits and last hidden state."""
        self._check_residue_inputs(
            last_hidden_state,
            labels=labels,
            structure_labels=structure_labels,
            structure_embeddings=structure_embeddings,
            residue_mask=residue_mask,
        )
        if structure_embeddings is not None and residue_mask is not None:
            # A NaN that is masked later still makes NaN gradients: 0 · NaN in the projection's backward.
            structure_embeddings = structure_embeddings.masked_fill(~residue_mask.bool().unsqueeze(-1), 0.0)
        token_logits, sequence_projection, structure_projection, logit_scale = self.alignment(
            last_hidden_state, structure_embeddings
        )
        outputs = StructureAlignmentOutput(
            logits=logits,
            structure_logits=token_logits,
            sequence_projection=sequence_projection,
            structure_projection=structure_projection,
            logit_scale=logit_scale,
            **recorded,
        )
        # residue_mask without embeddings is what a Trainer passes along at inference; it is no label by itself.
        if labels is not None or structure_labels is not None or residue_mask is not None:
            losses = compute_residue_losses(outputs, labels, structure_labels, residue_mask)
            if losses.items():
                weights = LossWeights(*self.config.structure_alignment["loss_weights"])
                loss, _ = combine_losses(losses, weights)
                # A new object, because the order of a tuple is the order in which the fields were set.
                outputs = StructureAlignmentOutput(loss=loss, **outputs)
        return outputs

    @staticmethod
    def _check_residue_inputs(last_hidden_state: torch.Tensor, **inputs: torch.Tensor | None) -> None:
        for name, value in inputs.items():
            if value is not None and value.shape[:2] != last_hidden_state.shape[:2]:
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)} but input_ids have "
                    f"{tuple(last_hidden_state.shape[:2])}; residue-level inputs must be aligned with input_ids, "
                    "special tokens and padding included (-100 or False there)."
                )


class EsmForStructureAlignment(StructureAlignmentMixin, EsmForMaskedLM):
    """
    ESM2 with the masked-LM head and the alignment heads.

    Its folders are ESM2 checkpoints: `AutoModel` and `AutoModelForMaskedLM` load them without this package and only
    report the extra `alignment.*` weights.
    """

    def __init__(self, config: EsmConfig) -> None:
        super().__init__(config)
        self._add_alignment_heads(config)
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        structure_labels: torch.LongTensor | None = None,
        structure_embeddings: torch.Tensor | None = None,
        residue_mask: torch.Tensor | None = None,
        sequence_ids: torch.LongTensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> StructureAlignmentOutput | tuple[torch.Tensor, ...]:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, length)`): Tokens, usually with masked residues.
            attention_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*): 1 for tokens, 0 for padding.
            labels (`torch.LongTensor` of shape `(batch_size, length)`, *optional*): Residue token at masked
                positions, −100 elsewhere.
            structure_labels (`torch.LongTensor` of shape `(batch_size, length)`, *optional*): 3Di token, −100 where
                there is none.
            structure_embeddings (`torch.Tensor` of shape `(batch_size, length, structure_dim)`, *optional*): The
                frozen pGNN's.
            residue_mask (`torch.BoolTensor` of shape `(batch_size, length)`, *optional*): Positions whose
                `structure_embeddings` count.
            sequence_ids (`torch.LongTensor` of shape `(batch_size, length)`, *optional*): For packed rows, which
                protein of its row each token belongs to: 0, 1, 2 …, −1 for padding. Proteins do not see each other.
            position_ids, inputs_embeds, encoder_hidden_states, encoder_attention_mask, output_attentions,
                output_hidden_states, return_dict, kwargs: As for `EsmForMaskedLM`.
        """
        trunk_inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "encoder_hidden_states": encoder_hidden_states,
            "encoder_attention_mask": encoder_attention_mask,
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
            **kwargs,
        }
        targets = (labels, structure_labels, structure_embeddings, residue_mask)
        return self._forward(trunk_inputs, *targets, sequence_ids, return_dict)

    def _run_trunk(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        layout: PackedLayout | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, ModelOutput]:
        kwargs["return_dict"] = True  # whatever the configuration says
        if layout is None:
            outputs = self.esm(input_ids, attention_mask=attention_mask, **kwargs)
        else:
            mask, options = layout.attention_inputs(self.config._attn_implementation)
            outputs = self.esm(
                inputs_embeds=packed_esm_embeddings(self.esm.embeddings, input_ids, layout),
                attention_mask=mask if mask is None else _for_eager(mask, self.config, self.dtype),
                position_ids=layout.position_ids,
                **options,
                **kwargs,
            )
        return self.lm_head(outputs.last_hidden_state), outputs


class AmplifyForStructureAlignment(StructureAlignmentMixin, AmplifyForMaskedLM):
    """
    AMPLIFY with the alignment heads, on the output of its last block (before `layer_norm_2`).

    Its folders are AMPLIFY checkpoints: the names are the published ones, and `alignment.*` comes on top.
    """

    def __init__(self, config: AmplifyConfig) -> None:
        super().__init__(config)
        self._add_alignment_heads(config)
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        labels: torch.LongTensor | None = None,
        structure_labels: torch.LongTensor | None = None,
        structure_embeddings: torch.Tensor | None = None,
        residue_mask: torch.Tensor | None = None,
        sequence_ids: torch.LongTensor | None = None,
        **kwargs: Any,
    ) -> StructureAlignmentOutput | tuple[torch.Tensor, ...]:
        """Arguments as for [`AmplifyForMaskedLM`], then those of [`EsmForStructureAlignment.forward`]."""
        trunk_inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
            **kwargs,
        }
        targets = (labels, structure_labels, structure_embeddings, residue_mask)
        return self._forward(trunk_inputs, *targets, sequence_ids, return_dict)

    def _run_trunk(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        layout: PackedLayout | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, ModelOutput]:
        if layout is not None:
            attention_mask, options = layout.attention_inputs(self.config._attn_implementation)
            kwargs |= {"position_ids": layout.position_ids} | options
        outputs = self._encode(input_ids, attention_mask, **kwargs)
        return outputs.logits, outputs


class AutoModelForStructureAlignment:
    """
    The alignment class that fits a checkpoint's trunk, as `AutoModelForMaskedLM` finds its masked-LM class.

    A registry of its own: registering `EsmConfig` with one of Transformers' Auto classes would take over every ESM
    checkpoint of the process, and does not work in all of its versions.
    """

    _model_classes: ClassVar[dict[type[PreTrainedConfig], type[PreTrainedModel]]] = {
        EsmConfig: EsmForStructureAlignment,
        AmplifyConfig: AmplifyForStructureAlignment,
    }

    def __init__(self) -> None:
        raise OSError(f"{type(self).__name__} is made with `from_pretrained(path)` or `from_config(config)`.")

    @classmethod
    def register(cls, config_class: type[PreTrainedConfig], model_class: type[PreTrainedModel]) -> None:
        """Add the alignment class of another trunk."""
        cls._model_classes[config_class] = model_class

    @classmethod
    def from_config(cls, config: PreTrainedConfig, **kwargs: Any) -> PreTrainedModel:
        """A model with fresh weights."""
        return cls._class_of(config)._from_config(config, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *args: Any,
        config: PreTrainedConfig | None = None,
        **kwargs: Any,
    ) -> PreTrainedModel:
        """As `from_pretrained` of the alignment class that fits, `structure_alignment` among its arguments."""
        kwargs.pop("trust_remote_code", None)  # ESM2 and AMPLIFY need no code of a checkpoint
        refuse_adapters(pretrained_model_name_or_path)
        if config is None:
            config = load_auto(AutoConfig, pretrained_model_name_or_path, **_hub_options(kwargs))
        with readable(pretrained_model_name_or_path):
            model_class = cls._class_of(config)
        return model_class.from_pretrained(pretrained_model_name_or_path, *args, config=config, **kwargs)

    @classmethod
    def _class_of(cls, config: PreTrainedConfig) -> type[PreTrainedModel]:
        if type(config) not in cls._model_classes:
            known = ", ".join(known.model_type for known in cls._model_classes)
            raise ValueError(
                f"There is no alignment model for checkpoints of type {config.model_type!r} "
                f"({type(config).__name__}); expected one of: {known}."
            )
        return cls._model_classes[type(config)]


def _for_eager(mask: torch.Tensor, config: PreTrainedConfig, dtype: torch.dtype) -> torch.Tensor:
    """ESM's eager attention adds its mask to the scores; sdpa takes it as it is."""
    if config._attn_implementation != "eager":
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


def _hub_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments of `from_pretrained` that say where to look."""
    names = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
    return {name: kwargs[name] for name in names if name in kwargs}


def _check_same_pgnn(stored: dict, asked: dict) -> None:
    trained, width = stored.get("pgnn"), stored.get("structure_dim")
    if trained is not None and asked.get("structure_dim", width) != width:
        raise ValueError(
            f"This checkpoint was aligned with {trained}, whose embeddings are {width} wide, but a structure_dim of "
            f"{asked['structure_dim']} was asked for: another pGNN. Use a dataset made with the pGNN it was aligned "
            "with, or start from the plain trunk, whose heads are fresh."
        )
