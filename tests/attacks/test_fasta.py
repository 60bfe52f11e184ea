"""Hostile and unlucky FASTA files."""

import gzip
import os

import numpy as np
import pytest

from structure_aligned.inference.fasta import clean_sequence, read_fasta, read_single_fasta

from .hostile import check, memory_below, refused, write


ONE = b">a one\nMKTAYIAKQR\n"
READ = [("a", "MKTAYIAKQR")]


def bomb(member, times):
    """Gzip data that unpacks to `times` as much as its member, of which it is a thousandth."""
    return gzip.compress(member, 9, mtime=0) * times


FILES = {
    "a mark of UTF-8": (b"\xef\xbb\xbf" + ONE, READ),
    "a mark behind the first byte": (b" \xef\xbb\xbf" + ONE, refused("begins with")),
    "UTF-16": (ONE.decode().encode("utf-16"), refused("UTF-16")),
    "Latin-1 in a header": (b">prot\xe9ine\nMK\n", refused("line 1", "0xe9")),
    "Latin-1 in a sequence": (b">a\nMK\n>b\nM\xe9K\n", refused("line 4", "0xe9")),
    "a letter that is cut in two": (b">a\nMK\n>b\xc3", refused("line 3", "0xc3")),
    "CR": (ONE.replace(b"\n", b"\r"), READ),
    "CR and LF that take turns": (b">a one\r\nMKTAY\rIAKQR\n", READ),
    "no line end at the end": (ONE.rstrip(), READ),
    "form feeds and vertical tabs": (b">a one\nMKTAY\x0c\n\x0bIAKQR\n", READ),
    "blank lines within a sequence": (b">a one\n\n\nMKTAY\n \t\nIAKQR\n\n", READ),
    "comments before the first header": (b"; made by hand\n" + ONE, READ),
    "only comments": (b"; nothing\n", []),
    "only white space": (b" \n\t\r\n", []),
    "only a header": (b">a", [("a", "")]),
    "a header without an id": (b">a\nMK\n>\nMK\n", refused("Record 2", "has no id")),
    "a header of white space": (b">   \t\nMK\n", refused("Record 1", "has no id")),
    "a sequence without a header": (b"MKTAYIAKQR\n", refused("begins with 'MKTAYIAKQR'")),
    "FASTQ": (b"@read\nACGT\n+\n!!!!\n", refused("begins with '@read'")),
    "a page of a server": (b"<!DOCTYPE html><p>503</p>", refused("begins with '<!DOCTYPE html>")),
    "an id that is a path": (b">../../etc/passwd x\nMK\n", [("../../etc/passwd", "MK")]),
    "an id beyond ASCII": (">Å|é one\nMK\n".encode(), [("Å|é", "MK")]),
    "an id of 100,000 letters": (b">" + b"a" * 100_000 + b"\nMK\n", [("a" * 100_000, "MK")]),
    "a NUL in an id": (b">a\0b\nMK\n", [("a\0b", "MK")]),
    "a separator of lines that Unicode knows": (">a\u2028b\nMK\n".encode(), [("a", "MK")]),
    "two headers that look like one": (b">a >b\nMK\n", [("a", "MK")]),
    "the same id twice": (ONE + ONE, READ * 2),
    "gzip data under another name": (gzip.compress(ONE), READ),
    "gzip members that are cut within a record": (gzip.compress(ONE[:9]) + gzip.compress(ONE[9:]), READ),
    "gzip data that ends early": (gzip.compress(ONE * 99)[:-20], refused("expected")),
    "gzip data with a wrong checksum": (gzip.compress(ONE)[:-8] + b"\0" * 8, refused("expected")),
    "gzip data with a tail": (gzip.compress(ONE) + b"MKTAYIAKQR\n", refused("expected")),
    "gzip data twice over": (gzip.compress(gzip.compress(ONE)), refused("0x8b")),
    "two bytes of gzip data": (b"\x1f\x8b", refused("expected")),
    "random bytes": (np.random.default_rng(0).bytes(10_000), refused("file")),
}


@pytest.mark.parametrize("name", FILES)
def test_file(tmp_path, name):
    content, expected = FILES[name]
    path = write(tmp_path, "file.fasta", content)
    check(lambda: [(record.id, record.sequence) for record in read_fasta(path)], expected, path)


GROWING = {
    "a bomb of one line": (lambda: bomb(b">a\n" + b"M" * 2**24, 256), refused("file.fasta")),
    "a bomb of records": (lambda: bomb((b">a\n" + b"M" * 999 + b"\n") * 2**14, 256), refused("file.fasta")),
    "a bomb of blank lines": (lambda: bomb((b" " * 99 + b"\n") * 2**17, 256), refused("unpacks to more than")),
    "empty members": (lambda: gzip.compress(b"") * 100_000, refused("empty gzip members")),
    "a sequence of 20 million letters": (lambda: b">a\n" + b"M" * 20_000_000, refused("Record 1 (a)")),
    "a sequence of 300,000 lines": (lambda: b">a\n" + b"M\n" * 300_000, [300_000]),
    "a header of 20 MB": (lambda: b">a " + b"x" * 20_000_000 + b"\nMK\n", [2]),
    "30,000 records": (lambda: b">a\nM\n" * 30_000, [1] * 30_000),
}


@pytest.mark.parametrize("name", GROWING)
def test_work_and_memory(tmp_path, name):
    content, expected = GROWING[name]
    path = write(tmp_path, "file.fasta", content())
    with memory_below(400):
        check(lambda: [len(record.sequence) for record in read_fasta(path)], expected, path)


SEQUENCES = {
    "small letters and a stop": ("mktay*", ("MKTAY", 0)),
    "a stop in the middle": ("MK*TAY", refused("contains '*'")),
    "gaps of an alignment": ("MK--TAY", refused("contains '-'")),
    "dots of an alignment": ("MK..tay", refused("contains '.'")),
    "numbers of a GenBank file": ("1 mktay 61", refused("contains '1', '6'")),
    "letters that look like others": ("МКТАY", refused("contains")),
    "letters of full width": ("ＭＫ", refused("contains")),
    "a letter that grows in upper case": ("MKß", refused("contains 'ß'")),
    "nothing but stops": ("***", refused("is empty")),
    "a zero-width space": ("MK\u200bTAY", refused("contains '\\u200b'")),
    "a non-breaking space": ("MK\u00a0TAY", ("MKTAY", 0)),
    "the letter J": ("MJK", ("MXK", 1)),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequence(name):
    sequence, expected = SEQUENCES[name]
    check(lambda: clean_sequence(sequence, "Record 7"), expected, "Record 7")


SINGLE = {
    "no protein": (b"", refused("no protein")),
    "an empty protein": (b">a\n", refused("no protein")),
    "two proteins": (ONE + ONE, refused("more than one protein")),
    "two headers, one empty": (b">a\n>b\nMK\n", refused("more than one protein")),
    "CR": (ONE.replace(b"\n", b"\r"), "MKTAYIAKQR"),
}


@pytest.mark.parametrize("name", SINGLE)
def test_wild_type(tmp_path, name):
    content, expected = SINGLE[name]
    path = write(tmp_path, "wild_type.fasta", content)
    check(lambda: read_single_fasta(path), expected, path)


PLACES = {
    "nothing": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
    "a terminal": lambda path: path.symlink_to("/dev/tty"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link that leads nowhere": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("name", PLACES)
def test_what_is_not_a_file(tmp_path, name):
    path = write(tmp_path, "file.fasta", PLACES[name])
    check(lambda: list(read_fasta(path)), refused("expected a FASTA file"), path)
