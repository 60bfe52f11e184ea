"""A Datasets builder: structure files in, rows with sequence, 3Di tokens and pGNN embeddings out."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
from datasets.utils import logging, tqdm

from ..utils.files import MAX_BYTES, read_json, write_json
from .features import (
    CHAIN_VERSION,
    EMBEDDING_VERSION,
    ChainRecord,
    FeatureStore,
    ProteinGNN,
    combined_digest,
    file_digest,
    load_chain,
    load_row,
    pgnn_identity,
)
from .reading import embed_chains, map_processes, parse_file, residue_batches, unique_chains
from .selecting import ChainFilter, resolve_structures


logger = logging.get_logger(__name__)

REPORT_NAME = "build_report.json"
DATASET_NAME = "protein_structures"
DESCRIPTION = "Protein chains with 3Di structure tokens and residue embeddings of a protein GNN."

FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "entry": datasets.Value("string"),
        "chain": datasets.Value("string"),
        "sequence": datasets.Value("string"),
        "length": datasets.Value("int32"),
        "structure_tokens": datasets.List(datasets.Value("uint8")),
        "structure_token_mask": datasets.List(datasets.Value("bool")),
        # Bytes, because a nested float16 list reads 30 times slower; large_, because
        # 2 GiB of them fit no int32 offset.
        "structure_embedding": datasets.Value("large_binary"),
        "structure_embedding_shape": datasets.List(datasets.Value("int32"), length=2),
        "structure_embedding_mask": datasets.List(datasets.Value("bool")),
        "b_factors": datasets.List(datasets.Value("float32")),
        "resolution": datasets.Value("float64"),
        "r_free": datasets.Value("float64"),
        "method": datasets.Value("string"),
        "deposition_date": datasets.Value("string"),
        "predicted": datasets.Value("bool"),
        "digest": datasets.Value("string"),
        "pgnn": datasets.Value("string"),
    }
)


@dataclass
class BuildReport:
    """
    What a build did. Stored as `build_report.json` beside the dataset.

    Args:
        files, chains (`int`): Structure files given, and protein chains found in them.
        rows (`int`): Chains that are in the dataset, all splits together.
        parsed, embedded (`int`): Files read and chains embedded in this build; the others came from the cache.
        skipped (`list[dict]`): One `{"source", "reason"}` per file or chain that is not in the dataset.
    """

    files: int = 0
    chains: int = 0
    rows: int = 0
    parsed: int = 0
    embedded: int = 0
    skipped: list[dict[str, str]] = field(default_factory=list)

    def reasons(self) -> dict[str, int]:
        """Number of files and chains left out, by kind of reason."""
        return dict(Counter(item["reason"].split(":")[0] for item in self.skipped).most_common())


@dataclass
class StructureDatasetConfig(datasets.BuilderConfig):
    """Options of [`StructureDatasetBuilder`] that Datasets records with the dataset."""

    structures: Any = None
    filters: ChainFilter = field(default_factory=ChainFilter)
    on_error: str = "raise"
    predicted: bool | None = None
    max_batch_residues: int = 2048
    feature_cache: str | None = None


class StructureDatasetBuilder(datasets.GeneratorBasedBuilder):
    """
    Builds a dataset from structure files. Rows are chains; what was computed before is never computed again.

    Args:
        structures (`str`, `os.PathLike`, `list` or `dict`): A file, a folder (searched recursively), a glob, a list
            of these, or a dict from split name to any of these.
        pgnn: Gives the residue embeddings: a [`GearNetModel`], a [`ProteinMPNNEncoder`], any object with `output_dim`
            and `embed_batch`, or what [`load_pgnn`] takes: a path, `"gearnet-small"` (comes with the package), or
            `"gearnet"` or `"proteinmpnn"` (untrained).
        cache_dir (`str`, *optional*): Of the dataset; Datasets' own by default.
        feature_cache (`str`, *optional*): Of the per-structure features; a folder in `cache_dir` by default. Share it
            between datasets of the same structures.
        on_error (`str`, *optional*, defaults to `"raise"`): `"skip"` leaves unreadable files out and reports them.
        predicted (`bool`, *optional*): Whether the files are predicted models. By default [`read_chains`] finds out;
            it takes files that say nothing (ESMFold's) for experimental.
        max_batch_residues (`int`, *optional*, defaults to 2048): Residues that the pGNN gets at once; what a killed
            build has to redo. A longer chain goes alone, and with 1 every chain does.
        max_resolution, max_r_free (`float`, *optional*): In Å, and as a fraction. Entries that state none are left
            out where a bound is given.
        methods (`list[str]`, *optional*): Such as `["X-RAY DIFFRACTION"]`.
        min_length, max_length (`int`, *optional*): In residues.
        chains (`str` or `list[str]`, *optional*, defaults to `"all"`): `"all"`, `"first"` or `"longest"` of each
            entry, or the ids to take, such as `["1abc_A"]`.
        drop_duplicates (`bool`, *optional*, defaults to `False`): Of chains with one sequence keep the first.
        reference_model (`str`, `os.PathLike` or `PreTrainedModel`, *optional*): A reference model (its folder), whose
            losses `as_dataset` adds to the rows of every split; see [`attach_reference_losses`]. They are kept beside
            the features.
        reference_options (`dict`, *optional*): Further arguments of [`attach_reference_losses`].

    Example:

    ```python
    builder = StructureDatasetBuilder(structures="pdb_files", pgnn=GearNetModel.from_pretrained("gearnet"))
    builder.download_and_prepare(num_proc=4)
    dataset = builder.as_dataset("train")
    ```
    """

    BUILDER_CONFIG_CLASS = StructureDatasetConfig
    DEFAULT_WRITER_BATCH_SIZE = 100
    VERSION = datasets.Version("1.0.0")

    def __init__(
        self,
        structures: Any,
        pgnn: ProteinGNN | str | os.PathLike,
        cache_dir: str | os.PathLike | None = None,
        *,
        feature_cache: str | os.PathLike | None = None,
        on_error: str = "raise",
        predicted: bool | None = None,
        max_batch_residues: int = 2048,
        reference_model: Any = None,
        reference_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is {on_error!r}; choose 'raise' or 'skip'.")
        if max_batch_residues < 1:
            raise ValueError(f"max_batch_residues is {max_batch_residues}; expected at least 1.")
        names = ChainFilter.option_names()
        filters = ChainFilter(**{name: options.pop(name) for name in names if name in options})
        by_split = structures if isinstance(structures, dict) else {"train": structures}
        self._left_out: list[dict[str, str]] = []
        problems = self._left_out if on_error == "skip" else None
        self._files = {split: resolve_structures(given, problems) for split, given in by_split.items()}
        if isinstance(pgnn, (str, os.PathLike)):
            from ..models.pgnn import load_pgnn  # with Transformers, which the reading workers do without

            pgnn = load_pgnn(pgnn)
        self._pgnn = pgnn
        self._pgnn_identity = pgnn_identity(pgnn)
        # Datasets' cache knows neither what is in the files nor the code: so the key is made here, from both.
        self._digests: dict[str, str] = {}
        paths = list(chain.from_iterable(self._files.values()))
        for path in tqdm(paths, "Hashing structure files", unit="file", delay=2):
            try:
                self._digests[str(path)] = file_digest(path)
            except ValueError as error:
                if on_error == "raise":
                    raise
                self._left_out.append({"source": str(path), "reason": f"unreadable: {error}"})
        key = [
            f"{CHAIN_VERSION}|{EMBEDDING_VERSION}|{self.VERSION}|{FEATURES}",
            self._pgnn_identity,
            repr(filters),
            on_error,
            str(predicted),
        ]
        key += [f"{one['source']}: {one['reason']}" for one in self._left_out]
        for split, files in self._files.items():
            files[:] = [path for path in files if str(path) in self._digests]
            key += [split, *(f"{path.name}:{self._digests[str(path)]}" for path in files)]
        super().__init__(
            cache_dir=None if cache_dir is None else str(cache_dir),
            dataset_name=DATASET_NAME,
            config_id=f"chains-{combined_digest(key)[:16]}",
            structures={split: [str(path) for path in files] for split, files in self._files.items()},
            filters=filters,
            on_error=on_error,
            predicted=predicted,
            max_batch_residues=max_batch_residues,
            feature_cache=None if feature_cache is None else str(feature_cache),
            **options,
        )
        root = self.config.feature_cache or Path(self._cache_dir_root) / "structure_features"
        self.store = FeatureStore(root, self._pgnn_identity)
        self._report = BuildReport()
        self._reference_model, self._reference_options = reference_model, reference_options or {}

    def __getstate__(self) -> dict[str, Any]:
        # The workers that write the dataset read stored features only.
        left_out = ("_pgnn", "_digests", "_files", "_reference_model")
        return {name: value for name, value in self.__dict__.items() if name not in left_out}

    def as_dataset(self, *args: Any, **kwargs: Any) -> datasets.Dataset | datasets.DatasetDict:
        """As in Datasets, with the reference model's losses where there is one."""
        built = super().as_dataset(*args, **kwargs)
        if self._reference_model is None:
            return built
        from .reference import attach_reference_losses  # with Transformers, which the reading workers do without

        if isinstance(self._reference_model, (str, os.PathLike)):
            from ..models.alignment import AutoModelForStructureAlignment

            self._reference_model = AutoModelForStructureAlignment.from_pretrained(self._reference_model)
        options = {"cache_dir": self.store.root / "reference_losses"} | self._reference_options
        if isinstance(built, datasets.Dataset):
            return attach_reference_losses(built, self._reference_model, **options)
        attached = {
            split: attach_reference_losses(rows, self._reference_model, **options) for split, rows in built.items()
        }
        return datasets.DatasetDict(attached)

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description=DESCRIPTION,
            features=FEATURES,
        )

    @property
    def report(self) -> BuildReport:
        """Of the last build, also when the dataset was there already."""
        stored = Path(self.cache_dir) / REPORT_NAME
        if self._report.files == 0 and stored.exists():
            self._report = BuildReport(**read_json(stored, max_bytes=MAX_BYTES))
        return self._report

    def _make_split_generators_kwargs(self, prepare_split_kwargs: dict[str, Any]) -> dict[str, Any]:
        return {"num_proc": prepare_split_kwargs.get("num_proc")}

    def _split_generators(
        self, dl_manager: datasets.DownloadManager, num_proc: int | None = None
    ) -> list[datasets.SplitGenerator]:
        # A killed build leaves its half-written files here, and Datasets would move them into the finished dataset.
        for stale in Path(self._output_dir).iterdir():
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        self._report = BuildReport(files=len(self._digests) + len(self._left_out), skipped=list(self._left_out))
        generators = []
        for split, files in self._files.items():
            records = self._read(files, num_proc or 1)
            self._report.chains += len(records)
            records, dropped = self.config.filters.apply(records)
            self._report.skipped += dropped
            records, dropped = unique_chains(records, self.config.on_error)
            self._report.skipped += dropped
            if not records:
                raise ValueError(
                    f"No chain is left for the split {split!r}: {len(files)} files, left out: "
                    f"{self._report.reasons()}. Loosen the filters or give other structures."
                )
            self._embed(records)
            self._report.rows += len(records)
            generators.append(datasets.SplitGenerator(name=split, gen_kwargs={"records": records}))
        write_json(Path(self._output_dir) / REPORT_NAME, self._report.__dict__)
        if self._report.skipped:
            logger.warning(
                f"{len(self._report.skipped)} files or chains are not in the dataset ({self._report.reasons()}); each "
                f"with its reason in {Path(self.cache_dir) / REPORT_NAME}."
            )
        return generators

    def _generate_examples(self, records: list[ChainRecord]) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, record in enumerate(records):
            yield number, load_row(record, self.store.embedding_path(record.digest), self._pgnn_identity)

    def _read(self, files: list[Path], num_proc: int) -> list[ChainRecord]:
        """Records of all chains, in the order of the files; only files without a record are parsed."""
        found: dict[str, list[ChainRecord]] = {}
        missing = []
        for path in files:
            records = self.store.chain_records(self.store.chains_path(path, self._digests[str(path)]))
            if records is None:
                missing.append(str(path))
            else:
                found[str(path)] = records
        jobs = [(self.store, path, self._digests[path]) for path in missing]
        with tqdm(total=len(files), initial=len(found), desc="Reading structures", unit="file") as progress:
            for path, records, error in map_processes(parse_file, jobs, num_proc):
                progress.update()
                if error is None:
                    found[path] = records
                    self._report.parsed += 1
                elif self.config.on_error == "raise":
                    raise ValueError(f"{error}\nWith on_error='skip' such files are left out and reported.")
                else:
                    self._report.skipped.append({"source": path, "reason": f"unreadable: {error}"})
        records = [record for path in files for record in found.get(str(path), [])]
        if self.config.predicted is None:
            return records
        return [replace(record, predicted=self.config.predicted) for record in records]

    def _embed(self, records: list[ChainRecord]) -> None:
        """Store the embeddings that are missing, batch by batch."""
        missing = {record.digest: record for record in records if not self.store.has_embedding(record.digest)}
        self._report.embedded += len(missing)
        with tqdm(
            total=len(records), initial=len(records) - len(missing), desc="Embedding structures", unit="chain"
        ) as progress:
            for batch in residue_batches(list(missing.values()), self.config.max_batch_residues):
                embeddings = embed_chains(self._pgnn, [load_chain(record) for record in batch])
                for record, embedding in zip(batch, embeddings):
                    self.store.write_embedding(record.digest, embedding)
                progress.update(len(batch))


def dataset_pgnn(dataset: datasets.Dataset) -> str:
    """
    Identity of the pGNN that a dataset's embeddings come from.

    Raises:
        `ValueError`: Where rows of several pGNNs were mixed, or the dataset has no such column.
    """
    if "pgnn" not in dataset.column_names:
        raise ValueError(
            f"The dataset has columns {dataset.column_names} but no 'pgnn'; build it with StructureDatasetBuilder."
        )
    found = sorted(set(dataset.with_format(None).unique("pgnn")))
    if len(found) != 1:
        raise ValueError(f"The dataset mixes embeddings of several pGNNs: {found}. Build all of it with one of them.")
    return found[0]


def embedding_dim(dataset: datasets.Dataset) -> int:
    """Width of a dataset's residue embeddings."""
    shape = dataset.with_format(None)[0]["structure_embedding_shape"] if len(dataset) else None
    if shape is None:
        raise ValueError(
            f"The first of the dataset's {len(dataset)} rows has no structure_embedding; expected rows as "
            "StructureDatasetBuilder makes them."
        )
    return int(shape[1])
