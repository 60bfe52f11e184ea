"""What an evaluation reads: natural sequences in FASTA files of any kind."""

import gzip

import pytest

from structure_aligned.evaluation.report_inputs import EvaluationOptions, load_inputs


ONE, TWO = "MKVLAG" * 6, "ACDEFGHIK" * 5
OPTIONS = EvaluationOptions(min_length=30)


@pytest.mark.parametrize(
    "data",
    [
        f"\ufeff>one first\r\n{ONE}*\r\n\r\n>two\r\n{TWO[:9].lower()}\r\n{TWO[9:]}\r\n".encode(),
        f">one\r{ONE}\r>two\r{TWO}".encode(),
        gzip.compress(f">one\n{ONE}\n; a comment\n>two\n{TWO}\n>short\nMK\n".encode()),
    ],
    ids=["mark", "cr", "gzip"],
)
def test_sequences(tmp_path, data):
    (tmp_path / "any.name").write_bytes(data)
    inputs = load_inputs(OPTIONS, sequences=tmp_path / "any.name", progress=False)
    assert inputs.sequences == {"one": ONE, "two": TWO}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"MKV", "begins with 'MKV'; expected a FASTA file"),
        (b">one\n\xe9\n", "line 2: it holds the byte 0xe9"),
        (gzip.compress(b">one\nMKV\n")[:-5], "holds broken gzip data"),
        (b">one\nMKV\n", "holds no sequence of 30 to 1022 residues"),
    ],
    ids=["plain", "latin-1", "cut", "short"],
)
def test_what_cannot_be_read_is_named(tmp_path, data, message):
    (tmp_path / "bad.fasta").write_bytes(data)
    with pytest.raises(ValueError, match=f"bad.fasta.*{message}"):
        load_inputs(OPTIONS, sequences=tmp_path / "bad.fasta", progress=False)
