"""Structure files that are hostile by their names, their places and their sizes."""

import gzip
import os

import pytest

from structure_aligned.structure.io import read_chains
from tests.structure.pdb_text import as_mmcif, atom
from tests.structure.test_io_marks import SEQUENCE, molecule

from .hostile import check, memory_below, refused, write


P, C = molecule(), as_mmcif(molecule())
ONE = [("A", SEQUENCE)]
IDS = {
    "'/etc/passwd'": "x",
    "'..'": "x",
    "'a\tb'": "x",
    "-rf": "x",
    "A" * 10_000: "x",
    "null": "x",
    "'1ABC '": "1abc",
    "'%s%n'": "x",
    "con": "con",
}


@pytest.mark.parametrize("given", IDS, ids=range(len(IDS)))
def test_entry_ids(tmp_path, given):
    (chain,) = read_chains(write(tmp_path, "x.cif", as_mmcif(molecule(), f"_entry.id {given}\n")))
    assert chain.entry_id == IDS[given]


PLACES = {
    "a folder": (lambda path: path.mkdir(), ValueError),
    "a pipe": (os.mkfifo, ValueError),
    "a link to itself": (lambda path: path.symlink_to(path.name), (ValueError, FileNotFoundError)),
    "a link that leads nowhere": (lambda path: path.symlink_to("nowhere"), (ValueError, FileNotFoundError)),
    "an endless device": (lambda path: path.symlink_to("/dev/zero"), ValueError),
    "the memory of this process": (lambda path: path.symlink_to("/proc/self/mem"), ValueError),
}


@pytest.mark.parametrize("name", PLACES)
def test_what_is_not_a_file(tmp_path, name):
    make, error = PLACES[name]
    make(tmp_path / "x.pdb")
    with pytest.raises(error, match=r"x\.pdb"):
        read_chains(tmp_path / "x.pdb")


@pytest.mark.parametrize("name", ["n" * 300 + ".pdb", "a\0b.pdb"], ids=["too long", "a NUL"])
def test_names_that_no_file_has(tmp_path, name):
    with pytest.raises((ValueError, FileNotFoundError), match="pdb"):
        read_chains(tmp_path / name)


# Ways to make the work or the memory grow faster than the file. Sizes at which quadratic work would take minutes.
GROWING = {
    "a bomb": ("x.pdb.gz", lambda: gzip.compress(b"\0" * 2**24) * 256, refused("unpacks to more than")),
    "empty members": ("x.cif.gz", lambda: gzip.compress(b"") * 200_000, refused("empty gzip members")),
    "a line of 10 MB": ("x.pdb", lambda: "REMARK " + "A" * 10_000_000 + "\n" + P, ONE),
    "a text of 10 MB": ("x.cif", lambda: C + f"_a.b\n;{'A' * 10_000_000}\n;\n", ONE),
    "2,000 chains": (
        "x.cif",
        lambda: C + "".join(f"ATOM 1 C CA . ALA C{i} 1 . ? {i} 1 1 1.00 10 1 C{i} 1\n" for i in range(2_000)),
        [*ONE, *((f"C{i}", "A") for i in range(2_000))],
    ),
    "2,000 runs of two chains": (
        "x.pdb",
        lambda: "".join(
            atom("CA", "ALA", i, (1.9 * i - 1.9 * (i % 2), 60 * (i % 2), 1), "AB"[i % 2]) for i in range(2_000)
        ),
        [("A", "A" * 1_000), ("B", "A" * 1_000)],
    ),
    "20,000 categories": ("x.cif", lambda: C + "".join(f"_c{i}.a 1\n" for i in range(20_000)), ONE),
    "20,000 columns": (
        "x.cif",
        lambda: C + "loop_\n" + "".join(f"_c.a{i}\n" for i in range(20_000)) + "1 " * 20_000 + "\n",
        ONE,
    ),
    "a million quotation marks": ("x.cif", lambda: C + "_a.b " + "'" * 1_000_000 + "\n", ONE),
}


@pytest.mark.parametrize("name", GROWING)
def test_work_and_memory(tmp_path, name):
    file_name, content, expected = GROWING[name]
    path = write(tmp_path, file_name, content())
    with memory_below(300):
        check(lambda: [(chain.chain_id, chain.sequence) for chain in read_chains(path)], expected, path)
