"""Folders as they are found in the wild: what cannot be used is named, and nothing ends or hangs a build."""

import json
import os
import socket
import time
from pathlib import Path

import datasets
import pytest

from structure_aligned.data import selecting
from structure_aligned.data.builder import REPORT_NAME, StructureDatasetBuilder
from structure_aligned.data.finding import find_chains
from structure_aligned.data.selecting import resolve_structures
from structure_aligned.data.sharding import prepare_dataset
from structure_aligned.evaluation.report_inputs import EvaluationOptions, load_inputs
from structure_aligned.structure.io import read_chains, write_mmcif
from tests import tiny


REASONS = {
    "dangling.cif": "is a link that leads to no file (No such file or directory)",
    "loop.pdb": "is a link that leads to no file (Too many levels of symbolic links)",
    "pipe.pdb.gz": "is a pipe, a device or a socket",
    "device.ent": "is a pipe, a device or a socket",
    "socket.pdb": "is a pipe, a device or a socket",
    "folder.pdb": "is a folder",
    "caf\\xe9.cif": "has a name that is not UTF-8",
    "closed": "cannot be read (Permission denied)",
    "closed.cif": "cannot be read (Permission denied)",
}


@pytest.fixture
def wild(tmp_path, monkeypatch):
    """Three files that can be read, one of them in `folder.pdb/`, among all that cannot."""
    folder = tmp_path / "wild"
    for name in ("folder.pdb", "closed"):
        (folder / name).mkdir(parents=True)
    for number, place in enumerate((folder, folder, folder / "folder.pdb")):
        write_mmcif(tiny.chain(40, seed=number, entry_id=f"syn{number}"), place / f"syn{number}.cif")
    (folder / "dangling.cif").symlink_to("nowhere.cif")
    (folder / "loop.pdb").symlink_to("loop.pdb")
    (folder / "device.ent").symlink_to("/dev/zero")
    (folder / "above").symlink_to("..")
    (folder / "again").symlink_to(".")
    os.mkfifo(folder / "pipe.pdb.gz")
    monkeypatch.chdir(folder)  # the names of sockets are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.pdb")
    with open(os.fsencode(folder) + b"/caf\xe9.cif", "wb") as file:
        file.write(b"data_x")
    (folder / "closed.cif").write_text("data_x")
    # Permissions mean nothing to root, who may run the tests.
    scandir, access = os.scandir, os.access

    def closed_scandir(path="."):
        if isinstance(path, str) and os.path.basename(path) == "closed":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed_scandir)
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("closed.cif") and access(path, mode))
    return folder


def check(report, folder):
    assert {os.path.relpath(one["source"], folder): one["reason"] for one in report.skipped} == {
        name: f"unreadable: {folder / name} {reason}" for name, reason in REASONS.items()
    }
    assert (report.files, report.chains, report.rows) == (3 + len(REASONS), 3, 3)
    assert report.skipped == sorted(report.skipped, key=lambda one: one["source"])
    assert report.reasons() == {"unreadable": len(REASONS)}
    print(report)


def test_the_builder(wild, tmp_path):
    builder = StructureDatasetBuilder(wild, tiny.WindowGNN(), tmp_path / "cache", on_error="skip")
    builder.download_and_prepare()
    assert sorted(builder.as_dataset("train")["id"]) == ["syn0_A", "syn1_A", "syn2_A"]
    check(builder.report, wild)
    assert json.loads((Path(builder.cache_dir) / REPORT_NAME).read_text())["skipped"] == builder.report.skipped


@pytest.mark.parametrize("pattern", ["**/*", "**"])
def test_globs(wild, pattern):
    left_out: list[dict[str, str]] = []
    found = resolve_structures(f"{wild}/{pattern}", left_out)
    assert [path.name for path in found] == ["syn2.cif", "syn0.cif", "syn1.cif"]
    assert {os.path.relpath(one["source"], wild) for one in left_out} == set(REASONS) - {"closed"}


def test_the_sharded_build(wild, tmp_path):
    made = prepare_dataset(
        wild, tiny.WindowGNN(), tmp_path / "out", feature_cache=tmp_path / "cache", on_error="skip", poll=0.01
    )
    assert sorted(datasets.load_from_disk(made.path)["train"]["id"]) == ["syn0_A", "syn1_A", "syn2_A"]
    check(made.report, wild)


def test_an_evaluation(wild):
    inputs = load_inputs(EvaluationOptions(), structures=wild, progress=False)
    assert [chain.id for chain in inputs.test_chains] == ["syn2_A", "syn0_A", "syn1_A"]
    assert f"{len(REASONS)} test files could not be read" in inputs.notes[0]


def test_finding_chains(wild):
    (chain,) = read_chains(next(path for path in resolve_structures(wild, []) if path.name == "syn1.cif"))
    rows = datasets.Dataset.from_dict(
        {"id": [chain.id], "entry": ["syn1"], "chain": ["A"], "digest": [chain.digest()]}
    )
    (found,) = find_chains(wild, rows)
    assert found.id == "syn1_A" and found.digest() == chain.digest()


@pytest.mark.parametrize("name", [*REASONS])
def test_with_raise_it_is_named(wild, tmp_path, name):
    if name == "closed":
        place = tmp_path / "alone"
        place.mkdir()
        (wild / name).rename(place / name)
    else:
        place = os.fsdecode(os.fsencode(wild) + b"/" + name.encode().replace(b"\\xe9", b"\xe9"))
        place = f"{wild}/[f]older.pdb" if name == "folder.pdb" else place
    with pytest.raises(ValueError, match="on_error='skip'") as raised:
        StructureDatasetBuilder(place, tiny.WindowGNN(), tmp_path / "cache")
    assert f"{name} {REASONS[name]}" in str(raised.value)
    str(raised.value).encode()
    with pytest.raises(ValueError, match="on_error='skip'"):
        prepare_dataset(place, tiny.WindowGNN(), tmp_path / "out", feature_cache=tmp_path / "cache")


def test_links_to_folders_above_do_not_multiply_the_work(tmp_path):
    place = tmp_path
    for name in "abc":
        place = place / name
        place.mkdir()
        for number in range(4):
            (place / f"link{number}").symlink_to(tmp_path)
    (place / "one.cif").write_text("data_x")
    (place / ".hidden.cif").write_text("data_x")
    start = time.process_time()
    for given in (tmp_path, f"{tmp_path}/**/*.cif", f"{tmp_path}/**", f"{tmp_path}/a/**/one.cif"):
        assert Path(place / "one.cif") in resolve_structures(given)
    assert resolve_structures(f"{place}/**.cif") == [place / "one.cif"]
    assert resolve_structures(f"{tmp_path}/**/*.cif") == [place / "one.cif"]
    assert time.process_time() - start < 5


@pytest.mark.parametrize("on_error", ["skip", "raise"])
@pytest.mark.parametrize("step", ["hashing", "parsing"])
@pytest.mark.parametrize("way", ["builder", "ranks"])
def test_files_that_vanish_while_they_are_read(tmp_path, monkeypatch, way, step, on_error):
    for number in range(2):
        write_mmcif(tiny.chain(20, seed=number, entry_id=f"syn{number}"), tmp_path / f"syn{number}.cif")
    gone = tmp_path / "syn0.cif"
    name = {"hashing": "builtins.open", "parsing": "structure_aligned.data.features.read_chains"}[step]
    read = {"hashing": open, "parsing": read_chains}[step]

    def vanish(path, *args, **kwargs):
        if str(path) == str(gone):
            gone.unlink(missing_ok=True)
        return read(path, *args, **kwargs)

    def build():
        if way == "ranks":
            options = {"feature_cache": tmp_path / "cache", "on_error": on_error, "poll": 0.01}
            return prepare_dataset(f"{tmp_path}/*.cif", tiny.WindowGNN(), tmp_path / "out", **options).report
        builder = StructureDatasetBuilder(f"{tmp_path}/*.cif", tiny.WindowGNN(), tmp_path / "cache", on_error=on_error)
        builder.download_and_prepare()
        return builder.report

    monkeypatch.setattr(name, vanish)
    if on_error == "raise":
        with pytest.raises(ValueError, match="syn0.cif"):
            build()
    else:
        report = build()
        assert report.rows == 1 and [one["source"] for one in report.skipped] == [str(gone)]
        assert report.skipped[0]["reason"].startswith(f"unreadable: {gone}")


def test_what_is_shown_of_a_path():
    assert selecting._shown("é/\udcff") == "é/\\xff"
