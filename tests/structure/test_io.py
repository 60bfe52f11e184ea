"""Small files written here, one property each."""

import gzip
import os

import numpy as np
import pytest

from structure_aligned.structure.chain import BACKBONE_ATOMS
from structure_aligned.structure.io import read_chains

from .pdb_text import NUCLEOTIDES, OFFSETS, as_mmcif, atom, peptide, residue


# --- Residues and atoms ------------------------------------------------------------------------------------------


def test_sequence_coordinates_and_numbers(read):
    (chain,) = read(peptide(["MET", "ALA", "TRP"], start=7))
    assert (chain.entry_id, chain.chain_id, chain.sequence) == ("model", "A", "MAW")
    assert chain.residue_numbers == ("7", "8", "9")
    assert chain.coords.dtype == chain.b_factors.dtype == np.float32
    expected = [[np.add(OFFSETS[name], (3.8 * number, 0, 0)) for name in BACKBONE_ATOMS] for number in (7, 8, 9)]
    np.testing.assert_allclose(chain.coords, expected, atol=1e-3)


def test_last_listed_location_of_each_atom(read):
    text = residue("ALA", 1) + residue("SER", 2, atoms=("N", "C", "O", "CB"))
    text += atom("CA", "SER", 2, (1, 1, 1), altloc="A", b=20) + atom("CA", "SER", 2, (2, 2, 2), altloc="B", b=30)
    (chain,) = read(text + residue("ALA", 3))
    assert chain.sequence == "ASA"
    assert chain.ca[1].tolist() == [2, 2, 2]
    assert chain.b_factors[1] == 30


def test_first_of_several_components_at_one_position(read):
    text = residue("ALA", 1) + residue("SER", 2, altloc="A") + residue("THR", 2, altloc="B") + residue("ALA", 3)
    (chain,) = read(text)
    assert (chain.sequence, chain.residue_numbers) == ("ASA", ("1", "2", "3"))


def test_residues_with_one_number_but_two_places_in_the_sequence(read_text):
    text = as_mmcif(residue("ALA", 1) + residue("SER", 2) + residue("THR", 2) + residue("ALA", 3))
    for place, component in enumerate(("ALA", "SER", "THR"), start=1):
        text = text.replace(f"{component} A 1 .", f"{component} A 1 {place}")
    (chain,) = read_text(text, "model.cif")
    assert (chain.sequence, chain.residue_numbers) == ("ASTA", ("1", "2", "2", "3"))


def test_modified_residues_get_their_parent(read):
    text = residue("ALA", 1) + residue("MSE", 2, record="HETATM") + residue("SEP", 3, record="HETATM")
    (chain,) = read(text + residue("UNK", 4) + residue("ALA", 5))
    assert chain.sequence == "AMSXA"


def test_parent_stated_by_modres(read_text):
    atoms = (
        residue("ALA", 1) + residue("QQ1", 2, record="HETATM") + residue("QQ2", 3, record="HETATM") + residue("ALA", 4)
    )
    (chain,) = read_text("MODRES 1ABC QQ1 A    2  LYS  SOMETHING\n" + atoms)
    assert chain.sequence == "AKXA"


@pytest.mark.parametrize(
    "headers",
    [
        "loop_\n_chem_comp.id\n_chem_comp.mon_nstd_parent_comp_id\nQQ1 LYS\nALA ?\n",
        "_pdbx_struct_mod_residue.id 1\n_pdbx_struct_mod_residue.auth_asym_id A\n"
        "_pdbx_struct_mod_residue.auth_seq_id 2\n_pdbx_struct_mod_residue.auth_comp_id QQ1\n"
        "_pdbx_struct_mod_residue.label_asym_id A\n_pdbx_struct_mod_residue.label_seq_id 2\n"
        "_pdbx_struct_mod_residue.label_comp_id QQ1\n_pdbx_struct_mod_residue.PDB_ins_code ?\n"
        "_pdbx_struct_mod_residue.parent_comp_id LYS\n_pdbx_struct_mod_residue.details ?\n",
    ],
    ids=["chem_comp", "struct_mod_residue"],
)
def test_parent_stated_by_mmcif(read_text, headers):
    atoms = residue("ALA", 1) + residue("QQ1", 2, record="HETATM") + residue("ALA", 3)
    (chain,) = read_text(as_mmcif(atoms, headers), "model.cif")
    assert chain.sequence == "AKA"


def test_insertion_codes_and_negative_numbers(read):
    text = residue("ALA", -1) + residue("GLY", 52) + residue("GLY", 52, insertion="A") + residue("SER", 53)
    (chain,) = read(text)
    assert (chain.sequence, chain.residue_numbers) == ("AGGS", ("-1", "52", "52A", "53"))


def test_missing_atoms_are_nan(read):
    text = residue("ALA", 1) + residue("SER", 2, atoms=("N", "C"), b=33) + residue("ALA", 3)
    (chain,) = read(text + atom("CG", "LYS", 4, (1, 1, 1), b=44) + residue("ALA", 5))
    assert chain.sequence == "ASAKA"
    assert np.isnan(chain.coords[:, :, 0]).tolist()[1:4] == [[0, 1, 0, 1, 1], [0] * 5, [1] * 5]
    assert chain.b_factors.tolist() == [10, 33, 10, 44, 10]  # of the first atom where there is no CA


@pytest.mark.parametrize("field", ["     nan", "     inf", "********", "        ", "  1.2.34", "     abc"])
def test_unreadable_pdb_coordinates_are_missing_not_zero(read_text, field):
    lines = peptide(["ALA", "SER", "ALA"]).splitlines(keepends=True)
    lines[6] = lines[6][:38] + field + lines[6][46:]  # y of the second CA
    (chain,) = read_text("".join(lines))
    assert np.isnan(chain.ca).tolist() == [[False] * 3, [True] * 3, [False] * 3]
    assert not np.isnan(np.delete(chain.coords, 1, axis=1)).any()


@pytest.mark.parametrize("field", ["?", ".", "nan", "inf", "abc", "1e300"])
def test_unreadable_mmcif_coordinates_are_missing(read_text, field):
    text = as_mmcif(peptide(["ALA", "SER", "ALA"])).replace(" 7.600    0.000    0.000", f" 7.600 {field} 0.000")
    (chain,) = read_text(text, "model.cif")
    assert np.isnan(chain.ca).all(axis=1).tolist() == [False, True, False]


def test_water_and_ligands_are_dropped(read):
    polymer = peptide(["MET", "ALA", "GLY"]) + "TER\n"
    text = polymer + residue("GLY", 301, record="HETATM") + atom("ZN", "ZN", 302, (9, 9, 9), record="HETATM")
    (chain,) = read(text + atom("O", "HOH", 401, (8, 8, 8), record="HETATM"))
    assert chain.sequence == "MAG"


def test_caps_are_dropped(read):
    cap = atom("C", "ACE", 1, (3, 0, 0), record="HETATM") + atom("O", "ACE", 1, (3, 1, 0), record="HETATM")
    (chain,) = read(cap + peptide(["MET", "ALA", "GLY"], start=2))
    assert (chain.sequence, chain.residue_numbers) == ("MAG", ("2", "3", "4"))


def test_nucleic_acid_chains_are_skipped(read):
    chains = read(
        peptide(["MET", "ALA"], chain="B") + "TER\n" + NUCLEOTIDES + "TER\n" + peptide(["GLY"] * 3, chain="A")
    )
    assert [(chain.chain_id, chain.sequence) for chain in chains] == [("B", "MA"), ("A", "GGG")]


def test_an_amino_acid_in_a_nucleic_acid_chain_is_no_protein(read_text):
    headers = "_entity.id 1\n_entity.type polymer\n_entity_poly.entity_id 1\n_entity_poly.type polyribonucleotide\n"
    text = as_mmcif(
        NUCLEOTIDES + residue("ALA", 5, chain="N"), headers + "_struct_asym.id N\n_struct_asym.entity_id 1\n"
    )
    with pytest.raises(ValueError, match="is a protein"):
        read_text(text, "model.cif")
    assert read_text(text.replace("polyribonucleotide", "'polypeptide(L)'"), "model.cif")[0].sequence == "A"


def test_gaps_are_not_filled(read_text):
    seqres = "SEQRES   1 A    5  MET ALA GLY SER TRP\n"
    (chain,) = read_text(seqres + residue("MET", 1) + residue("TRP", 5))
    assert (chain.sequence, chain.residue_numbers) == ("MW", ("1", "5"))


def test_only_the_first_model(read_text):
    models = "".join(
        f"MODEL {i:8d}\n{peptide(letters)}ENDMDL\n" for i, letters in enumerate((["MET"] * 3, ["TRP"] * 4), 1)
    )
    (chain,) = read_text(models)
    assert chain.sequence == "MMM"
    second = as_mmcif(peptide(["TRP"] * 4)).split("pdbx_PDB_model_num\n")[1].replace(" A 1\n", " A 2\n")
    (chain,) = read_text(as_mmcif(peptide(["MET"] * 3)) + second, "model.cif")
    assert chain.sequence == "MMM"


@pytest.mark.parametrize("ter", ["TER\n", ""])
def test_parts_of_a_chain_become_one(read, ter):
    water = atom("O", "HOH", 401, (8, 8, 8), record="HETATM")
    text = peptide(["ALA"] * 3) + ter + peptide(["GLY"] * 2, chain="B") + ter + peptide(["SER"] * 4, start=4) + ter
    chains = read(text + peptide(["MSE"], start=8, record="HETATM") + peptide(["SER"], start=9) + water)
    assert [(c.chain_id, c.sequence) for c in chains] == [("A", "AAASSSSMS"), ("B", "GG")]


# --- Metadata ----------------------------------------------------------------------------------------------------

PDB_HEADER = "HEADER    HYDROLASE                               19-MAY-97   1AKI              \n"
REMARK_3 = "REMARK   3  DATA USED IN REFINEMENT.\nREMARK   3   FREE R VALUE                     : {}\n"


def test_pdb_metadata(read_text):
    header = PDB_HEADER + "EXPDTA    X-RAY DIFFRACTION\nREMARK   2\nREMARK   2 RESOLUTION.    1.50 ANGSTROMS.\n"
    (chain,) = read_text(header + REMARK_3.format("0.212") + peptide(["ALA"] * 3))
    assert (chain.id, chain.deposition_date, chain.method) == ("1aki_A", "1997-05-19", "X-RAY DIFFRACTION")
    assert (chain.resolution, chain.r_free) == (1.5, 0.212)


def test_mmcif_metadata(read_text):
    headers = (
        "_entry.id 1AKI\n_exptl.method 'X-ray diffraction'\n_refine.pdbx_refine_id x\n_refine.ls_d_res_high 1.5\n"
        "_refine.ls_R_factor_R_free 0.212\n_pdbx_database_status.recvd_initial_deposition_date 1997-05-19\n"
    )
    (chain,) = read_text(as_mmcif(peptide(["ALA"] * 3), headers), "other.cif")
    assert (chain.id, chain.deposition_date, chain.method) == ("1aki_A", "1997-05-19", "X-RAY DIFFRACTION")
    assert (chain.resolution, chain.r_free) == (1.5, 0.212)


def test_nmr_and_unknown_have_no_resolution(read_text):
    remark_2 = "REMARK   2\nREMARK   2 RESOLUTION. NOT APPLICABLE.\n"
    for header in ("EXPDTA    SOLUTION NMR\n" + remark_2 + REMARK_3.format("NULL"), ""):
        (chain,) = read_text(header + peptide(["ALA"] * 3))
        assert (chain.resolution, chain.r_free, chain.deposition_date) == (None, None, None)
    headers = "_exptl.method 'SOLUTION NMR'\n_refine.pdbx_refine_id x\n_refine.ls_d_res_high 2.0\n"
    headers += "_refine.ls_R_factor_R_free ?\n_pdbx_database_status.recvd_initial_deposition_date ?\n"
    (chain,) = read_text(as_mmcif(peptide(["ALA"] * 3), headers), "model.cif")
    assert (chain.resolution, chain.r_free, chain.deposition_date) == (None, None, None)
    assert chain.method == "SOLUTION NMR"


ALPHAFOLD_CIF = (
    "_entry.id AF-P00520-F1\nloop_\n_ma_qa_metric.id\n_ma_qa_metric.mode\n_ma_qa_metric.name\n_ma_qa_metric.type\n"
    "1 global pLDDT pLDDT\n2 local pLDDT pLDDT\n"
)
ALPHAFOLD_TITLE = "TITLE     ALPHAFOLD MONOMER V2.0 PREDICTION FOR TYROSINE-PROTEIN KINASE ABL1\n"
REMARK_1 = "REMARK   1 ALPHAFOLD DATA, COPYRIGHT (2021) DEEPMIND TECHNOLOGIES LIMITED. THE\n"


@pytest.mark.parametrize(
    ("headers", "name", "predicted"),
    [
        (ALPHAFOLD_CIF, "x.cif", True),
        ("_ma_data.id 1\n_exptl.method 'X-RAY DIFFRACTION'\n", "x.cif", True),
        ("_exptl.method 'THEORETICAL MODEL'\n", "x.cif", True),
        ("_entry.id AF-P00520-F1\n", "x.cif", True),
        ("_entry.id AF-P00520-F1\n_exptl.method 'X-RAY DIFFRACTION'\n", "x.cif", False),
        ("", "x.cif", False),
        ("EXPDTA    THEORETICAL MODEL\n", "x.pdb", True),
        (ALPHAFOLD_TITLE, "x.pdb", True),
        (REMARK_1, "x.pdb", True),
        ("TITLE     ESMFOLD V1 PREDICTION FOR INPUT\n", "x.pdb", True),
        ("", "AF-P00520-F1-model_v4.pdb", True),
        ("", "AF-P00520-2-F1-model_v6.pdb", True),
        ("", "query_unrelaxed_rank_001_alphafold2_ptm_model_3_seed_000.pdb", True),
        ("EXPDTA    X-RAY DIFFRACTION\n" + ALPHAFOLD_TITLE + REMARK_1, "AF-P00520-F1-model_v4.pdb", False),
        ("TITLE     CRYSTAL STRUCTURE OF A DESIGN\n", "AF-1.pdb", False),
    ],
)
def test_predicted_models(read_text, headers, name, predicted):
    atoms = peptide(["ALA"] * 3)
    (chain,) = read_text(as_mmcif(atoms, headers) if name.endswith(".cif") else headers + atoms, name)
    assert chain.predicted is predicted
    assert chain.b_factors.tolist() == [10.0] * 3  # as the file has them


def test_resolution_of_electron_microscopy(read_text):
    headers = "_exptl.method 'ELECTRON MICROSCOPY'\n_em_3d_reconstruction.resolution 3.2\n"
    (chain,) = read_text(as_mmcif(peptide(["ALA"] * 3), headers), "model.cif")
    assert chain.resolution == 3.2


@pytest.mark.parametrize(
    ("given", "name", "expected"),
    [
        ("1A3A", "x.cif", "1a3a"),
        ("AF-P12345-F1", "x.cif", "AF-P12345-F1"),
        ("?", "5ABC.cif.gz", "5abc"),
        ("XXXX", "My.model_1.CIF", "My.model_1"),
        ("'../up'", "x.cif", "x"),
        ("?", "pdb2abc.ent.gz", "2abc"),
    ],
)
def test_entry_id(read_text, given, name, expected):
    atoms = peptide(["ALA"] * 3)
    text = atoms if ".ent" in name else as_mmcif(atoms, f"_entry.id {given}\n")
    assert read_text(text, name)[0].entry_id == expected


# --- Files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["m.pdb", "m.ent", "m.PDB.GZ", "m.ent.gz", "m.cif", "m.mmcif", "m.CIF", "m.cif.gz", "m.mmCIF.gz"]
)
def test_extensions(read_text, name):
    text = peptide(["ALA", "GLY"]) if "cif" not in name.lower() else as_mmcif(peptide(["ALA", "GLY"]))
    data = gzip.compress(text.encode()) if name.endswith(".GZ") else text
    assert read_text(data, name)[0].sequence == "AG"


def test_gzip_is_recognised_by_content(read_text):
    assert read_text(gzip.compress(peptide(["ALA", "GLY"]).encode()), "m.pdb")[0].sequence == "AG"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("m.pdb", b"", "is empty"),
        ("m.cif.gz", gzip.compress(b" \n", mtime=0), "is empty"),
        ("m.txt", b"x", "extension '.txt'; expected a .pdb"),
        ("m.gz", b"x", "extension ''"),
        ("m.pdb", b"hello\n", "no ATOM or HETATM"),
        ("m.pdb", as_mmcif(peptide(["ALA"])).encode(), "its content is mmCIF"),
        ("m.cif", peptide(["ALA"]).encode(), "its content is PDB"),
        ("m.cif", b"hello\n", "cannot be read as .cif"),
        ("m.cif", b"data_x\n_cell.length_a 1\n", "_atom_site is missing or empty"),
        (
            "m.cif",
            as_mmcif(peptide(["ALA"])).replace("_atom_site.auth_seq_id", "_atom_site.x").encode(),
            "auth_seq_id",
        ),
        ("m.cif.gz", as_mmcif(peptide(["ALA"])).encode(), "is named .gz but is not gzipped"),
        ("m.pdb.gz", gzip.compress(peptide(["ALA"] * 50).encode(), mtime=0)[:-40], "broken gzip data"),
        ("m.pdb.gz", gzip.compress(peptide(["ALA"]).encode(), mtime=0)[:-8] + b"12345678", "broken gzip data"),
        ("m.pdb", NUCLEOTIDES.encode(), "none of its 1 chains is a protein"),
        ("m.pdb", atom("O", "HOH", 1, (1, 1, 1), record="HETATM").encode(), "none of its 1 chains is a protein"),
        ("m.pdb", peptide(["ALA"])[:-40].encode(), "too short"),
    ],
)
def test_errors_name_file_and_cause(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        read_chains(path)
    assert str(path) in str(error.value)


def test_missing_files_folders_and_pipes(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.pdb"):
        read_chains(tmp_path / "absent.pdb")
    (tmp_path / "folder.pdb").mkdir()
    os.mkfifo(tmp_path / "pipe.pdb")  # reading it would wait for ever
    for name in ("folder.pdb", "pipe.pdb"):
        with pytest.raises(ValueError, match=f"{name}: is not a file"):
            read_chains(tmp_path / name)


def test_gzip_bombs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("structure_aligned.structure.io.MAX_BYTES", 10_000)
    text = peptide(["ALA"] * 20).encode()
    for name, data in (("a.pdb", text + b" " * 10_000), ("a.pdb.gz", gzip.compress(text + b" " * 10_000))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=r"holds more than 10,000 bytes"):
            read_chains(tmp_path / name)
