"""
Structure files from the PDB and the AlphaFold Protein Structure Database, each verified before it gets its name.

RCSB PDB file service: https://www.rcsb.org/docs/programmatic-access/file-download-services; AlphaFold DB API:
https://alphafold.ebi.ac.uk/api-docs. What is fetched is under these archives' own terms (CC0 and CC BY 4.0).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gemmi
from tqdm import tqdm

from ..utils.files import write_text
from .downloading import Downloader, DownloadError
from .io import read_chains


PDB_URL = "https://files.rcsb.org/download"
AFDB_URL = "https://alphafold.ebi.ac.uk"
REPORT_NAME = "fetch_report.tsv"
_WORK_FOLDER = ".fetching"
_MAX_FRAGMENTS = 1000  # titin has some 200

# Old ids of four characters, also in their new spelling, and new ones.
_PDB_ID = re.compile(r"(?:pdb_0000)?([1-9][a-z0-9]{3})|(pdb_[a-z0-9]{8})", re.IGNORECASE)
# UniProt's own pattern (https://www.uniprot.org/help/accession_numbers), and an isoform's number.
_ACCESSION = re.compile(
    r"(?:AF-)?((?:[OPQ][0-9][A-Z0-9]{3}[0-9]|[A-NR-Z][0-9](?:[A-Z][A-Z0-9]{2}[0-9]){1,2})(?:-[0-9]+)?)(?:-F[0-9]+)?",
    re.IGNORECASE,
)
_AFDB_FILE = re.compile(r"AF-(.+)-F([0-9]+)-model_v([0-9]+)\.cif(?:\.gz)?", re.IGNORECASE)


@dataclass
class FetchResult:
    """
    What became of one id.

    Args:
        id (`str`): As it was given.
        source (`str`): `"pdb"`, `"afdb"`, or empty for what is no id.
        status (`str`): `"fetched"`, `"kept"` (was there before) or `"failed"`.
        paths (`list[Path]`): Its files; several for proteins that AlphaFold DB has in fragments.
        reason, url (`str`): Of a failure.
    """

    id: str
    source: str
    status: str
    paths: list[Path] = field(default_factory=list)
    reason: str = ""
    url: str = ""


@dataclass
class FetchReport:
    """Results of all ids, in the order given."""

    results: list[FetchResult]

    @property
    def failed(self) -> list[FetchResult]:
        return [result for result in self.results if result.status == "failed"]

    def count(self, status: str) -> int:
        return sum(result.status == status for result in self.results)

    def write_tsv(self, path: str | os.PathLike) -> None:
        """The failures as a table `id, source, reason, url`; only its header where there are none."""
        rows = [("id", "source", "reason", "url")]
        rows += [(result.id, result.source, result.reason, result.url) for result in self.failed]
        text = "".join("\t".join(" ".join(str(cell).split()) for cell in row) + "\n" for row in rows)
        write_text(path, text)


def fetch_structures(
    ids: Iterable[str],
    folder: str | os.PathLike,
    *,
    pdb_url: str = PDB_URL,
    afdb_url: str = AFDB_URL,
    afdb_version: int | None = None,
    max_connections: int = 4,
    progress: bool = True,
    **options: Any,
) -> FetchReport:
    """
    Fetches entries of the PDB (`1abc.cif.gz`) and of AlphaFold DB (`AF-P00520-F1-model_v6.cif`) into a folder.

    A file is parsed before it gets its name: it must hold the entry asked for and a protein. So a stopped call goes on
    where it was, and files that are there and pass the same test are not fetched again. What cannot be had is
    reported, never raised.

    Args:
        ids (`Iterable[str]`): PDB ids (`1abc`, `pdb_00001abc`) and UniProt accessions (`P00520`, `AF-P00520-F1`), in
            any case and mixture; ids that come again are fetched once.
        folder (`str` or `os.PathLike`): Created when missing.
        pdb_url (`str`, *optional*): Folder with `1abc.cif.gz`; a mirror for example.
        afdb_url (`str`, *optional*): With `api/prediction/P00520`, which says where the newest model is.
        afdb_version (`int`, *optional*): This version of the models, from `files/AF-P00520-F1-model_v4.cif`, without
            asking the API; of proteins in fragments the first only.
        max_connections (`int`, *optional*, defaults to 4): At once.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar.
        **options: Of [`Downloader`], such as `delay`, `timeout`, `retries`, `user_agent`.

    Returns:
        [`FetchReport`]
    """
    if isinstance(ids, str):
        raise ValueError(f"ids is the string {ids[:20]!r}; expected a list of ids, as [id].")
    if max_connections < 1:
        raise ValueError(f"max_connections is {max_connections}; expected at least 1.")
    unique = list(dict.fromkeys(one.strip() for one in ids))
    downloader = Downloader(**options)
    archive = _Archive(Path(folder), downloader, pdb_url.rstrip("/"), afdb_url.rstrip("/"), afdb_version)
    archive.work.mkdir(parents=True, exist_ok=True)
    for other in archive.folder.glob(f"{_WORK_FOLDER}*"):
        # What has not changed for a day is of a call that was killed.
        with suppress(OSError):
            if time.time() - other.stat().st_mtime > 24 * 3600:
                shutil.rmtree(other)
    results: dict[str, FetchResult] = {}
    try:
        with ThreadPoolExecutor(max_connections) as pool:
            waiting = {}
            # The same entry under two names is the work of one thread.
            for entry, names in _by_entry(unique):
                waiting[pool.submit(archive.have, entry, names[0])] = names
            try:
                with tqdm(total=len(unique), desc="Fetching", unit="entry", disable=not progress) as bar:
                    for future in as_completed(waiting):
                        result = future.result()
                        for name in waiting[future]:
                            results[name] = FetchResult(**{**vars(result), "id": name})
                            bar.update()
            except BaseException:
                downloader.stop()
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        shutil.rmtree(archive.work, ignore_errors=True)
    return FetchReport([results[name] for name in unique])


Entry = tuple[str, str] | None
"""Source and the id in its own spelling; `None` for what is no id."""


def parse_entry(name: str) -> Entry:
    """What an id names: `("pdb", "1abc")`, `("afdb", "P00520")` or `None`."""
    if match := _PDB_ID.fullmatch(name):
        return "pdb", (match[1] or match[2]).lower()
    if match := _ACCESSION.fullmatch(name):
        return "afdb", match[1].upper()
    return None


def split_ids(line: str) -> list[str]:
    """
    The ids of a line, separated by commas or white space; a line that begins with `#` is a comment.

    Where only the first word is an id, the line is a row of a table whose other columns are not read. Where several
    fields of a comma-separated line are ids, all of its fields count, so that a misspelt one is reported.
    """
    fields = [field.split() for field in line.split(",") if field.strip()]
    words = [word for field in fields for word in field]
    if not words or line.lstrip().startswith("#"):
        return []
    firsts = [field[0] for field in fields]
    if all(parse_entry(word) for word in words):
        return words
    return firsts if sum(parse_entry(word) is not None for word in firsts) > 1 else firsts[:1]


def _by_entry(names: list[str]) -> Iterator[tuple[Entry, list[str]]]:
    grouped: dict[Any, list[str]] = {}
    for name in names:
        grouped.setdefault(parse_entry(name) or name, []).append(name)
    for members in grouped.values():
        yield parse_entry(members[0]), members


class _Archive:
    """A folder, and where its files come from. Used by several threads."""

    def __init__(
        self, folder: Path, downloader: Downloader, pdb_url: str, afdb_url: str, afdb_version: int | None
    ) -> None:
        # Its own for each call: of several in one folder none may take the files of another away.
        self.folder, self.work = folder, folder / f"{_WORK_FOLDER}-{uuid.uuid4().hex}"
        self.downloader, self.pdb_url, self.afdb_url, self.afdb_version = downloader, pdb_url, afdb_url, afdb_version

    def have(self, entry: Entry, name: str) -> FetchResult:
        """Keeps what is there or fetches it."""
        if entry is None:
            expected = "expected a PDB id such as 1abc or a UniProt accession such as P00520"
            return FetchResult(name, "", "failed", reason=f"{name!r} is no id; {expected}")
        source, code = entry
        result = FetchResult(name, source, "failed")
        try:
            if paths := self._kept_pdb(code) if source == "pdb" else self._kept_afdb(code):
                result.status, result.paths = "kept", paths
                return result
            for url, file_name in self._addresses(result, source, code):
                result.url = url
                check = partial(self._store, file_name=file_name, source=source, code=code)
                result.paths.append(self.downloader.get(url, check))
            result.status, result.url = "fetched", ""
        except DownloadError as error:
            result.reason = error.reason
        except OSError as error:
            result.reason = f"cannot be written: {error}"
        # Whatever a server may answer, it is the outcome of this id and not the end of the others.
        except (ValueError, ArithmeticError, LookupError, TypeError, RuntimeError, MemoryError) as error:
            result.reason = f"the answer is not understood ({type(error).__name__}: {error})"
        return result

    def _kept_pdb(self, code: str) -> list[Path]:
        return [path for path in [self.folder / f"{code}.cif.gz"] if self._is_sound(path, "pdb", code)]

    def _kept_afdb(self, code: str) -> list[Path]:
        """Fragments of the newest version whose first one is there: it is written last."""
        versions: dict[int, list[tuple[int, Path]]] = {}
        for path in self.folder.glob(f"AF-{code}-F*-model_v*.cif*"):
            match = _AFDB_FILE.fullmatch(path.name)
            if match and match[1].upper() == code:
                versions.setdefault(int(match[3]), []).append((int(match[2]), path))
        for version in sorted(versions, reverse=True):
            fragments = sorted(versions[version])
            if self.afdb_version in (None, version) and fragments[0][0] == 1:
                paths = [path for _, path in fragments]
                if all(self._is_sound(path, "afdb", code) for path in paths):
                    return paths
        return []

    def _addresses(self, result: FetchResult, source: str, code: str) -> list[tuple[str, str]]:
        """Addresses and file names of an entry; of fragments the first comes last."""
        if source == "pdb":
            return [(f"{self.pdb_url}/{code}.cif.gz", f"{code}.cif.gz")]
        if self.afdb_version is not None:
            name = f"AF-{code}-F1-model_v{self.afdb_version}.cif"
            return [(f"{self.afdb_url}/files/{name}", name)]
        result.url = f"{self.afdb_url}/api/prediction/{code}"
        return self.downloader.get(result.url, partial(_afdb_addresses, code=code))

    def _store(self, data: bytes, file_name: str, source: str, code: str) -> Path:
        """Write a file under its name if it is what it should be, else raise `ValueError`."""
        suffix = ".cif.gz" if file_name.endswith(".gz") else ".cif"
        # Its name must not be what read_chains falls back to for files that do not say what they hold.
        temporary = self.work / f"download-{uuid.uuid4().hex}{suffix}"
        try:
            temporary.write_bytes(data)
            try:
                _verify(temporary, source, code)
            except ValueError as error:
                raise ValueError(str(error).replace(f"{temporary}: ", "").replace(str(temporary), "it")) from error
            os.replace(temporary, self.folder / file_name)
        finally:
            temporary.unlink(missing_ok=True)
        return self.folder / file_name

    @staticmethod
    def _is_sound(path: Path, source: str, code: str) -> bool:
        try:
            _verify(path, source, code)
        except (ValueError, OSError):
            return False
        return True


def _afdb_addresses(data: bytes, code: str) -> list[tuple[str, str]]:
    """What the API's answer says of a protein's models; `ValueError` where it says nothing of them."""
    try:
        answer = json.loads(data)
        found = [str(one["cifUrl"]) for one in answer if str(one["uniprotAccession"]).upper() == code]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"the API's answer is not understood ({type(error).__name__}: {error})") from error
    numbered = []
    for url in found:
        match = _AFDB_FILE.fullmatch(url.rsplit("/", 1)[-1])
        if match is None or match[1].upper() != code:
            raise ValueError(f"the API names a file that is not understood: {url}")
        numbered.append((int(match[2]), url, match[0]))
    if len(numbered) > _MAX_FRAGMENTS:
        raise ValueError(f"the API names {len(numbered):,} files of {code}; expected at most {_MAX_FRAGMENTS:,}")
    if not numbered:
        raise ValueError(f"the API knows no model of {code}")
    return [(url, name) for _, url, name in sorted(numbered, reverse=True)]


def _verify(path: Path, source: str, code: str) -> None:
    """
    Raises `ValueError` unless a file can be parsed, is of the entry and holds a protein; of AlphaFold DB, whose files
    have no checksum in them, all residues of it.
    """
    chains = read_chains(path)
    found = chains[0].entry_id
    right = found.lower() == code if source == "pdb" else re.match(rf"AF-{code}-F[0-9]+\b", found, re.IGNORECASE)
    if not right:
        raise ValueError(f"holds the entry {found} instead of {code}")
    if source == "afdb":
        stated = len(gemmi.cif.read(str(path))[0].find_values("_entity_poly_seq.num"))
        if stated and len(chains[0]) != stated:
            raise ValueError(f"has {len(chains[0])} of {stated} residues")
