"""Hostile and unlucky datasets: their rows, their folders, and the folders of structures that they are built from."""

import gzip
import json
import os
import shutil

import datasets
import numpy as np
import pytest
import torch

from structure_aligned.data.builder import StructureDatasetBuilder
from structure_aligned.data.collator import DataCollatorForStructureAlignment
from structure_aligned.data.relatives import assert_disjoint
from structure_aligned.hub.prepared_dataset import load_prepared_dataset
from structure_aligned.models.esm2 import esm2_tokenizer
from structure_aligned.structure.io import write_mmcif
from structure_aligned.utils.names import safe_file_name
from tests import tiny

from .hostile import check, files_below, refused, write


LENGTH = 12


def embedding(change):
    def changed(row):
        values = np.ones((LENGTH, tiny.STRUCTURE_DIM), dtype=np.float16)
        change(values)
        return {"structure_embedding": values.tobytes(), "structure_embedding_mask": np.ones(LENGTH, dtype=bool)}

    return changed


ROWS = {
    "infinity where there is an embedding": (embedding(lambda values: values.fill(np.inf)), refused("infinity")),
    "one NaN where there is an embedding": (
        embedding(lambda values: values.__setitem__((3, 4), np.nan)),
        refused("structure_embedding"),
    ),
    "an embedding that is cut": (
        lambda row: {"structure_embedding": row["structure_embedding"][:-48]},
        refused("structure_embedding"),
    ),
    "an embedding of half a number": (
        lambda row: {"structure_embedding": row["structure_embedding"][:-1]},
        refused("structure_embedding"),
    ),
    "an embedding of another shape": (
        lambda row: {"structure_embedding_shape": (LENGTH * 2, tiny.STRUCTURE_DIM // 2)},
        refused("structure_embedding"),
    ),
    "an embedding of a shape below zero": (
        lambda row: {"structure_embedding_shape": (-1, tiny.STRUCTURE_DIM + 1)},
        refused("structure_embedding"),
    ),
    "too few tokens": (lambda row: {"structure_tokens": row["structure_tokens"][:-1]}, refused("structure_tokens")),
    "a mask that is too long": (
        lambda row: {"structure_token_mask": np.ones(LENGTH + 1, dtype=bool)},
        refused("structure_token_mask"),
    ),
    "small letters": (lambda row: {"sequence": row["sequence"].lower()}, refused("residues")),
    "a special token in the sequence": (
        lambda row: {"sequence": "MKTA" + "<mask>" + "MK"},
        refused("residues"),
    ),
    "digits in the sequence": (lambda row: {"sequence": "MKTAMKTA1234"}, refused("residues")),
    "white space in the sequence": (lambda row: {"sequence": "MKTA  MKTAMK"}, refused("residues")),
    "no letter at all": (lambda row: {"sequence": ""}, refused()),
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_row(name, packing):
    change, expected = ROWS[name]
    good, row = tiny.row(1, LENGTH), tiny.row(0, LENGTH)
    collator = DataCollatorForStructureAlignment(esm2_tokenizer(), packing=packing)
    assert collator([good, row])["structure_labels"].max() < 20
    check(lambda: collator([good, row | change(row)]), expected, row["id"])


def test_rows_of_two_widths_are_named():
    other = tiny.row(1, LENGTH)
    values = np.ones((LENGTH, 5), dtype=np.float16)
    other |= {"structure_embedding": values.tobytes(), "structure_embedding_shape": values.shape}
    collator = DataCollatorForStructureAlignment(esm2_tokenizer())
    check(lambda: collator([tiny.row(0, LENGTH), other]), refused("row0_A", "row1_A", "[5, 24]"))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared") / "data"
    datasets.DatasetDict({"train": tiny.dataset(4)}).save_to_disk(folder)
    return folder


def arrow(folder):
    return next(folder.rglob("*.arrow"))


FOLDERS = {
    "nothing in it": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
    "no list of splits": lambda folder: (folder / "dataset_dict.json").unlink(),
    "a list of splits that is cut": lambda folder: write(folder, "dataset_dict.json", '{"splits": ['),
    "a list of splits that is a list": lambda folder: write(folder, "dataset_dict.json", "[]"),
    "a split that is not there": lambda folder: write(folder, "dataset_dict.json", '{"splits": ["train", "test"]}'),
    "a split outside the folder": lambda folder: write(folder, "dataset_dict.json", '{"splits": ["../../x"]}'),
    "a state that is cut": lambda folder: write(folder, "train/state.json", "{"),
    "a state that names a file outside": lambda folder: write(
        folder, "train/state.json", json.dumps({"_data_files": [{"filename": "../../../x.arrow"}]})
    ),
    "rows that are cut": lambda folder: arrow(folder).write_bytes(arrow(folder).read_bytes()[:-900]),
    "rows of nothing": lambda folder: arrow(folder).write_bytes(b""),
    "rows of random bytes": lambda folder: arrow(folder).write_bytes(np.random.default_rng(0).bytes(5_000)),
    "rows of an earlier version": lambda folder: (
        shutil.rmtree(folder),
        datasets.DatasetDict({"train": tiny.dataset(2).remove_columns("entry")}).save_to_disk(folder),
    ),
    "a single split": lambda folder: (shutil.rmtree(folder), tiny.dataset(2).save_to_disk(folder)),
    "a file": lambda folder: (shutil.rmtree(folder), folder.write_text("{}")),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folder(prepared, tmp_path, name):
    folder = tmp_path / "data"
    shutil.copytree(prepared, folder)
    FOLDERS[name](folder)
    before = files_below(tmp_path)
    check(lambda: load_prepared_dataset(folder), refused(), folder)
    assert files_below(tmp_path) == before


# What stands beside the good file 1abc.cif in a folder of structures, and what the report says of it.
BESIDE = {
    "a link that leads nowhere": ("x.cif", lambda path: path.symlink_to("nowhere"), "is a link that leads to no file"),
    "a link to itself": ("x.cif", lambda path: path.symlink_to(path.name), "is a link that leads to no file"),
    "a pipe": ("x.pdb", os.mkfifo, "is a pipe"),
    "an endless device": ("x.pdb.gz", lambda path: path.symlink_to("/dev/zero"), "is a pipe, a device"),
    "a folder": ("x.cif", lambda path: path.mkdir(), "is a folder"),
    "a name that is not UTF-8": (
        b"x\xff.cif",
        lambda path: open(path, "wb").close(),
        "has a name that is not UTF-8",
    ),
    "a file of nothing": ("x.cif", lambda path: path.write_bytes(b""), "is empty"),
    "a bomb": (
        "x.pdb.gz",
        lambda path: path.write_bytes(gzip.compress(b"\0" * 2**24) * 64),
        "unpacks to more than",
    ),
    "a file without a protein": (
        "x.pdb",
        lambda path: path.write_text("HETATM    1  O   HOH A   1       1.000   1.000   1.000  1.00 10.00\n"),
        "is a protein",
    ),
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_stands_beside_the_structures(tmp_path, name):
    file_name, make, reason = BESIDE[name]
    folder = tmp_path / "structures"
    folder.mkdir()
    write_mmcif(tiny.chain(20, entry_id="1abc"), folder / "1abc.cif")
    make(os.path.join(os.fsencode(folder), file_name) if isinstance(file_name, bytes) else folder / file_name)
    builder = StructureDatasetBuilder(folder, tiny.WindowGNN(), tmp_path / "cache", on_error="skip")
    builder.download_and_prepare()
    assert builder.as_dataset()["train"]["entry"][:] == ["1abc"]
    (skipped,) = builder.report.skipped
    assert reason in skipped["reason"], skipped


ENTRIES = ["1abc", "../../up", "/etc/x", "a\tb", "$x$", "A" * 90]


def test_ids_stay_ids_all_the_way(tmp_path):
    folder = tmp_path / "structures"
    folder.mkdir()
    for index, entry in enumerate(ENTRIES):
        write_mmcif(tiny.chain(20, seed=index, entry_id="x", chain_id=entry), folder / f"{index}.cif")
    builder = StructureDatasetBuilder(folder, tiny.WindowGNN(), tmp_path / "cache")
    builder.download_and_prepare()
    data = builder.as_dataset()["train"]
    assert data["chain"][:] == ENTRIES
    names = {safe_file_name(name) for name in data["id"][:]}
    assert len(names) == len(ENTRIES) and all(os.path.basename(name) == name for name in names)
    assert {path.parts[0] for path in files_below(tmp_path)} == {"structures", "cache"}
    assert not (tmp_path.parent / "up").exists()


LEAKS = {
    "one entry": ({"entry": "1abc", "chain": "A"}, {"entry": "1abc", "chain": "B"}),
    "one entry whose chain ids hold a _": ({"entry": "1abc", "chain": "A_1"}, {"entry": "1abc", "chain": "A_2"}),
    "one entry whose own id holds a _": ({"entry": "my_1", "chain": "A"}, {"entry": "my_1", "chain": "B"}),
    "one sequence": ({"sequence": "MKTAYIAKQRMK"}, {"sequence": "MKTAYIAKQRMK"}),
}


@pytest.mark.parametrize("name", LEAKS)
def test_leaks_between_splits(name):
    rows = [tiny.row(index, LENGTH) | change for index, change in enumerate(LEAKS[name])]
    for row in rows:
        row["id"] = f"{row['entry']}_{row['chain']}"
    splits = {
        split: datasets.Dataset.from_list([row], features=tiny.FEATURES) for split, row in zip(("train", "test"), rows)
    }
    check(lambda: assert_disjoint(splits), refused("train", "test"))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_pgnn_that_gives_no_numbers(tmp_path, value):
    class Broken(tiny.WindowGNN):
        def embed_batch(self, chains):
            return [torch.full((len(chain), self.output_dim), value) for chain in chains]

    write_mmcif(tiny.chain(20, entry_id="1abc"), tmp_path / "1abc.cif")
    builder = StructureDatasetBuilder(tmp_path / "1abc.cif", Broken(), tmp_path / "cache")
    if value == torch.inf:
        with pytest.raises((ValueError, datasets.exceptions.DatasetGenerationError), match=r"(?s)float16|embedding"):
            builder.download_and_prepare()
    else:
        builder.download_and_prepare()  # NaN means that there is none
        assert not any(builder.as_dataset()["train"][0]["structure_embedding_mask"])
