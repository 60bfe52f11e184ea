"""What counts as high quality: thresholds for chains, and labels taken from residues that are too uncertain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


MASK_COLUMNS = ("structure_token_mask", "structure_embedding_mask")
PLDDT_SCALES = (100, 1, "auto", None)


@dataclass(frozen=True)
class QualityThresholds:
    """
    What a chain must meet to be of high quality. A bound is met by values equal to it; what an entry does not state
    meets no bound.

    Experimental structures are judged by method, resolution and R-free, predicted ones by their pLDDT alone: without
    `min_plddt` no predicted model is good. Without a stated R-free (NMR, electron microscopy, old entries) no
    experimental structure is good, whether or not `max_r_free` is given, unless `allow_missing_r_free` says so.

    Args:
        max_resolution (`float`, *optional*): In Å. Common choices lie between 1.5 and 2.5.
        max_r_free (`float`, *optional*): As a fraction, such as 0.25.
        methods (`list[str]`, *optional*): Such as `["X-RAY DIFFRACTION"]`.
        min_plddt (`float`, *optional*): Of the chain's mean, on the scale 0-100, such as 90.
        allow_missing_r_free (`bool`, *optional*, defaults to `False`): Whether entries that state no R-free can be
            good. Those that state one are held to `max_r_free` all the same.
    """

    max_resolution: float | None = None
    max_r_free: float | None = None
    methods: tuple[str, ...] | None = None
    min_plddt: float | None = None
    allow_missing_r_free: bool = False

    def __post_init__(self) -> None:
        if self.methods is not None:
            methods = (self.methods,) if isinstance(self.methods, str) else self.methods
            object.__setattr__(self, "methods", tuple(method.upper() for method in methods))
        if self.max_resolution is None and self.max_r_free is None and not self.methods and self.min_plddt is None:
            raise ValueError(
                "QualityThresholds got no threshold, so nothing tells good from bad; give max_resolution, max_r_free, "
                "methods or min_plddt."
            )
        if self.max_resolution is not None and not self.max_resolution > 0:
            raise ValueError(f"max_resolution is {self.max_resolution}; expected Å, more than 0.")
        if self.max_r_free is not None and not 0 < self.max_r_free < 1:
            raise ValueError(f"max_r_free is {self.max_r_free}; expected a fraction between 0 and 1, such as 0.25.")
        _check_min_plddt(self.min_plddt)

    def reason(self, row: Mapping[str, Any], mean_plddt: float | None = None) -> str | None:
        """
        Why a chain is not of high quality, as `"kind: what came"`; `None` where it is.

        Args:
            row (`Mapping`): With `predicted`, `method`, `resolution` and `r_free` of a dataset row.
            mean_plddt (`float`, *optional*): Of a predicted chain, 0-100, as [`mean_b_factors`] gives it.
        """
        if row["predicted"]:
            if self.min_plddt is None:
                return "predicted: the thresholds name no min_plddt"
            if mean_plddt is None or np.isnan(mean_plddt):
                return "plddt not stated: no residue has a value"
            return f"plddt: {mean_plddt:.1f} is less than {self.min_plddt:g}" if mean_plddt < self.min_plddt else None
        if self.methods and (row["method"] or "").upper() not in self.methods:
            return f"method: {row['method']} is none of {', '.join(self.methods)}"
        for name, unit, bound in (("resolution", " Å", self.max_resolution), ("r_free", "", self.max_r_free)):
            if row[name] is None:
                wanted = not self.allow_missing_r_free if name == "r_free" else bound is not None
                if wanted:
                    return f"{name} not stated: by {row['method'] or 'an entry without a method'}"
            elif bound is not None and row[name] > bound:
                return f"{name}: {row[name]:g}{unit} is more than {bound:g}{unit}"
        return None


def mean_b_factors(dataset: datasets.Dataset, plddt_scale: int | str | None = 100) -> np.ndarray:
    """
    Mean B-factor of each experimental chain in Å², mean pLDDT (0-100) of each predicted one; NaN where none is stated.

    Args:
        dataset (`datasets.Dataset`): With `id`, `b_factors` and `predicted`.
        plddt_scale (`int` or `str`, *optional*, defaults to 100): What the files of predicted models hold: 100 for
            0-100, 1 for 0-1 (ESMFold), `"auto"` for what each chain's largest value shows, `None` for the same where
            nothing depends on it: values that cannot be pLDDT then count as not stated.

    Raises:
        `ValueError`: Where a predicted chain's values do not fit the scale, or cannot be pLDDT at all.
    """
    _check_scale(plddt_scale)
    narrow = require_columns(dataset, ("id", "b_factors", "predicted")).with_format("arrow")
    means = [np.empty(0)]
    for table in narrow.iter(batch_size=1000):
        values, rows, _, known = _read_b_factors(table, plddt_scale)
        counts = np.bincount(rows[known], minlength=len(table))
        sums = np.bincount(rows[known], weights=values[known], minlength=len(table))
        means.append(np.divide(sums, counts, out=np.full(len(table), np.nan), where=counts > 0))
    return np.concatenate(means)


def mask_low_confidence(
    dataset: datasets.Dataset,
    max_b_factor: float | None = None,
    min_plddt: float | None = None,
    plddt_scale: int | str | None = 100,
) -> datasets.Dataset:
    """
    Removes the structure labels of uncertain residues: `structure_token_mask` and `structure_embedding_mask` become
    False there. The residues stay, as input and as targets of masked language modelling.

    A residue whose value is not stated (no number, or a B-factor of 0, as in most NMR files) meets no bound. Each
    bound concerns its own kind of chain: `max_b_factor` experimental ones, `min_plddt` predicted ones.

    Args:
        dataset (`datasets.Dataset`): Best before it is split or shuffled, because then no embedding is copied.
        max_b_factor (`float`, *optional*): In Å².
        min_plddt (`float`, *optional*): On the scale 0-100, such as 70.
        plddt_scale (`int` or `str`, *optional*, defaults to 100): See [`mean_b_factors`]; is of no concern without
            `min_plddt`.
    """
    if max_b_factor is None and min_plddt is None:
        raise ValueError("mask_low_confidence got neither max_b_factor nor min_plddt; give at least one bound.")
    plddt_scale = masking_scale(max_b_factor, min_plddt, plddt_scale)
    masks = [name for name in MASK_COLUMNS if name in dataset.column_names]
    if not masks:
        raise ValueError(f"The dataset has columns {dataset.column_names}; expected one of {', '.join(MASK_COLUMNS)}.")
    if len(dataset) == 0:
        return dataset
    columns = ["id", "b_factors", "predicted", *masks]
    # The embeddings are nearly all of a dataset's bytes, so the masks are made without them and joined again.
    masked = (
        require_columns(dataset, columns)
        .with_format("arrow")
        .map(
            mask_rows,
            batched=True,
            remove_columns=columns,
            features=datasets.Features({name: dataset.features[name] for name in masks}),
            fn_kwargs={"max_b_factor": max_b_factor, "min_plddt": min_plddt, "plddt_scale": plddt_scale},
            desc="Masking uncertain residues",
        )
    )
    parts = [dataset.with_format(None).remove_columns(masks), masked.with_format(None)]
    joined = datasets.concatenate_datasets(parts, split=dataset.split, axis=1)
    return joined.select_columns(dataset.column_names).with_format(**dataset.format)


def masking_scale(
    max_b_factor: float | None, min_plddt: float | None, plddt_scale: int | str | None
) -> int | str | None:
    """The pLDDT scale that [`mask_rows`] needs to hear of; a `ValueError` where the bounds make no sense."""
    _check_scale(plddt_scale)
    _check_min_plddt(min_plddt)
    if max_b_factor is not None and not max_b_factor > 0:
        raise ValueError(f"max_b_factor is {max_b_factor}; expected Å², more than 0.")
    return plddt_scale if min_plddt is not None else None


def require_columns(dataset: datasets.Dataset, columns: tuple[str, ...] | list[str]) -> datasets.Dataset:
    """The named columns of a dataset; a `ValueError` where some are missing."""
    missing = [name for name in columns if name not in dataset.column_names]
    if missing:
        raise ValueError(
            f"The dataset has no column {', '.join(map(repr, missing))}; build it with StructureDatasetBuilder (a "
            "dataset of an earlier version has to be built again; its feature cache is used)."
        )
    return dataset.select_columns(list(columns))


def mask_rows(
    table: pa.Table, max_b_factor: float | None, min_plddt: float | None, plddt_scale: int | str | None
) -> pa.Table:
    """
    [`mask_low_confidence`] on a table with `id`, `b_factors`, `predicted` and any of `MASK_COLUMNS`.

    Args:
        plddt_scale (`int` or `str`, *optional*): As [`masking_scale`] gives it.

    Returns:
        `pa.Table`: The masks.
    """
    values, rows, predicted, known = _read_b_factors(table, plddt_scale)
    keep = np.ones(len(values), dtype=bool)
    with np.errstate(invalid="ignore"):
        if max_b_factor is not None:
            keep &= predicted[rows] | (known & (values <= max_b_factor))
        if min_plddt is not None:
            keep &= ~predicted[rows] | (known & (values >= min_plddt))
    result = {}
    for name in table.column_names:
        if name in MASK_COLUMNS:
            mask, mask_rows = _flat(table[name])
            if not np.array_equal(mask_rows, rows):
                lengths = np.bincount(mask_rows, minlength=len(table)), np.bincount(rows, minlength=len(table))
                row = int(np.flatnonzero(lengths[0] != lengths[1])[0])
                raise ValueError(
                    f"{table['id'][row]} has {lengths[0][row]} entries in {name} but {lengths[1][row]} B-factors; "
                    "expected one of each per residue. Build the dataset again."
                )
            offsets = np.searchsorted(rows, np.arange(len(table) + 1)).astype(np.int32)
            result[name] = pa.ListArray.from_arrays(offsets, pa.array(mask.astype(bool) & keep))
    return pa.table(result)


def _read_b_factors(
    table: pa.Table, plddt_scale: int | str | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All residues' values (pLDDT 0-100), the chain of each, which chains are predicted, which values are stated."""
    values, rows = _flat(table["b_factors"])
    values = values.astype(np.float32)
    flags = table["predicted"].to_pylist()
    if None in flags:
        name = table["id"][flags.index(None)]
        raise ValueError(f"{name} does not say whether it is predicted; expected True or False in 'predicted'.")
    predicted = np.array(flags, dtype=bool)
    stated = np.isfinite(values)
    low, high = np.full(len(table), np.inf, np.float32), np.full(len(table), -np.inf, np.float32)
    np.minimum.at(low, rows[stated], values[stated])
    np.maximum.at(high, rows[stated], values[stated])
    checked = predicted & (high >= low)  # chains with a value
    strange = checked & ((low < 0) | (high > 100))
    if plddt_scale is None:
        stated &= ~strange[rows]
        strange[:] = False
    for wrong, what in (
        (strange, "is no pLDDT. Build experimental chains with predicted=False"),
        (checked & (high <= 1) & (plddt_scale == 100), "is pLDDT from 0 to 1, or none. Give plddt_scale=1 or 'auto'"),
        (checked & (high > 1) & (plddt_scale == 1), "is no pLDDT from 0 to 1. Give plddt_scale=100 or 'auto'"),
    ):
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise ValueError(
                f"{table['id'][row]} is a predicted model whose B-factor column holds {low[row]:g} to {high[row]:g}; "
                f"expected pLDDT from 0 to {plddt_scale if plddt_scale == 1 else 100}, and this {what}, or leave the "
                f"{'chain' if wrong.sum() == 1 else f'{wrong.sum()} chains'} out."
            )
    factor = np.where(checked & (high <= 1), np.float32(100), np.float32(1))
    values = values * factor[rows]
    return values, rows, predicted, stated & (predicted[rows] | (values > 0))


def _flat(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """A list column's values, and the row of each."""
    column = column.combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    return column.flatten().to_numpy(zero_copy_only=False), np.repeat(np.arange(len(column)), lengths)


def _check_scale(plddt_scale: int | str | None) -> None:
    if plddt_scale not in PLDDT_SCALES:
        raise ValueError(f"plddt_scale is {plddt_scale!r}; choose {', '.join(map(repr, PLDDT_SCALES))}.")


def _check_min_plddt(min_plddt: float | None) -> None:
    if min_plddt is not None and not 1 < min_plddt <= 100:
        raise ValueError(
            f"min_plddt is {min_plddt}; expected a number on the scale 0-100, more than 1 (also where the files' own "
            "scale is 0-1)."
        )
