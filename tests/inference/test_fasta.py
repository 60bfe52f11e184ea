"""FASTA files as they come, and odd letters."""

import gzip
import io
import sys

import pytest

from structure_aligned.inference import fasta
from structure_aligned.inference.fasta import (
    FastaRecord,
    clean_sequence,
    clean_sequences,
    read_fasta,
    read_single_fasta,
)


TEXT = ">sp|P1|A_B first one\nMKV\nLA\n\n; a comment\n>two\n>three\twith a tab\nmkx*\n"
RECORDS = [
    FastaRecord(1, "sp|P1|A_B", "first one", "MKVLA"),
    FastaRecord(2, "two", "", ""),
    FastaRecord(3, "three", "with a tab", "mkx*"),
]


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_and_compression(tmp_path, mark, ends, compressed, last):
    data = (mark + TEXT if last else mark + TEXT.rstrip("\n")).replace("\n", ends).encode()
    path = tmp_path / "any.name"
    path.write_bytes(gzip.compress(data[:20]) + gzip.compress(data[20:]) if compressed else data)
    assert list(read_fasta(path)) == RECORDS


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_standard_input(monkeypatch, compress):
    class Stdin:
        buffer = io.BufferedReader(io.BytesIO(compress(TEXT.encode())))

    monkeypatch.setattr(sys, "stdin", Stdin)
    assert list(read_fasta("-")) == RECORDS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("MKV", "begins with 'MKV'; expected a FASTA file"),
        (">a\nMK\n>b\nMV\n>c\n", "has more than one protein; expected a FASTA file with exactly one, not empty"),
        (">a\n", "has no protein"),
        ("", "has no protein"),
    ],
)
def test_exactly_one_protein(tmp_path, content, message):
    (tmp_path / "wt.fasta").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_single_fasta(tmp_path / "wt.fasta")
    (tmp_path / "wt.fasta").write_text("\ufeff>a b\rMK\rV\r")
    assert read_single_fasta(tmp_path / "wt.fasta") == "MKV"


def test_an_empty_file_has_no_records(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert list(read_fasta(tmp_path / "empty")) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"MKV\n>one\nMK\n", "begins with 'MKV'; expected a FASTA file"),
        (b">one\nMK\n> \nMK\n", "Record 2 of .* has no id"),
        (b">one\nM\xe9K\n", "line 2: it holds the byte 0xe9, which is not UTF-8 text; expected a FASTA file"),
        (b">one\nMK\n" + b"M" * 50, r"Record 1 \(one\) of .* has more than 40 letters; expected a protein"),
        (gzip.compress(b">one\nMK\n>two\nMK\n", mtime=0)[:-9], "holds broken gzip data"),
        (gzip.compress(b">one\nMK\n", mtime=0)[:-4] + b"\1\1\1\1", "holds broken gzip data"),
    ],
)
def test_what_is_no_fasta_file_is_refused(tmp_path, monkeypatch, data, message):
    monkeypatch.setattr(fasta, "MAX_RECORD", 40)
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        list(read_fasta(tmp_path / "file"))


def test_a_missing_file_is_a_value_error(tmp_path):
    with pytest.raises(ValueError, match="none does not exist; expected a FASTA file"):
        list(read_fasta(tmp_path / "none"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (" mkv la\n*", ("MKVLA", 0)),
        ("UZOBX**", ("UZOBX", 0)),
        ("JMjK", ("XMXK", 2)),
    ],
)
def test_odd_letters(given, expected):
    assert clean_sequence(given, "one") == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "one is empty"),
        (" *", "one is empty"),
        ("MK-V", "one contains '-'"),
        ("M*K", r"one contains '\*'"),
        ("MK1.", "one contains '.', '1'"),
        ("MKé", "one contains 'é'"),
        ("MKß", "one contains 'ß'"),
    ],
)
def test_what_is_no_sequence_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        clean_sequence(given, "one")


def test_lists():
    assert clean_sequences(("mk", "AJ")) == ["MK", "AX"]
    with pytest.raises(ValueError, match="is the string 'MKV'; expected a list"):
        clean_sequences("MKV")
    with pytest.raises(ValueError, match="Sequence 1 is empty"):
        clean_sequences(["MK", ""])
