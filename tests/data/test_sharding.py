"""Datasets prepared by several ranks: the same as by one, whoever dies, whatever is damaged."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save_file

from structure_aligned import QualityThresholds, StructureDatasetBuilder, mask_low_confidence, split_chains
from structure_aligned.data import records as records_module
from structure_aligned.data.chain_index import Listing
from structure_aligned.data.dataset_folder import WORK_FOLDER, DatasetFolder
from structure_aligned.data.ranks import Ranks
from structure_aligned.data.sharding import prepare_dataset
from structure_aligned.structure.io import write_mmcif
from structure_aligned.utils import files
from tests import tiny


ROOT = Path(__file__).parents[2]
CHAINS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty files of one chain each, 20 to 39 residues, every fourth without R-free; and one that cannot be read."""
    target = tmp_path_factory.mktemp("sharding") / "structures"
    target.mkdir()
    for index in range(CHAINS):
        quality = {
            "resolution": 1.0 + index / 20,
            "method": "X-RAY DIFFRACTION",
            "deposition_date": f"20{index}-01-01",
        }
        quality["deposition_date"] = f"20{index % 24:02}-01-01"
        quality["r_free"] = None if index % 4 == 0 else 0.2
        write_mmcif(
            tiny.chain(20 + index % 20, seed=index, entry_id=f"syn{index:02}", **quality),
            target / f"syn{index:02}.cif",
        )
    (target / "zz_broken.pdb").write_text("ATOM  nothing\n")
    return target


def prepare(folder, root, name="dataset", pgnn=None, cache="cache", **options):
    defaults = {"on_error": "skip", "shard_chains": 7, "max_batch_residues": 100, "timeout": 20.0, "poll": 0.01}
    return prepare_dataset(
        folder, pgnn or tiny.WindowGNN(), root / name, feature_cache=root / cache, **(defaults | options)
    )


def together(world_size, *args, **options):
    """All ranks at once, in threads; what rank 0 gives. Raises the first error of any."""
    results, errors = {}, []

    def run(rank):
        try:
            results[rank] = prepare(*args, rank=rank, world_size=world_size, **options)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    assert all(results[rank] is None for rank in range(1, world_size))
    return results[0]


def contents(path):
    return {split: [dict(row) for row in rows] for split, rows in datasets.load_from_disk(path).items()}


def identities(path):
    return {
        str(file.relative_to(path)): (file.stat().st_ino, file.stat().st_mtime_ns) for file in path.rglob("*.arrow")
    }


def test_one_process_gives_what_the_builder_gives(folder, tmp_path):
    made = prepare(folder, tmp_path, max_resolution=2.5, min_length=22)
    builder = StructureDatasetBuilder(
        folder, tiny.WindowGNN(), tmp_path / "builder", on_error="skip", max_resolution=2.5, min_length=22
    )
    builder.download_and_prepare()
    expected = [dict(row) for row in builder.as_dataset("train")]
    assert contents(made.path)["train"] == expected and len(expected) > 20
    data = datasets.load_from_disk(made.path)
    assert data["train"].features == builder.as_dataset("train").features and data["train"].split == "train"
    assert data["train"].info.splits["train"].num_examples == len(expected)
    ours, theirs = made.report, builder.report
    assert (ours.files, ours.chains, ours.rows, ours.parsed) == (
        theirs.files,
        theirs.chains,
        theirs.rows,
        theirs.parsed,
    )
    assert ours.embedded == theirs.embedded == len(expected) and ours.reasons() == theirs.reasons()
    assert made.splits["train"]["shards"] == -(-len(expected) // 7) == len(list(made.path.glob("train/*.arrow")))
    assert made.splits["train"]["residues"] == sum(row["length"] for row in expected)
    assert not list(made.path.rglob("*.tmp")) and not (made.path / WORK_FOLDER).exists()


@pytest.mark.parametrize("world_size", [2, 3])
def test_several_ranks_give_what_one_gives(folder, tmp_path, world_size):
    alone = prepare(folder, tmp_path, "alone", cache="one")
    made = together(world_size, folder, tmp_path, "together", cache="other")
    assert contents(made.path) == contents(alone.path)
    assert made.report == alone.report and made.splits == alone.splits
    for file in ("train/state.json", "train/dataset_info.json", "build_report.json"):
        assert (made.path / file).read_bytes() == (alone.path / file).read_bytes(), file
    for file in alone.path.rglob("*.arrow"):
        assert file.read_bytes() == (made.path / file.relative_to(alone.path)).read_bytes()


def test_splits_and_masks_are_those_of_the_functions(folder, tmp_path):
    clusters = {f"syn{index:02}_A": f"syn{index - index % 3:02}_A" for index in range(CHAINS)}
    splits = {
        "quality": QualityThresholds(max_resolution=2.0),
        "reference_fraction": 0.6,
        "date": "2020-01-01",
        "clusters": clusters,
        "validation_fraction": 0.3,
        "seed": 3,
    }
    options = {"max_b_factor": 19.0, "splits": splits}
    made = together(2, folder, tmp_path, **options)
    builder = StructureDatasetBuilder(folder, tiny.WindowGNN(), tmp_path / "builder", on_error="skip")
    builder.download_and_prepare()
    expected, summary = split_chains(mask_low_confidence(builder.as_dataset("train"), max_b_factor=19.0), **splits)
    assert contents(made.path) == {name: [dict(row) for row in rows] for name, rows in expected.items()}
    assert list(expected) == ["reference", "train", "validation", "test"]
    assert made.summary == summary and (made.path / "splits.json").exists()
    assert not any(sum(map(sum, rows["structure_token_mask"][:])) for rows in expected.values())  # B-factors are 20
    kept = contents(prepare(folder, tmp_path, "unmasked", splits=splits).path)["train"]
    assert all(sum(row["structure_token_mask"]) > 10 for row in kept)


def test_given_splits_and_declared_models(folder, tmp_path):
    given = {"train": str(folder / "syn[0-2]*.cif"), "validation": [folder / "syn31.cif", folder / "syn30.cif"]}
    made = together(2, given, tmp_path, predicted=True)
    data = datasets.load_from_disk(made.path)
    assert data["validation"]["id"][:] == ["syn30_A", "syn31_A"] and len(data["train"]) == 30
    assert set(data["train"]["predicted"][:]) == {True}
    assert made.report.files == 32
    with pytest.raises(ValueError, match=r"\['train', 'validation'\] cannot be split again"):
        prepare(given, tmp_path, "other", splits={"test_fraction": 0.1})


def test_fingerprints_follow_the_content(folder, tmp_path):
    def fingerprint(name, **options):
        made = prepare(folder, tmp_path, name, **options)
        return json.loads((made.path / "train" / "state.json").read_text())["_fingerprint"]

    first = fingerprint("a")
    assert first == fingerprint("b", shard_chains=11, max_batch_residues=1)
    others = [
        fingerprint("c", max_b_factor=19.0),
        fingerprint("d", pgnn=tiny.WindowGNN(2.0)),
        fingerprint("e", max_length=30),
        fingerprint("f", predicted=True),
    ]
    assert len({first, *others}) == 5


class Interrupted(Exception):
    pass


class Dies(tiny.WindowGNN):
    """Stops after some batches, as a killed process does."""

    def __init__(self, batches):
        super().__init__()
        self.left = batches

    def embed_batch(self, chains):
        if self.left == 0:
            raise Interrupted
        self.left -= 1
        return super().embed_batch(chains)


def successor():
    return type("Dies", (tiny.WindowGNN,), {})()  # the class name is part of a pGNN's identity


@pytest.mark.parametrize("worlds", [(2, 1), (1, 3), (3, 2)])
def test_a_restart_with_other_ranks_goes_on(folder, tmp_path, worlds):
    expected = prepare(folder, tmp_path, "whole", pgnn=successor(), cache="whole_cache")
    before, after = worlds
    with pytest.raises((Interrupted, TimeoutError)):
        together(before, folder, tmp_path, pgnn=Dies(6), timeout=0.5)
    done, stored = identities(tmp_path / "dataset"), identities_of_records(tmp_path / "cache")
    with pytest.raises(FileNotFoundError):
        datasets.load_from_disk(tmp_path / "dataset")
    assert done and len(done) < 6
    # As a killed writer leaves it.
    shard = next(path for path in expected.path.rglob("*.arrow") if str(path.relative_to(expected.path)) not in done)
    half = tmp_path / "dataset" / shard.relative_to(expected.path)
    (half.parent / f".{half.name}.0123.tmp").write_bytes(shard.read_bytes()[:1000])

    pgnn = successor()
    made = together(after, folder, tmp_path, pgnn=pgnn)
    assert contents(made.path) == contents(expected.path)
    now = identities(made.path)
    assert {name: now[name] for name in done} == done and len(now) == 6
    kept = identities_of_records(tmp_path / "cache")
    assert {name: kept[name] for name in stored} == stored
    embedded_before = sum(name.startswith("embeddings") for name in stored)
    assert sum(map(len, pgnn.batches)) == CHAINS - embedded_before and embedded_before > 0
    assert made.report == expected.report  # parsed and embedded are sums over both starts
    assert not list(made.path.rglob("*.tmp"))


def identities_of_records(path):
    return {
        str(file.relative_to(path)): (file.stat().st_ino, file.stat().st_mtime_ns)
        for file in path.rglob("*.safetensors")
    }


def test_finished_is_finished(folder, tmp_path):
    made = prepare(folder, tmp_path)
    before = identities(made.path)
    for world_size in (1, 2):
        pgnn = tiny.WindowGNN()
        again = together(world_size, folder, tmp_path, pgnn=pgnn)
        assert again.finished_before and again.report == made.report and again.splits == made.splits
        assert pgnn.batches == [] and identities(made.path) == before
    with pytest.raises(ValueError, match="is not empty: it holds something else"):
        prepare(folder, tmp_path, max_length=30)
    # Another dataset of the same files reads no structure and embeds nothing.
    other = prepare(folder, tmp_path, "other", max_length=30)
    assert (other.report.parsed, other.report.embedded) == (0, 0)


def test_an_unfinished_folder_takes_no_other_options(folder, tmp_path):
    with pytest.raises(Interrupted):
        prepare(folder, tmp_path, pgnn=Dies(3))
    with pytest.raises(ValueError, match="an unfinished dataset of other structures, options or pGNN"):
        prepare(folder, tmp_path, pgnn=successor(), max_length=30)
    with pytest.raises(ValueError, match="an unfinished dataset of other structures, options or pGNN"):
        prepare(folder, tmp_path, pgnn=tiny.WindowGNN())


def test_changed_files_are_read_again(folder, tmp_path):
    files = [tmp_path / f"s{index}.cif" for index in range(3)]
    for index, path in enumerate(files):
        write_mmcif(tiny.chain(25, seed=index, entry_id=path.stem), path)
    first = prepare(files, tmp_path, "first")
    write_mmcif(tiny.chain(26, seed=9, entry_id="s1"), files[1])
    second = prepare(files, tmp_path, "second")
    assert (second.report.parsed, second.report.embedded) == (1, 1)
    lengths = [[row["length"] for row in contents(made.path)["train"]] for made in (first, second)]
    assert lengths == [[25, 25, 25], [25, 26, 25]]


def test_unreadable_files_and_filters_that_leave_nothing(folder, tmp_path):
    with pytest.raises(ValueError, match=r"zz_broken\.pdb[\s\S]*on_error='skip'"):
        prepare(folder, tmp_path, on_error="raise")
    made = prepare(folder, tmp_path)  # nothing was planned, so the folder may be used; the index knows of the file
    assert [Path(item["source"]).name for item in made.report.skipped] == ["zz_broken.pdb"]
    with pytest.raises(ValueError, match=r"zz_broken\.pdb[\s\S]*on_error='skip'"):
        prepare(folder, tmp_path, "raising", on_error="raise")
    with pytest.raises(ValueError, match="No chain is left.*41 files.*'resolution': 40"):
        prepare(folder, tmp_path, "nothing", max_resolution=0.5)
    for options, message in (
        ({"shard_chains": 0}, "shard_chains is 0"),
        ({"on_error": "ignore"}, "on_error is 'ignore'"),
        ({"min_plddt": 0.9}, "min_plddt is 0.9"),
        ({"max_batch_residues": 0}, "max_batch_residues is 0"),
        ({"rank": 2, "world_size": 2}, "rank is 2 of world_size 2"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(folder, tmp_path, "wrong", **options)


def test_copies_of_a_file_are_duplicates(folder, tmp_path):
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "syn03.cif").write_bytes((folder / "syn03.cif").read_bytes())
    both = [folder, tmp_path / "copy"]
    made = prepare(both, tmp_path)
    assert made.report.reasons() == {"unreadable": 1, "duplicate id": 1}
    assert (made.report.files, made.report.chains, made.report.rows) == (CHAINS + 2, CHAINS + 1, CHAINS)
    with pytest.raises(ValueError, match="syn03_A comes from more than one file"):
        prepare([folder / "syn03.cif", tmp_path / "copy"], tmp_path, "raising", on_error="raise")


def test_a_rank_that_comes_when_all_is_done(folder, tmp_path, monkeypatch):
    """Rank 0 finishes, and deletes the plan, while rank 1 is about to read it."""
    with pytest.raises(Interrupted):
        prepare(folder, tmp_path, pgnn=Dies(6))
    shards = DatasetFolder.shards

    def late(self):
        monkeypatch.setattr(DatasetFolder, "shards", shards)
        prepare(folder, tmp_path, pgnn=successor())
        return shards(self)

    monkeypatch.setattr(DatasetFolder, "shards", late)
    assert prepare(folder, tmp_path, pgnn=successor(), rank=1, world_size=2) is None
    assert len(contents(tmp_path / "dataset")["train"]) == CHAINS and not (tmp_path / "dataset" / WORK_FOLDER).exists()


def test_values_that_are_no_plddt_are_found_before_embedding(folder, tmp_path):
    write_mmcif(
        tiny.chain(20, predicted=True, entry_id="AF-P1-F1", b_factors=200 * tiny.chain(20).b_factors),
        tmp_path / "AF-P1-F1-model_v4.cif",
    )
    pgnn = tiny.WindowGNN()
    with pytest.raises(ValueError, match="AF-P1-F1.*is no pLDDT"):
        prepare([folder, tmp_path / "AF-P1-F1-model_v4.cif"], tmp_path, pgnn=pgnn, min_plddt=70)
    assert pgnn.batches == []


def test_waiting_ends_and_names_what_is_missing(folder, tmp_path):
    with pytest.raises(TimeoutError) as caught:
        prepare(folder, tmp_path, rank=0, world_size=2, timeout=0.3)
    message = str(caught.value)
    assert "rank 1 (never started here): chains-00001-of-00003.arrow" in message and "parts of the index" in message
    with pytest.raises(TimeoutError, match=r"1 of 1 plans in .*rank 0: plan\.json"):
        prepare(folder, tmp_path, rank=1, world_size=2, timeout=0.3)
    with pytest.raises(TimeoutError) as caught:
        prepare(folder, tmp_path, rank=0, world_size=2, timeout=0.3)
    message = str(caught.value)
    assert "3 of 6 dataset shards" in message and "rank 1: data-00001-of-00006.arrow, data-00003" in message


def test_signs_of_life_prolong_the_waiting(tmp_path):
    target = tmp_path / "slow.bin"
    worker = Ranks(tmp_path / "ranks", 1, 2)

    def work():
        for _ in range(8):
            worker.count(now=True, steps=1)
            threading.Event().wait(0.1)
        target.write_bytes(b"done")

    thread = threading.Thread(target=work)
    thread.start()
    waiting = Ranks(tmp_path / "ranks", 0, 2, timeout=0.4, poll=0.01)
    assert waiting.wait([tmp_path / "ranks", target], "files")
    thread.join()
    assert waiting.totals() == {"steps": 8}


def test_who_waits_for_a_waiting_rank_waits_with_it(tmp_path, monkeypatch):
    """Rank 1 waits for rank 0, which waits for rank 2, which works longer than the timeout."""
    monkeypatch.setattr("structure_aligned.data.ranks.SIGN_OF_LIFE_SECONDS", 0.05)
    parts, plan, errors = [tmp_path / f"part{number}" for number in range(3)], tmp_path / "plan", []
    options = {"world_size": 3, "timeout": 0.5, "poll": 0.01}

    def first():
        ranks = Ranks(tmp_path / "ranks", 0, **options)
        ranks.wait(parts, "parts")
        plan.touch()

    def second():
        try:
            Ranks(tmp_path / "ranks", 1, **options).wait([plan], "plans")
        except TimeoutError as error:
            errors.append(error)

    def third():
        ranks = Ranks(tmp_path / "ranks", 2, **options)
        for _ in range(12):
            ranks.count(now=True)
            threading.Event().wait(0.1)
        for part in parts:
            part.touch()

    threads = [threading.Thread(target=job) for job in (first, second, third)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert plan.exists() and not errors


def test_without_the_embedding_cache(folder, tmp_path):
    expected = prepare(folder, tmp_path, "cached", cache="cache")
    made = prepare(folder, tmp_path, "direct", cache="other", cache_embeddings=False)
    assert contents(made.path) == contents(expected.path) and made.report == expected.report
    assert (tmp_path / "cache" / "embeddings").exists() and not (tmp_path / "other" / "embeddings").exists()


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "truncated":
        del data[len(data) // 2 :]
    elif how == "empty":
        data.clear()
    elif how == "payload":
        data[-5] ^= 0x10
    else:  # a letter of the sequence
        at = data.index(b"sequence") + 15
        assert chr(data[at]).isupper()
        data[at] = ord("A") if data[at] != ord("A") else ord("C")
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["truncated", "empty", "payload", "metadata"])
def test_damaged_records_are_made_anew(folder, tmp_path, how):
    expected = prepare(folder, tmp_path, "expected")
    kinds = ["chains"] if how == "metadata" else ["chains", "embeddings"]
    for kind in kinds:
        damage(sorted((tmp_path / "cache" / kind).rglob("*.safetensors"))[3], how)
    pgnn = tiny.WindowGNN()
    made = prepare(folder, tmp_path, "again", pgnn=pgnn)
    assert contents(made.path) == contents(expected.path)
    assert sum(map(len, pgnn.batches)) == (1 if "embeddings" in kinds else 0)
    # They are whole again in the cache: the builder, which refuses damaged ones, reads them all.
    builder = StructureDatasetBuilder(
        folder, tiny.WindowGNN(), tmp_path / "builder", feature_cache=tmp_path / "cache", on_error="skip"
    )
    builder.download_and_prepare()
    rows = [dict(row) for row in builder.as_dataset("train")]
    assert rows == contents(expected.path)["train"]
    assert how != "payload" or builder.report.parsed == 0


@pytest.mark.parametrize("kind", ["chains", "embeddings"])
def test_the_builder_names_a_damaged_record(folder, tmp_path, kind):
    prepare(folder, tmp_path)
    path = sorted((tmp_path / "cache" / kind).rglob("*.safetensors"))[3]
    damage(path, "payload")
    builder = StructureDatasetBuilder(
        folder, tiny.WindowGNN(), tmp_path / "builder", feature_cache=tmp_path / "cache", on_error="skip"
    )
    with pytest.raises(Exception) as caught:
        builder.download_and_prepare()
    messages = f"{caught.value} {caught.value.__cause__}"
    assert str(path) in messages and "checksum" in messages and "Delete it" in messages


def test_records_of_earlier_versions_are_read(tmp_path):
    save_file({"a": np.arange(3)}, tmp_path / "old.safetensors", {"pgnn": "x"})
    assert records_module.read_metadata(tmp_path / "old.safetensors") == {"pgnn": "x"}
    assert records_module.read_arrays(tmp_path / "old.safetensors")["a"].tolist() == [0, 1, 2]
    with pytest.raises(records_module.DamagedRecordError, match="old.safetensors"):
        records_module.read_arrays(tmp_path / "old.safetensors", ["b"])


def test_every_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / "record.safetensors"
    arrays = {"a": np.arange(6, dtype=np.float16).reshape(2, 3), "b": np.array([True, False])}
    records_module.write_record(path, arrays, {"pgnn": "x"})
    whole = path.read_bytes()
    for position in range(len(whole)):
        data = bytearray(whole)
        data[position] ^= 0x01
        path.write_bytes(data)
        try:
            same = read_all(path) == ({"pgnn": "x"}, {name: array.tolist() for name, array in arrays.items()})
        except records_module.DamagedRecordError:
            continue
        assert same, position  # the flip hit the name of the checksums, and what they cover is whole


def read_all(path):
    metadata = {name: value for name, value in records_module.read_metadata(path).items() if name == "pgnn"}
    return metadata, {name: array.tolist() for name, array in records_module.read_arrays(path).items()}


class FullDisk:
    """A file to which the disk gives no more room."""

    def __init__(self, file):
        self._file = file

    def write(self, data):
        self._file.write(memoryview(data)[: memoryview(data).nbytes // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self._file.close()


@pytest.mark.parametrize(
    ("where", "room"),
    [
        ("cache/chains/", 9),
        ("cache/index/", 1),
        ("/tasks/", 1),
        ("cache/embeddings/", 9),
        ("dataset/train/", 2),
        ("state.json", 0),
        ("dataset_dict.json", 0),
    ],
)
def test_a_full_disk_is_explained_and_loses_nothing(folder, tmp_path, monkeypatch, where, room):
    """Files of one kind can be written until there is no room for the next one."""
    expected = prepare(folder, tmp_path, "expected", cache="expected_cache")
    written = []

    def limited(*arguments):
        file, inside = open(*arguments), where in str(arguments[0])  # noqa: SIM115
        written.extend([file] * inside)
        return FullDisk(file) if inside and len(written) > room else file

    monkeypatch.setattr(files, "open", limited, raising=False)
    with pytest.raises(OSError, match=r"No space left on device while writing .*Free space there") as caught:
        prepare(folder, tmp_path)
    assert caught.value.errno == errno.ENOSPC
    path = Path(caught.value.filename)
    assert str(path) in str(caught.value) and path.parent.is_dir() and not path.exists()
    assert where in str(path)
    assert not list(tmp_path.rglob("*.tmp"))
    with pytest.raises(FileNotFoundError):
        datasets.load_from_disk(tmp_path / "dataset")
    stored = identities_of_records(tmp_path / "cache") | identities(tmp_path / "dataset")
    monkeypatch.undo()
    made = prepare(folder, tmp_path)
    assert contents(made.path) == contents(expected.path) and made.report.rows == CHAINS
    kept = identities_of_records(tmp_path / "cache") | identities(tmp_path / "dataset")
    assert stored and {name: kept[name] for name in stored} == stored


def test_a_damaged_shard_is_named(folder, tmp_path):
    with pytest.raises(Interrupted):
        prepare(folder, tmp_path, pgnn=Dies(6))
    shard = next((tmp_path / "dataset" / "train").glob("data-*.arrow"))
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(ValueError, match=re.escape(f"The shard {shard} is damaged")):
        prepare(folder, tmp_path, pgnn=successor())
    shard.unlink()
    assert prepare(folder, tmp_path, pgnn=successor()).splits["train"]["chains"] == CHAINS


def test_listings_know_sizes_and_times(tmp_path):
    path = tmp_path / "a.pdb"
    path.write_text("one")
    first = Listing.of([path])
    assert Listing.of([path]) == first
    os.utime(path, ns=(0, 0))
    second = Listing.of([path])
    path.write_text("three")
    os.utime(path, ns=(0, 0))
    assert len({first.key, second.key, Listing.of([path]).key}) == 3
    parts = Listing([f"{number}" for number in range(100)], "key").shards()
    assert [file for part in parts for file in part] == [f"{number}" for number in range(100)]
    assert {len(part) for part in Listing(list(map(str, range(10**6))), "key").shards()} == {1000}


def test_row_groups_stay_small(folder, tmp_path):
    """A hundred rows at most in memory, whatever the shard holds."""
    made = prepare([folder], tmp_path, shard_chains=1000)
    (shard,) = made.path.rglob("*.arrow")
    with pa.memory_map(str(shard)) as file:
        assert max(batch.num_rows for batch in pa.ipc.open_stream(file)) <= 100


KILLED = """
import json, os, signal, sys
from structure_aligned.data.ranks import launched_ranks
from structure_aligned.data.sharding import prepare_dataset
from tests import tiny

class Dies(tiny.WindowGNN):
    def embed_batch(self, chains):
        if len(self.batches) == (kill if rank == victim else -1):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().embed_batch(chains)

rank, world_size, _ = launched_ranks()
structures, output, cache, victim, kill = sys.argv[1:4] + [int(value) for value in sys.argv[4:6]]
pgnn = Dies()
made = prepare_dataset(
    structures, pgnn, output, feature_cache=cache, rank=rank, world_size=world_size, on_error="skip", shard_chains=7,
    max_batch_residues=60, timeout=60, poll=0.05,
)
with open(f"{output}.rank{rank}.json", "w") as file:
    json.dump([name for batch in pgnn.batches for name in batch], file)
"""


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_and_a_restart(folder, tmp_path, victim):
    """Two processes of torchrun, one killed in the middle; then three, then equal to what one process makes."""

    def launch(processes, output, cache, *kill):
        (tmp_path / "job.py").write_text(KILLED)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command += [str(tmp_path / "job.py"), str(folder), str(tmp_path / output), str(tmp_path / cache)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command += list(map(str, kill or (-1, -1)))
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)

    killed = launch(2, "dataset", "cache", victim, 4)
    assert killed.returncode != 0 and f"exitcode  : -{int(signal.SIGKILL)}" in killed.stderr, killed.stderr[-3000:]
    done, stored = identities(tmp_path / "dataset"), identities_of_records(tmp_path / "cache")
    assert not (tmp_path / "dataset" / "dataset_dict.json").exists()
    embedded = sum(name.startswith("embeddings") for name in stored)
    assert 8 <= embedded < CHAINS

    again = launch(3, "dataset", "cache")
    assert again.returncode == 0, again.stderr[-3000:]
    now, kept = identities(tmp_path / "dataset"), identities_of_records(tmp_path / "cache")
    assert {name: now[name] for name in done} == done and {name: kept[name] for name in stored} == stored
    redone = [name for rank in range(3) for name in json.loads((tmp_path / f"dataset.rank{rank}.json").read_text())]
    assert len(redone) == len(set(redone)) == CHAINS - embedded

    whole = launch(1, "whole", "whole_cache")
    assert whole.returncode == 0, whole.stderr[-3000:]
    assert contents(tmp_path / "dataset") == contents(tmp_path / "whole")
    report, expected = (
        json.loads((tmp_path / name / "build_report.json").read_text()) for name in ("dataset", "whole")
    )
    # What the killed process had not yet written down (a second's work) is not in the sum.
    assert embedded > 0 and CHAINS - embedded <= report.pop("embedded") <= expected.pop("embedded") == CHAINS
    assert report.pop("parsed") <= expected.pop("parsed") and report == expected
