import gzip

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from structure_aligned.evaluation.assays import (
    Assay,
    evaluate_fitness,
    fitness_metrics,
    read_assay,
)
from structure_aligned.evaluation.fitness import score_mutations
from structure_aligned.inference.fasta import read_single_fasta
from tests import tiny


HEADER = "mutant,mutated_sequence,DMS_score,DMS_score_bin,note"
ROWS = ["K2A,MAVLA,0.5,1,x", 'V3G:L4P,MKGPA,-1.5,0,"a, b"', "A5C,MKVLC,2,1,"]


@pytest.fixture
def write(tmp_path):
    def write(rows=ROWS, header=HEADER, fasta=">wt\nMKV\nLA\n"):
        (tmp_path / "scan.csv").write_text("\n".join([header, *rows]) + "\n")
        if fasta is not None:
            (tmp_path / "scan.fasta").write_text(fasta)
        return tmp_path / "scan.csv"

    return write


def test_metrics_against_the_libraries_with_ties():
    rng = np.random.default_rng(0)
    measured = rng.normal(size=200).round(1)
    scores = (measured + rng.normal(size=200)).round(1)
    found = fitness_metrics(scores, measured)
    assert found.n == 200 and not found.undefined
    assert found.spearman == pytest.approx(spearmanr(scores, measured).statistic)
    assert found.auc == pytest.approx(roc_auc_score(measured > np.median(measured), scores))
    assert fitness_metrics(scores, measured, threshold=1.0).auc == pytest.approx(roc_auc_score(measured > 1, scores))
    binary = rng.integers(0, 2, 200)
    assert fitness_metrics(scores, measured, binary).auc == pytest.approx(roc_auc_score(binary, scores))


def test_top_recall_and_ndcg_by_hand():
    measured = np.arange(20.0)
    scores = measured.copy()
    assert fitness_metrics(scores, measured).top_recall == 1 and fitness_metrics(scores, measured).ndcg == 1
    # The 90th percentile of 0 … 19 is 17.1: 18 and 19 are the best; 19 is found, 18 is not, 3 stands in its place.
    scores[18], scores[3] = 3, 18
    found = fitness_metrics(scores, measured)
    assert found.top_recall == 0.5
    gains = measured / 19
    expected = (gains[19] + gains[3] / np.log2(3)) / (gains[19] + gains[18] / np.log2(3))
    assert found.ndcg == pytest.approx(expected)
    assert fitness_metrics(-measured, measured).top_recall == 0
    # More than a tenth are scored alike at the top: all of them are chosen.
    assert fitness_metrics(np.minimum(measured, 10), measured).top_recall == 1


@pytest.mark.parametrize(
    ("scores", "measured", "binary", "undefined"),
    [
        ([1, 1, 1], [1, 2, 3], None, {"spearman": "all scores are the same", "ndcg": "all scores are the same"}),
        (
            [1, 2, 3],
            [2, 2, 2],
            None,
            {"spearman": "all measured are the same", "auc": "none of the 3 mutants are fit"},
        ),
        ([1, 2, 3], [1, 2, 3], [1, 1, 1], {"auc": "all of the 3 mutants are fit", "ndcg": "10% of 3 mutants is less"}),
        ([1], [1], None, {"spearman": "all scores", "auc": "none of the 1", "top_recall": "all scores"}),
    ],
)
def test_undefined_metrics_are_nan_with_a_reason(scores, measured, binary, undefined):
    found = fitness_metrics(scores, measured, binary)
    for name, reason in undefined.items():
        assert np.isnan(getattr(found, name)) and found.undefined[name].startswith(reason)
    for name in ("spearman", "auc", "top_recall", "ndcg"):
        assert np.isnan(getattr(found, name)) == (name in found.undefined)


def test_constant_scores_still_have_the_auc_of_chance():
    assert fitness_metrics([1, 1, 1, 1], [1, 2, 3, 4]).auc == 0.5


def test_metrics_refuse_what_cannot_be_compared():
    with pytest.raises(ValueError, match=r"scores have shape \(2,\) and measured \(3,\)"):
        fitness_metrics([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match=r"scores have shape \(0,\)"):
        fitness_metrics([], [])
    with pytest.raises(ValueError, match=r"measured are not finite at \[1\]"):
        fitness_metrics([1, 2], [1, np.nan])
    with pytest.raises(ValueError, match="binary has shape"):
        fitness_metrics([1, 2], [1, 3], [1])
    with pytest.raises(ValueError, match="top_fraction is 10"):
        fitness_metrics([1, 2], [1, 3], top_fraction=10)


def test_an_assay_is_read(write):
    assay = read_assay(write())
    assert (assay.name, assay.wild_type, assay.offset) == ("scan", "MKVLA", 1)
    assert assay.mutants == ["K2A", "V3G:L4P", "A5C"]
    np.testing.assert_array_equal(assay.measured, [0.5, -1.5, 2])
    np.testing.assert_array_equal(assay.binary, [True, False, True])


def test_wild_type_from_a_file_a_string_or_the_mutated_sequences(write, tmp_path):
    path = write(fasta=None)
    assert read_assay(path).wild_type == "MKVLA"
    assert read_assay(path, "MKVLA").wild_type == "MKVLA"
    with gzip.open(tmp_path / "other.fasta.gz", "wt") as file:
        file.write(">wt\nMKVLA\n")
    assert read_assay(path, tmp_path / "other.fasta.gz").wild_type == "MKVLA"
    assert read_assay(path, str(tmp_path / "other.fasta.gz"), name="mine").name == "mine"
    with pytest.raises(ValueError, match=r"no column mutated_sequence .*give wild_type"):
        read_assay(write(["K2A,1"], "mutant,DMS_score", fasta=None))


def test_compressed_with_an_offset_and_a_mark_in_front(tmp_path):
    with gzip.open(tmp_path / "scan.csv.gz", "wt", encoding="utf-8-sig", newline="") as file:
        file.write("mutant,DMS_score\r\nK25A,1e-3\r\nWT,0\r\n")
    assay = read_assay(tmp_path / "scan.csv.gz", "MKVLA", offset=24)
    assert assay.mutants == ["K25A", "WT"] and assay.name == "scan" and assay.binary is None


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (["A2G,1"], "mutant,DMS_score", r"scan.csv: Row 1 \('A2G'\) says A at position 2"),
        (["K2A,1", "V3A,"], "mutant,DMS_score", r"row 2 has the DMS_score ''; expected a finite number"),
        (["K2A,1", "V3A,nan"], "mutant,DMS_score", "row 2 has the DMS_score 'nan'"),
        (["K2A,1,2"], "mutant,DMS_score,DMS_score_bin", "row 1 has a DMS_score_bin that is neither"),
        (["K2A,1,MKVLA"], "mutant,DMS_score,mutated_sequence", r"row 1 \('K2A'\) has a mutated_sequence that is not"),
        (["K2A,1"], "mutation,DMS", "has no column mutant and no DMS_score; its columns are mutation, DMS"),
        ([], "mutant,DMS_score", "has no rows"),
        (["K2A"], "mutant,DMS_score", "row 1 does not have the 2 cells"),
        (["K2A,1,2"], "mutant,DMS_score", "row 1 does not have the 2 cells"),
        (["K2A,1"], "mutant,mutant", "has the column 'mutant' more than once"),
    ],
)
def test_files_that_are_wrong(write, rows, header, message):
    with pytest.raises(ValueError, match=message):
        read_assay(write(rows, header))


@pytest.mark.parametrize("number", ["²", "9" * 5000])
def test_numbers_that_are_none_name_the_row(tmp_path, number):
    (tmp_path / "scan.csv").write_text(f"mutant,DMS_score,mutated_sequence\nM{number}A,1,AKV\n")
    with pytest.raises(ValueError, match=r"scan.csv: Row 1 .* cannot be read"):
        read_assay(tmp_path / "scan.csv")


def test_files_that_cannot_be_read(tmp_path):
    for name, data, message in (
        ("none", None, "none does not exist; expected a CSV"),
        ("empty", b"", "has no rows"),
        ("latin", b"mutant,DMS_score\nK2A,\xe9\n", "line 2: it holds the byte 0xe9"),
        ("quote", b'mutant,DMS_score\n"K2A,1\nV3A,2\n', "row 1 cannot be read"),
        ("cut", gzip.compress(b"mutant,DMS_score\nK2A,1\n")[:-9], "holds broken gzip data"),
    ):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=message):
            read_assay(tmp_path / name, "MKVLA")


def test_a_wild_type_is_cleaned_as_all_sequences_are(tmp_path):
    (tmp_path / "wt.fasta").write_text(">wt\nmkv J\n lk*\n")
    assert read_single_fasta(tmp_path / "wt.fasta") == "MKVXLK"
    (tmp_path / "wt.fasta").write_text(">wt\nMK-V\n")
    with pytest.raises(ValueError, match="wt.fasta contains '-'; expected one-letter codes"):
        read_single_fasta(tmp_path / "wt.fasta")


@pytest.mark.parametrize("family", tiny.FAMILIES.values(), ids=list(tiny.FAMILIES))
def test_assays_in_rows(family, write):
    model = family.model()
    rng = np.random.default_rng(0)
    wild_type = "".join(rng.choice(list(tiny.AMINO_ACIDS), 20))
    mutants = [f"{letter}{number}{after}" for number, letter in enumerate(wild_type, 11) for after in "AGW"]
    other = Assay("other", wild_type, mutants, rng.normal(size=60), offset=11)
    rows = evaluate_fitness(model, [read_assay(write()), other], progress=False)
    assert [row["assay"] for row in rows] == ["scan", "other"] and [row["n"] for row in rows] == [3, 60]
    scores = score_mutations(model, wild_type, mutants, offset=11)
    assert rows[1]["spearman"] == pytest.approx(spearmanr(scores, other.measured).statistic, abs=1e-6)
    assert rows[1]["num_residues"] == 20 and "ndcg" in rows[0]["undefined"]
    with pytest.raises(ValueError, match="no assays"):
        evaluate_fitness(model, [])


def test_real_assays_fit_their_wild_types(real_data):
    paths = sorted(real_data("dms").glob("*.csv.gz"))
    assays = [read_assay(path) for path in paths]
    assert len(assays) == 24 and sum(len(assay.mutants) for assay in assays) > 50_000
    for assay in assays:
        assert np.ptp(assay.measured) > 0
    # One letter further on, the wild type's letters do not fit any more.
    for path in paths:
        with pytest.raises(ValueError, match="Row"):
            read_assay(path, offset=2)
