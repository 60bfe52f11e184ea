import shutil
from dataclasses import replace

import datasets
import pytest

from structure_aligned.data import finding
from structure_aligned.data.finding import find_chains
from structure_aligned.structure.io import read_chains
from structure_aligned.structure.synthetic import write_synthetic_folds


@pytest.fixture
def folder(tmp_path):
    write_synthetic_folds(tmp_path, 6, max_length=50)
    return tmp_path


@pytest.fixture
def read(monkeypatch):
    """Names of the files that are read."""
    names = []

    def counted(path):
        names.append(path.name)
        return read_chains(path)

    monkeypatch.setattr(finding, "read_chains", counted)
    return names


def rows(*chains):
    return datasets.Dataset.from_list(
        [{"entry": chain.entry_id, "chain": chain.chain_id, "digest": chain.digest()} for chain in chains]
    )


def chains_of(folder):
    return [read_chains(path)[0] for path in sorted(folder.glob("*.cif"))]


def test_only_the_files_that_are_needed_are_read(folder, read):
    chains = chains_of(folder)
    (folder / "broken.cif").write_text("data_broken\n")
    found = find_chains(folder, rows(chains[4], chains[1]))
    assert [(chain.id, chain.digest()) for chain in found] == [
        (chains[number].id, chains[number].digest()) for number in (4, 1)
    ]
    assert sorted(read) == [f"{chains[1].entry_id}.cif", f"{chains[4].entry_id}.cif"]


def test_names_that_do_not_tell(folder, read):
    chains = chains_of(folder)
    other = folder / "other"
    other.mkdir()
    (other / "0_broken.cif").write_text("data_broken\n")
    for number, path in enumerate(sorted(folder.glob("*.cif"))):
        shutil.move(path, other / f"file{number}.cif")
    assert [chain.id for chain in find_chains([other], rows(chains[5]))] == [chains[5].id]
    assert len(read) == 7  # the broken one too
    assert find_chains([other], rows(chains[5]), max_files=2) == [None]
    assert len(read) == 9


def test_another_content_is_not_the_row(folder):
    (chain, *_) = chains_of(folder)
    changed = replace(chain, coords=chain.coords + 1)
    assert find_chains(folder, rows(changed, chain))[0] is None
