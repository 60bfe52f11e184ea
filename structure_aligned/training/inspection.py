"""Which residues selection keeps: counts over an epoch of a Trainer's own batches, a table per chain, a summary."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from datasets.utils import tqdm
from scipy.stats import spearmanr
from torch.utils.data import DataLoader

from ..models.modes import evaluating
from ..objectives.losses import IGNORE_INDEX
from ..structure.secondary import SECONDARY_STATES
from ..structure.tokens import structure_tokens_to_string
from .running import SELECTED_LOSSES
from .trainer import StructureAlignmentTrainer


UNDEFINED = "-"
"""Stands for residues without a 3Di token."""

_COLUMNS = ["id", "sequence", "structure_tokens", "structure_token_mask", "b_factors", "predicted"]


@dataclass(frozen=True, eq=False)
class SelectionRecord:
    """
    What selection did with the residues of one chain; all fields but the first share the residue axis, of length L.

    Args:
        id (`str`): Of the dataset row.
        sequence (`str`): One letter per residue.
        available, kept (`dict[str, np.ndarray]`, each of shape `(L,)`, int64): How often a residue had each of the
            losses `token`, `seq_to_struct` and `struct_to_seq`, and how often selection kept it.
        excess (`dict[str, np.ndarray]`, each of shape `(L,)`, float64): Mean signed excess loss in nats, NaN where the
            residue was never available, and everywhere where nothing was selected (ratio 1.0).
        b_factors (`np.ndarray` of shape `(L,)`): In Å²; pLDDT where `predicted`. See [`ProteinChain`].
        structure_tokens (`str`): 3Di letters, `-` where there is none.
        predicted (`bool`, *optional*, defaults to `False`): The structure is a model's prediction.
        secondary (`str`, *optional*): Of [`assign_secondary_structure`].
    """

    id: str
    sequence: str
    available: dict[str, np.ndarray]
    kept: dict[str, np.ndarray]
    excess: dict[str, np.ndarray]
    b_factors: np.ndarray
    structure_tokens: str
    predicted: bool = False
    secondary: str | None = None

    def __post_init__(self) -> None:
        fields = {"b_factors": self.b_factors, "structure_tokens": self.structure_tokens, "secondary": self.secondary}
        for kind in ("available", "kept", "excess"):
            fields |= {f"{kind}[{name!r}]": values for name, values in getattr(self, kind).items()}
        for name, values in fields.items():
            if values is not None and len(values) != len(self):
                raise ValueError(
                    f"{self.id}: {name} has {len(values)} entries for {len(self)} residues; give one each."
                )

    def __len__(self) -> int:
        return len(self.sequence)

    def frequency(self, name: str) -> np.ndarray:
        """Fraction `(L,)` of the times a residue had the loss `name` that it was kept; NaN where it never had."""
        return _divide(self.kept[name], self.available[name])


def selection_frequency(
    trainer: StructureAlignmentTrainer,
    dataset: datasets.Dataset,
    epochs: int = 1,
    ids: Iterable[str] | None = None,
) -> dict[str, SelectionRecord]:
    """
    Counts how often each residue is kept in the batches that `trainer` would train on, with its model as it is.

    Batches are those of the Trainer's first epochs: its sampler, batch size, masks and reference. Nothing is trained,
    and the Trainer is left as it was. The model is in evaluation mode, so that dropout adds no noise to the ranking.

    Args:
        trainer ([`StructureAlignmentTrainer`]): With the model, the reference and the selection to look at.
        dataset (`datasets.Dataset`): As [`StructureDatasetBuilder`] makes it; usually the Trainer's training set.
        epochs (`int`, *optional*, defaults to 1): Each epoch has other masks and other batches.
        ids (`Iterable[str]`, *optional*): Chains to report on; all by default. Selection is relative to the batch, so
            batches stay whole, but those without any of these chains are passed over.

    Returns:
        `dict[str, SelectionRecord]`: By id, in the order of `ids` (or of the dataset).

    Raises:
        ValueError: Several processes; no epoch; ids that are missing or not unique; or chains so long that the
            collator would crop them, which leaves no place to count at.
    """
    collator = trainer.data_collator
    plain = dataset.with_format(None)
    if trainer.args.world_size > 1:
        raise ValueError(f"There are {trainer.args.world_size} processes; each sees its own batches. Run it in one.")
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}; expected at least 1.")
    known = {name: index for index, name in enumerate(plain["id"][:])}
    if len(known) != len(plain):
        raise ValueError(f"{len(plain)} rows have {len(known)} ids; expected an id of its own for each chain.")
    chosen = list(known) if ids is None else list(dict.fromkeys(ids))
    if missing := [name for name in chosen if name not in known]:
        raise ValueError(f"The dataset has no chains {missing[:5]}; its ids look like {next(iter(known), None)!r}.")
    sequences = plain["sequence"]
    lengths = {name: len(sequences[known[name]]) for name in chosen}
    long = [name for name, length in lengths.items() if length > collator.max_residues]
    if long:
        raise ValueError(
            f"{len(long)} chains, such as {long[0]} of {lengths[long[0]]} residues, are longer than the collator's "
            f"{collator.max_residues} and would be cropped at random. Raise its max_length, or choose shorter chains."
        )
    tables = [_Table(lengths[name]) for name in chosen]
    # All tokenizers of residues are alike in this: special tokens before, one token per residue, special tokens after.
    start = collator.tokenizer("A", return_special_tokens_mask=True)["special_tokens_mask"].index(0)
    rows = {name: number for number, name in enumerate(chosen)}
    model = trainer.model
    with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        for epoch in range(epochs):
            loader = _training_batches(trainer, dataset, rows, epoch)
            for batch in tqdm(loader, desc=f"Selection, epoch {epoch + 1}", unit="batch"):
                numbers = batch.pop("row_number").tolist()
                if not batch:
                    continue
                for name, counts in _counts(trainer, trainer._prepare_inputs(batch)).items():
                    for number, values in zip(numbers, counts):
                        if number >= 0:
                            tables[number].add(name, values[:, start:])
    shown = plain.select_columns(_COLUMNS)
    return {name: table.record(shown[known[name]]) for name, table in zip(chosen, tables)}


def _counts(trainer: StructureAlignmentTrainer, inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Per loss, `(batch_size, 3, length)`: whether a position has it, whether it is kept, and its excess."""
    with trainer.compute_loss_context_manager():
        losses = trainer._residue_losses(trainer._forward(trainer.model, inputs), inputs)
        kept, excess = trainer.select(losses, inputs)
    present = {"token": inputs["structure_labels"] != IGNORE_INDEX}
    if "residue_mask" in inputs:
        present |= dict.fromkeys(SELECTED_LOSSES[1:], inputs["residue_mask"].bool())
    counts = {}
    for name, mask in present.items():
        mask = mask.cpu()
        own = torch.zeros(3, *mask.shape, dtype=torch.float64)
        own[0][mask] = 1
        own[1][mask] = kept[name].cpu().double() if name in kept else 1.0
        own[2][mask] = excess[name].cpu().double() if name in excess else torch.nan
        counts[name] = own.transpose(0, 1).numpy()
    return counts


class _Table:
    """Sums for one chain of `length` residues."""

    def __init__(self, length: int) -> None:
        self.sums = {name: np.zeros((3, length)) for name in SELECTED_LOSSES}

    def add(self, name: str, values: np.ndarray) -> None:
        """`values` `(3, at least length)`: what `_counts` says from the first residue on."""
        self.sums[name] += values[:, : self.sums[name].shape[1]]

    def record(self, row: dict[str, Any]) -> SelectionRecord:
        return SelectionRecord(
            id=row["id"],
            sequence=row["sequence"],
            available={name: sums[0].astype(np.int64) for name, sums in self.sums.items()},
            kept={name: sums[1].astype(np.int64) for name, sums in self.sums.items()},
            excess={name: _divide(sums[2], sums[0]) for name, sums in self.sums.items()},
            b_factors=np.asarray(row["b_factors"], dtype=np.float32),
            structure_tokens=structure_tokens_to_string(
                row["structure_tokens"], row["structure_token_mask"], invalid=UNDEFINED
            ),
            predicted=bool(row["predicted"]),
        )


class _NumberedRows:
    """A collator that tells which of the chosen chains each row is, −1 for others, and skips batches without any."""

    def __init__(self, collator: Any, rows: dict[str, int]) -> None:
        self.collator, self.rows = collator, rows
        # What batches are planned by.
        for name in ("max_length", "num_special_tokens", "pad_to_multiple_of"):
            setattr(self, name, getattr(collator, name))

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        numbers = torch.tensor([self.rows.get(row["id"], -1) for row in rows])
        batch = self.collator(rows) if (numbers >= 0).any() else {}
        return batch | {"row_number": numbers}


def _training_batches(
    trainer: StructureAlignmentTrainer, dataset: datasets.Dataset, rows: dict[str, int], epoch: int
) -> DataLoader:
    """The batches of an epoch of training on `dataset`, made as the Trainer makes them."""
    # A copy, so that the Trainer's own collator stays in the epoch that it is in.
    collator = copy.deepcopy(trainer.data_collator)
    collator.set_epoch(epoch)
    collator.packing = False  # the same proteins, masks and losses, and a row for each
    with _exchanged(trainer, train_dataset=dataset, data_collator=_NumberedRows(collator, rows)):
        loader = trainer.get_train_dataloader()
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(epoch)
    return loader


@contextmanager
def _exchanged(target: Any, **values: Any) -> Iterator[None]:
    """Attributes of `target` replaced, and put back."""
    before = {name: getattr(target, name) for name in values}
    vars(target).update(values)
    try:
        yield
    finally:
        vars(target).update(before)


def selection_table(record: SelectionRecord) -> str:
    """
    Tab-separated values, one line per residue under a header: position (from 1), residue, 3Di letter, secondary
    structure, B-factor or pLDDT, and per loss how often available and kept and the mean excess. Empty where unknown.
    """
    columns: dict[str, Sequence[Any]] = {
        "position": range(1, len(record) + 1),
        "residue": record.sequence,
        "3di": record.structure_tokens,
        "secondary": record.secondary or [""] * len(record),
        "plddt" if record.predicted else "b_factor": [_number(value, 2) for value in record.b_factors],
    }
    for name in record.kept:
        columns[f"{name}_available"] = record.available[name]
        columns[f"{name}_kept"] = record.kept[name]
        columns[f"{name}_excess"] = [_number(value, 4) for value in record.excess[name]]
    lines = ["\t".join(columns), *("\t".join(map(str, values)) for values in zip(*columns.values()))]
    return "\n".join(lines) + "\n"


def selection_summary(records: Iterable[SelectionRecord]) -> str:
    """
    Markdown table of several chains together, a line per loss: the fraction kept, of all residues and by secondary
    structure, and Spearman's correlation of the kept frequency with the B-factor (for predicted chains, pLDDT).

    The correlation is the mean over chains, weighted by their residues, since B-factors of different entries do not
    compare. Chains where every residue is kept equally often, or all B-factors are equal, have none.
    """
    records = list(records)
    groups = {
        "B-factor": [record for record in records if not record.predicted],
        "pLDDT": [record for record in records if record.predicted],
    }
    groups = {name: members for name, members in groups.items() if members}
    states = SECONDARY_STATES if any(record.secondary for record in records) else ""
    heads = ["kept by loss", "residues", "all", *states, *(f"ρ with {name}" for name in groups)]
    lines = [f"| {' | '.join(heads)} |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for loss in SELECTED_LOSSES:
        cells = [loss, str(sum(int((record.available[loss] > 0).sum()) for record in records))]
        cells.append(_kept_fraction(records, loss))
        cells += [_kept_fraction([record for record in records if record.secondary], loss, state) for state in states]
        cells += [_mean_correlation(members, loss) for members in groups.values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _kept_fraction(records: list[SelectionRecord], loss: str, state: str | None = None) -> str:
    kept = available = 0
    for record in records:
        inside = np.array([state in (None, letter) for letter in record.secondary or record.sequence], dtype=bool)
        kept, available = kept + record.kept[loss][inside].sum(), available + record.available[loss][inside].sum()
    return f"{kept / available:.3f}" if available else "–"


def _mean_correlation(records: list[SelectionRecord], loss: str) -> str:
    values, weights = [], []
    for record in records:
        frequency = record.frequency(loss)
        known = np.isfinite(frequency) & np.isfinite(record.b_factors)
        pair = frequency[known], record.b_factors[known]
        if known.sum() > 2 and all(np.ptp(values) > 0 for values in pair):
            values.append(spearmanr(*pair).statistic)
            weights.append(known.sum())
    return f"{np.average(values, weights=weights):+.3f}" if values else "–"


def _divide(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else ""
