"""Ranks that were given different options or data wait for each other forever; here they say so and stop."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch.distributed as dist
from transformers import Trainer

from ..objectives.distributed import is_distributed


# Options that may well differ between ranks and machines: where files are, and what is logged.
_OWN_OPTIONS = {"output_dir", "run_name", "local_rank", "report_to", "disable_tqdm", "resume_from_checkpoint"}
_OWN_OPTIONS |= {"overwrite_output_dir", "log_level", "log_level_replica", "log_on_each_node", "project"}
_OWN_PREFIXES = ("hub_", "push_to_hub", "trackio_", "dataloader_num_workers", "dataloader_p")

_COMPARED_ROWS = 64
"""Rows of each dataset whose id and sequence are compared, evenly spaced; of all rows the lengths are."""

_SHOWN = 5


def check_ranks_agree(trainer: Trainer, checkpoint: str | Path | None = None) -> None:
    """
    Compares options, data, collator and model of all ranks. To be called by every rank, before it waits for others.

    Args:
        trainer ([`Trainer`]): The rank's own.
        checkpoint (`str` or `Path`, *optional*): That this rank resumes from.

    Raises:
        ValueError: On every rank, with what differs and the ranks that have each value.
    """
    if not is_distributed():
        return
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, _facts(trainer, checkpoint))
    names = dict.fromkeys(name for facts in gathered for name in facts)
    different = [name for name in names if len({facts.get(name) for facts in gathered}) > 1]
    if not different:
        return
    described = "; ".join(_describe(name, [facts.get(name) for facts in gathered]) for name in different[:_SHOWN])
    more = f"; and {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
    raise ValueError(
        f"The ranks of this training were given different options or data: {described}{more}. Start every rank with "
        "the same options, and let all of them see the same files."
    )


def _describe(name: str, values: list[str | None]) -> str:
    ranks: dict[str | None, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(value, []).append(rank)
    parts = []
    for value, members in ranks.items():
        shown = "missing" if value is None else value if len(value) <= 60 else value[:57] + "..."
        parts.append(f"{shown} on rank{'s' if len(members) > 1 else ''} {', '.join(map(str, members))}")
    return f"{name} is {' and '.join(parts)}"


def _facts(trainer: Trainer, checkpoint: str | Path | None) -> dict[str, str]:
    """What must be equal on all ranks, by name."""
    facts = {
        name: _text(value)
        for name, value in trainer.args.to_dict().items()
        if name not in _OWN_OPTIONS and not name.startswith(_OWN_PREFIXES)
    }
    facts["checkpoint"] = "none" if checkpoint is None else Path(checkpoint).name
    collator = getattr(trainer.data_collator, "__dict__", {})
    facts |= {f"data_collator.{name}": _text(value) for name, value in collator.items() if _is_plain(value)}
    facts |= _model_facts(trainer.model)
    facts |= _dataset_facts("train_dataset", trainer.train_dataset)
    if isinstance(trainer.eval_dataset, Mapping):
        for name, dataset in trainer.eval_dataset.items():
            facts |= _dataset_facts(f"eval_dataset[{name!r}]", dataset)
    else:
        facts |= _dataset_facts("eval_dataset", trainer.eval_dataset)
    return facts


def _text(value: Any) -> str:
    # Of objects their type alone: how they print may hold an address.
    return json.dumps(value, sort_keys=True, default=lambda other: type(other).__name__)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _model_facts(model: Any) -> dict[str, str]:
    config = {} if getattr(model, "config", None) is None else model.config.to_dict()
    facts = {
        f"model.config.{name}": _text(value)
        for name, value in config.items()
        if name not in ("_name_or_path", "transformers_version")
    }
    parameters = [(name, tuple(value.shape), value.requires_grad) for name, value in model.named_parameters()]
    return facts | {"model.parameters": _digest(repr(parameters).encode())}


def _dataset_facts(name: str, dataset: Any) -> dict[str, str]:
    """Of a dataset without a length only that there is one: reading it would use it up."""
    if not hasattr(dataset, "__len__"):
        return {name: type(dataset).__name__}
    facts = {f"{name}.rows": str(len(dataset))}
    if isinstance(dataset, datasets.Dataset):
        columns = dataset.column_names
        facts[f"{name}.columns"] = ", ".join(columns)
        if "length" in columns:
            lengths = dataset.with_format("numpy", columns=["length"])["length"][:]
            facts[f"{name}.lengths"] = _digest(np.asarray(lengths, dtype=np.int64).tobytes())
        if compared := [column for column in ("id", "sequence", "pgnn") if column in columns]:
            rows = np.linspace(0, len(dataset) - 1, min(_COMPARED_ROWS, len(dataset))).round().astype(int)
            some = dataset.with_format(None).select_columns(compared).select(rows)
            facts[f"{name}.content"] = _digest(repr(some.to_dict()).encode())
    return facts


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
