"""Splits of files made for it: missing R-free, NMR, dates, pLDDT in the B-factor column, a cluster file."""

import csv
import datetime
import json
import random

import datasets
import numpy as np
import pytest

from structure_aligned.data.builder import StructureDatasetBuilder
from structure_aligned.data.quality import QualityThresholds
from structure_aligned.data.relatives import assert_disjoint
from structure_aligned.data.sharding import prepare_dataset
from structure_aligned.data.splits import SPLITS, split_chains
from structure_aligned.structure.io import read_chains, write_mmcif
from tests import tiny
from tests.conftest import shared_path


XRAY = {"method": "X-RAY DIFFRACTION", "resolution": 1.5, "r_free": 0.2, "deposition_date": "2010-01-01"}
GOOD = QualityThresholds(max_resolution=2.0, max_r_free=0.25)


def chains(*rows):
    """A dataset of X-ray chains with an own sequence each, changed as the dicts say."""
    made = [tiny.row(index) | XRAY | {"id": f"{1000 + index}_A"} | change for index, change in enumerate(rows)]
    made = [row | tiny.named(row["id"]) | change for row, change in zip(made, rows)]
    for row in made:
        row["length"] = len(row["sequence"])
        row["b_factors"] = np.resize(row["b_factors"], row["length"])
    return datasets.Dataset.from_list(made, features=tiny.FEATURES)


def ids(splits):
    return {name: rows["id"][:] for name, rows in splits.items()}


def reasons(summary):
    return {item["source"]: item["reason"] for item in summary.left_out}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A dataset built from mmCIF and PDB files of every kind, and its cluster file."""
    root = tmp_path_factory.mktemp("splits")
    files = root / "files"
    files.mkdir()
    entries = {
        "1xra": {},
        "2noR": {"r_free": None},
        "3low": {"resolution": 3.1},
        "4nmr": {"method": "SOLUTION NMR", "resolution": None, "r_free": None},
        "5new": {"deposition_date": "2022-06-01"},
        "6bad": {"r_free": 0.31, "deposition_date": "2022-06-01"},
        "7day": {"deposition_date": None},
        "8hom": {"r_free": None},  # a homolog of 1xra
        "AF-P00520-F1": dict.fromkeys(XRAY) | {"predicted": True, "b_factors": np.full(30, 95, np.float32)},
        "AF-P00521-F1": dict.fromkeys(XRAY) | {"predicted": True, "b_factors": np.full(30, 60, np.float32)},
    }
    for seed, (entry_id, fields) in enumerate(entries.items()):
        write_mmcif(tiny.chain(30, seed, entry_id, **XRAY | fields), files / f"{entry_id}.cif")
    # The same protein once more, as a PDB file without any header
    (copy,) = read_chains(files / "1xra.cif")
    lines = [
        f"ATOM  {number:5}  CA  {name} A{number:4}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 20.00           C\n"
        for number, (name, (x, y, z)) in enumerate(zip(three_letters(copy.sequence), copy.ca), start=1)
    ]
    (files / "9pdb.pdb").write_text("".join(lines) + "END\n")
    members = [f"{entry_id.upper() if entry_id[0] != 'A' else entry_id}_A" for entry_id in (*entries, "9pdb")]
    representatives = {"8HOM_A": "1XRA_A", "9PDB_A": "1XRA_A"}
    clusters = root / "made_cluster.tsv"
    clusters.write_text("".join(f"{representatives.get(member, member)}\t{member}\n" for member in members))
    builder = StructureDatasetBuilder(files, tiny.WindowGNN(), root / "cache")
    builder.download_and_prepare()
    return builder.as_dataset("train"), clusters


def three_letters(sequence):
    import gemmi

    return gemmi.expand_one_letter_sequence(sequence, gemmi.ResidueKind.AA)


def test_files_by_quality(built):
    data, clusters = built
    splits, summary = split_chains(data, quality=GOOD, clusters=clusters)
    assert set(ids(splits)["reference"]) == {"1xra_A", "5new_A", "7day_A"}
    # 8hom and 9pdb are relatives of 1xra: the reference must not have seen what it judges.
    assert set(reasons(summary)) == {"8hom_A", "9pdb_A"}
    assert reasons(summary)["8hom_A"].startswith("related to reference: to 1xra_A, and not good by r_free not stated")
    assert "2nor_A" in ids(splits)["train"] and "AF-P00520-F1_A" in ids(splits)["train"]
    expected = {"r_free not stated": 2, "resolution not stated": 2, "resolution": 1, "r_free": 1, "predicted": 2}
    assert summary.below_quality == expected
    with_models = QualityThresholds(max_resolution=2.0, min_plddt=90, allow_missing_r_free=True)
    splits, _ = split_chains(data, quality=with_models, clusters=clusters)
    assert set(ids(splits)["train"]) == {"3low_A", "4nmr_A", "AF-P00521-F1_A"}
    assert "8hom_A" in ids(splits)["reference"]
    nmr = QualityThresholds(methods=["SOLUTION NMR"], allow_missing_r_free=True)
    assert ids(split_chains(data, quality=nmr)[0])["reference"] == ["4nmr_A"]


def test_files_by_date(built):
    data, clusters = built
    splits, summary = split_chains(data, date="2022-06-01", clusters=clusters)  # the day itself is after
    assert set(ids(splits)["test"]) == {"5new_A", "6bad_A"}
    left_out = {"7day_A", "9pdb_A", "AF-P00520-F1_A", "AF-P00521-F1_A"}
    assert set(reasons(summary)) == left_out
    assert reasons(summary)["7day_A"] == "deposition date: not stated"
    assert reasons(summary)["AF-P00520-F1_A"] == "deposition date: a predicted model has none"
    splits, summary = split_chains(data, date=datetime.date(2022, 6, 1), clusters=clusters, undated="train")
    assert left_out <= set(ids(splits)["train"]) and not summary.left_out
    with pytest.raises(ValueError, match="date of .* is unknown"):
        split_chains(data, date="2022-06-01", undated="raise")
    assert summary.histograms["year"]["not_stated"] == {"train": 2, "test": 0}


def test_plddt_from_0_to_1_is_never_taken_for_percent(tmp_path):
    for index, b_factor in enumerate((0.9, 0.5)):
        chain = tiny.chain(20, index, f"fold{index}", b_factors=np.full(20, b_factor, np.float32))
        write_mmcif(chain, tmp_path / f"fold{index}.cif")
    builder = StructureDatasetBuilder(tmp_path, tiny.WindowGNN(), tmp_path / "cache", predicted=True)
    builder.download_and_prepare()
    data = builder.as_dataset("train")
    with pytest.raises(ValueError, match="fold0_A is a predicted model.*plddt_scale=1"):
        split_chains(data, quality=QualityThresholds(min_plddt=70))
    assert len(split_chains(data, test_fraction=0.5)[0]["test"]) == 1  # nothing depends on the scale here
    splits, summary = split_chains(data, quality=QualityThresholds(min_plddt=70), plddt_scale=1)
    assert ids(splits) == {"reference": ["fold0_A"], "train": ["fold1_A"]}
    assert summary.histograms["mean_plddt"]["counts"]["reference"][-1] == 1


def test_groups_on_both_sides_of_the_date():
    data = chains({}, {"deposition_date": "2020-01-01"}, {"deposition_date": "2021-01-01"}, {})
    clusters = {"1000_A": "x", "1001_A": "x", "1002_A": "y", "1003_A": "z"}
    splits, summary = split_chains(data, date="2015-01-01", clusters=clusters)
    assert ids(splits) == {"train": ["1000_A", "1003_A"], "test": ["1002_A"]}
    assert reasons(summary) == {"1001_A": "both sides of the date: its group has earlier chains"}
    splits, summary = split_chains(data, date="2015-01-01", clusters=clusters, straddling="test")
    assert ids(splits) == {"train": ["1003_A"], "test": ["1001_A", "1002_A"]}
    assert reasons(summary) == {"1000_A": "both sides of the date: its group has later chains"}


def test_chains_of_an_entry_are_merged_or_left_out():
    complexes = chains(*({"id": f"{entry}_{chain}"} for entry, chain in ("1a", "2a", "2b", "3b", "3c", "4c", "5d")))
    merged = {"1_a": "1", "2_a": "2", "2_b": "2", "3_b": "3", "3_c": "3", "4_c": "4", "5_d": "5"}
    clusters = {name: name[-1] for name in merged}  # links 1, 2, 3 and 4
    assert split_chains(complexes, test_fraction=0.3)[1].options["entries"] == "merge"
    for seed in range(6):
        splits, summary = split_chains(complexes, test_fraction=0.3, seed=seed)
        assert_disjoint(splits, merged)
        assert not summary.left_out
        splits, summary = split_chains(complexes, clusters=clusters, test_fraction=0.25, seed=seed)
        assert_disjoint(splits, clusters)
        assert summary.options["entries"] == "leave_out"
        assert all("same entry: another chain of" in reason for reason in reasons(summary).values())
    with pytest.raises(ValueError, match="'test' would be empty: test_fraction=0.2 of 2 groups"):
        split_chains(complexes, clusters=clusters, entries="merge", test_fraction=0.2)


def random_chains(rng, count):
    """Chains that share entries, sequences and clusters, of mixed quality."""
    rows, clusters = [], {}
    sequences = ["".join(rng.choices(tiny.AMINO_ACIDS, k=20)) for _ in range(2 * count)]
    for index in range(count):
        chain_id = f"{rng.randrange(2 * count)}{'xX'[rng.random() < 0.3]}_{index}"
        sequence = rng.choice(sequences)
        clusters[chain_id] = str(sequences.index(sequence) // 2)
        quality = {"resolution": rng.choice([1.0, 2.0, 3.0, None]), "r_free": rng.choice([0.2, 0.3, None])}
        date = {"deposition_date": rng.choice([None, "2001-01-01", "2020-01-01"])}
        rows.append({"id": chain_id, "sequence": sequence, "predicted": rng.random() < 0.2} | quality | date)
    return rows, clusters


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("how", ["fractions", "date", "no clusters"])
def test_splits_are_disjoint_complete_and_independent_of_order(seed, how):
    rows, clusters = random_chains(random.Random(seed), 120)
    options = {"validation_fraction": 0.1, "quality": GOOD, "reference_fraction": 0.5, "seed": seed}
    options |= {"date": "2010-01-01", "straddling": ("train", "test")[seed % 2]} if how == "date" else {}
    options |= {"test_fraction": 0.1} if how != "date" else {}
    clusters = None if how == "no clusters" else clusters
    data = chains(*rows)
    splits, summary = split_chains(data, clusters=clusters, **options)
    assert list(splits) == list(SPLITS)
    assert_disjoint(splits, clusters)
    placed = [name for part in ids(splits).values() for name in part]
    assert sorted([*placed, *reasons(summary)]) == sorted(data["id"])
    assert sum(counts["chains"] for counts in summary.splits.values()) == len(placed)
    assert all(GOOD.reason(row) is None for row in splits["reference"])
    if how == "date":
        assert all(row["deposition_date"] >= "2010" and not row["predicted"] for row in splits["test"])
        assert all(row["deposition_date"] < "2010" for name in SPLITS[:3] for row in splits[name])
    shuffled, again = split_chains(data.shuffle(seed=seed), clusters=clusters, **options)
    assert {name: set(part) for name, part in ids(shuffled).items()} == {
        name: set(part) for name, part in ids(splits).items()
    }
    assert reasons(again) == reasons(summary) and again.splits == summary.splits
    assert again.histograms == summary.histograms


def test_another_seed_draws_other_groups():
    data = chains(*[{}] * 30)
    drawn = {tuple(split_chains(data, test_fraction=0.2, seed=seed)[0]["test"]["id"]) for seed in range(5)}
    assert len(drawn) == 5 and {len(names) for names in drawn} == {6}


def test_fractions_count_groups_and_draw_each_split_apart():
    data = chains(*[{}] * 40)
    splits, _ = split_chains(data, test_fraction=0.25, validation_fraction=0.1, quality=GOOD, reference_fraction=0.5)
    assert {name: len(rows) for name, rows in splits.items()} == {
        "reference": 14,
        "train": 13,
        "validation": 3,
        "test": 10,
    }
    same, _ = split_chains(data, test_fraction=0.25)
    assert same["test"]["id"][:] == splits["test"]["id"][:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "asked for no split"),
        ({"test_fraction": 0.1}, "'test' would be empty: test_fraction=0.1 of 4 groups is less than one"),
        ({"validation_fraction": 0.1}, "'validation' would be empty"),
        ({"quality": GOOD}, "'train' would be empty: of 4 chains {'reference': 4} went to other splits"),
        ({"quality": QualityThresholds(max_resolution=1)}, "No chain meets.*'resolution': 4.*allow_missing_r_free"),
        ({"quality": GOOD, "reference_fraction": 0.1}, "'reference' would be empty"),
        ({"date": "2011-01-01"}, "'test' would be empty: no chain of 4 is from 2011-01-01"),
        ({"date": "2010-01-01"}, "'train' would be empty"),
        ({"date": "1/2/2010"}, "The date is '1/2/2010'; expected an ISO date"),
        ({"date": "2010-01-01", "test_fraction": 0.5}, "Both date=2010-01-01 and test_fraction=0.5"),
        ({"test_fraction": 1.0}, "test_fraction is 1.0"),
        ({"quality": GOOD, "reference_fraction": 0}, "reference_fraction is 0"),
        ({"test_fraction": 0.5, "entries": "split"}, "entries is 'split'; choose None, 'merge', 'leave_out'"),
        ({"test_fraction": 0.5, "straddling": "both"}, "straddling is 'both'"),
        ({"test_fraction": 0.5, "undated": "drop"}, "undated is 'drop'"),
        (
            {"test_fraction": 0.5, "clusters": {"1000_A": "1000_A"}},
            "3 of 4 chains are in no cluster of those given: 1001_A",
        ),
    ],
)
def test_what_cannot_be_split_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        split_chains(chains(*[{}] * 4), **options)


def test_datasets_that_cannot_be_split():
    with pytest.raises(ValueError, match="The id x_A is in the dataset 2 times"):
        split_chains(chains({"id": "x_A"}, {"id": "x_A"}), test_fraction=0.5)
    with pytest.raises(ValueError, match="no column 'predicted'; build it"):
        split_chains(chains({}).remove_columns("predicted"), test_fraction=0.5)
    with pytest.raises(ValueError, match="The deposition_date of 1000_A is '2010'; expected an ISO date"):
        split_chains(chains({"deposition_date": "2010"}, {}), date="2010-01-01")
    own = split_chains(chains({}, {}), test_fraction=0.5, clusters={"z_A": "z_A"}, missing_clusters="own")[1]
    assert own.splits["test"]["chains"] == 1


def test_summary_as_table_json_and_figure(built, tmp_path):
    data, clusters = built
    _, summary = split_chains(data, quality=GOOD, date="2022-06-01", clusters=clusters, undated="train")
    table = str(summary)
    assert "reference" in table and "in no split, related to reference: 2" in table
    assert "not of high quality, r_free not stated: 2" in table
    written = summary.save(tmp_path)
    stored = json.loads((tmp_path / "splits.json").read_text())
    assert stored["splits"]["test"] == {"chains": 2, "residues": 60, "groups": 2, "predicted": 0}
    assert stored["options"]["quality"]["max_resolution"] == 2.0
    for name, histogram in stored["histograms"].items():
        for split, counts in histogram["counts"].items():
            assert len(counts) == len(histogram["edges"]) - 1, name
            of_kind = stored["splits"][split]["chains"] - (name != "length") * stored["splits"][split]["predicted"]
            of_kind = stored["splits"][split]["predicted"] if name == "mean_plddt" else of_kind
            assert sum(counts) + histogram["not_stated"][split] == of_kind, (name, split)
    pytest.importorskip("matplotlib")
    assert [path.name for path in written] == ["splits.json", "splits.png"]
    assert (tmp_path / "splits.png").read_bytes().startswith(b"\x89PNG")


def test_summary_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    written = split_chains(chains({}, {}), test_fraction=0.5)[1].save(tmp_path)
    assert written == [tmp_path / "splits.json"] == list(tmp_path.iterdir())


def test_real_chains_with_their_clusters(real_data):
    folder = real_data("structures")
    with open(folder / "chains.tsv") as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    clusters = {row["id"]: row["group"] for row in table}
    rows = [
        {"id": row["id"], "sequence": row["sequence"], "deposition_date": None}
        | {name: float(row[name]) if row[name] else None for name in ("resolution", "r_free")}
        for row in table
    ]
    data = chains(*rows)
    options = {"validation_fraction": 0.05, "test_fraction": 0.1, "reference_fraction": 0.5}
    splits, summary = split_chains(data, quality=GOOD, clusters=clusters, **options)
    assert_disjoint(splits, clusters)
    assert 300 < summary.splits["reference"]["chains"] < summary.splits["train"]["chains"]
    missing = sum(row["r_free"] is None for row in rows)
    assert summary.below_quality["r_free not stated"] > missing / 2
    assert not any(row["r_free"] is None or row["r_free"] > 0.25 for row in splits["reference"])


@pytest.mark.parametrize("chain", ["A_{}", "_{}", "A\t{}", "A\n_{}"])
@pytest.mark.parametrize("clustered", [False, True])
def test_chains_of_an_entry_stay_together_whatever_their_ids_hold(chain, clustered):
    names = [(f"{number}abc", chain.format(letter)) for number in range(1, 13) for letter in "12"]
    data = chains(*({"id": f"{entry}_{one}", "entry": entry, "chain": one} for entry, one in names))
    clusters = {name: name for name in data["id"]} if clustered else None
    for seed in range(5):
        splits, summary = split_chains(data, clusters=clusters, test_fraction=0.3, seed=seed)
        entries = [set(rows["entry"]) for rows in splits.values()]
        assert not set.intersection(*entries) and sum(map(len, entries)) == 12
        assert sum(map(len, splits.values())) + len(summary.left_out) == 24
        assert_disjoint(splits, clusters)


@pytest.mark.parametrize("through", ["builder", "prepare"])
def test_files_whose_chain_ids_hold_an_underscore(through, tmp_path):
    """Twelve complexes whose chains are named `A_1`, `A_2`, …"""
    files = shared_path("cases", "other", "chain_ids_with_underscore")
    options = {"test_fraction": 0.25, "validation_fraction": 0.25}
    if through == "builder":
        builder = StructureDatasetBuilder(files, tiny.WindowGNN(), tmp_path / "cache")
        builder.download_and_prepare()
        splits, _ = split_chains(builder.as_dataset("train"), **options)
    else:
        made = prepare_dataset(
            files, tiny.WindowGNN(), tmp_path / "data", feature_cache=tmp_path / "cache", splits=options
        )
        splits = datasets.load_from_disk(made.path)
    entries = {name: set(rows["entry"]) for name, rows in splits.items()}
    assert set.union(*entries.values()) == {f"{number}abc" for number in range(1, 13)}
    assert sum(map(len, entries.values())) == 12 and len(entries) == 3
    assert {chain for rows in splits.values() for chain in rows["chain"]} == {"A_1", "B_1"}
    for rows in splits.values():
        assert all(row["id"] == f"{row['entry']}_{row['chain']}" for row in rows)
    assert_disjoint(splits)
    (moved, *_), others = splits["test"].select([0]), splits["test"].select(range(1, len(splits["test"])))
    with pytest.raises(ValueError, match=f"{moved['id']} in 'train' and .* in 'test' have the same entry"):
        assert_disjoint({"train": splits["test"].select([0]), "test": others})


def test_chains_that_share_an_id_are_two_chains():
    """Chain `b_c` of the entry `a`, and chain `c` of the entry `a_b`."""
    data = chains(*({"id": "a_b_c", "entry": entry, "chain": chain} for entry, chain in (("a", "b_c"), ("a_b", "c"))))
    drawn = set()
    for seed in range(10):
        splits, _ = split_chains(data, test_fraction=0.5, seed=seed)
        assert_disjoint(splits)
        reversed_splits, _ = split_chains(data.select([1, 0]), test_fraction=0.5, seed=seed)
        assert splits["test"]["entry"][:] == reversed_splits["test"]["entry"][:]
        drawn.add(splits["test"]["entry"][0])
    assert len(drawn) == 1  # the draw is by ids, and theirs are equal
    with pytest.raises(ValueError, match="a_b_c of those given could be chain 'b_c' of the entry 'a' or chain 'c' of"):
        split_chains(data, test_fraction=0.5, clusters={"a_b_c": "x"})
