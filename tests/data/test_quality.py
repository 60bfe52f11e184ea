"""Thresholds of high quality, and labels that are removed at uncertain residues."""

import datasets
import numpy as np
import pytest

from structure_aligned.data.collator import DataCollatorForStructureAlignment
from structure_aligned.data.quality import QualityThresholds, mask_low_confidence, mean_b_factors
from structure_aligned.models.esm2 import esm2_tokenizer
from tests import tiny


XRAY = {"method": "X-RAY DIFFRACTION", "resolution": 1.8, "r_free": 0.22, "predicted": False}
NMR = {"method": "SOLUTION NMR", "resolution": None, "r_free": None, "predicted": False}
EM = {"method": "ELECTRON MICROSCOPY", "resolution": 1.8, "r_free": None, "predicted": False}
MODEL = {"method": None, "resolution": None, "r_free": None, "predicted": True}


def chains(*changes):
    """A dataset of tiny rows with other values in some columns."""
    rows = [tiny.row(index, length=6) | change for index, change in enumerate(changes)]
    return datasets.Dataset.from_list(rows, features=tiny.FEATURES)


@pytest.mark.parametrize(
    ("thresholds", "row", "reason"),
    [
        ({"max_resolution": 1.8, "max_r_free": 0.22}, XRAY, None),  # ties are good
        ({"max_resolution": 1.79}, XRAY, "resolution: 1.8 Å is more than 1.79 Å"),
        ({"max_r_free": 0.21}, XRAY, "r_free: 0.22 is more than 0.21"),
        ({"max_resolution": 2}, XRAY | {"resolution": None}, "resolution not stated"),
        ({"max_r_free": 0.25}, XRAY | {"r_free": None}, "r_free not stated"),
        # Without a stated R-free nothing is good, also where no bound is given for it
        ({"max_resolution": 2}, XRAY | {"r_free": None}, "r_free not stated"),
        ({"max_resolution": 2}, EM, "r_free not stated: by ELECTRON MICROSCOPY"),
        ({"methods": "solution nmr"}, NMR, "r_free not stated: by SOLUTION NMR"),
        ({"max_resolution": 2, "allow_missing_r_free": True}, EM, None),
        ({"max_resolution": 2, "max_r_free": 0.2, "allow_missing_r_free": True}, XRAY, "r_free: 0.22"),
        ({"methods": ["Solution NMR"], "allow_missing_r_free": True}, NMR, None),
        ({"max_resolution": 2, "allow_missing_r_free": True}, NMR, "resolution not stated"),
        ({"methods": ["X-RAY DIFFRACTION"]}, NMR, "method: SOLUTION NMR is none of X-RAY DIFFRACTION"),
        ({"methods": ["X-RAY DIFFRACTION"]}, XRAY | {"method": None}, "method: None"),
        ({"max_resolution": 2, "allow_missing_r_free": True}, MODEL, "predicted: the thresholds name no min_plddt"),
        ({"min_plddt": 90}, MODEL, None),
        ({"min_plddt": 90.1, "max_resolution": 2}, MODEL, "plddt: 90.0 is less than 90.1"),
        ({"min_plddt": 90}, XRAY, None),
    ],
)
def test_thresholds(thresholds, row, reason):
    found = QualityThresholds(**thresholds).reason(row, mean_plddt=90.0)
    assert found == reason if reason is None else found.startswith(reason)


def test_thresholds_that_make_no_sense():
    for options, message in (
        ({}, "no threshold"),
        ({"allow_missing_r_free": True}, "no threshold"),
        ({"max_r_free": 25}, "max_r_free is 25"),
        ({"max_resolution": -1}, "max_resolution is -1"),
        ({"min_plddt": 0.7}, "min_plddt is 0.7; expected a number on the scale 0-100"),
    ):
        with pytest.raises(ValueError, match=message):
            QualityThresholds(**options)
    assert "not stated" in QualityThresholds(min_plddt=70).reason(MODEL, float("nan"))


def test_means_and_the_scale_of_plddt():
    experimental = chains({"b_factors": [10, 20, np.nan, 0, 30, 20]}, {"b_factors": [0] * 6})
    np.testing.assert_equal(mean_b_factors(experimental), [20, np.nan])
    percent = {"predicted": True, "b_factors": [90, 80, 70, 60, 50, 40]}
    fraction = {"predicted": True, "b_factors": [0.9, 0.8, 0.7, 0.6, 0.5, np.nan]}
    np.testing.assert_allclose(mean_b_factors(chains(percent, {"b_factors": [0.5] * 6})), [65, 0.5])
    np.testing.assert_allclose(mean_b_factors(chains(fraction), plddt_scale=1), [70], rtol=1e-6)
    np.testing.assert_allclose(mean_b_factors(chains(percent, fraction), plddt_scale="auto"), [65, 70], rtol=1e-6)
    strange = percent | {"b_factors": [120.0] * 6}
    np.testing.assert_allclose(mean_b_factors(chains(strange, fraction, {}), None), [np.nan, 70, 20], rtol=1e-6)
    for rows, scale, message in (
        (
            chains(percent, fraction),
            100,
            "row1_A is a predicted.*column holds 0.5 to 0.9.*plddt_scale=1",
        ),
        (chains(fraction, percent), 1, "row1_A.*holds 40 to 90.*is no pLDDT from 0 to 1"),
        (chains(strange), "auto", "row0_A.*is no pLDDT. Build experimental chains"),
        (chains(percent | {"b_factors": [-3.0] * 6}), 100, "row0_A.*is no pLDDT"),
        (chains(percent | {"b_factors": [0.0] * 6}), 100, "row0_A.*or none"),
        (chains({"predicted": None}), 100, "row0_A does not say whether it is predicted"),
        (chains(percent).remove_columns("predicted"), 100, "no column 'predicted'"),
        (chains(percent), 10, "plddt_scale is 10"),
    ):
        with pytest.raises(ValueError, match=message):
            mean_b_factors(rows, scale)


def test_masking_removes_labels_not_residues():
    before = chains(
        {"b_factors": [10, 80, 80.5, np.nan, 0, 20]},
        {"predicted": True, "b_factors": [95, 70, 69.9, np.nan, 20, 99]},
    )
    after = mask_low_confidence(before, max_b_factor=80, min_plddt=70)
    expected = [[True, True, False, False, False, True]] * 2
    for name in ("structure_token_mask", "structure_embedding_mask"):
        assert after[name][:] == (np.array(before[name][:]) & expected).tolist()
    assert after.column_names == before.column_names and after.features == before.features
    same = [name for name in before.column_names if not name.endswith("_mask")]
    for one, other in zip(before.select_columns(same), after.select_columns(same)):
        np.testing.assert_equal(one, other)
    collator = DataCollatorForStructureAlignment(esm2_tokenizer(), mlm_probability=0.5)
    full, cut = collator(list(before)), collator(list(after))
    for name in ("input_ids", "attention_mask", "labels"):
        assert (full[name] == cut[name]).all()
    assert (cut["structure_labels"] >= 0).sum() == 2  # row 0 and 1 have a token at 1; 5 is a last residue
    assert cut["residue_mask"].sum() == 4


def test_each_bound_concerns_its_own_kind_of_chain():
    rows = chains({"b_factors": [50] * 6}, {"predicted": True, "b_factors": [50] * 6})
    counts = [sum(map(sum, rows["structure_token_mask"][:]))]
    for bounds in ({"max_b_factor": 40}, {"min_plddt": 60}, {"max_b_factor": 40, "min_plddt": 60}):
        counts.append([sum(mask) for mask in mask_low_confidence(rows, **bounds)["structure_token_mask"]])
    assert counts == [8, [0, 4], [4, 0], [0, 0]]
    low = chains({"predicted": True, "b_factors": [0.9, 0.9, 0.5, 0.9, 0.9, 0.9]})
    assert sum(mask_low_confidence(low, min_plddt=70, plddt_scale=1)["structure_token_mask"][0]) == 3


def test_masking_of_selected_rows_keeps_the_format_and_is_exact_over_many_batches():
    rng = np.random.default_rng(0)
    rows = [tiny.row(index) for index in range(40)]
    for row in rows:
        row["b_factors"] = rng.uniform(0, 100, row["length"]).astype(np.float32)
    data = datasets.concatenate_datasets([datasets.Dataset.from_list(rows, features=tiny.FEATURES)] * 60)
    chosen = data.shuffle(seed=0).select(range(1500)).with_format("numpy", columns=["id", "b_factors"])
    masked = mask_low_confidence(chosen, max_b_factor=50)
    assert masked.format == chosen.format and len(masked) == 1500
    for one, other in zip(chosen.with_format(None), masked.with_format(None)):
        assert one["id"] == other["id"] and one["structure_embedding"] == other["structure_embedding"]
        expected = np.array(one["structure_token_mask"]) & (np.array(one["b_factors"]) <= 50)
        assert other["structure_token_mask"] == expected.tolist()


def test_masking_refuses():
    rows = chains({})
    for data, bounds, message in (
        (rows, {}, "neither max_b_factor nor min_plddt"),
        (rows, {"max_b_factor": 0}, "max_b_factor is 0"),
        (rows, {"min_plddt": 0.7}, "min_plddt is 0.7"),
        (rows.select_columns(["id", "b_factors", "predicted"]), {"min_plddt": 70}, "expected one of structure_token"),
        (rows.remove_columns("predicted"), {"min_plddt": 70}, "no column 'predicted'"),
        (chains({"b_factors": [1.0] * 5}), {"max_b_factor": 9}, "row0_A has 6 entries in .*_mask but 5 B-factors"),
    ):
        with pytest.raises(ValueError, match=message):
            mask_low_confidence(data, **bounds)
    assert len(mask_low_confidence(rows.select([]), max_b_factor=9)) == 0
