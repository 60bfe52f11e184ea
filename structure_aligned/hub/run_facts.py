"""What a model card says about a training run, as plain JSON: what is not known is `None`, and the card says so."""

from __future__ import annotations

import datetime
import os
import platform
import re
from collections import Counter
from dataclasses import MISSING, asdict, dataclass, field, fields
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, Trainer, TrainingArguments

from ..data.builder import REPORT_NAME
from ..data.split_summary import SUMMARY_NAME
from ..utils.files import read_json, write_json


FACTS_NAME = "training_run.json"

PACKAGES = ("structure-aligned", "torch", "transformers", "accelerate", "datasets", "peft")

MAIN_ARGUMENTS = (
    *("num_train_epochs", "max_steps", "learning_rate", "head_learning_rate", "lr_scheduler_type", "warmup_steps"),
    *("optim", "adam_beta1", "adam_beta2", "weight_decay", "max_grad_norm", "batching", "tokens_per_batch"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "mlm_weight", "physical_weight", "latent_weight"),
    *("negatives", "selection_ratio", "selection_keep", "selection_scope", "reference_mode"),
    *("bf16", "fp16", "gradient_checkpointing", "compile_trunk", "seed", "load_best_model_at_end"),
)
"""Always in the card; other arguments where they differ from their defaults."""

# Where files go and what is printed: nothing of the trained weights depends on these, and some name private paths.
_NO_TRAINING = re.compile(
    r"(hub|push_to_hub|logging|log|save|dataloader|do|trackio|report|jit|eval_on|include)_.*|.*_(dir|token|config)|"
    r"run_name|report_to|disable_tqdm|resume_from_checkpoint|local_rank|use_cpu|push_to_hub|deepspeed|project|debug|"
    r"remove_unused_columns|ddp_.*|length_column_name|label_names|restore_callback_states_from_checkpoint"
)
_SYNTHETIC_ENTRY = re.compile(r"syn\d{5,}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

# https://huggingface.co/facebook/esm2_t6_8M_UR50D, https://github.com/chandar-lab/AMPLIFY
_LICENSES = {"facebook/esm2_": "mit", "chandar-lab/AMPLIFY_": "mit"}


@dataclass
class RunFacts:
    """
    Facts about a training run. Everything is optional: `None` (or an empty container) means that it is not known.

    Args:
        name (`str`): Of the model.
        model_type (`str`): `esm` or `AMPLIFY`.
        parameters, head_parameters (`int`): Of the language model, and of the alignment heads on top.
        base_model (`str`): Id on the hub.
        base_note (`str`): What else is known of where the weights come from.
        license (`str`): Identifier of the hub.
        pgnn (`str`): Identity that the heads are bound to, `class:layers:output_dim:dtype:digest`.
        structure_dim (`int`): Width of its embeddings.
        reference (`str`): The reference model of residue selection; `"none"` where there was none.
        data (`dict`): For each split its `chains`, `residues`, `predicted` and `synthetic` chains and `fingerprint`.
        build (`dict`): Of the dataset's build_report.json: `files`, `chains`, `rows` and `left_out`, by reason.
        splits (`dict`): Options of `split_chains`, from the dataset's splits.json.
        max_length (`int`): Tokens to which longer proteins were cropped.
        arguments (`dict`): Training arguments by name: `{"value", "default"}`.
        run (`dict`): `steps`, `max_steps`, `epochs`, `kept_step`, `resumed_at`, `hours`, `processes`, `hardware`,
            `date` and `finished`.
        versions (`dict[str, str]`): Of Python and the packages.
        adapters (`str`): What adapters (PEFT) the folder holds instead of a whole model.
        results (`list[dict]`): What the card's tables come from: names of JSON `files` in the folder, and what these
            call the `model`.
        card (`str`): SHA-256 of the card as it was written, to notice what others write into it.
    """

    name: str | None = None
    model_type: str | None = None
    parameters: int | None = None
    head_parameters: int | None = None
    base_model: str | None = None
    base_note: str | None = None
    license: str | None = None
    pgnn: str | None = None
    structure_dim: int | None = None
    reference: str | None = None
    data: dict[str, dict[str, Any]] = field(default_factory=dict)
    build: dict[str, Any] = field(default_factory=dict)
    splits: dict[str, Any] = field(default_factory=dict)
    max_length: int | None = None
    arguments: dict[str, dict[str, Any]] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    adapters: str | None = None
    results: list[dict[str, Any]] = field(default_factory=list)
    card: str | None = None

    @classmethod
    def of_folder(cls, folder: str | os.PathLike) -> RunFacts:
        """What was written with the model, else what its configuration and weights tell."""
        folder = Path(folder)
        if (folder / FACTS_NAME).is_file():
            stored = read_json(folder / FACTS_NAME, kind=dict)
            if unknown := sorted(set(stored) - {item.name for item in fields(cls)}):
                raise ValueError(
                    f"{folder / FACTS_NAME} has unknown keys {unknown}. Was it written by a newer version of "
                    "structure_aligned?"
                )
            return cls(**stored)
        facts = cls(name=folder.resolve().name)
        if (folder / "adapter_config.json").is_file():
            facts.adapters = _adapters(read_json(folder / "adapter_config.json", kind=dict))
        if (folder / "config.json").is_file():
            config = read_json(folder / "config.json", kind=dict)
            heads = config.get("structure_alignment") or {}
            facts.model_type = config.get("model_type")
            facts.pgnn, facts.structure_dim = heads.get("pgnn"), heads.get("structure_dim")
        facts.parameters, facts.head_parameters = _stored_parameters(folder)
        return facts

    @classmethod
    def of_trainer(
        cls, trainer: Trainer, *, finished: bool = True, data: dict[str, dict[str, Any]] | None = None
    ) -> RunFacts:
        """What a [`StructureAlignmentTrainer`] knows; `data` where it is known already and need not be counted."""
        model, args = trainer.accelerator.unwrap_model(trainer.model), trainer.args
        heads, peft = getattr(model.config, "structure_alignment", None) or {}, getattr(model, "peft_config", None)
        base_model, base_note = base_of(model)
        if data is None:
            evaluation = trainer.eval_dataset
            sets = {"train": trainer.train_dataset}
            sets |= evaluation if isinstance(evaluation, dict) else {"validation": evaluation}
            data = {name: facts for name, one in sets.items() if (facts := split_facts(one)) is not None}
        parameters, head_parameters = _parameters(model)
        arguments = argument_facts(args)
        if "selection_ratio" in arguments:
            arguments["selection_ratio"] = {
                "value": trainer.selection_ratio,
                "default": "0.8 with a reference, else 1.0",
            }
        return cls(
            name=Path(args.output_dir).resolve().name,
            model_type=model.config.model_type,
            parameters=parameters,
            head_parameters=head_parameters,
            base_model=base_model,
            base_note=base_note,
            license=license_of(base_model),
            pgnn=heads.get("pgnn"),
            structure_dim=heads.get("structure_dim"),
            reference=_reference(trainer),
            data=data,
            build=_beside(trainer.train_dataset, REPORT_NAME, _build_facts),
            splits=_beside(trainer.train_dataset, SUMMARY_NAME, lambda stored: stored.get("options") or {}),
            max_length=getattr(trainer.data_collator, "max_length", None),
            arguments=arguments,
            run=run_state(trainer, finished),
            versions=versions(),
            adapters=_adapters(next(iter(peft.values())).to_dict()) if peft else None,
        )

    def write(self, folder: str | os.PathLike) -> Path:
        path = Path(folder) / FACTS_NAME
        write_json(path, asdict(self))
        return path


def base_of(model: PreTrainedModel) -> tuple[str | None, str]:
    """Hub id of the checkpoint that a model was loaded from, if it is one, and in words."""
    name = getattr(model.config, "_name_or_path", "") or ""
    if not name:
        return None, "not stated: the configuration names no checkpoint, as of a model with fresh weights"
    if not Path(name).exists() and _HUB_ID.fullmatch(name):
        return name, f"`{name}`"
    return None, f"a local folder called `{Path(name).name}`; which published model that is, is not known"


def license_of(base_model: str | None) -> str | None:
    """Of the published base models that this package knows; `None` for others."""
    return next((known for start, known in _LICENSES.items() if (base_model or "").startswith(start)), None)


def split_facts(dataset: Any) -> dict[str, Any] | None:
    """Numbers of chains and residues, and the fingerprint; what is not known is `None`, as is no dataset at all."""
    if dataset is None:
        return None
    facts: dict[str, Any] = {"chains": len(dataset) if hasattr(dataset, "__len__") else None}
    columns = getattr(dataset, "column_names", None) or ()
    plain = dataset.with_format(None) if facts["chains"] is not None and hasattr(dataset, "with_format") else None
    known = (
        {} if plain is None else {name: plain[name][:] for name in ("length", "predicted", "entry") if name in columns}
    )
    facts["residues"] = int(np.sum(known["length"])) if "length" in known else None
    facts["predicted"] = int(np.sum(known["predicted"])) if "predicted" in known else None
    synthetic = [_SYNTHETIC_ENTRY.fullmatch(one) is not None for one in known.get("entry", ())]
    facts["synthetic"] = sum(synthetic) if "entry" in known else None
    facts["fingerprint"] = getattr(dataset, "_fingerprint", None)
    return facts


def argument_facts(args: TrainingArguments) -> dict[str, dict[str, Any]]:
    """The main training arguments, then those that differ from their defaults."""
    found = {}
    for item in fields(args):
        if not item.init or (_NO_TRAINING.fullmatch(item.name) and item.name not in MAIN_ARGUMENTS):
            continue
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        value, default = _plain(getattr(args, item.name)), _plain(None if default is MISSING else default)
        if item.name in MAIN_ARGUMENTS or (value or None) != (default or None):
            found[item.name] = {"value": value, "default": default}
    order = {name: index for index, name in enumerate(MAIN_ARGUMENTS)}
    return dict(sorted(found.items(), key=lambda pair: order.get(pair[0], len(order))))


def run_state(trainer: Trainer, finished: bool) -> dict[str, Any]:
    """Steps, epochs, time and machine of the last call of `train`."""
    state = trainer.state
    kept = getattr(state, "best_global_step", None) if finished and trainer.args.load_best_model_at_end else None
    seconds = next((log["train_runtime"] for log in reversed(state.log_history) if "train_runtime" in log), None)
    return {
        "steps": state.global_step,
        "max_steps": state.max_steps or None,
        "epochs": None if state.epoch is None else round(state.epoch, 4),
        "resumed_at": getattr(trainer, "_initial_global_step", 0) or None,
        "kept_step": kept or state.global_step,
        "hours": None if seconds is None else seconds / 3600,
        "processes": trainer.args.world_size,
        "hardware": hardware(trainer.args.device),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "finished": finished,
    }


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {os.cpu_count()} cores)"


def versions() -> dict[str, str]:
    from .. import __version__

    found = {"python": platform.python_version(), "structure-aligned": __version__}
    for package in PACKAGES:
        if package not in found:
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                continue
    return found


def _reference(trainer: Trainer) -> str | None:
    reference = getattr(trainer, "reference", None)
    if reference is None:
        return "none"
    if (model := getattr(reference, "model", None)) is not None:
        name = Path(getattr(model.config, "_name_or_path", "") or type(model).__name__)
        return f"`{name.name}` ({model.config.model_type}), run in every step"
    if not hasattr(trainer.train_dataset, "unique"):  # a stream
        return "losses computed before the training"
    identities = trainer.train_dataset.with_format(None).unique("reference")
    return f"{', '.join(f'`{one}`' for one in identities)}, losses computed before the training"


def _parameters(model: PreTrainedModel) -> tuple[int | None, int | None]:
    """Of the language model and the heads; adapters count as neither."""
    if getattr(model, "is_quantized", False):
        return None, None  # packed: several weights to an element
    named = [(name, one) for name, one in model.named_parameters() if "lora_" not in name]
    # DeepSpeed's ZeRO-3 leaves empty tensors where a parameter lies on other processes.
    count = {name: getattr(one, "ds_numel", one.numel()) for name, one in named}
    heads = sum(number for name, number in count.items() if "alignment." in name and "original_module" not in name)
    others = sum(number for name, number in count.items() if "alignment." not in name)
    return others, heads


def _adapters(config: dict[str, Any]) -> str:
    """In words, from PEFT's configuration."""
    kind, targets = config.get("peft_type"), config.get("target_modules")
    where = ", ".join(sorted(targets)) if isinstance(targets, (list, set, tuple)) else targets
    return f"{getattr(kind, 'value', kind)}, rank {config.get('r')}, alpha {config.get('lora_alpha')}, on {where}"


def _stored_parameters(folder: Path) -> tuple[int | None, int | None]:
    """From the headers of safetensors files; tensors are not read."""
    from safetensors import SafetensorError, safe_open

    trunk = heads = 0
    files = sorted(folder.glob("model*.safetensors"))
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 (no mapping)
                    size = int(np.prod(file.get_slice(name).get_shape()))
                    heads, trunk = (heads + size, trunk) if name.startswith("alignment.") else (heads, trunk + size)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); save the model again.") from error
    return (trunk, heads) if files else (None, None)


def _beside(dataset: Any, name: str, read: Any) -> dict[str, Any]:
    """From a JSON file beside the dataset's Arrow files or a folder above; empty where there is none."""
    for file in getattr(dataset, "cache_files", None) or ():
        for folder in list(Path(file["filename"]).parents)[:2]:
            if (folder / name).is_file():
                return read(read_json(folder / name, kind=dict))
    return {}


def _build_facts(stored: dict[str, Any]) -> dict[str, Any]:
    reasons = Counter(item["reason"].split(":")[0] for item in stored.get("skipped") or ())
    return {name: stored.get(name) for name in ("files", "chains", "rows")} | {"left_out": dict(reasons.most_common())}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = str(value)
    return Path(text).name if os.sep in text and len(text) < 4096 and Path(text).exists() else text[:200]
