"""Broken and odd files: `read_chains` ends in chains that agree with themselves or in a ValueError naming the file."""

import gzip
import random

import numpy as np
import pytest

from structure_aligned.structure.chain import BACKBONE_ATOMS
from structure_aligned.structure.io import read_chains
from structure_aligned.structure.tokens import encode_3di

from .pdb_text import NUCLEOTIDES, as_mmcif, atom, peptide


LETTERS = ["MET", "ALA", "GLY", "TRP", "LYS", "SER", "ASP", "PRO", "HIS", "VAL", "UNK", "CYS"]
HEADER = (
    "HEADER    HYDROLASE                               19-MAY-97   1AKI              \n"
    "EXPDTA    X-RAY DIFFRACTION\n"
    "REMARK   2\nREMARK   2 RESOLUTION.    1.50 ANGSTROMS.\n"
    "REMARK   3  DATA USED IN REFINEMENT.\nREMARK   3   FREE R VALUE                     : 0.212\n"
    "SEQRES   1 A    5  MET ALA GLY SER TRP\nMODRES 1AKI MSE A    4  MET  SELENOMETHIONINE\n"
    "CRYST1   78.540   79.770   37.280  90.00  90.00  90.00 P 21 21 21    8\n"
)
CIF_HEADER = (
    "_entry.id 1AKI\n_exptl.method 'X-RAY DIFFRACTION'\n_refine.pdbx_refine_id x\n_refine.ls_d_res_high 1.5\n"
    "_refine.ls_R_factor_R_free 0.212\n_pdbx_database_status.recvd_initial_deposition_date 1997-05-19\n"
    "_entity.id 1\n_entity.type polymer\n_entity_poly.entity_id 1\n_entity_poly.type 'polypeptide(L)'\n"
    "loop_\n_struct_asym.id\n_struct_asym.entity_id\nA 1\nB 1\n"
)
ATOMS = peptide(LETTERS) + "TER\n" + peptide(LETTERS[::-1], chain="B") + "TER\n" + NUCLEOTIDES
ATOMS += peptide(["MSE", "GLY"], start=301, record="HETATM") + "END\n"
BASES = {"pdb": (HEADER + ATOMS).encode(), "cif": as_mmcif(ATOMS, CIF_HEADER).encode()}
TOKENS = [b"'", b'"', b"\n;\n", b"loop_\n", b"data_x\n", b"save_\n", b"\0", b"#", b"\r", b"TER\n", b"ENDMDL\n"]
TOKENS += [
    b"MODEL 1\n",
    b"\xff\xfe",
    b"ANISOU\n",
    b"99999999999999999999 ",
    b"-1e400 ",
    b"nan ",
    b"\xc3\xa9",
    b"\x1f\x8b",
]


def outcome(path):
    """Checks what `read_chains` makes of `path`; the number of chains, 0 for an error."""
    try:
        chains = read_chains(path)
    except ValueError as error:
        assert str(path) in str(error)
        assert len(str(error)) > len(str(path)) + 20
        return 0
    assert chains
    for chain in chains:
        length = len(chain.sequence)
        assert length > 0
        assert chain.sequence.isalpha() and chain.sequence.isupper()
        assert chain.coords.shape == (length, 5, 3)
        assert not np.isinf(chain.coords).any()
        assert len(chain.residue_numbers) == len(chain.b_factors) == length
        assert all(len(part) == length for part in encode_3di(chain.coords))
    return len(chains)


def shuffle_lines(data, rng):
    lines = data.split(b"\n")
    rng.shuffle(lines)
    return b"\n".join(lines)


def flip_bits(data, rng):
    data = bytearray(data)
    for _ in range(rng.choice([1, 5, 50, 500])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def cut(data, rng):
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randrange(2000) :]


def repeat(data, rng):
    start, source = rng.randrange(len(data)), rng.randrange(len(data))
    return data[:start] + data[source : source + rng.randrange(2000)] + data[start:]


def insert_token(data, rng):
    for _ in range(rng.choice([1, 5])):
        at = rng.randrange(len(data) + 1)
        data = data[:at] + rng.choice(TOKENS) + data[at:]
    return data


def replace_everywhere(data, rng):
    old, new = rng.choice(b" .0123456789ACN\n_"), rng.choice(b" .0A\n?-;")
    return data.replace(bytes([old]), bytes([new]))


MUTATIONS = {
    "truncated": lambda data, rng: data[: rng.randrange(len(data))],
    "bits": flip_bits,
    "cut": cut,
    "repeated": repeat,
    "tokens": insert_token,
    "lines": shuffle_lines,
    "replaced": replace_everywhere,
    "noise": lambda data, rng: rng.randbytes(rng.randrange(1, 3000)),
}


@pytest.mark.parametrize("kind", BASES)
def test_the_unbroken_base_is_read(tmp_path, kind):
    path = tmp_path / f"base.{kind}"
    path.write_bytes(BASES[kind])
    assert [chain.chain_id for chain in read_chains(path)] == ["A", "B"]
    assert outcome(path) == 2


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("kind", BASES)
def test_mutated_files(tmp_path, kind, mutation, seed):
    rng = random.Random(f"{kind} {mutation} {seed}")
    path = tmp_path / f"file.{kind}"
    path.write_bytes(MUTATIONS[mutation](BASES[kind], rng))
    outcome(path)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("kind", BASES)
def test_broken_gzip(tmp_path, kind, seed):
    rng = random.Random(f"{kind} {seed}")
    path = tmp_path / f"file.{kind}.gz"
    mutate = rng.choice([MUTATIONS["truncated"], flip_bits, cut, repeat, insert_token])
    broken = mutate(gzip.compress(BASES[kind], mtime=0), rng)
    path.write_bytes(broken)
    outcome(path)


@pytest.mark.parametrize("name", ["x.pdb", "x.cif", "x.pdb.gz", "x.cif.gz", "x.ent", "x.mmcif", "x.txt", "x"])
@pytest.mark.parametrize("content", ["empty", "pdb", "cif", "pdb gzipped", "cif gzipped", "gzipped twice"])
def test_every_content_under_every_name(tmp_path, name, content):
    data = {"empty": b"", "gzipped twice": gzip.compress(gzip.compress(BASES["pdb"]))}.get(content)
    if data is None:
        data = BASES[content[:3]]
        data = gzip.compress(data) if "gzipped" in content else data
    path = tmp_path / name
    path.write_bytes(data)
    extension = {".p": "pdb", ".e": "pdb", ".c": "cif", ".m": "cif"}.get(name[1:3])
    fits = extension == content[:3] and ("gzipped" in content or not name.endswith(".gz"))
    assert outcome(path) == (2 if fits else 0)


ODD = {
    "one residue": (peptide(["ALA"]), [1]),
    "two residues": (peptide(["ALA", "GLY"]), [2]),
    "all X": (peptide(["UNK"] * 30), [30]),
    "nucleic acid only": (NUCLEOTIDES, []),
    "no CA at all": (peptide(["ALA"] * 9).replace(" CA ", " CG "), [9]),
    "NaN coordinates": (peptide(["ALA"] * 9).replace("0.000", "  nan"), [9]),
    "identical coordinates": (
        "".join(atom(name, "ALA", i, (1, 1, 1)) for i in range(60) for name in BACKBONE_ATOMS),
        [60],
    ),
    "the same residue again and again": (peptide(["ALA"]) * 500, [1]),
    "26 chains": ("".join(peptide(["ALA"] * 3, chain=chr(65 + i)) + "TER\n" for i in range(26)), [3] * 26),
    "no chain id": (peptide(["ALA"] * 3, chain=" "), [3]),
    "a slash as chain id": (peptide(["ALA"] * 3, chain="/"), [3]),
}


# mmCIF has no blank ids.
@pytest.mark.parametrize(("kind", "name"), [("pdb", n) for n in ODD] + [("cif", n) for n in ODD if n != "no chain id"])
def test_odd_but_well_formed(tmp_path, name, kind):
    text, lengths = ODD[name]
    path = tmp_path / f"odd.{kind}"
    path.write_text(text if kind == "pdb" else as_mmcif(text))
    assert outcome(path) == len(lengths)
    assert not lengths or [len(chain) for chain in read_chains(path)] == lengths


@pytest.mark.parametrize("kind", ["pdb", "cif"])
def test_five_thousand_residues(tmp_path, kind):
    path = tmp_path / f"long.{kind}"
    text = peptide(["ALA", "GLY", "SER", "LYS", "TRP"] * 1000)
    path.write_text(text if kind == "pdb" else as_mmcif(text))
    assert outcome(path) == 1
    assert len(read_chains(path)[0]) == 5000
