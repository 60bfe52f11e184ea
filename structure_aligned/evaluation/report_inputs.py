"""What an evaluation is made on: test and training chains, assays and sequences, drawn by seed and named by digest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..data.selecting import resolve_structures
from ..inference.fasta import clean_sequence, read_fasta
from ..structure.chain import ProteinChain
from ..structure.io import read_chains
from .assays import Assay, read_assay
from .masked_lm import AMINO_ACIDS
from .mutants import parse_mutants


@dataclass(frozen=True)
class EvaluationOptions:
    """
    What is drawn, and how much is computed. Every model sees the same.

    Args:
        max_proteins (`int`, *optional*): For a quick look: at most so many test chains, sequences and assays, five
            times as many chains for probes, and smaller budgets of tokens.
        max_sequences (`int`, *optional*, defaults to 200): Of the FASTA file.
        max_length (`int`, *optional*, defaults to 1022): Longer chains and sequences are left out.
        min_length (`int`, *optional*, defaults to 30): Shorter ones too.
        num_contact_chains (`int`, *optional*, defaults to 20): Training chains for the contact heads.
        num_probe_chains (`int`, *optional*, defaults to 200): Training chains for the probes.
        max_train_residues (`int`, *optional*, defaults to 20000): Of these that a probe is fitted on.
        perplexity_tokens (`int`, *optional*): Tokens that one model reads for the one-by-one perplexity of one set,
            which sets the share of residues that are masked; 250,000, or 5,000 · `max_proteins` if less.
        fitness_tokens (`int`, *optional*): The same for all assays together, which sets the share of their positions;
            1,500,000, or 5,000 · `max_proteins` if less.
        strategy (`str`, *optional*, defaults to `"masked-marginals"`): Of [`score_mutations`].
        max_tokens (`int`, *optional*, defaults to 4096): Of a batch.
        num_examples (`int`, *optional*, defaults to 4): Proteins whose contact maps are drawn.
        seed (`int`, *optional*, defaults to 0): Of all that is drawn and resampled.
    """

    max_proteins: int | None = None
    max_sequences: int = 200
    max_length: int = 1022
    min_length: int = 30
    num_contact_chains: int = 20
    num_probe_chains: int = 200
    max_train_residues: int = 20_000
    perplexity_tokens: int | None = None
    fitness_tokens: int | None = None
    strategy: str = "masked-marginals"
    max_tokens: int = 4096
    num_examples: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int) and name not in ("seed", "num_examples") and value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1.")

    def budget(self, name: str) -> int:
        """Of `"perplexity"` or `"fitness"`, in tokens."""
        given, default = {
            "perplexity": (self.perplexity_tokens, 250_000),
            "fitness": (self.fitness_tokens, 1_500_000),
        }[name]
        quick = default if self.max_proteins is None else min(default, 5_000 * self.max_proteins)
        return quick if given is None else given

    @property
    def probe_chains(self) -> int:
        """How many are drawn."""
        return min(self.num_probe_chains, self.capped(self.num_probe_chains) * 5)

    def capped(self, count: int) -> int:
        return count if self.max_proteins is None else min(count, self.max_proteins)


@dataclass
class EvaluationInputs:
    """
    Args:
        test_chains (`list[ProteinChain]`): What is judged on; ids are unique.
        contact_chains, probe_chains (`list[ProteinChain]`): What contact heads and probes are fitted on.
        assays (`list[Assay]`): Already cut to the positions that are scored.
        sequences (`dict[str, str]`): Natural sequences by id.
        labelled (`dict[str, list[LabelledSequence]]`): Sequences with secondary structure from a file, by split.
        notes (`list[str]`): What was left out and drawn, for the page.
    """

    test_chains: list[ProteinChain] = field(default_factory=list)
    contact_chains: list[ProteinChain] = field(default_factory=list)
    probe_chains: list[ProteinChain] = field(default_factory=list)
    assays: list[Assay] = field(default_factory=list)
    sequences: dict[str, str] = field(default_factory=dict)
    labelled: dict[str, list[Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def digest(self, part: str) -> str:
        """SHA-256 of one of the fields above: everything in it that results depend on."""
        value = getattr(self, part)
        sha = hashlib.sha256()
        if part == "sequences":
            value = list(value.items())
        elif part == "labelled":
            value = [
                (split, one.id, one.sequence, {task: labels.tolist() for task, labels in one.labels.items()})
                for split, items in sorted(value.items())
                for one in items
            ]
        for item in value:
            if isinstance(item, ProteinChain):
                sha.update(f"{item.id} {item.sequence} ".encode() + np.ascontiguousarray(item.coords).tobytes())
            elif isinstance(item, Assay):
                sha.update(f"{item.name} {item.wild_type} {item.offset} {' '.join(item.mutants)} ".encode())
                sha.update(item.measured.tobytes() + (b"" if item.binary is None else item.binary.tobytes()))
            else:
                sha.update(repr(item).encode())
        return sha.hexdigest()

    def examples(self, count: int) -> list[str]:
        """Ids of test chains at even steps of length, none above 400 residues: never chosen by result."""
        short = sorted((one for one in self.test_chains if len(one) <= 400), key=lambda one: (len(one), one.id))
        places = np.linspace(0, len(short) - 1, count + 2)[1:-1].round().astype(int) if short else []
        return list(dict.fromkeys(short[place].id for place in places))


def load_inputs(
    options: EvaluationOptions,
    structures: Any = None,
    train_structures: Any = None,
    dms: str | os.PathLike | None = None,
    sequences: str | os.PathLike | None = None,
    secondary_structure: str | os.PathLike | None = None,
    progress: bool = True,
) -> EvaluationInputs:
    """
    Reads and draws everything; what cannot be used is left out and said in `notes`.

    Args:
        structures, train_structures (path, glob or list of these, *optional*): As for `StructureDatasetBuilder`. A
            training chain with the sequence of a test chain is left out; related ones are the caller's business.
        dms (path, *optional*): Folder of assays, see [`read_assay`]; or one.
        sequences (path, *optional*): FASTA file, also gzipped.
        secondary_structure (path, *optional*): Folder (or .zip) of a set as FLIP lays it out.

    Raises:
        ValueError: Something given holds nothing to use.
        FileNotFoundError: A path that does not exist.
    """
    inputs = EvaluationInputs()
    rng = np.random.default_rng(options.seed)
    if structures is not None:
        chains = _read_all(structures, "test", options, inputs.notes, progress)
        inputs.test_chains = _drawn(chains, options.capped(len(chains)), rng)
        _say_drawn(inputs.notes, "test chains", len(inputs.test_chains), len(chains))
    if train_structures is not None:
        chains = _read_all(train_structures, "training", options, inputs.notes, progress)
        tested = {chain.sequence for chain in inputs.test_chains}
        kept = [chain for chain in chains if chain.sequence not in tested]
        if len(kept) < len(chains):
            inputs.notes.append(
                f"{len(chains) - len(kept)} training chains left out: a test chain has their sequence."
            )
        if not kept:
            raise ValueError(f"All chains of {train_structures} are test chains; give others to fit heads on.")
        drawn = _drawn(kept, max(options.num_contact_chains, options.probe_chains), rng)
        order = rng.permutation(len(drawn))
        inputs.contact_chains = [drawn[index] for index in sorted(order[: options.num_contact_chains])]
        inputs.probe_chains = [drawn[index] for index in sorted(order[: options.probe_chains])]
    if dms is not None:
        inputs.assays = _read_assays(Path(dms), options, inputs.notes, rng, progress)
    if sequences is not None:
        inputs.sequences = _read_sequences(Path(sequences), options, inputs.notes, rng)
    if secondary_structure is not None:
        inputs.labelled = _read_labelled(secondary_structure, options, inputs.notes, rng)
    return inputs


def position_fraction(sequences: Sequence[str], budget: int) -> float:
    """Share of residues to mask one by one so that a model reads about `budget` tokens; two digits, at most 1."""
    wanted = budget / max(1, sum(len(sequence) ** 2 for sequence in sequences))
    return min(1.0, float(f"{wanted:.2g}"))


def _read_all(
    structures: Any, kind: str, options: EvaluationOptions, notes: list[str], progress: bool
) -> list[ProteinChain]:
    found: dict[str, ProteinChain] = {}
    left_out: list[dict[str, str]] = []
    files = resolve_structures(structures, left_out)
    unreadable, unfit, twice = [f"{one['source']} ({one['reason']})" for one in left_out], 0, 0
    for path in tqdm(files, desc=f"Reading {kind} chains", unit="file", disable=not progress):
        try:
            chains = read_chains(path)
        except (ValueError, OSError) as error:
            unreadable.append(f"{path.name} ({error})")
            continue
        for chain in chains:
            if not options.min_length <= len(chain) <= options.max_length:
                unfit += 1
            elif chain.id in found:
                twice += 1
            else:
                found[chain.id] = chain
    if unreadable:
        notes.append(f"{len(unreadable)} {kind} files could not be read: {'; '.join(unreadable[:3])}.")
    if unfit:
        notes.append(
            f"{unfit} {kind} chains left out: not between {options.min_length} and {options.max_length} residues."
        )
    if twice:
        notes.append(f"{twice} {kind} chains left out: another one has the same id.")
    if not found:
        raise ValueError(
            f"{structures} holds no chain of {options.min_length} to {options.max_length} residues that can be read."
        )
    return list(found.values())


def _read_assays(
    path: Path, options: EvaluationOptions, notes: list[str], rng: np.random.Generator, progress: bool
) -> list[Assay]:
    files = [path]
    if not path.is_file():
        files = sorted(file for file in path.glob("*") if file.name.endswith((".csv", ".csv.gz")))
        if not files:
            raise ValueError(f"{path} holds no assay; expected .csv or .csv.gz files with ProteinGym's columns.")
    chosen = _drawn(files, options.capped(len(files)), rng)
    _say_drawn(notes, "assays", len(chosen), len(files))
    assays = [read_assay(file) for file in tqdm(chosen, desc="Reading assays", unit="assay", disable=not progress)]
    cost = sum(len(assay.wild_type) * min(len(assay.wild_type), 1022) for assay in assays)
    fraction = min(1.0, float(f"{options.budget('fitness') / cost:.2g}"))
    if fraction == 1 or options.strategy != "masked-marginals":
        return assays
    notes.append(
        f"Of each assay the mutants at {fraction:.0%} of its mutated positions (at least 8) were scored, drawn by "
        f"seed; --fitness_tokens {cost} scores all."
    )
    return [_at_some_positions(assay, fraction, rng) for assay in assays]


def _at_some_positions(assay: Assay, fraction: float, rng: np.random.Generator) -> Assay:
    parsed = parse_mutants(assay.mutants, assay.wild_type, assay.offset)
    positions = sorted({one.index for mutant in parsed for one in mutant})
    count = min(len(positions), max(8, round(fraction * len(positions))))
    taken = set(rng.choice(positions, count, replace=False).tolist())
    kept = [index for index, mutant in enumerate(parsed) if all(one.index in taken for one in mutant)]
    if len(kept) < 10:
        return assay  # mutants of many substitutions: positions say little about how many are left
    binary = None if assay.binary is None else assay.binary[kept]
    mutants = [assay.mutants[index] for index in kept]
    return Assay(assay.name, assay.wild_type, mutants, assay.measured[kept], binary, assay.offset)


def _read_sequences(
    path: Path, options: EvaluationOptions, notes: list[str], rng: np.random.Generator
) -> dict[str, str]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a FASTA file.")
    found: dict[str, str] = {}
    unfit = 0
    for record in read_fasta(path):
        try:
            sequence, _ = clean_sequence(record.sequence, record.id)
        except ValueError:  # empty, or with gaps or stops, which are not residues
            sequence = ""
        fits = options.min_length <= len(sequence) <= options.max_length
        # Letters for what is not known are context to a model.
        if fits and any(letter in AMINO_ACIDS for letter in sequence):
            found.setdefault(record.id, sequence)
        else:
            unfit += 1
    if not found:
        raise ValueError(f"{path} holds no sequence of {options.min_length} to {options.max_length} residues.")
    if unfit:
        notes.append(f"{unfit} sequences left out: not between {options.min_length} and {options.max_length} letters.")
    names = _drawn(list(found), options.capped(min(len(found), options.max_sequences)), rng)
    _say_drawn(notes, "natural sequences", len(names), len(found))
    return {name: found[name] for name in names}


def _read_labelled(
    path: str | os.PathLike, options: EvaluationOptions, notes: list[str], rng: np.random.Generator
) -> dict[str, list[Any]]:
    try:
        from .residue_labels import read_residue_labels
    except ModuleNotFoundError as error:
        notes.append(f"The labelled secondary structure could not be read by this installation: {error}.")
        return {}
    splits = read_residue_labels(path)
    drawn = {}
    for split, most in (("train", options.probe_chains), ("test", options.capped(len(splits.get("test", ()))))):
        fitting = [
            one for one in splits.get(split, ()) if options.min_length <= len(one.sequence) <= options.max_length
        ]
        if split == "train":
            tested = {one.sequence for one in splits.get("test", ())}
            fitting = [one for one in fitting if one.sequence not in tested]
        drawn[split] = _drawn(fitting, most, rng)
        _say_drawn(notes, f"labelled sequences of the {split} set", len(drawn[split]), len(splits.get(split, ())))
    return drawn


def _drawn(items: list, count: int, rng: np.random.Generator) -> list:
    """So many of them at random, in the order they were in."""
    if count >= len(items):
        return list(items)
    return [items[index] for index in sorted(rng.choice(len(items), count, replace=False))]


def _say_drawn(notes: list[str], what: str, count: int, total: int) -> None:
    if count < total:
        notes.append(f"{count} of {total} {what}, drawn by seed.")
