"""
Low-rank adapters (LoRA) of the trunk by PEFT: the trunk stays frozen, adapters and alignment heads are trained.

A folder of adapters holds them and the heads, and of the trunk only the digest: they are worth nothing on another one.
"""

from __future__ import annotations

import copy
import importlib.util
import math
import os
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict, prepare_model_for_kbit_training
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.utils import logging

from ..models.alignment import AutoModelForStructureAlignment, StructureAlignmentMixin
from ..models.folders import ADAPTER_CONFIG, holds_adapters, tokenizer_beside, whole_folder
from ..models.modes import without_load_report
from ..models.trunks import trunk_digest
from ..models.weights import check_loaded, check_tensors, read_tensors, readable
from ..utils.files import read_json, write_json
from ..utils.numbers import check_options


logger = logging.get_logger(__name__)

RECORD_NAME = "structure_alignment.json"
"""Beside the adapters: the trunk's digest and the heads' settings."""

LORA_TARGETS = {
    "esm": {
        "attention": r"esm\.encoder\.layer\.\d+\.attention\.(self\.(query|key|value)|output\.dense)",
        "ffn": r"esm\.encoder\.layer\.\d+\.(intermediate|output)\.dense",
    },
    "AMPLIFY": {
        "attention": r"transformer_encoder\.\d+\.(q|k|v|wo)",
        # The last two are those of its variants without SwiGLU.
        "ffn": r"transformer_encoder\.\d+\.ffn\.(w12|w3|0|2)",
    },
}
"""By model type: patterns of the names of the linear layers."""

LORA_CHOICES = ("attention", "attention+ffn")

_HEADS = "alignment"
_FULL_PRECISION = (_HEADS, "lm_head", "contact_head", "decoder")


class AlignmentPeftModel(PeftModel):
    """
    [`PeftModel`] of an alignment model, which knows what trunk its adapters belong to.

    `save_pretrained` writes that down beside them, and loading adapters of another trunk is refused. Made with
    [`add_lora`] or [`load_adapters`].
    """

    def __init__(self, model: PreTrainedModel, peft_config: PeftConfig, *args: Any, **kwargs: Any) -> None:
        _check_model(model)
        # Before the adapters come in between. Of a quantised trunk it would be another one than of the trunk itself.
        digest = None if _is_quantised(model) else trunk_digest(model)
        super().__init__(model, peft_config, *args, **kwargs)
        self.trunk_digest = digest

    def save_pretrained(self, save_directory: str | os.PathLike, is_main_process: bool = True, **kwargs: Any) -> None:
        """As in PEFT: adapters, heads, and their settings; not the trunk."""
        # "auto" would ask the hub whether the vocabulary has grown. Here it cannot: no preset adapts embeddings.
        kwargs.setdefault("save_embedding_layers", False)
        super().save_pretrained(str(save_directory), is_main_process=is_main_process, **kwargs)
        if is_main_process:
            record = {
                "model_type": self.config.model_type,
                "trunk_digest": self.trunk_digest,
                "structure_alignment": self.config.structure_alignment,
            }
            write_json(Path(save_directory) / RECORD_NAME, record)

    def load_adapter(self, model_id: str | os.PathLike, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        """As in PEFT, also into adapters that are there; a `ValueError` for those of another trunk."""
        path = Path(model_id) / RECORD_NAME
        if path.is_file():
            record = read_json(path, kind=dict)
            _check_trunk(record, self.trunk_digest, model_id)
            _check_heads(record, self, model_id)
        if adapter_name in self.peft_config:
            self._check_adapter(model_id, adapter_name)
            return super().load_adapter(str(model_id), adapter_name, *args, **kwargs)
        with readable(model_id):
            result = super().load_adapter(str(model_id), adapter_name, *args, **kwargs)
        self._check_adapter(model_id, adapter_name)
        return result

    def _check_adapter(self, folder: str | os.PathLike, adapter_name: str) -> None:
        """PEFT only warns of adapters that are missing, and says nothing of heads."""
        paths = [Path(folder) / name for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)]
        path = next((path for path in paths if path.is_file()), paths[0])
        own = get_peft_model_state_dict(self, adapter_name=adapter_name, save_embedding_layers=False)
        shapes = {name: tensor.shape for name, tensor in own.items()}
        expected = f"the adapters and heads that {ADAPTER_CONFIG} and {RECORD_NAME} beside them describe"
        check_tensors(read_tensors(path, expected), shapes, path, "this model with these adapters", expected)


def add_lora(
    model: PreTrainedModel,
    rank: int = 16,
    alpha: float | None = None,
    dropout: float = 0.0,
    target: str = "attention",
) -> AlignmentPeftModel:
    """
    Low-rank adapters for an alignment model: in training, they and the alignment heads change and nothing else does.

    The heads are trained and saved in full. At first the adapters change no output.

    Args:
        model ([`EsmForStructureAlignment`] or [`AmplifyForStructureAlignment`]): Gets the adapters where it is, and
            shares its weights with what is returned. May be loaded in 4 bits: see [`four_bit_config`].
        rank (`int`, *optional*, defaults to 16): Of the change of a matrix.
        alpha (`float`, *optional*): The change is scaled by `alpha / rank`; `2 · rank` by default.
        dropout (`float`, *optional*, defaults to 0): Of the adapters' inputs, in training.
        target (`str`, *optional*, defaults to `"attention"`): Linear layers that get one: `"attention"`, query, key,
            value and output; `"attention+ffn"`, those of the feed-forward network too.

    Raises:
        ValueError: An option is out of range, the model has adapters, or its type no preset.
        TypeError: It is no alignment model.
    """
    _check_model(model)
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank is {rank!r}; expected an integer of at least 1.")
    alpha = 2 * rank if alpha is None else alpha
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha is {alpha!r}; expected a number above 0 (by default 2 · rank).")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout!r}; expected at least 0 and below 1.")
    if target not in LORA_CHOICES:
        raise ValueError(f"target is {target!r}; choose one of {', '.join(LORA_CHOICES)}.")
    patterns = LORA_TARGETS.get(model.config.model_type)
    if patterns is None:
        raise ValueError(
            f"There is no preset for models of type {model.config.model_type!r}, only for {', '.join(LORA_TARGETS)}; "
            "add the patterns of its linear layers to LORA_TARGETS."
        )
    if _is_quantised(model):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="|".join(f"({patterns[part]})" for part in target.split("+")),
        modules_to_save=[_HEADS],
        base_model_name_or_path=model.name_or_path or None,
    )
    return AlignmentPeftModel(model, config)


def load_adapters(
    base: PreTrainedModel | str | os.PathLike | None,
    folder: str | os.PathLike,
    is_trainable: bool = False,
    dtype: torch.dtype | str = "auto",
) -> AlignmentPeftModel:
    """
    An alignment model with the adapters and heads of a folder.

    Args:
        base (`PreTrainedModel`, `str` or `os.PathLike`, *optional*): The model that was adapted: loaded, which then
            gets the adapters where it is; by its name or folder; or `None` for the name that `folder` has of it.
        folder (`str` or `os.PathLike`): Written by [`AlignmentPeftModel.save_pretrained`] or the Trainer.
        is_trainable (`bool`, *optional*, defaults to `False`): To train on. Otherwise it is put into evaluation mode.
        dtype (`torch.dtype` or `str`, *optional*, defaults to `"auto"`): Data type of a base that is loaded.

    Raises:
        ValueError: The folder holds no adapters, some of their weights are missing or not finite, or they
            are those of another trunk.
    """
    folder = Path(folder)
    with readable(folder):
        record = _read_record(folder)
        if base is None:
            base = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
            if not base:
                raise ValueError(f"{folder} does not say what model it adapts; give it as base.")
            try:
                base = _load_base(base, record, dtype)
            except OSError as error:
                raise ValueError(
                    f"{folder} adapts {base}, which cannot be loaded here ({str(error).splitlines()[0]}); give it as "
                    "base."
                ) from error
        elif not isinstance(base, torch.nn.Module):
            base = _load_base(base, record, dtype)
        _check_model(base)
        _check_heads(record, base, folder)
        # Here rather than later, as it leaves the base as it is.
        digest = None if _is_quantised(base) else trunk_digest(base)
        _check_trunk(record, digest, folder)
        base.config.structure_alignment = dict(record["structure_alignment"])
        model = AlignmentPeftModel.from_pretrained(base, str(folder), is_trainable=is_trainable)
    return model.train(is_trainable)


def merge_adapters(
    model_or_folder: PeftModel | str | os.PathLike,
    output: str | os.PathLike | None = None,
    base: PreTrainedModel | str | os.PathLike | None = None,
    overwrite: bool = False,
) -> PreTrainedModel:
    """
    The alignment model with its adapters added to the weights of the trunk: an ordinary one, for which nobody needs
    PEFT.

    Args:
        model_or_folder (`PeftModel`, `str` or `os.PathLike`): With adapters; such a model stays as it is.
        output (`str` or `os.PathLike`, *optional*): Folder to save it to, with its tokenizer.
        base (`PreTrainedModel`, `str` or `os.PathLike`, *optional*): For a folder, what it adapts, where that is not
            where it was; see [`load_adapters`].
        overwrite (`bool`, *optional*, defaults to `False`): Replace a model in `output`.
    """
    if output is None:
        return _merge(model_or_folder, base)
    source = None if isinstance(model_or_folder, PeftModel) else model_or_folder
    with whole_folder(output, overwrite, source) as folder:
        merged = _merge(model_or_folder, base)
        merged.save_pretrained(folder)
        tokenizer_beside(merged, source).save_pretrained(folder)
    return merged


def _merge(
    model_or_folder: PeftModel | str | os.PathLike, base: PreTrainedModel | str | os.PathLike | None
) -> PreTrainedModel:
    if isinstance(model_or_folder, PeftModel):
        adapted = model_or_folder
        if _is_quantised(adapted.get_base_model()):
            raise ValueError(
                "The trunk of this model is quantised, and merged weights would be rounded as well. Save the adapters "
                "and merge their folder, for which the trunk is loaded as it is."
            )
        adapted = copy.deepcopy(adapted)
    else:
        if isinstance(base, PreTrainedModel):
            base = copy.deepcopy(base)
        adapted = load_adapters(base, model_or_folder)
    if getattr(adapted.get_base_model(), "_require_grads_hooks", None):
        adapted.disable_input_require_grads()
    return adapted.merge_and_unload().requires_grad_(True).eval()


def four_bit_config() -> BitsAndBytesConfig:
    """
    `quantization_config` of `from_pretrained` for a trunk in 4 bits (NF4, double quantisation, bfloat16 arithmetic;
    QLoRA, arXiv:2305.14314) with heads and decoder as they are. Needs bitsandbytes.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError(
            "Loading a trunk in 4 bits needs bitsandbytes, which is not installed: pip install bitsandbytes, or load "
            "it as it is (without load_in_4bit)."
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=list(_FULL_PRECISION),
    )


def _check_model(model: Any) -> None:
    if isinstance(model, PeftModel) or hasattr(model, "peft_config"):
        raise ValueError("The model has adapters already; merge them first with merge_adapters, or train those on.")
    if not isinstance(model, StructureAlignmentMixin):
        raise TypeError(
            f"The model is a {type(model).__name__}; expected an EsmForStructureAlignment or "
            "AmplifyForStructureAlignment, as AutoModelForStructureAlignment.from_pretrained gives it."
        )


def _check_heads(record: dict, model: PreTrainedModel | PeftModel, folder: str | os.PathLike) -> None:
    sizes = ("structure_dim", "projection_dim", "num_structure_tokens")
    saved, own = record["structure_alignment"], model.config.structure_alignment
    if record["model_type"] != model.config.model_type:
        raise ValueError(
            f"The adapters in {folder} are of a trunk of type {record['model_type']!r}, and the model is of type "
            f"{model.config.model_type!r}; give the model that was adapted."
        )
    if wrong := [name for name in sizes if saved[name] != own[name]]:
        listed = "; ".join(f"{name} is {saved[name]} there and {own[name]} here" for name in wrong)
        raise ValueError(
            f"The heads in {folder} do not fit the model's ({listed}); load the model with the settings that "
            f"{RECORD_NAME} has there, or give its name instead."
        )


def _check_trunk(record: dict, digest: str | None, folder: str | os.PathLike) -> None:
    expected = record["trunk_digest"]
    if expected is None or digest is None:
        logger.warning(
            f"The trunk of the adapters in {folder} or of the model is quantised, so it is not checked that they "
            "belong together."
        )
    elif expected != digest:
        raise ValueError(
            f"The adapters in {folder} were trained on another trunk (digest {expected[:12]}…) than the model's "
            f"({digest[:12]}…); on this one they mean nothing. Give the model that was adapted."
        )


def _load_base(name: str | os.PathLike, record: dict, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    with without_load_report():
        model, info = AutoModelForStructureAlignment.from_pretrained(
            name,
            structure_alignment=record["structure_alignment"],
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    heads = {key for key in info["missing_keys"] if key.split(".")[0] == _HEADS}
    # A plain base has no alignment heads: those come with the adapters.
    check_loaded(model, info | {"missing_keys": set(info["missing_keys"]) - heads}, name)
    return model


def _read_record(folder: Path) -> dict:
    if not holds_adapters(folder):
        raise ValueError(f"{folder} holds no adapters (adapter_config.json); give a folder that a LoRA run has saved.")
    if not (folder / RECORD_NAME).is_file():
        raise ValueError(
            f"{folder} has no {RECORD_NAME}, so nobody can tell what trunk its adapters belong to; give a folder that "
            "was saved by this package, with all of its files."
        )
    check_options(read_json(folder / ADAPTER_CONFIG, kind=dict))
    return read_json(folder / RECORD_NAME, kind=dict)


def _is_quantised(model: PreTrainedModel) -> bool:
    return getattr(model, "is_quantized", False) or getattr(model, "is_loaded_in_4bit", False)
