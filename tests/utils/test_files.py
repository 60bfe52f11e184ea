"""The one reader of text and the one writer of files: every encoding, hostile input, bounded memory, no half files."""

import gzip
import io
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import time
import tracemalloc

import pytest

from structure_aligned.utils import files
from structure_aligned.utils.files import (
    atomic_file,
    file_problem,
    read_bytes,
    read_json,
    read_lines,
    read_table,
    read_text,
    read_yaml,
    write_json,
    write_table,
    write_text,
)


EMPTY_MEMBER = gzip.compress(b"", mtime=0)


def write(tmp_path, data, name="file"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


# Reading


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_marks_and_line_ends(tmp_path, ends, mark, packed):
    data = mark + ends.join(["one é", "", "three", ""]).encode()
    path = write(tmp_path, gzip.compress(data[:5], mtime=0) + gzip.compress(data[5:], mtime=0) if packed else data)
    assert read_text(path, "text") == "one é\n\nthree\n"
    assert list(read_lines(path, "text")) == ["one é", "", "three"]
    assert read_bytes(path, "text") == data


def test_lines_and_letters_that_lie_across_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_CHUNK", 3)
    monkeypatch.setattr(files, "_PACKED_CHUNK", 2)
    text = "é€𝄞\r\nab\rcd\n\r\nlast"
    path = write(tmp_path, text.encode())
    assert list(read_lines(path, "text")) == ["é€𝄞", "ab", "cd", "", "last"]
    assert list(read_lines(write(tmp_path, gzip.compress(text.encode()), "packed"), "text")) == [
        *("é€𝄞", "ab", "cd", "", "last"),
    ]


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(b"a\r\nb"))))
    assert list(read_lines("-", "text")) == ["a", "b"]


@pytest.mark.parametrize("value", ["C", "C.UTF-8"])
def test_the_locale_does_not_matter(tmp_path, value):
    path = write(tmp_path, "Å,é\n1,ü\n".encode())
    code = f"""
        from structure_aligned.utils.files import read_table, read_text, write_text
        assert read_text({str(path)!r}, "text") == "\\xc5,\\xe9\\n1,\\xfc\\n"
        assert read_table({str(path)!r}) == (["\\xc5", "\\xe9"], [{{"\\xc5": "1", "\\xe9": "\\xfc"}}])
        write_text({str(tmp_path / "out")!r}, "\\xe9 \\udcff")
    """
    env = os.environ | {"LC_ALL": value, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=env, check=True)
    assert (tmp_path / "out").read_bytes() == "é \\udcff".encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("a\nb\n".encode("utf-16"), "file is UTF-16 text; expected text in UTF-8. Save it as UTF-8"),
        ("a\nb\n".encode("utf-16-be"), None),  # NUL characters, which are UTF-8
        ("one\r\ntwo\rthree é\n".encode("latin-1"), r"file, line 3: it holds the byte 0xe9, which is not UTF-8"),
        (b"one\n\xff", "file, line 2: it holds the byte 0xff"),
        (b"one\n\xe2\x82", "file, line 2: it holds the byte 0xe2"),
    ],
)
def test_text_that_is_not_utf_8(tmp_path, data, message):
    path = write(tmp_path, data)
    for read in (read_text, lambda *args: list(read_lines(*args))):
        if message is None:
            assert "\0" in "".join(read(path, "text"))
        else:
            with pytest.raises(ValueError, match=message):
                read(path, "text")


def test_zero_padding_is_allowed(tmp_path):
    data = gzip.compress(b"one\n") + b"\0" * 40_000 + gzip.compress(b"two\n") + b"\0" * 512
    assert read_bytes(write(tmp_path, data), "text") == b"one\ntwo\n"


@pytest.mark.parametrize(
    "data",
    [
        gzip.compress(b"text " * 99)[:-9],
        gzip.compress(b"text " * 99)[:12],
        gzip.compress(b"text " * 99)[:-4] + b"\1\1\1\1",
        gzip.compress(b"text") + b"something else",
        b"\x1f\x8b",
    ],
    ids=["cut", "header only", "checksum", "garbage", "two bytes"],
)
def test_damaged_gzip_data(tmp_path, data):
    with pytest.raises(ValueError, match=r"file holds broken gzip data \(.*\); expected a complete file"):
        read_bytes(write(tmp_path, data), "text")


@pytest.mark.parametrize("read", [read_bytes, read_text, lambda *args: list(read_lines(*args)), read_table])
def test_a_gzip_bomb_is_refused_before_it_fills_the_memory(tmp_path, read):
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(20):
            file.write(b"mutant,score\n" + (b"A" * 65_535 + b",\n") * 160)
    tracemalloc.start()
    with pytest.raises(ValueError, match="bomb.gz unpacks to more than 200 times its|row 1"):
        read(path, "a CSV")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 1024**2


def test_text_that_packs_well_is_read(tmp_path):
    text = b"".join(b"A%dG,%d\n" % (row, row) for row in range(100_000)) * 20
    assert read_bytes(write(tmp_path, gzip.compress(text)), "text") == text


def test_many_empty_members(tmp_path):
    path = write(tmp_path, EMPTY_MEMBER * 9_000 + gzip.compress(b"text"))
    assert read_bytes(path, "text") == b"text"
    with pytest.raises(ValueError, match="file consists of empty gzip members"):
        read_bytes(write(tmp_path, EMPTY_MEMBER * 10_001), "text")


def test_the_work_on_short_members_grows_with_the_file(tmp_path):
    member = gzip.compress(b"a", mtime=0)
    path = write(tmp_path, member * 50_000)  # one line whose pieces come one by one
    start = time.process_time()
    assert list(read_lines(path, "text")) == ["a" * 50_000]
    assert time.process_time() - start < 5  # a quadratic reader takes minutes


def test_sizes_are_limited(tmp_path, monkeypatch):
    path = write(tmp_path, b"a" * 50 + b"\n" + b"b" * 60)
    assert len(read_bytes(path, "text", max_bytes=111)) == 111
    with pytest.raises(ValueError, match="holds more than 110 bytes; expected text of at most that size"):
        read_text(path, "text", max_bytes=110)
    monkeypatch.setattr(files, "MAX_LINE", 59)
    monkeypatch.setattr(files, "_PACKED_CHUNK", 16)
    monkeypatch.setattr(files, "_CHUNK", 16)
    with pytest.raises(ValueError, match="line 2: it is longer than 59 characters; expected text. Break it"):
        list(read_lines(path, "text"))


def test_what_is_not_a_file(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "device").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # the names of sockets are short
        server.bind("socket")
        for name, problem in (
            ("none", "does not exist"),
            ("none/below", "does not exist"),
            ("folder", "is a folder"),
            ("pipe", "is a pipe, a device or a socket"),
            ("device", "is a pipe, a device or a socket"),
            ("socket", "is a pipe, a device or a socket"),
            ("dangling", r"is a link that leads to no file \(No such file or directory\)"),
            ("loop", r"is a link that leads to no file \(Too many levels of symbolic links\)"),
            ("n" * 300, r"cannot be read \(File name too long\)"),
            ("n\0n", "cannot be read"),
        ):
            with pytest.raises(ValueError, match=f"{problem}.*; expected text"):
                read_text(tmp_path / name, "text")
    assert file_problem(write(tmp_path, b"")) is None


def test_a_file_that_cannot_be_opened_or_read(tmp_path, monkeypatch):
    path = write(tmp_path, b"text")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", refuse)
        with pytest.raises(ValueError, match=r"file cannot be read \(Permission denied\); expected text"):
            read_text(path, "text")
    if os.path.exists("/proc/self/mem"):
        (tmp_path / "mem").symlink_to("/proc/self/mem")
        with pytest.raises(ValueError, match="mem cannot be read"):
            read_text(tmp_path / "mem", "text")


# JSON, YAML, CSV


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 100_000, "{'a': 1}", "9" * 5_000, "nul"],
    ids=["empty", "cut", "deep", "quote", "int", "nul"],
)
def test_broken_json(tmp_path, text):
    with pytest.raises(ValueError, match=r"file is not valid JSON \(.*\); expected a report"):
        read_json(write(tmp_path, text.encode()), "a report")


def test_json(tmp_path):
    assert read_json(write(tmp_path, b'\xef\xbb\xbf{"a": [1, null]}\r\n')) == {"a": [1, None]}


MERGES = "a: &a {k: 1}\n" + "".join(
    f"{this}: &{this} {{<<: [{', '.join([f'*{before}'] * 9)}]}}\n" for before, this in zip("abcdefgh", "bcdefghi")
)


@pytest.mark.parametrize(
    "text",
    ["a: [", "[" * 5_000, "a: 2020-99-99", "a: " + "9" * 5_000, "? [a]\n: 1", MERGES, "!!python/object:os.system {}"],
    ids=["cut", "deep", "date", "int", "key", "merges", "object"],
)
def test_broken_yaml(tmp_path, text):
    with pytest.raises(ValueError, match=r"(?s)file is not valid YAML \(.*\); expected a file of options"):
        read_yaml(write(tmp_path, text.encode()), "a file of options")


def test_yaml(tmp_path):
    assert read_yaml(write(tmp_path, "\ufeffa: &x [1, 2]\r\nb: *x\r\nc: é".encode())) == {
        **{"a": [1, 2], "b": [1, 2], "c": "é"},
    }
    with pytest.raises(ValueError, match="holds more than 65,536 bytes"):
        read_yaml(write(tmp_path, b"# " + b"x" * 70_000))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows; expected a CSV with a header and at least one row"),
        ("a,b\n", "has no rows"),
        ("a,b,a\n1,2,3\n", "has the column 'a' more than once"),
        ("a,b\n1,2\n3\n", "row 2 does not have the 2 cells of the header"),
        ("a,b\n1,2\n3,4,5\n", "row 2 does not have the 2 cells of the header"),
        ('a,b\n1,2\n3,"4\n5,6\n', "row 2 cannot be read"),  # the quotation mark would swallow row 3
        ('a,b\n1,"2"3\n', "row 1 cannot be read"),
        ("a,b\n1,2\n3,\0\n", "line 3: it holds a NUL character"),
        ("a,b\n1,2\n3," + "x" * 200_000 + "\n", "row 2 cannot be read .*field larger than"),
        ("," * 300_000 + "\n1\n", "has the column '' more than once"),
    ],
    ids=["empty", "header", "twice", "short", "long", "open quote", "quote", "nul", "huge", "commas"],
)
def test_broken_tables(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_table(write(tmp_path, text.encode()))


def test_tables(tmp_path, monkeypatch):
    path = write(tmp_path, '\ufeffa,"b,c"\r\n1,"two\r\nlines"\r\n\r\nNA,\r\n'.encode())
    assert read_table(path) == (["a", "b,c"], [{"a": "1", "b,c": "two\nlines"}, {"a": "NA", "b,c": ""}])
    monkeypatch.setattr(files, "MAX_CELLS", 2)
    assert len(read_table(write(tmp_path, b"a,b\n1,2\n"))[1]) == 1
    with pytest.raises(ValueError, match="has more than 2 cells; expected a CSV with a header. Split it"):
        read_table(write(tmp_path, b"a,b\n" + b"1,2\n" * 3))
    monkeypatch.setattr(files, "MAX_BYTES", 10)
    with pytest.raises(ValueError, match="holds more than 10 characters"):
        read_table(path)


@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz"])
def test_written_tables_are_read(tmp_path, name):
    rows = [{"a": "1", "b": 'x,"y"'}, {"a": "é", "b": "two\nlines"}]
    write_table(tmp_path / name, ["a", "b"], rows)
    assert read_table(tmp_path / name) == (["a", "b"], rows)
    data = (tmp_path / name).read_bytes()
    assert data.startswith(b"\x1f\x8b") == name.endswith(".gz")
    write_table(tmp_path / name, ["a", "b"], rows)
    assert (tmp_path / name).read_bytes() == data


def test_a_table_whose_rows_end_in_an_error_leaves_the_old_one(tmp_path):
    def rows():
        yield {"a": "1"}
        raise ValueError("row 2")

    for name in ("table.csv", "table.csv.gz"):
        path = write(tmp_path, b"mine", name)
        with pytest.raises(ValueError, match="row 2"):
            write_table(path, ["a"], rows())
        assert path.read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.csv", "table.csv.gz"]


# Writing


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "folder" / "file.json"
    write_json(path, {"a": 1})
    assert read_json(path) == {"a": 1}
    with pytest.raises(KeyError), atomic_file(path) as file:
        file.write(b"half")
        raise KeyError
    assert read_json(path) == {"a": 1}
    write_text(path, "é\r\n")
    assert path.read_bytes() == "é\r\n".encode()
    assert [one.name for one in path.parent.iterdir()] == ["file.json"]


def test_permissions_of_a_file_that_is_replaced_stay(tmp_path):
    path = write(tmp_path, b"mine")
    path.chmod(0o600)
    write_text(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["n" * 250, "é" * 120, "𝄞" * 60])
def test_long_names(tmp_path, name):
    write_text(tmp_path / name, "text")
    assert (tmp_path / name).read_text() == "text"


def test_a_device_or_a_folder_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/null")
    (tmp_path / "folder").mkdir()
    for name, kind in (("pipe", "a pipe"), ("device", "a pipe, a device"), ("folder", "a folder")):
        with pytest.raises(ValueError, match=f"{name} is {kind}.* cannot be replaced by a file"):
            write_text(tmp_path / name, "text")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_file_in_the_place_of_the_folder(tmp_path):
    write(tmp_path, b"mine", "file")
    with pytest.raises(OSError, match="while writing .*Remove the cause"):
        write_text(tmp_path / "file" / "below", "text")
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_full_disk(tmp_path):
    path = write(tmp_path, b"mine")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large while writing .*file. Free space there"):
            write_text(path, "text" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"mine"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_errors_of_other_files_speak_for_themselves(tmp_path):
    with pytest.raises(FileNotFoundError, match="No such file or directory: .*none"), atomic_file(tmp_path / "a"):
        (tmp_path / "none").read_bytes()


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = write(tmp_path, b"mine")
    code = f"""
        import os, signal
        from structure_aligned.utils.files import write_table
        def rows():
            for row in range(100_000):
                yield {{"a": row}}
            os.kill(os.getpid(), signal.SIGKILL)
        write_table({str(path)!r}, ["a"], rows())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)])
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"mine"
