"""Chains that share an id, through all of a build."""

from dataclasses import replace

import pytest

from structure_aligned.data.builder import StructureDatasetBuilder
from structure_aligned.data.finding import find_chains
from structure_aligned.data.sharding import prepare_dataset
from structure_aligned.structure.write import write_mmcif
from tests import tiny


@pytest.fixture
def folder(tmp_path):
    """Chain `b_c` of the entry `a`, and chain `c` of the entry `a_b`; another chain beside them."""
    folder = tmp_path / "files"
    folder.mkdir()
    one, other = tiny.chain(20, 0, "a", chain_id="b_c"), tiny.chain(25, 1, "a_b", chain_id="c")
    for chain in (one, other, tiny.chain(30, 2, "d")):
        write_mmcif(replace(chain, predicted=False), folder / f"{chain.entry_id}.cif")
    return folder


def build(folder, tmp_path, **options):
    builder = StructureDatasetBuilder(folder, tiny.WindowGNN(), tmp_path / "cache", **options)
    builder.download_and_prepare()
    return builder.as_dataset("train")


def test_both_are_rows_and_are_found_again(folder, tmp_path):
    rows = build(folder, tmp_path)
    assert rows["id"][:] == ["a_b_c", "a_b_c", "d_A"]
    assert rows["entry"][:] == ["a", "a_b", "d"] and rows["chain"][:] == ["b_c", "c", "A"]
    assert [len(sequence) for sequence in rows["sequence"]] == [20, 25, 30]
    found = find_chains(folder, rows.select([1, 0]))
    assert [(chain.entry_id, chain.chain_id) for chain in found] == [("a_b", "c"), ("a", "b_c")]


def test_both_are_rows_of_a_split_dataset(folder, tmp_path):
    made = prepare_dataset(
        folder,
        tiny.WindowGNN(),
        tmp_path / "data",
        feature_cache=tmp_path / "cache",
        splits={"test_fraction": 0.34},
    )
    assert {name: counts["chains"] for name, counts in made.splits.items()} == {"train": 2, "test": 1}
    assert sum(counts["residues"] for counts in made.splits.values()) == 75


def test_an_id_that_is_asked_for_names_one_chain(folder, tmp_path):
    assert build(folder, tmp_path, chains=["d_A"])["entry"][:] == ["d"]
    with pytest.raises(ValueError, match="'a_b_c', which is chain 'b_c' of the entry 'a' and chain 'c' of the entry"):
        build(folder, tmp_path, chains=["a_b_c"])
