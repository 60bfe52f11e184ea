"""Hostile and unlucky tables: assays, mutants, clusters of MMseqs2, JSON."""

import gzip

import numpy as np
import pytest

from structure_aligned.data.relatives import read_clusters
from structure_aligned.evaluation.assays import read_assay
from structure_aligned.evaluation.mutants import parse_mutants
from structure_aligned.utils.files import read_json
from structure_aligned.utils.tables import read_table

from .hostile import check, memory_below, refused, write


WILD_TYPE = "MKVLAW"
HEAD = b"mutant,DMS_score\n"
READ = [("K2A", 0.5), ("V3G", -1.0)]
ROWS = b"K2A,0.5\nV3G,-1\n"

ASSAYS = {
    "a mark and CRLF": (b"\xef\xbb\xbf" + (HEAD + ROWS).replace(b"\n", b"\r\n"), READ),
    "CR": ((HEAD + ROWS).replace(b"\n", b"\r"), READ),
    "gzip data under another name": (gzip.compress(HEAD + ROWS), READ),
    "quoted cells": (b'"mutant","DMS_score"\n"K2A","0.5"\n"V3G","-1"\n', READ),
    "a column that nobody needs": (b"note,mutant,DMS_score\n=cmd|' /C calc'!A0,K2A,0.5\n,V3G,-1\n", READ),
    "columns with semicolons": ((HEAD + ROWS).replace(b",", b";"), refused("has no column mutant")),
    "columns with tabs": ((HEAD + ROWS).replace(b",", b"\t"), refused("has no column mutant")),
    "no header": (ROWS, refused("has no column mutant")),
    "a header in capitals": (HEAD.upper() + ROWS, refused("has no column mutant")),
    "a header with blanks": (b"mutant, DMS_score\n" + ROWS, refused("no column DMS_score")),
    "only a header": (HEAD, refused("has no rows")),
    "nothing": (b"", refused("has no rows")),
    "a column twice": (b"mutant,DMS_score,DMS_score\nK2A,1,2\n", refused("'DMS_score' more than once")),
    "a decimal comma": (HEAD + b"K2A,0,5\n", refused("row 1")),
    "a quoted decimal comma": (HEAD + b'K2A,"0,5"\n', refused("row 1", "'0,5'")),
    "an empty score": (HEAD + ROWS + b"L4A,\n", refused("row 3", "DMS_score ''")),
    "infinity": (HEAD + b"K2A,1\nV3G,inf\n", refused("row 2", "'inf'")),
    "a score beyond what a float holds": (HEAD + b"K2A,1e999\n", refused("row 1", "'1e999'")),
    "an error of a spreadsheet": (HEAD + b"K2A,#DIV/0!\n", refused("row 1", "#DIV/0!")),
    "a row that is too short": (HEAD + b"K2A,1\nV3G\n", refused("row 2")),
    "a row that is too long": (HEAD + b"K2A,1\nV3G,2,3\n", refused("row 2")),
    "a quotation mark that is never closed": (HEAD + b'K2A,1\n"V3G,2\nL4A,3\n', refused("row 2")),
    "a NUL": (HEAD + b"K2A,1\0\n", refused("line 2")),
    "Latin-1": (HEAD + b"K2A,1\nV3G,\xbd\n", refused("line 3", "0xbd")),
    "UTF-16": ((HEAD + ROWS).decode().encode("utf-16"), refused("UTF-16")),
    "a spreadsheet": (b"PK\x03\x04" + np.random.default_rng(0).bytes(500), refused("scan.csv")),
    "gzip data that ends early": (gzip.compress(HEAD + ROWS * 99)[:-9], refused("expected")),
    "a mutant that spreadsheets take for a formula": (HEAD + b"-K2A,1\n", refused("Row 1", "'-K2A'")),
    "a mutant of other letters": (HEAD + b"M1K,1\nA5Z,1\n", refused("Row 2", "'A5Z'")),
    "a mutant of no amino acid": (HEAD + b"K2*,1\n", refused("Row 1", "'*'")),
    "an empty mutant": (HEAD + b"K2A,1\n,2\n", refused("Row 2", "has no mutant")),
    "a bin that is neither": (b"mutant,DMS_score,DMS_score_bin\nK2A,1,1\nV3G,1,0.5\n", refused("row 2", "neither")),
    "a sequence of another mutant": (b"mutant,DMS_score,mutated_sequence\nK2A,1,MKVLAW\n", refused("row 1", "'K2A'")),
}


@pytest.mark.parametrize("name", ASSAYS)
def test_assay(tmp_path, name):
    content, expected = ASSAYS[name]
    path = write(tmp_path, "scan.csv", content)

    def read():
        assay = read_assay(path, WILD_TYPE)
        return list(zip(assay.mutants, assay.measured.tolist()))

    check(read, expected, path)


MUTANTS = {
    "the wild type in small letters": ("wt", 0),
    "white space around": (" K2A \t", 1),
    "two at one position": ("K2A:K2G", refused("changes position 2 twice")),
    "a colon at the end": ("K2A:", refused("cannot be read")),
    "a comma between": ("K2A,V3G", refused("cannot be read")),
    "position 0": ("M0A", refused("at position 0")),
    "a position before the first": ("M-1A", refused("at position -1")),
    "a position behind the last": ("W7A", refused("at position 7")),
    "a position of 5,000 digits": ("M" + "9" * 5_000 + "A", refused("cannot be read")),
    "a position of digits beyond ASCII": ("K٢A", refused("cannot be read")),
    "a superscript": ("K²A", refused("cannot be read")),
    "another wild type": ("A2K", refused("says A at position 2", "has K")),
    "three-letter codes": ("Lys2Ala", refused("cannot be read")),
    "a prefix of HGVS": ("p.K2A", refused("cannot be read")),
    "a deletion": ("K2-", refused("letter '-'")),
    "a frame shift": ("K2fs", refused("cannot be read")),
    "small letters": ("k2a", refused("letter 'k'")),
    "ten thousand parts": (":".join(["K2A"] * 10_000), refused("twice")),
    "a number": (24, refused("has no mutant")),
    "nothing": (None, refused("has no mutant")),
    "not a number": (float("nan"), refused("has no mutant")),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant(name):
    mutant, expected = MUTANTS[name]
    check(lambda: len(parse_mutants([mutant], WILD_TYPE)[0]), expected, *() if expected in (0, 1) else ("Row 1",))


CLUSTERS = {
    "CRLF and blank lines": (b"a\ta\r\n\r\na\tb\r\n", {"a": "a", "b": "a"}),
    "CR": (b"a\ta\ra\tb\r", {"a": "a", "b": "a"}),
    "a mark": (b"\xef\xbb\xbfa\ta\n", {"a": "a"}),
    "a line twice": (b"a\tb\na\tb\n", {"b": "a"}),
    "ids with blanks": (b"a b\tc d\n", {"c d": "a b"}),
    "gzip data": (gzip.compress(b"a\tb\n"), {"b": "a"}),
    "blanks for tabs": (b"a\ta\na b\n", refused("line 2")),
    "three columns": (b"a\ta\na\tb\tc\n", refused("line 2", "3 columns")),
    "an empty column": (b"a\ta\n\tb\n", refused("line 2")),
    "a member of two clusters": (b"a\tc\nb\tc\n", refused("line 2", "c is in the cluster of b and in that of a")),
    "Latin-1": (b"a\ta\na\t\xe9\n", refused("line 2", "0xe9")),
    "nothing": (b"\n\n", refused("is empty")),
    "a FASTA file": (b">a\nMK\n", refused("line 1")),
}


@pytest.mark.parametrize("name", CLUSTERS)
def test_clusters(tmp_path, name):
    content, expected = CLUSTERS[name]
    path = write(tmp_path, "x_cluster.tsv", content)
    check(lambda: read_clusters(path), expected, path)


JSON = {
    "a depth of 100,000": (b"[" * 100_000 + b"]" * 100_000, refused("is not valid JSON")),
    "a number of 10,000 digits": (b'{"a": ' + b"9" * 10_000 + b"}", refused("is not valid JSON")),
    "another kind": (b'["a"]', refused("holds a list")),
    "two documents": (b"{}{}", refused("is not valid JSON")),
    "Latin-1": (b'{"a": "\xe9"}', refused("0xe9")),
    "a tail": (b'{"a": 1}\n\0', refused("is not valid JSON")),
}


@pytest.mark.parametrize("name", JSON)
def test_json(tmp_path, name):
    content, expected = JSON[name]
    path = write(tmp_path, "x.json", content)
    check(lambda: read_json(path, kind=dict), expected, path)


GROWING = {
    "a bomb of one cell": lambda: gzip.compress(b'a,b\n1,"' + b"x" * 2**24, mtime=0) * 256,
    "a bomb of commas": lambda: gzip.compress(b"," * 2**24, mtime=0) * 256,
    "300,000 columns": lambda: b"a," * 300_000 + b"b\n1\n",
    "a cell of 10 MB": lambda: b"a,b\n1," + b"x" * 10_000_000 + b"\n",
}


@pytest.mark.parametrize("name", GROWING)
def test_work_and_memory(tmp_path, name):
    path = write(tmp_path, "x.csv", GROWING[name]())
    with memory_below(600):
        check(lambda: read_table(path), refused(), path)
