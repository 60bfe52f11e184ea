"""Fetching from a server on this machine that fails in all the ways servers do."""

import email.utils
import gzip
import importlib.util
import io
import json
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from structure_aligned.structure import fetch
from structure_aligned.structure.downloading import Downloader, DownloadError
from structure_aligned.structure.fetch import fetch_structures, parse_entry, split_ids
from structure_aligned.structure.io import read_chains, write_mmcif
from tests import tiny
from tests.structure.archive_server import Server


ROOT = Path(__file__).parents[2]
FAST = {"delay": 0.0, "backoff": 0.01, "timeout": 0.3, "progress": False}


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


@pytest.fixture(scope="module")
def mmcif(tmp_path_factory):
    """`mmcif(entry_id)`: an mmCIF file as bytes, the length of its entity stated as in AlphaFold DB."""
    folder = tmp_path_factory.mktemp("mmcif")

    def make(entry_id, length=30, stated=None):
        path = folder / "any.cif"
        write_mmcif(tiny.chain(length, entry_id=entry_id), path)
        rows = "".join(f"1 {number} ALA n\n" for number in range(1, (stated or length) + 1))
        columns = "".join(f"_entity_poly_seq.{name}\n" for name in ("entity_id", "num", "mon_id", "hetero"))
        return path.read_bytes() + f"loop_\n{columns}{rows}#\n".encode()

    return make


def fetched(server, ids, folder, **options):
    urls = {"pdb_url": f"{server.url}/pdb/", "afdb_url": server.url}
    return fetch_structures(ids, folder, **(urls | FAST | options))


def afdb_answer(server, code, *fragments, version=6):
    """Also puts in what the API says of isoforms."""
    entry = "AF-{}-F{}-model_v{}.cif"
    answer = [
        {"uniprotAccession": one, "cifUrl": f"{server.url}/files/{entry.format(one, number, version)}"}
        for one in (f"{code}-2", code)
        for number in (fragments or (1,))
    ]
    server.answers[f"/api/prediction/{code}"] = [json.dumps(answer).encode()]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("1ABC", ("pdb", "1abc")),
        ("pdb_00001abc", ("pdb", "1abc")),
        ("pdb_12345abc", ("pdb", "pdb_12345abc")),
        ("p00520", ("afdb", "P00520")),
        ("A0A385XJN2", ("afdb", "A0A385XJN2")),
        ("AF-P04637-2-F1", ("afdb", "P04637-2")),
        ("1abc_A", None),
        ("P0052", None),
        ("../../x", None),
        ("", None),
    ],
)
def test_ids(name, expected):
    assert parse_entry(name) == expected


def test_both_archives_and_what_is_there_is_kept(server, mmcif, tmp_path):
    server.answers["/pdb/1abc.cif.gz"] = [gzip.compress(mmcif("1ABC"))]
    server.answers["/files/AF-P00520-F1-model_v6.cif"] = [mmcif("AF-P00520-F1")]
    afdb_answer(server, "P00520")
    ids = ["P00520", "1ABC", "1abc ", "af-p00520-f1"]
    report = fetched(server, ids, tmp_path / "new", user_agent="me@example.org")
    assert [(one.id, one.source, one.status) for one in report.results] == [
        ("P00520", "afdb", "fetched"),
        ("1ABC", "pdb", "fetched"),
        ("1abc", "pdb", "fetched"),
        ("af-p00520-f1", "afdb", "fetched"),
    ]
    names = ["1abc.cif.gz", "AF-P00520-F1-model_v6.cif"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == names
    assert sorted(server.paths()) == sorted(
        ["/pdb/1abc.cif.gz", "/api/prediction/P00520", "/files/AF-P00520-F1-model_v6.cif"]
    )
    assert {headers["User-Agent"] for _, _, headers in server.requests} == {"me@example.org"}
    for name, entry in zip(names, ("1abc", "AF-P00520-F1")):
        (chain,) = read_chains(tmp_path / "new" / name)
        assert (chain.entry_id, len(chain)) == (entry, 30)

    server.requests.clear()
    again = fetched(server, ids, tmp_path / "new")
    assert {one.status for one in again.results} == {"kept"} and not server.requests
    assert [one.paths for one in again.results] == [one.paths for one in report.results]

    # Damaged ones are fetched anew, the others not.
    damaged = tmp_path / "new" / names[0]
    damaged.write_bytes(damaged.read_bytes()[:200])
    statuses = [one.status for one in fetched(server, ids, tmp_path / "new").results]
    assert statuses == ["kept", "fetched", "fetched", "kept"] and server.paths() == ["/pdb/1abc.cif.gz"]
    assert len(read_chains(damaged)) == 1


@pytest.mark.parametrize(
    "trouble",
    [
        500,
        502,
        429,
        (503, "0"),
        (503, "no date"),
        ("truncated", None),
        ("unmarked", None),
        ("stalls", None),
        b"<html>down for maintenance</html>",
        b"",
    ],
    ids=str,
)
def test_what_passes_is_tried_again(server, mmcif, tmp_path, trouble):
    good = gzip.compress(mmcif("1abc"))
    if isinstance(trouble, tuple) and trouble[1] is None:
        trouble = (trouble[0], good[:-40] if trouble[0] == "unmarked" else good)
    server.answers["/pdb/1abc.cif.gz"] = [trouble, good]
    report = fetched(server, ["1abc"], tmp_path)
    assert report.results[0].status == "fetched", report.results[0].reason
    assert len(server.requests) == 2 and [path.name for path in tmp_path.iterdir()] == ["1abc.cif.gz"]


@pytest.mark.parametrize(
    ("trouble", "requests", "reason"),
    [
        (404, 1, "HTTP 404 Not Found (no such entry, or withdrawn)"),
        (403, 1, "HTTP 403 Forbidden"),
        (500, 3, "HTTP 500 Internal Server Error (3 attempts)"),
        ((503, "0"), 3, "HTTP 503 Service Unavailable, asks to wait 0 s (3 attempts)"),
        ((503, "60"), 1, "asks to wait 60 s, which is longer than max_wait (1 s)"),
        ("truncated", 3, "cut off after"),
        ("stalls", 3, "no answer for 0.3 s (3 attempts)"),
        ("other", 2, "holds the entry 2xyz instead of 1abc (2 attempts)"),
        ("nameless", 2, "instead of 1abc"),
        ("no protein", 2, "none of its 1 chains is a protein"),
        (b"<html></html>", 2, "is named .gz but is not gzipped"),
        (gzip.compress(b"nonsense", mtime=0), 2, "cannot be read as .cif"),
    ],
    ids=str,
)
def test_what_stays_is_reported_and_leaves_nothing(server, mmcif, tmp_path, trouble, requests, reason):
    good = gzip.compress(mmcif("1abc"))
    trouble = {
        "truncated": ("truncated", good),
        "stalls": ("stalls", good),
        "other": gzip.compress(mmcif("2xyz")),
        "no protein": gzip.compress(mmcif("1abc").replace(b"'polypeptide(L)'", b"polyribonucleotide")),
        "nameless": gzip.compress(mmcif("1abc").replace(b"_entry.id", b"_entry.no_id")),
    }.get(trouble, trouble)
    server.answers["/pdb/1abc.cif.gz"] = [trouble]
    server.answers["/pdb/3abc.cif.gz"] = [gzip.compress(mmcif("3abc"))]
    report = fetched(server, ["1abc", "3abc"], tmp_path, retries=2, max_wait=1)
    (failed,) = report.failed
    assert (failed.id, failed.url) == ("1abc", f"{server.url}/pdb/1abc.cif.gz")
    assert reason in failed.reason and str(tmp_path) not in failed.reason
    assert server.paths().count("/pdb/1abc.cif.gz") == requests
    assert [path.name for path in tmp_path.iterdir()] == ["3abc.cif.gz"]


def test_no_server_and_a_file_that_drips(server, mmcif, tmp_path):
    server.answers["/pdb/1abc.cif.gz"] = [("drips", gzip.compress(mmcif("1abc")))]
    report = fetched(server, ["1abc"], tmp_path, max_seconds=0.2, retries=0)
    assert "not complete after 0.2 s" in report.failed[0].reason
    server.answers["/pdb/1abc.cif.gz"] = [gzip.compress(mmcif("1abc"))]
    report = fetched(server, ["1abc"], tmp_path, max_bytes=100, retries=0)
    assert "more than 100 bytes" in report.failed[0].reason
    closed = Server()
    closed.server_close()
    report = fetch_structures(["1abc"], tmp_path, pdb_url=closed.url, **FAST, retries=1)
    assert report.failed[0].reason.startswith("no connection: ") and "(2 attempts)" in report.failed[0].reason


def test_alphafold_fragments_versions_and_odd_answers(server, mmcif, tmp_path):
    afdb_answer(server, "Q8WZ42", 1, 2, 3)
    for number in (1, 2, 3):
        server.answers[f"/files/AF-Q8WZ42-F{number}-model_v6.cif"] = [mmcif(f"AF-Q8WZ42-F{number}")]
    # The first fragment comes last, so that a stopped call is seen to be unfinished.
    server.answers["/files/AF-Q8WZ42-F1-model_v6.cif"].insert(0, 404)
    assert [one.status for one in fetched(server, ["Q8WZ42"], tmp_path).results] == ["failed"]
    assert sorted(path.name[10:12] for path in tmp_path.iterdir()) == ["F2", "F3"]
    (result,) = fetched(server, ["Q8WZ42"], tmp_path).results
    assert result.status == "fetched" and len(result.paths) == 3
    server.requests.clear()
    (result,) = fetched(server, ["Q8WZ42"], tmp_path).results
    assert result.status == "kept" and len(result.paths) == 3 and not server.requests

    server.answers["/files/AF-Q8WZ42-F1-model_v4.cif"] = [mmcif("AF-Q8WZ42-F1")]
    (result,) = fetched(server, ["Q8WZ42"], tmp_path, afdb_version=4).results
    assert result.status == "fetched" and server.paths() == ["/files/AF-Q8WZ42-F1-model_v4.cif"]
    for code, answer, reason in (
        ("P00001", b"[]", "the API knows no model of P00001"),
        ("P00002", b"{", "the API's answer is not understood (JSONDecodeError"),
        ("P00003", b'[{"uniprotAccession": "P00003"}]', "not understood (KeyError: 'cifUrl')"),
        ("P00004", b'[{"uniprotAccession": "P00004", "cifUrl": "http://x/../passwd"}]', "names a file that is not"),
        ("P00005", b'[{"uniprotAccession": "P00005", "cifUrl": "file:///AF-P00005-F1-model_v6.cif"}]', "not an http"),
        ("P00006", b'[{"uniprotAccession": "P00009", "cifUrl": "x"}]', "knows no model of P00006"),
        ("P00007", None, "HTTP 404"),
    ):
        server.answers[f"/api/prediction/{code}"] = [answer] if answer else []
        (result,) = fetched(server, [code], tmp_path).results
        assert result.status == "failed" and reason in result.reason, result.reason


def test_a_model_that_lost_its_end_is_noticed(server, mmcif, tmp_path):
    afdb_answer(server, "P00520")
    server.answers["/files/AF-P00520-F1-model_v6.cif"] = [mmcif("AF-P00520-F1", 20, stated=30), mmcif("AF-P00521-F1")]
    (result,) = fetched(server, ["P00520"], tmp_path, retries=0).results
    assert "has 20 of 30 residues" in result.reason
    (result,) = fetched(server, ["P00520"], tmp_path, retries=0).results
    assert "holds the entry AF-P00521-F1 instead of P00520" in result.reason


def test_pace_connections_and_retry_after(server, mmcif, tmp_path):
    ids = [f"1a{number:02d}" for number in range(12)]
    for name in ids:
        server.answers[f"/pdb/{name}.cif.gz"] = [("slow", gzip.compress(mmcif(name)))]
    report = fetched(server, ids, tmp_path, max_connections=3, delay=0.05)
    assert report.count("fetched") == 12 and 2 <= server.most_open <= 3
    times = sorted(at for _, at, _ in server.requests)
    assert times[-1] - times[0] > 0.4  # eleven delays, give or take what the server needs; 0.2 s without
    # All threads keep away for as long as one was told to.
    server.requests.clear()
    server.answers["/pdb/1abc.cif.gz"] = [(429, "1"), gzip.compress(mmcif("1abc"))]
    server.answers["/pdb/2abc.cif.gz"] = [gzip.compress(mmcif("2abc"))]
    fetched(server, ["1abc", "2abc"], tmp_path, max_connections=2, delay=0.1)
    (first, _), *later = sorted((at, path) for path, at, _ in server.requests)
    assert len(later) == 2 and all(at - first > 0.9 for at, _ in later if at - first > 0.3)
    assert any(at - first > 0.9 for at, _ in later)


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ((503, "\xb2"), "HTTP 503 Service Unavailable (3 attempts)"),
        ((503, "Wed, 21 Oct 99999999999 07:28:00 GMT"), "HTTP 503 Service Unavailable (3 attempts)"),
        ((503, "-5"), "HTTP 503 Service Unavailable (3 attempts)"),
        ((503, "9" * 400), "asks to wait inf s, which is longer than max_wait"),
        ((429, "nan"), "HTTP 429 Too Many Requests (3 attempts)"),
        (("raw", b""), "no connection"),
        (("raw", b"nonsense\r\n\r\n"), "no connection"),
        (("raw", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n"), "no connection: got more than 100 headers"),
        (("raw", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n"), "no connection"),
        (("raw", b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\nx"), "is named .gz but is not gzipped"),
        (("raw", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), "is named .gz but is not gzipped"),
        (("raw", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), "no connection"),
        (("raw", b"HTTP/1.1 200 OK\r\n\xff\xfe: \xff\r\nContent-Length: 1\r\n\r\nx"), "not gzipped"),
        (("raw", b"HTTP/1.1 404 \xff\xfe\r\n\r\n"), "HTTP 404"),
        (("raw", b"HTTP/1.1 302 Found\r\nLocation: http://[bad\r\n\r\n"), "Invalid IPv6 URL"),
        (("raw", b"HTTP/1.1 302 Found\r\nLocation: /pdb/1abc.cif.gz\r\n\r\n"), "infinite loop"),
        (("raw", b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n"), "is not allowed"),
        (("raw", b"HTTP/1.1 302 Found\r\nLocation: http://" + b"a" * 99 + b".org/\r\n\r\n"), "label"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_strange_answers_are_outcomes(server, mmcif, tmp_path, trouble, reason):
    server.answers["/pdb/1abc.cif.gz"] = [trouble]
    server.answers["/pdb/3abc.cif.gz"] = [gzip.compress(mmcif("3abc"))]
    report = fetched(server, ["1abc", "3abc"], tmp_path, retries=2, max_wait=1)
    assert [one.status for one in report.results] == ["failed", "fetched"]
    assert reason in report.failed[0].reason
    assert [path.name for path in tmp_path.iterdir()] == ["3abc.cif.gz"]
    report.write_tsv(tmp_path / "report.tsv")


def test_strange_answers_of_the_api(server, tmp_path):
    many = [{"uniprotAccession": "P00003", "cifUrl": f"x/AF-P00003-F{one}-model_v6.cif"} for one in range(1001)]
    bad = {"uniprotAccession": "P00002", "cifUrl": "http://[bad/AF-P00002-F1-model_v6.cif"}
    long = {"uniprotAccession": "P00004", "cifUrl": f"{server.url}/AF-P00004-F{'9' * 5000}-model_v6.cif"}
    for code, answer, reason in (
        ("P00001", b"[" * 100_000, "the API's answer is not understood (RecursionError"),
        ("P00002", json.dumps([bad]).encode(), "Invalid IPv6 URL"),
        ("P00003", json.dumps(many).encode(), "the API names 1,001 files of P00003; expected at most 1,000"),
        ("P00004", json.dumps([long]).encode(), "Exceeds the limit"),
        ("P00005", b"\xff\xfe", "not understood (JSONDecodeError"),
    ):
        server.answers[f"/api/prediction/{code}"] = [answer]
        (result,) = fetched(server, [code], tmp_path).results
        assert result.status == "failed" and reason in result.reason, result.reason


def test_two_calls_in_one_folder_do_not_disturb_each_other(server, mmcif, tmp_path):
    server.answers["/pdb/1abc.cif.gz"] = [gzip.compress(mmcif("1abc"))]
    server.answers["/pdb/2abc.cif.gz"] = [gzip.compress(mmcif("2abc"))]
    verify, paths = fetch._verify, []

    def verify_during_another_call(path, source, code):
        if code == "1abc" and not paths:
            paths.append(path)
            assert fetched(server, ["2abc"], tmp_path).results[0].status == "fetched"
            assert path.exists()
        verify(path, source, code)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "_verify", verify_during_another_call)
        patch.setattr(fetch._Archive, "_kept_pdb", lambda self, code: [])
        assert fetched(server, ["1abc"], tmp_path).results[0].status == "fetched"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1abc.cif.gz", "2abc.cif.gz"]


def test_what_killed_calls_left_is_removed_after_a_day(server, tmp_path):
    for name, age in ((".fetching", 100_000), (".fetching-old", 100_000), (".fetching-new", 1000)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    fetched(server, [], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".fetching-new"]


def test_an_id_that_is_not_text_is_reported(server, tmp_path):
    report = fetched(server, ["\udcff"], tmp_path)
    report.write_tsv(tmp_path / "report.tsv")
    assert "\\udcff\t\t'\\udcff' is no id" in (tmp_path / "report.tsv").read_text()


def test_a_date_to_come_back(server):
    soon = email.utils.formatdate(time.time() + 3000, usegmt=True)
    server.answers["/x"] = [(503, soon)]
    with pytest.raises(DownloadError, match=r"asks to wait (29|30)\d\d(\.\d+)? s, which is longer than max_wait"):
        Downloader(delay=0).get(f"{server.url}/x", bytes)


def test_interrupting_stops_the_threads(server, mmcif, tmp_path, monkeypatch):
    server.answers["/pdb/1abc.cif.gz"] = [(503, "30")]
    server.answers["/pdb/2abc.cif.gz"] = [gzip.compress(mmcif("2abc"))]

    def interrupt(futures):
        next(plain(futures))
        raise KeyboardInterrupt

    plain = fetch.as_completed
    monkeypatch.setattr(fetch, "as_completed", interrupt)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fetched(server, ["2abc", "1abc"], tmp_path)
    assert time.monotonic() - started < 10
    assert [path.name for path in tmp_path.iterdir()] == ["2abc.cif.gz"]


def test_options_are_checked(tmp_path):
    with pytest.raises(ValueError, match="ids is the string '1abc'; expected a list"):
        fetch_structures("1abc", tmp_path)
    for options, message in (
        ({"max_connections": 0}, "max_connections is 0; expected at least 1"),
        ({"timeout": 0}, "timeout is 0; expected more than 0"),
        ({"retries": -1}, "retries is -1; expected 0 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            fetch_structures(["1abc"], tmp_path, **options)


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("fetch_script", ROOT / "examples" / "fetch_structures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def start(*arguments):
        with pytest.raises(SystemExit) as ended:
            module.main([str(argument) for argument in arguments])
        return ended.value.code

    return start


@pytest.mark.parametrize(
    ("line", "ids"),
    [
        ("1ABC,2DEF,3GHI,4HHB", ["1ABC", "2DEF", "3GHI", "4HHB"]),
        ("1abc, P00520 ,\tAF-P00520-F1,", ["1abc", "P00520", "AF-P00520-F1"]),
        ("1abc 2def\tP00520", ["1abc", "2def", "P00520"]),
        ("1abc,wrong,2def", ["1abc", "wrong", "2def"]),  # to be reported, and nothing behind it is lost
        ("1abc,A", ["1abc"]),
        ("P00520\tkinase of 1000 residues", ["P00520"]),
        ("nonsense", ["nonsense"]),
        (" # 1abc,2def", []),
        (" , ", []),
    ],
)
def test_ids_of_a_line(line, ids):
    assert split_ids(line) == ids


def test_the_script_takes_lists_of_ids(server, mmcif, tmp_path, main, capsys):
    for name in ("1abc", "2def", "3ghi", "4hhb"):
        server.answers[f"/pdb/{name}.cif.gz"] = [gzip.compress(mmcif(name))]
    options = ("--pdb_url", f"{server.url}/pdb", "--output", tmp_path / "out", "--delay", 0)
    (tmp_path / "ids.txt").write_text("1ABC,2DEF")
    assert main(*options, "--file", tmp_path / "ids.txt", "--ids", "3GHI,4hhb") == 0
    assert "4 fetched" in capsys.readouterr().out
    assert len(list((tmp_path / "out").glob("*.cif.gz"))) == 4


def test_the_script(server, mmcif, tmp_path, main, capsys, monkeypatch):
    server.answers["/pdb/1abc.cif.gz"] = [gzip.compress(mmcif("1abc"))]
    options = ("--pdb_url", f"{server.url}/pdb", "--afdb_url", server.url, "--output", tmp_path / "out")
    options += ("--delay", 0, "--backoff", 0.01, "--timeout", 0.3)
    (tmp_path / "ids.txt").write_text("# of a paper\n1abc,A\n\nP00520\tkinase\r\nnonsense\n")
    assert main(*options, "--file", tmp_path / "ids.txt", "--ids", "9zzz") == 1
    printed = capsys.readouterr().out
    assert "4 entries: 1 fetched, 0 were there, 3 could not be had" in printed
    rows = [line.split("\t") for line in (tmp_path / "out" / "fetch_report.tsv").read_text().splitlines()]
    assert rows[0] == ["id", "source", "reason", "url"]
    assert [row[:2] for row in rows[1:]] == [["9zzz", "pdb"], ["P00520", "afdb"], ["nonsense", ""]]
    assert "404" in rows[1][2] and rows[2][3] == f"{server.url}/api/prediction/P00520"
    assert "'nonsense' is no id; expected a PDB id such as 1abc" in rows[3][2]

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"1ABC\n")))
    assert main(*options, "--file", "-", "--report", tmp_path / "why.tsv") == 0
    assert "1 entries: 0 fetched, 1 were there, 0 could not be had" in capsys.readouterr().out
    assert (tmp_path / "why.tsv").read_text() == "id\tsource\treason\turl\n"
    for arguments, message in (((), "nothing to fetch"), (("--file", tmp_path / "none"), "does not exist")):
        assert main(*options, *arguments) == 2
        assert message in capsys.readouterr().err
