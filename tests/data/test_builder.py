"""The builder: rows, filters, reports, and above all what it does not compute twice."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from structure_aligned.data import features
from structure_aligned.data.builder import StructureDatasetBuilder, dataset_pgnn, embedding_dim
from structure_aligned.data.features import decode_embedding
from structure_aligned.data.selecting import resolve_structures
from structure_aligned.structure.io import read_chains, write_mmcif
from structure_aligned.structure.tokens import encode_3di
from tests import tiny


ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    """Six files of one chain each; the last without a resolution."""
    target = tmp_path / "structures"
    target.mkdir()
    for index in range(6):
        quality = {"resolution": 1.0 + index / 2, "r_free": 0.2 + index / 100, "method": "X-RAY DIFFRACTION"}
        chain = tiny.chain(20 + 5 * index, seed=index, entry_id=f"syn{index}", **(quality if index < 5 else {}))
        write_mmcif(chain, target / f"syn{index}.cif.gz")
    return target


def build(folder, cache, pgnn=None, num_proc=None, **options):
    builder = StructureDatasetBuilder(folder, pgnn or tiny.WindowGNN(), cache, **options)
    builder.download_and_prepare(num_proc=num_proc)
    return builder, builder.as_dataset()


def contents(dataset):
    return [dict(row) for row in dataset]


def test_rows_hold_what_the_files_hold(folder, tmp_path):
    pgnn = tiny.WindowGNN()
    builder, data = build(folder, tmp_path / "cache", pgnn)
    rows = contents(data["train"])
    assert [row["id"] for row in rows] == [f"syn{index}_A" for index in range(6)]
    for index, row in enumerate(rows):
        (chain,) = read_chains(folder / f"syn{index}.cif.gz")
        tokens, valid = encode_3di(chain.coords)
        assert row["sequence"] == chain.sequence and row["length"] == len(chain)
        assert row["structure_tokens"] == tokens.tolist()
        assert row["structure_token_mask"] == valid.tolist()
        expected = pgnn.embed_batch([chain])[0].numpy().astype(np.float16)
        assert np.array_equal(decode_embedding(row), expected, equal_nan=True)
        assert row["structure_embedding_mask"] == (~np.isnan(expected).any(1)).tolist()
        assert (row["resolution"], row["r_free"]) == (chain.resolution, chain.r_free)
        assert row["digest"] == chain.digest()
    assert dataset_pgnn(data["train"]) == features.pgnn_identity(pgnn)
    assert embedding_dim(data["train"]) == pgnn.output_dim
    report = builder.report
    assert (report.files, report.chains, report.rows, report.parsed, report.embedded) == (6, 6, 6, 6, 6)


def test_missing_ca_is_masked_not_zero(tmp_path):
    chain = tiny.chain(20)
    coords = chain.coords.copy()
    coords[7, 1] = np.nan
    write_mmcif(tiny.chain(20, coords=coords), tmp_path / "gap.cif")
    _, data = build(tmp_path / "gap.cif", tmp_path / "cache")
    row = data["train"][0]
    assert [i for i, present in enumerate(row["structure_embedding_mask"]) if not present] == [7]
    assert np.isnan(decode_embedding(row)[7]).all()
    assert not row["structure_token_mask"][7]


def test_several_processes_give_the_same_rows(folder, tmp_path):
    _, alone = build(folder, tmp_path / "one")
    _, together = build(folder, tmp_path / "two", num_proc=2)
    assert contents(alone["train"]) == contents(together["train"])


def test_splits_files_lists_and_globs(folder, tmp_path):
    given = {"train": str(folder / "syn[0-2].cif.gz"), "test": [folder / "syn4.cif.gz", folder / "syn3.cif.gz"]}
    _, data = build(given, tmp_path / "cache")
    assert data["train"]["id"][:] == ["syn0_A", "syn1_A", "syn2_A"]
    assert data["test"]["id"][:] == ["syn3_A", "syn4_A"]
    assert len(resolve_structures(folder)) == 6
    with pytest.raises(FileNotFoundError, match="matches no file"):
        resolve_structures(folder / "nothing*.cif")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no structure file"):
        resolve_structures(tmp_path / "empty")


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"max_resolution": 2.0}, [0, 1, 2]),
        ({"max_r_free": 0.215}, [0, 1]),
        ({"methods": ["x-ray diffraction"]}, [0, 1, 2, 3, 4]),
        ({"min_length": 30, "max_length": 40}, [2, 3, 4]),
        ({"chains": ["syn1_A", "syn5_A"]}, [1, 5]),
    ],
)
def test_filters_keep_and_report(folder, tmp_path, options, kept):
    builder, data = build(folder, tmp_path / "cache", **options)
    assert data["train"]["id"][:] == [f"syn{index}_A" for index in kept]
    assert len(builder.report.skipped) == 6 - len(kept)
    assert builder.report.rows == len(kept) == builder.report.embedded
    # The report is there for a dataset that was built before, too.
    again, _ = build(folder, tmp_path / "cache", **options)
    assert again.report == builder.report


def test_chain_choice_and_duplicates(tmp_path):
    import gemmi

    chains = [tiny.chain(length, seed=length, entry_id="multi") for length in (20, 35, 35, 25)]
    write_mmcif(chains[0], tmp_path / "first.cif")
    structure = gemmi.read_structure(str(tmp_path / "first.cif"))
    for name, chain in zip("BCD", chains[1:]):
        write_mmcif(chain, tmp_path / "next.cif")
        other = gemmi.read_structure(str(tmp_path / "next.cif"))[0][0]
        other.name = name
        structure[0].add_chain(other)
    structure.write_pdb(str(tmp_path / "multi.pdb"))
    ids = {}
    for choice in ("all", "first", "longest"):
        _, data = build(tmp_path / "multi.pdb", tmp_path / "cache", chains=choice)
        ids[choice] = [name[-1] for name in data["train"]["id"]]
    assert ids == {"all": ["A", "B", "C", "D"], "first": ["A"], "longest": ["B"]}
    _, data = build(tmp_path / "multi.pdb", tmp_path / "cache", chains="longest", max_length=30)
    assert [name[-1] for name in data["train"]["id"]] == ["D"]
    builder, data = build(tmp_path / "multi.pdb", tmp_path / "cache", drop_duplicates=True)
    assert [name[-1] for name in data["train"]["id"]] == ["A", "B", "D"]
    assert builder.report.reasons() == {"duplicate sequence": 1}


def test_unreadable_files_are_raised_or_reported(folder, tmp_path):
    (folder / "zz_broken.cif").write_text("data_x\nloop_\n_atom_site.id\n")
    with pytest.raises(ValueError, match=r"broken\.cif"):
        build(folder, tmp_path / "cache")
    builder, data = build(folder, tmp_path / "cache", on_error="skip")
    assert len(data["train"]) == 6
    (skipped,) = builder.report.skipped
    assert skipped["source"].endswith("broken.cif") and skipped["reason"].startswith("unreadable: ")
    assert builder.report.parsed == 0  # the six others were in the cache already


def test_predicted_models_are_recognised_or_declared(folder, tmp_path):
    write_mmcif(tiny.chain(20, seed=9, entry_id="AF-P00520-F1", predicted=True), folder / "AF-P00520-F1-model_v4.cif")
    builder, data = build(folder, tmp_path / "cache")
    assert data["train"]["predicted"][:] == [True] + [False] * 6
    for declared in (True, False):
        again, data = build(folder, tmp_path / "cache", predicted=declared)
        assert data["train"]["predicted"][:] == [declared] * 7
        assert again.report.parsed == again.report.embedded == 0
    (record,) = builder.store.chain_records(next((builder.store.root / "chains").rglob("*.safetensors")))
    assert features.load_chain(record).predicted == record.predicted


def test_nothing_left_is_an_error(folder, tmp_path):
    with pytest.raises(ValueError, match="No chain is left.*'resolution': 6"):
        build(folder, tmp_path / "cache", max_resolution=0.5)


def test_duplicate_ids(folder, tmp_path):
    write_mmcif(tiny.chain(22, seed=99, entry_id="syn0"), folder / "zz.cif")
    with pytest.raises(ValueError, match="syn0_A comes from more than one file"):
        build(folder, tmp_path / "cache")
    builder, data = build(folder, tmp_path / "cache", on_error="skip")
    assert len(data["train"]) == 6 and builder.report.reasons() == {"duplicate id": 1}


def test_only_what_changed_is_computed_again(folder, tmp_path, monkeypatch):
    cache = tmp_path / "cache"

    def counts(**options):
        builder, data = build(folder, cache, **options)
        return builder.report.parsed, builder.report.embedded, contents(data["train"])

    *first, rows = counts()
    assert first == [6, 6]
    # An input file
    write_mmcif(tiny.chain(33, seed=50, entry_id="syn2"), folder / "syn2.cif.gz")
    *changed, new_rows = counts()
    assert changed == [1, 1]
    assert [a["digest"] == b["digest"] for a, b in zip(rows, new_rows)] == [True, True, False, True, True, True]
    # Weights
    *reweighted, other = counts(pgnn=tiny.WindowGNN(scale=2.0))
    assert reweighted == [0, 6]
    assert [row["structure_tokens"] for row in other] == [row["structure_tokens"] for row in new_rows]
    assert all(a["structure_embedding"] != b["structure_embedding"] for a, b in zip(other, new_rows))
    # Filters: nothing
    assert counts(max_length=30)[:2] == (0, 0)
    # Code versions
    monkeypatch.setattr(features, "CHAIN_VERSION", features.CHAIN_VERSION + 1)
    monkeypatch.setattr("structure_aligned.data.builder.CHAIN_VERSION", features.CHAIN_VERSION)
    assert counts()[:2] == (6, 0)
    monkeypatch.setattr(features, "EMBEDDING_VERSION", features.EMBEDDING_VERSION + 1)
    monkeypatch.setattr("structure_aligned.data.builder.EMBEDDING_VERSION", features.EMBEDDING_VERSION)
    assert counts()[:2] == (0, 6)


def test_graph_batches_hold_at_most_the_stated_residues(folder, tmp_path):
    pgnn = tiny.WindowGNN()
    build(folder, tmp_path / "one", pgnn, max_batch_residues=1)
    assert [len(batch) for batch in pgnn.batches] == [1] * 6
    pgnn = tiny.WindowGNN()
    build(folder, tmp_path / "some", pgnn, max_batch_residues=50)  # lengths 20, 25, 30, 35, 40, 45
    assert [len(batch) for batch in pgnn.batches] == [2, 1, 1, 1, 1]


KILLED = """
import os, signal, sys
from structure_aligned.data.builder import StructureDatasetBuilder
from tests import tiny

class Dies(tiny.WindowGNN):
    def embed_batch(self, chains):
        if len(self.batches) == int(sys.argv[4]):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().embed_batch(chains)

StructureDatasetBuilder(sys.argv[1], Dies(), sys.argv[2], max_batch_residues=int(sys.argv[3])).download_and_prepare()
"""


@pytest.mark.parametrize(("max_residues", "batches_done", "chains_done"), [(1, 4, 4), (60, 2, 3)])
def test_a_killed_build_goes_on(folder, tmp_path, max_residues, batches_done, chains_done):
    # The class name is part of the pGNN's identity, so the successor has it too.
    successor = type("Dies", (tiny.WindowGNN,), {})()
    command = [sys.executable, "-c", KILLED, folder, tmp_path / "killed", str(max_residues), str(batches_done)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    builder, data = build(folder, tmp_path / "killed", successor, max_batch_residues=max_residues)
    assert builder.report.parsed == 0 and builder.report.embedded == 6 - chains_done
    _, expected = build(
        folder, tmp_path / "whole", type("Dies", (tiny.WindowGNN,), {})(), max_batch_residues=max_residues
    )
    assert contents(data["train"]) == contents(expected["train"])


def test_what_a_killed_build_left_does_not_get_into_the_dataset(folder, tmp_path):
    builder = StructureDatasetBuilder(folder, tiny.WindowGNN(), tmp_path / "cache")
    stale = Path(builder.cache_dir + ".incomplete")
    stale.mkdir(parents=True)
    (stale / "builder-train-00007-of-00009.arrow").write_bytes(b"half a file")
    builder.download_and_prepare()
    assert len(builder.as_dataset("train")) == 6
    assert not list(Path(builder.cache_dir).glob("*00007*"))


def test_a_half_written_record_is_no_record(folder, tmp_path):
    builder, _ = build(folder, tmp_path / "cache")
    record = next((builder.store.root / "chains").rglob("*.safetensors"))
    record.write_bytes(record.read_bytes()[:40])
    (tmp_path / "elsewhere").mkdir()
    again = StructureDatasetBuilder(folder, tiny.WindowGNN(), tmp_path / "elsewhere", feature_cache=builder.store.root)
    again.download_and_prepare()
    assert (again.report.parsed, again.report.embedded) == (1, 0)


def test_refuses_what_is_no_pgnn_and_what_it_gives_wrongly(folder, tmp_path):
    with pytest.raises(ValueError, match="has no 'output_dim'"):
        StructureDatasetBuilder(folder, object(), tmp_path)
    pgnn = tiny.WindowGNN()
    pgnn.embed_batch = lambda chains: [torch.zeros(3, 24) for _ in chains]
    with pytest.raises(ValueError, match=r"has shape \(3, 24\); expected \(20, 24\)"):
        build(folder, tmp_path / "a", pgnn)
    pgnn.embed_batch = lambda chains: [torch.full((len(chain), 24), 1e6) for chain in chains]
    with pytest.raises(ValueError, match="more than float16 holds"):
        build(folder, tmp_path / "b", pgnn)
    with pytest.raises(ValueError, match="on_error is 'ignore'"):
        StructureDatasetBuilder(folder, tiny.WindowGNN(), tmp_path, on_error="ignore")


def test_mixed_pgnns_are_noticed():
    import datasets

    mixed = datasets.concatenate_datasets([tiny.dataset(1, pgnn="a"), tiny.dataset(1, pgnn="b")])
    with pytest.raises(ValueError, match=r"mixes embeddings of several pGNNs: \['a', 'b'\]"):
        dataset_pgnn(mixed)


def test_the_report_is_json_beside_the_dataset(folder, tmp_path):
    builder, _ = build(folder, tmp_path / "cache", max_length=30)
    stored = json.loads((Path(builder.cache_dir) / "build_report.json").read_text())
    assert stored["rows"] == 3 and len(stored["skipped"]) == 3
