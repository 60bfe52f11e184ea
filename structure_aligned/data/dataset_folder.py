"""The folder of a dataset that several processes write: its plan while it is made, and the files that finish it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.utils import tqdm

from ..utils.files import write_json
from .builder import DATASET_NAME, DESCRIPTION, FEATURES, REPORT_NAME
from .features import ChainRecord
from .ranks import remove_temporary
from .split_summary import SplitSummary


WORK_FOLDER = ".preparing"
_FINISHED = datasets.config.DATASETDICT_JSON_FILENAME

Entry = tuple[ChainRecord, str, str]
"""A chain, and path and digest of the structure file it comes from."""


class DatasetFolder:
    """
    A folder for `datasets.load_from_disk`, which finds nothing to load before it is finished.

    Args:
        root (`Path`): The folder.
        key (`str`): Of all that decides what the dataset holds.
    """

    def __init__(self, root: Path, key: str) -> None:
        self.root, self.key = root, key
        self.work = root / WORK_FOLDER / key
        self.plan_path = self.work / "plan.json"

    def finished(self) -> bool:
        """Whether the same dataset is complete here."""
        try:
            return json.loads((self.root / _FINISHED).read_text()).get("preparation") == self.key
        except (FileNotFoundError, json.JSONDecodeError):
            return False

    def check(self) -> bool:
        """Whether the dataset is finished; a `ValueError` where the folder holds something else."""
        # In this order, because other processes of the same work may begin or end it meanwhile.
        inside = {path.name for path in self.root.iterdir()} - {WORK_FOLDER} if self.root.exists() else set()
        # Work of another key that got no plan has written nothing here, and does not count.
        others = {path.parent.name for path in (self.root / WORK_FOLDER).glob("*/plan.json")} - {self.key}
        begun = self.work.exists()
        if self.finished():
            return True
        if others or (inside and not begun):
            what = "an unfinished dataset of other structures, options or pGNN" if others else "something else"
            raise ValueError(
                f"{self.root} is not empty: it holds {what}. Give a new folder, or delete it first (features are kept "
                "in the cache)."
            )
        return False

    def write_plan(
        self, entries: dict[str, list[Entry]], fingerprints: dict[str, str], shard_chains: int, **others: Any
    ) -> Iterator[None]:
        """Write what each shard of each split holds, and last the plan; yields after each shard."""
        splits = {}
        for name, chosen in entries.items():
            parts = [chosen[start : start + shard_chains] for start in range(0, len(chosen), shard_chains)]
            sizes = [len(part) for part in parts]
            splits[name] = {"chains": len(chosen), "shards": sizes, "fingerprint": fingerprints[name]}
            for shard, part in zip(self._shards_of(name, sizes), parts):
                task = [[asdict(record), source, digest] for record, source, digest in part]
                write_json(self._task_path(shard), task, durable=False)
                yield
        write_json(self.plan_path, {"splits": splits} | others)

    def plan(self) -> dict[str, Any]:
        return json.loads(self.plan_path.read_text())

    def shards(self) -> dict[Path, int]:
        """Arrow files of all splits, and their numbers of chains."""
        return {
            shard: chains
            for name, split in self.plan()["splits"].items()
            for shard, chains in zip(self._shards_of(name, split["shards"]), split["shards"])
        }

    def task(self, shard: Path) -> list[Entry]:
        """The chains of a shard."""
        stored = json.loads(self._task_path(shard).read_text())
        return [(ChainRecord(**record), source, digest) for record, source, digest in stored]

    def _shards_of(self, split: str, sizes: list[int]) -> list[Path]:
        return [self.root / split / f"data-{number:05d}-of-{len(sizes):05d}.arrow" for number in range(len(sizes))]

    def _task_path(self, shard: Path) -> Path:
        return self.work / "tasks" / shard.parent.name / f"{shard.stem}.json"

    def finish(self, totals: Mapping[str, int]) -> None:
        """
        Write what `load_from_disk` needs; the file that it asks for first is written last.

        Args:
            totals (`Mapping`): Numbers of the report that only all processes together know.
        """
        plan = self.plan()
        for name, split in plan["splits"].items():
            folder, paths, size = self.root / name, self._shards_of(name, split["shards"]), 0
            progress = tqdm(list(zip(paths, split["shards"])), f"Checking {name}", unit="shard", delay=5)
            for path, expected in progress:
                _check_shard(path, expected)
                size += path.stat().st_size
            known = datasets.SplitInfo(name, size, split["chains"], split["shards"], DATASET_NAME)
            info = datasets.DatasetInfo(
                description=DESCRIPTION,
                features=FEATURES,
                dataset_name=DATASET_NAME,
                splits=datasets.SplitDict({name: known}),
                dataset_size=size,
            )
            state = {
                "_fingerprint": split["fingerprint"],
                "_format_columns": None,
                "_format_kwargs": {},
                "_format_type": None,
                "_output_all_columns": False,
                "_split": name,
                "_data_files": [{"filename": path.name} for path in paths],
            }
            write_json(folder / datasets.config.DATASET_INFO_FILENAME, asdict(info))
            write_json(folder / datasets.config.DATASET_STATE_JSON_FILENAME, state)
            remove_temporary(folder)
        write_json(self.root / REPORT_NAME, plan["report"] | totals)
        if plan["summary"] is not None:
            SplitSummary(**plan["summary"]).save(self.root)
        write_json(self.root / _FINISHED, {"splits": list(plan["splits"]), "preparation": self.key})
        self.remove_work()

    def remove_work(self) -> None:
        """Delete the plan and what the processes said of themselves."""
        shutil.rmtree(self.root / WORK_FOLDER, ignore_errors=True)


def _check_shard(path: Path, expected: int) -> None:
    """Count an Arrow file's rows without reading its arrays."""
    try:
        with pa.memory_map(str(path)) as file:
            rows = sum(batch.num_rows for batch in pa.ipc.open_stream(file))
        why = None if rows == expected else f"it has {rows} rows; expected {expected}"
    except (pa.ArrowInvalid, OSError) as error:
        why = str(error)
    if why is not None:
        raise ValueError(f"The shard {path} is damaged: {why}. Delete it and run the same command again.")
