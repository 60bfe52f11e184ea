"""Answers of servers that are hostile or unlucky, and ids that are no ids."""

import gzip
import json
import os
import threading

import pytest

from structure_aligned.structure.fetch import fetch_structures, parse_entry
from structure_aligned.structure.io import write_mmcif
from tests import tiny
from tests.structure.archive_server import Server
from tests.structure.pdb_text import as_mmcif
from tests.structure.test_io_marks import molecule

from .hostile import check, files_below, memory_below, refused


FAST = {"delay": 0.0, "backoff": 0.01, "timeout": 0.5, "progress": False, "retries": 0}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    """Complete mmCIF files by their entry."""
    folder = tmp_path_factory.mktemp("good")

    def make(entry):
        write_mmcif(tiny.chain(30, entry_id=entry), folder / "x.cif")
        return (folder / "x.cif").read_bytes()

    return make


def entry(url, accession="P00520"):
    return {"uniprotAccession": accession, "cifUrl": url}


NAME = "AF-P00520-F1-model_v6.cif"
# What the API of AlphaFold DB answers; {url} is the server.
ANSWERS = {
    "nothing": b"",
    "null": b"null",
    "a number": b"7",
    "an object": b'{"cifUrl": "x"}',
    "an empty list": b"[]",
    "a list of lists": b"[[[[]]]]",
    "a list of texts": b'["AF-P00520"]',
    "no address": b'[{"uniprotAccession": "P00520"}]',
    "an address that is a number": [entry(7)],
    "an address that is null": [entry(None)],
    "an address of a file": [entry(f"file:///etc/{NAME}")],
    "an address of data": [entry(f"data:text/plain,{NAME}")],
    "an address without a scheme": [entry(f"//127.0.0.1/{NAME}")],
    "a name outside the folder": [entry("{url}/files/AF-../../../up-F1-model_v6.cif")],
    "a name with a backslash": [entry("{url}/files/AF-..\\up-F1-model_v6.cif")],
    "a name with a NUL": [entry("{url}/files/AF-P00520\0-F1-model_v6.cif")],
    "a name of another kind": [entry("{url}/files/.bashrc")],
    "a protein of another accession": [entry(f"{{url}}/files/{NAME}", "P00521")],
    "an accession that is a list": [entry(f"{{url}}/files/{NAME}", ["P00520"])],
    "an address with line ends": [entry(f"{{url}}/files/x\r\nHost: evil/{NAME}")],
    "NaN": b"[NaN]",
    "a depth of 100,000": b"[" * 100_000,
    "UTF-16": json.dumps([entry("x")]).encode("utf-16"),
    "a page": b"<!DOCTYPE html><p>503</p>",
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answer_of_the_api(server, tmp_path, name):
    answer = ANSWERS[name]
    if not isinstance(answer, bytes):
        answer = json.dumps(answer).replace("{url}", server.url).encode()
    server.answers["/api/prediction/P00520"] = [answer]
    folder = tmp_path / "a" / "b" / "folder"
    report = fetch_structures(["P00520"], folder, afdb_url=server.url, pdb_url=server.url, **FAST)
    (result,) = report.results
    assert (result.status, result.paths) == ("failed", []) and result.reason
    report.write_tsv(tmp_path / "report.tsv")
    assert len((tmp_path / "report.tsv").read_text().splitlines()) == 2
    assert set(map(str, files_below(tmp_path))) == {"a", "a/b", "a/b/folder", "report.tsv"}


FILES = {
    "a page": lambda good: b"<!DOCTYPE html><p>not found</p>",
    "another entry": lambda good: gzip.compress(good("2xyz")),
    "an entry whose name is a path": lambda good: gzip.compress(good("1abc").replace(b"1abc", b"../../1abc")),
    "a structure without an id": lambda good: gzip.compress(as_mmcif(molecule()).encode()),
    "a structure that is cut": lambda good: gzip.compress(good("1abc")[:-900]),
    "gzip data that is cut": lambda good: gzip.compress(good("1abc"))[:-20],
    "gzip data twice over": lambda good: gzip.compress(gzip.compress(good("1abc"))),
    "no gzip data": lambda good: good("1abc"),
    "a PDB file": lambda good: gzip.compress(molecule().encode()),
    "a bomb": lambda good: gzip.compress(b"\0" * 2**24) * 64,
    "nothing": lambda good: b"",
}


@pytest.mark.parametrize("name", FILES)
def test_file_of_the_archive(server, good, tmp_path, name):
    server.answers["/1abc.cif.gz"] = [FILES[name](good)]
    server.answers["/3abc.cif.gz"] = [gzip.compress(good("3abc"))]
    with memory_below(200):
        report = fetch_structures(["1abc", "3abc"], tmp_path / "folder", pdb_url=server.url, **FAST)
    assert [result.status for result in report.results] == ["failed", "fetched"]
    assert report.failed[0].reason and str(tmp_path) not in report.failed[0].reason
    assert set(map(str, files_below(tmp_path))) == {"folder", "folder/3abc.cif.gz"}


IDS = [
    "../../1abc",
    "1abc/../../x",
    "1abc.cif.gz",
    "1abc\n2abc",
    "1abc 2abc",
    "1abc?x=1",
    "1abc#",
    "%2e%2e%2f1abc",
    "1abc\0",
    "-1abc",
    "１abc",
    "1ab\u0441",
    "AF-P00520-F1/../x",
    "P00520;rm -rf ~",
    "9" * 10_000,
    "~",
    ".",
]


@pytest.mark.parametrize("name", IDS, ids=range(len(IDS)))
def test_what_is_no_id(server, tmp_path, name):
    assert parse_entry(name) is None
    report = fetch_structures([name], tmp_path / "folder", pdb_url=server.url, afdb_url=server.url, **FAST)
    assert [result.status for result in report.results] == ["failed"] and not server.requests
    assert set(map(str, files_below(tmp_path))) <= {"folder"}


def test_a_text_of_ids_is_not_a_list_of_letters(tmp_path):
    check(lambda: fetch_structures("1abc", tmp_path), refused("'1abc'", "expected a list"))


def test_a_link_in_the_folder_is_not_followed(server, good, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "mine").write_text("mine")
    os.symlink(tmp_path / "mine", tmp_path / "folder" / "1abc.cif.gz")
    server.answers["/1abc.cif.gz"] = [gzip.compress(good("1abc"))]
    fetch_structures(["1abc"], tmp_path / "folder", pdb_url=server.url, **FAST)
    assert (tmp_path / "mine").read_text() == "mine"
