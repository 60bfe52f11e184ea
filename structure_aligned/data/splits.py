"""Splits of a dataset that share no entry, sequence or cluster: reference (high quality), train, validation, test."""

from __future__ import annotations

import datetime
import hashlib
from collections import Counter
from dataclasses import asdict
from typing import Any

import datasets
import numpy as np
from datasets.utils import logging

from .quality import QualityThresholds, mean_b_factors, require_columns
from .relatives import ChainKey, Clusters, chain_keys, clusters_of, entry_key, group_rows
from .split_summary import SplitSummary


logger = logging.get_logger(__name__)

SPLITS = ("reference", "train", "validation", "test")
"""Order in which a result lists its splits."""

_COLUMNS = (
    *("id", "entry", "chain", "sequence", "length", "resolution", "r_free", "method", "deposition_date", "predicted"),
    "b_factors",
)
_CHOICES = {
    "straddling": ("train", "test"),
    "undated": ("leave_out", "train", "raise"),
    "entries": (None, "merge", "leave_out"),
}


def split_chains(
    dataset: datasets.Dataset,
    *,
    quality: QualityThresholds | None = None,
    reference_fraction: float = 1.0,
    date: str | datetime.date | None = None,
    straddling: str = "train",
    undated: str = "leave_out",
    clusters: Clusters | None = None,
    missing_clusters: str = "raise",
    entries: str | None = None,
    validation_fraction: float = 0.0,
    test_fraction: float = 0.0,
    seed: int = 0,
    plddt_scale: int | str = 100,
) -> tuple[datasets.DatasetDict, SplitSummary]:
    """
    Splits chains so that no cluster, entry or sequence is in two splits.

    Whole groups are drawn: test first, then validation, then the reference's training set; the rest is `train`. Chains
    that fit no split without sharing something with another are left out and reported. A draw depends on `seed` and
    the groups' names alone, not on the order of rows. Fractions count groups.

    `reference` takes the high-quality chains of its groups. The other chains of these groups are left out, because a
    reference model must not have seen what it judges. Test and validation are drawn from chains of any quality.

    Args:
        dataset (`datasets.Dataset`): As [`StructureDatasetBuilder`] makes it.
        quality ([`QualityThresholds`], *optional*): Asks for the split `reference`.
        reference_fraction (`float`, *optional*, defaults to 1.0): Of the groups with a high-quality chain that are
            not in validation or test. Below 1.0 the other groups stay in `train` with all their chains.
        date (`str` or `datetime.date`, *optional*): Experimental chains deposited on this day or later are `test`, and
            earlier ones are not. Predicted models have no deposition date (their files' date is that of a release).
        straddling (`str`, *optional*, defaults to `"train"`): Which chains stay of a group with chains from before and
            after `date`: the earlier ones (the test then holds new groups only), or, with `"test"`, the later ones.
        undated (`str`, *optional*, defaults to `"leave_out"`): What becomes of chains without a date where `date` is
            given: `"train"` counts them as earlier, `"raise"` refuses them.
        clusters (`str`, `os.PathLike` or `dict`, *optional*): MMseqs2's `*_cluster.tsv`, see [`read_clusters`].
            Without it only identical sequences and entries are groups, and homologs may be on both sides.
        missing_clusters (`str`, *optional*, defaults to `"raise"`): `"own"` takes chains that the file lacks for
            clusters of their own.
        entries (`str`, *optional*): `"merge"` puts all chains of an entry into one group, the default without
            `clusters`. With clusters, complexes would link most of the PDB to one group that way; the default is then
            `"leave_out"`: where chains of one entry are drawn for two splits, those of the later draw are left out.
        validation_fraction (`float`, *optional*, defaults to 0.0): Of the groups that are not in test.
        test_fraction (`float`, *optional*, defaults to 0.0): Of the groups; excludes `date`.
        seed (`int`, *optional*, defaults to 0): Of the draws.
        plddt_scale (`int` or `str`, *optional*, defaults to 100): See [`mean_b_factors`]; is of no concern without
            `min_plddt`.

    Returns:
        The splits that were asked for and `train`, rows in the dataset's order, and their [`SplitSummary`].

    Raises:
        ValueError: An option or the dataset does not allow it, or a split would be empty.

    Example:

    ```python
    good = QualityThresholds(max_resolution=2.0, max_r_free=0.25)
    splits, summary = split_chains(dataset, quality=good, date="2023-01-01", clusters="pdb_cluster.tsv")
    splits.save_to_disk("datasets/pdb_splits")
    summary.save("datasets/pdb_splits")
    print(summary)
    ```
    """
    for name, value in (("straddling", straddling), ("undated", undated), ("entries", entries)):
        if value not in _CHOICES[name]:
            raise ValueError(f"{name} is {value!r}; choose {', '.join(map(repr, _CHOICES[name]))}.")
    if quality is None and date is None and not validation_fraction and not test_fraction:
        raise ValueError("split_chains was asked for no split; give quality, date or a fraction.")
    if date is not None and test_fraction:
        raise ValueError(f"Both date={date} and test_fraction={test_fraction} would make the test split; give one.")
    for name, value in (("validation_fraction", validation_fraction), ("test_fraction", test_fraction)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} is {value}; expected a fraction of the groups, 0 <= {name} < 1.")
    if not 0 < reference_fraction <= 1:
        raise ValueError(f"reference_fraction is {reference_fraction}; expected more than 0 and at most 1.")
    columns = require_columns(dataset, _COLUMNS).with_format(None)
    rows = columns.remove_columns("b_factors").to_list()
    means = mean_b_factors(columns, None if quality is None or quality.min_plddt is None else plddt_scale)
    chains = chain_keys(columns)
    names = Counter((one.id, one.entry, one.chain) for one in chains)
    if len(names) < len(chains):
        (name, *_), count = names.most_common(1)[0]
        raise ValueError(f"The id {name} is in the dataset {count} times; ids name rows and must be unique.")

    found = None if clusters is None else clusters_of(chains, clusters, missing_clusters)
    entries = entries or ("merge" if clusters is None else "leave_out")
    keys = [[row["sequence"] for row in rows], *([] if found is None else [found])]
    keys += [[entry_key(one.entry) for one in chains]] if entries == "merge" else []
    draw = _Draw(chains, group_rows(*keys), seed)

    if date is not None:
        draw.take_date(rows, _as_date(date, "date"), straddling, undated)
    draw.take("test", "test_fraction", test_fraction)
    draw.take("validation", "validation_fraction", validation_fraction)
    below: Counter[str] = Counter()
    if quality is not None:
        reasons = [quality.reason(row, mean) for row, mean in zip(rows, means)]
        below.update(reason.split(":")[0] for reason in reasons if reason)
        if all(reasons):
            raise ValueError(
                f"No chain meets the thresholds, so 'reference' is empty: {len(rows)} chains, not met: "
                f"{dict(below.most_common())}. Loosen them; entries without R-free need allow_missing_r_free."
            )
        draw.take("reference", "reference_fraction", reference_fraction, reasons)
    draw.take_rest("train")

    asked = {
        "quality": None if quality is None else asdict(quality),
        "reference_fraction": reference_fraction,
        "date": None if date is None else str(date),
        "straddling": straddling,
        "undated": undated,
        "clusters": clusters is not None,
        "missing_clusters": missing_clusters,
        "entries": entries,
        "validation_fraction": validation_fraction,
        "test_fraction": test_fraction,
        "seed": seed,
    }
    members = {name: np.flatnonzero(draw.split == name) for name in SPLITS if (draw.split == name).any()}
    left_out = [{"source": chains[row].id, "reason": reason} for row, reason in sorted(draw.left_out.items())]
    summary = SplitSummary.of(rows, means, draw.groups, members, left_out, dict(below.most_common()), asked)
    if left_out:
        logger.warning(f"{len(left_out)} of {len(rows)} chains are in no split: {summary.reasons()}.")
    return datasets.DatasetDict({name: dataset.select(chosen) for name, chosen in members.items()}), summary


class _Draw:
    """Which split each row goes to, filled in step by step. A row has a split, a reason to be left out, or neither."""

    def __init__(self, chains: list[ChainKey], groups: np.ndarray, seed: int) -> None:
        self.ids, self.groups, self.seed = [one.id for one in chains], groups, seed
        self.entries = [entry_key(one.entry) for one in chains]
        self.split = np.full(len(chains), "", dtype=object)
        self.left_out: dict[int, str] = {}
        self.split_of_entry: dict[str, str] = {}
        self.members: dict[int, list[int]] = {}
        for row, group in enumerate(groups.tolist()):
            self.members.setdefault(group, []).append(row)
        # Numbers of groups follow the order of rows; the smallest of their ids does not.
        names = [(one.id, one.entry) for one in chains]
        self.names = {group: min(names[row] for row in members) for group, members in self.members.items()}

    def free(self, group: int) -> list[int]:
        """Rows of a group that can still go somewhere; leaves out those whose entry went elsewhere."""
        free = []
        for row in self.members[group]:
            if self.split[row] or row in self.left_out:
                continue
            if (taken := self.split_of_entry.get(self.entries[row])) is not None:
                self.left_out[row] = f"same entry: another chain of {self.entries[row]} is in {taken}"
            else:
                free.append(row)
        return free

    def place(self, split: str, rows: list[int]) -> None:
        for row in rows:
            self.split[row] = split
        self.split_of_entry.update((self.entries[row], split) for row in rows)

    def take(self, split: str, option: str, fraction: float, reasons: list[str | None] | None = None) -> None:
        """
        Draw groups for a split. With `reasons` only rows that have none are taken, of groups with such a row, and the
        others of these groups are left out.
        """
        if not fraction:
            return
        candidates: dict[int, list[int]] = {}
        for group in self.members:
            free = [row for row in self.free(group) if reasons is None or reasons[row] is None]
            if free:
                candidates[group] = free
        count = int(fraction * len(candidates) + 0.5)
        if count == 0:
            raise ValueError(
                f"{split!r} would be empty: {option}={fraction:g} of {len(candidates)} groups is less than one. Give "
                "a larger fraction or more structures."
            )
        for group in sorted(candidates, key=lambda group: self._rank(split, group))[:count]:
            self.place(split, candidates[group])
            for row in self.members[group] if reasons is not None else ():
                if not self.split[row] and row not in self.left_out:
                    relative = min(self.ids[other] for other in candidates[group])
                    self.left_out[row] = f"related to {split}: to {relative}, and not good by {reasons[row]}"

    def take_date(self, rows: list[dict[str, Any]], date: datetime.date, straddling: str, undated: str) -> None:
        """The chains from `date` on are `test`."""
        for members in self.members.values():
            earlier, later = [], []
            for row in members:
                day, why = rows[row]["deposition_date"], "not stated"
                if rows[row]["predicted"]:
                    day, why = None, "a predicted model has none"
                if day is not None:
                    (later if _as_date(day, f"deposition_date of {self.ids[row]}") >= date else earlier).append(row)
                elif undated == "train":
                    earlier.append(row)
                elif undated == "leave_out":
                    self.left_out[row] = f"deposition date: {why}"
                else:
                    raise ValueError(
                        f"The deposition date of {self.ids[row]} is unknown ({why}), and the splits are made by date; "
                        "give undated='leave_out' or 'train', or leave the chain out."
                    )
            if earlier and later:
                if straddling == "test":
                    lost, reason = earlier, "both sides of the date: its group has later chains"
                else:
                    lost, later, reason = later, [], "both sides of the date: its group has earlier chains"
                self.left_out.update(dict.fromkeys(lost, reason))
            self.place("test", later)
        if "test" not in self.split_of_entry.values():
            raise ValueError(
                f"'test' would be empty: no chain of {len(rows)} is from {date} or later without a relative from "
                f"before (left out: {dict(Counter(self.left_out.values()))}). Give an earlier "
                "date, or straddling='test'."
            )

    def take_rest(self, split: str) -> None:
        rest = [row for group in self.members for row in self.free(group)]
        if not rest:
            counts = Counter(name for name in self.split if name)
            raise ValueError(
                f"{split!r} would be empty: of {len(self.ids)} chains {dict(counts)} went to other splits and "
                f"{len(self.left_out)} were left out. Give smaller fractions (reference_fraction too), or more "
                "structures."
            )
        self.place(split, rest)

    def _rank(self, split: str, group: int) -> tuple[bytes, str]:
        name, entry = self.names[group]
        return hashlib.blake2b(f"{self.seed}|{split}|{name}".encode(), digest_size=16).digest(), entry


def _as_date(value: str | datetime.date, what: str) -> datetime.date:
    if isinstance(value, datetime.date):
        return value
    try:
        return datetime.date.fromisoformat(value)
    except ValueError:
        raise ValueError(f"The {what} is {value!r}; expected an ISO date such as 2023-01-31.") from None
