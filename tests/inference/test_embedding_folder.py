"""FASTA to files: content, resuming, ids that repeat, several processes. Files are compared by their bytes."""

import gzip
import io
import json
import sys
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest

from structure_aligned.inference import embedding_folder
from structure_aligned.inference.embedding_files import MANIFEST_NAME, read_embeddings
from structure_aligned.inference.embedding_folder import embed_fasta
from structure_aligned.inference.embeddings import embed_sequences
from tests import tiny
from tests.closeness import assert_same_but_rounding


OPTIONS = {"shard_residues": 100, "max_residues": 40, "max_tokens": 120, "progress": False, "poll": 0.01}


@pytest.fixture(scope="module")
def records():
    rng = np.random.default_rng(0)
    lengths = [*rng.integers(1, 35, 20), 130, 41, 12]
    return [(f"id{n}", "".join(rng.choice(list(tiny.AMINO_ACIDS), length))) for n, length in enumerate(lengths)]


@pytest.fixture(scope="module", params=list(tiny.FAMILIES))
def model(request):
    return tiny.FAMILIES[request.param].model()


@pytest.fixture(scope="module")
def esm():
    return tiny.FAMILIES["esm"].model()


@pytest.fixture
def fasta(tmp_path, records):
    return write(tmp_path / "in.fasta", records)


def write(path, records):
    path.write_text("".join(f">{name} something\n{sequence}\n" for name, sequence in records))
    return path


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("format", ["parquet", "safetensors"])
@pytest.mark.parametrize("pooling", ["mean", "residue", "both"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_read_back_is_what_embed_sequences_gives(esm, fasta, records, tmp_path, format, pooling, dtype):
    report = embed_fasta(esm, fasta, tmp_path / "out", format=format, pooling=pooling, dtype=dtype, **OPTIONS)
    sequences = [sequence for _, sequence in records]
    assert (report.sequences, report.residues) == (len(records), sum(map(len, sequences)))
    assert report.embedded == report.residues and report.files > 3
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {MANIFEST_NAME} | {
        f"embeddings-{number:05d}-of-{report.files:05d}.{format}" for number in range(report.files)
    }
    found = list(read_embeddings(tmp_path / "out"))
    assert [name for name, _ in found] == [name for name, _ in records]
    expected = embed_sequences(esm, sequences, pooling="both", dtype=dtype, max_residues=40, progress=False)
    for (_, one), two in zip(found, expected):
        for name, wanted in (("residues", pooling != "mean"), ("mean", pooling != "residue")):
            values = getattr(one, name)
            if wanted:
                assert values.dtype == dtype and values.shape == getattr(two, name).shape
                # In float16 a difference of the last bit, of the same numbers.
                assert_same_but_rounding(values, getattr(two, name), 32 if dtype == "float32" else 2)
            else:
                assert values is None


def test_parquet_is_as_others_read_it(model, fasta, records, tmp_path):
    embed_fasta(model, fasta, tmp_path / "out", pooling="both", **OPTIONS)
    frame = pq.read_table(sorted((tmp_path / "out").glob("*.parquet"))).to_pylist()
    assert [row["id"] for row in frame] == [name for name, _ in records]
    for row, (_, sequence), (_, embedding) in zip(frame, records, read_embeddings(tmp_path / "out")):
        assert row["length"] == len(sequence)
        np.testing.assert_array_equal(np.array(row["residue_embeddings"], np.float32), embedding.residues)
        np.testing.assert_array_equal(np.array(row["mean_embedding"], np.float32), embedding.mean)


@pytest.mark.parametrize("format", ["parquet", "safetensors"])
@pytest.mark.parametrize("stop_at", [0, 1, 4])
def test_a_stopped_job_gives_the_same_bytes(esm, fasta, tmp_path, monkeypatch, format, stop_at):
    options = OPTIONS | {"format": format, "pooling": "both"}
    embed_fasta(esm, fasta, tmp_path / "whole", **options)
    plain, written = embedding_folder.write_shard, []

    def stopping(path, shard):
        if len(written) == stop_at:
            raise KeyboardInterrupt
        plain(path, shard)
        written.append((path, path.stat().st_mtime_ns))

    monkeypatch.setattr(embedding_folder, "write_shard", stopping)
    with pytest.raises(KeyboardInterrupt):
        embed_fasta(esm, fasta, tmp_path / "stopped", **options)
    monkeypatch.setattr(embedding_folder, "write_shard", plain)
    with pytest.raises(ValueError, match="is not finished: .* of .* files are missing"):
        list(read_embeddings(tmp_path / "stopped"))
    report = embed_fasta(esm, fasta, tmp_path / "stopped", **options)
    assert report.embedded < report.residues or not stop_at
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == time for path, time in written)
    # once more, after a file was lost
    again = embed_fasta(esm, fasta, tmp_path / "stopped", **options)
    assert again.embedded == 0
    next((tmp_path / "stopped").glob("*-00002-of-*")).unlink()
    assert 0 < embed_fasta(esm, fasta, tmp_path / "stopped", **options).embedded < report.residues
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_killed_while_planning(esm, fasta, records, tmp_path, monkeypatch):
    embed_fasta(esm, fasta, tmp_path / "whole", **OPTIONS)
    real = embedding_folder.EmbeddingPlan._settle_duplicates

    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(embedding_folder.EmbeddingPlan, "_settle_duplicates", killed)
    other = write(tmp_path / "other.fasta", [("first", "MKV"), *records])
    with pytest.raises(KeyboardInterrupt):
        embed_fasta(esm, other, tmp_path / "out", **OPTIONS)  # whose tasks must not be taken for the other file's
    monkeypatch.setattr(embedding_folder.EmbeddingPlan, "_settle_duplicates", real)
    (tmp_path / "out" / ".embedding" / "tasks.json").write_text('{"renamed": 0}')
    embed_fasta(esm, fasta, tmp_path / "out", **OPTIONS)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_another_job_is_refused(esm, fasta, records, tmp_path):
    output = tmp_path / "out"
    embed_fasta(esm, fasta, output, **OPTIONS)
    before = contents(output)
    for changed, message in (
        ({"pooling": "both"}, "of another job: pooling 'mean', now 'both'"),
        ({"layer": 1}, "layer -1, now 1"),
        ({"dtype": "float16"}, "dtype 'float32', now 'float16'"),
        ({"format": "safetensors"}, "format 'parquet', now 'safetensors'"),
        ({"max_tokens": 60, "max_residues": 39}, "max_residues 40, now 39; max_tokens 120, now 60"),
    ):
        with pytest.raises(ValueError, match=message):
            embed_fasta(esm, fasta, output, **(OPTIONS | changed))
    with pytest.raises(ValueError, match="of another job: weights '"):
        embed_fasta(tiny.FAMILIES["esm"].model(seed=1), fasta, output, **OPTIONS)
    with pytest.raises(ValueError, match="of another job: computed_in 'float32', now 'bfloat16'"):
        embed_fasta(tiny.FAMILIES["esm"].model().bfloat16(), fasta, output, **OPTIONS)
    other = write(tmp_path / "other.fasta", [*records[:-1], (records[-1][0], records[-1][1][:-1])])
    with pytest.raises(ValueError, match="embeddings of other sequences .* than .*other.fasta has"):
        embed_fasta(esm, other, output, **OPTIONS)
    assert {name: data for name, data in contents(output).items() if not name.startswith(".")} == before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("")
    with pytest.raises(ValueError, match="is not empty and has no manifest.json: it holds thesis.txt"):
        embed_fasta(esm, fasta, foreign, **OPTIONS)
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]


def test_compression_line_ends_and_standard_input_change_nothing(esm, fasta, tmp_path, monkeypatch):
    embed_fasta(esm, fasta, tmp_path / "plain", **OPTIONS)
    data = gzip.compress(fasta.read_bytes().replace(b"\n", b"\r\n"))

    class Stdin:
        buffer = io.BufferedReader(io.BytesIO(data))

    monkeypatch.setattr(sys, "stdin", Stdin)
    embed_fasta(esm, "-", tmp_path / "stdin", **OPTIONS)
    assert contents(tmp_path / "stdin") == contents(tmp_path / "plain")
    with pytest.raises(ValueError, match="cannot share the standard input"):
        embed_fasta(esm, "-", tmp_path / "two", world_size=2, **OPTIONS)


def test_ids_that_come_again(esm, tmp_path):
    sequences = ["MKV", "MKVA", "LAG" * 20, "KV", "MAA"]
    fasta = write(tmp_path / "in.fasta", list(zip(["a", "b", "a", "b", "a"], sequences)))
    message = r"a \(records 1 and 3\), b \(records 2 and 4\), a \(records 1 and 5\). Make them unique"
    for _ in range(2):  # the first leaves nothing that the second would take for a plan
        with pytest.raises(ValueError, match=message):
            embed_fasta(esm, fasta, tmp_path / "out", **(OPTIONS | {"shard_residues": 50}))
    options = OPTIONS | {"shard_residues": 50, "duplicates": "number"}
    report = embed_fasta(esm, fasta, tmp_path / "out", **options)
    assert report.renamed == 3 and report.files == 3
    found = list(read_embeddings(tmp_path / "out"))
    assert [name for name, _ in found] == ["a", "b", "a/2", "b/2", "a/3"]
    for (_, one), two in zip(found, embed_sequences(esm, sequences, pooling="mean", max_residues=40)):
        np.testing.assert_allclose(one.mean, two, atol=1e-5)
    before = contents(tmp_path / "out")
    next((tmp_path / "out").glob("*-00001-of-*")).unlink()
    embed_fasta(esm, fasta, tmp_path / "out", **options)
    assert contents(tmp_path / "out") == before
    clash = write(tmp_path / "clash.fasta", [("a/2", "MK"), ("a", "MK"), ("a", "MV")])
    with pytest.raises(ValueError, match="Record 3 would be numbered a/2, but another record has that id"):
        embed_fasta(esm, clash, tmp_path / "clash", **options)


def test_odd_letters_are_counted_and_what_is_wrong_names_its_record(esm, tmp_path):
    report = embed_fasta(esm, write(tmp_path / "a", [("a", "MJjU*"), ("b", "mk")]), tmp_path / "out", **OPTIONS)
    assert report.read_as_x == 2 and report.residues == 6
    assert json.loads((tmp_path / "out" / MANIFEST_NAME).read_text())["input"]["read_as_x"] == 2
    for records, message in (
        ([("a", "MK"), ("b", "")], r"Record 2 \(b\) of .*in is empty"),
        ([("a", "M-K")], r"Record 1 \(a\) of .*in contains '-'"),
        ([], "in holds no sequence"),
    ):
        with pytest.raises(ValueError, match=message):
            embed_fasta(esm, write(tmp_path / "in", records), tmp_path / "bad", **OPTIONS)
    for options, message in (
        ({"format": "npz"}, "format is 'npz'; expected one of parquet, safetensors"),
        ({"duplicates": "drop"}, "duplicates is 'drop'"),
        ({"dtype": "float64"}, "dtype is 'float64'; expected one of float32, float16"),
        ({"shard_residues": 0}, "shard_residues is 0"),
        ({"layer": 3}, "layer is 3; expected -3 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            embed_fasta(esm, tmp_path / "a", tmp_path / "none", **(OPTIONS | options))
    assert not (tmp_path / "none").exists()


def test_processes_share_the_files(model, fasta, tmp_path):
    embed_fasta(model, fasta, tmp_path / "one", **OPTIONS)
    results = {}

    def work(rank):
        results[rank] = embed_fasta(model, fasta, tmp_path / "two", rank=rank, world_size=3, **OPTIONS)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (2, 1)]
    for thread in threads:
        thread.start()
    work(0)
    for thread in threads:
        thread.join()
    assert results[1] is None and results[2] is None and results[0].embedded == results[0].residues
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_process_that_never_came_is_named(esm, fasta, tmp_path):
    with pytest.raises(TimeoutError, match=r"rank 1 \(never started here\): embeddings-00001-of-"):
        embed_fasta(esm, fasta, tmp_path / "out", world_size=2, timeout=0.2, **OPTIONS)
    embed_fasta(esm, fasta, tmp_path / "out", **OPTIONS)
    embed_fasta(esm, fasta, tmp_path / "one", **OPTIONS)
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


@pytest.mark.parametrize("format", ["parquet", "safetensors"])
def test_damaged_files_are_said(esm, fasta, tmp_path, format):
    embed_fasta(esm, fasta, tmp_path / "out", format=format, **OPTIONS)
    path = next((tmp_path / "out").glob("*-00000-of-*"))
    assert len(list(read_embeddings(path))) > 1
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match="is damaged .*; delete it and run"):
        list(read_embeddings(path))
    with pytest.raises(ValueError, match=r"has no manifest.json"):
        list(read_embeddings(tmp_path))
