"""Several processes that share work through a folder all of them see, without talking to each other."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from accelerate.utils import get_cpu_distributed_information
from datasets.utils import tqdm

from ..utils.files import TEMPORARY_SUFFIX, write_json


SIGN_OF_LIFE_SECONDS = 1.0


def launched_ranks() -> tuple[int, int, int]:
    """
    Rank, world size and rank on this machine, as `accelerate launch`, `torchrun` or `mpirun` give them in the
    environment; 0, 1 and 0 without. No process group is opened.
    """
    found = get_cpu_distributed_information()
    return found.rank, found.world_size, found.local_rank


class Ranks:
    """
    One process of `world_size`. Work is a list of files to be written, the same list in all processes; file `i` is
    made by rank `i % world_size`, and its existence says that it is finished. So a restart, with any number of
    processes, makes what is missing.

    Each process writes a small file with what it has counted so far. Its changes are also the sign of life that the
    waiting ones look for: clocks of different machines are never compared.

    Args:
        folder (`str` or `os.PathLike`): On a file system that all processes see.
        rank, world_size (`int`, *optional*, defaults to 0 and 1): As `torchrun` and `accelerate launch` give them.
        timeout (`float`, *optional*, defaults to 1800): Seconds without any progress after which waiting is an error.
        poll (`float`, *optional*, defaults to 1): Seconds between two looks.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        rank: int = 0,
        world_size: int = 1,
        timeout: float = 1800.0,
        poll: float = 1.0,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank} of world_size {world_size}; expected 0 <= rank < world_size.")
        if not timeout > 0:
            raise ValueError(f"timeout is {timeout}; expected seconds, more than 0.")
        self.folder = Path(folder)
        self.rank, self.world_size, self.timeout, self.poll = rank, world_size, timeout, poll
        self._numbers: Counter[str] = Counter()
        self._own = self.folder / f"rank-{rank:05d}-of-{world_size:05d}-{uuid.uuid4().hex[:12]}.json"
        self._told = -float("inf")

    def mine(self, paths: Sequence[Path]) -> Iterator[tuple[int, Path]]:
        """Numbers and paths of this process's files that do not exist yet."""
        for number in range(self.rank, len(paths), self.world_size):
            if not paths[number].exists():
                yield number, paths[number]

    def count(self, now: bool = False, **numbers: int) -> None:
        """Add to the counts and, at most once a second, write them down; at once with `now`."""
        self._numbers.update(numbers)
        if now or time.monotonic() - self._told > SIGN_OF_LIFE_SECONDS:
            write_json(self._own, dict(self._numbers), durable=False)
            self._told = time.monotonic()

    def totals(self) -> Counter[str]:
        """Counts of all processes, also of those that were killed and started again."""
        total: Counter[str] = Counter()
        for path in self.folder.glob("rank-*.json"):
            total.update(json.loads(path.read_text()))
        return total

    def wait(self, paths: Sequence[Path], what: str, enough: Callable[[], bool] | None = None) -> bool:
        """
        Wait until all files exist.

        Args:
            what (`str`): Of the progress bar and the error, such as `"dataset shards"`.
            enough (`Callable`, *optional*): Ends the waiting early where it gives `True`.

        Returns:
            `bool`: Whether they exist; `False` where `enough` ended it.

        Raises:
            `TimeoutError`: Where neither a file nor a sign of life of the processes in charge came for `timeout`
                seconds; says which files are missing and whose they are.
        """
        missing, seen, since = list(range(len(paths))), None, time.monotonic()
        with tqdm(total=len(paths), desc=f"Waiting for {what}", disable=self.rank != 0, delay=2) as progress:
            while True:
                missing = [number for number in missing if not paths[number].exists()]
                progress.update(len(paths) - len(missing) - progress.n)
                if not missing:
                    return True
                if enough is not None and enough():
                    return False
                state = (len(missing), self._signs({number % self.world_size for number in missing}))
                if state != seen:
                    seen, since = state, time.monotonic()
                    self.count()  # who waits for this process waits for those it waits for
                elif time.monotonic() - since > self.timeout:
                    raise TimeoutError(self._complaint(paths, missing, what))
                time.sleep(max(self.poll, len(missing) / 1000))  # spares the file system

    def _signs(self, ranks: set[int]) -> tuple[tuple[str, int], ...]:
        signs = []
        for rank in ranks:
            for path in self.folder.glob(f"rank-{rank:05d}-of-{self.world_size:05d}-*.json"):
                try:
                    signs.append((path.name, path.stat().st_mtime_ns))
                except FileNotFoundError:
                    continue
        return tuple(sorted(signs))

    def _complaint(self, paths: Sequence[Path], missing: list[int], what: str) -> str:
        of_rank: dict[int, list[str]] = {}
        for number in missing:
            of_rank.setdefault(number % self.world_size, []).append(paths[number].name)
        parts = []
        for rank, names in sorted(of_rank.items())[:8]:
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            signs = " (never started here)" if not self._signs({rank}) else ""
            parts.append(f"rank {rank}{signs}: {shown}")
        rest = f"; and {len(of_rank) - 8} more ranks" if len(of_rank) > 8 else ""
        return (
            f"Rank {self.rank} of {self.world_size} waited {self.timeout:g} s without a sign of progress for "
            f"{len(missing)} of {len(paths)} {what} in {paths[missing[0]].parent}. Missing, by the rank in charge: "
            f"{'; '.join(parts)}{rest}. Look for the errors of these ranks; they must see the same folders (output "
            "and cache) under the same paths, and the same structure files. Then run the command again, with any "
            "number of processes: what is finished is kept."
        )


def remove_temporary(folder: Path) -> None:
    """Delete what killed writers left in a folder."""
    for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)
