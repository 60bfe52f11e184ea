"""Ids from data as file names, fields, cells and text in pictures."""

import os

from structure_aligned.utils.names import (
    markdown_cell,
    picture_text,
    plain_text,
    safe_file_name,
)


HOSTILE = [
    "",
    ".",
    "..",
    "../../x",
    "/etc/x",
    "..\\x",
    "a/b",
    "a%2Fb",
    "a\0b",
    "a\tb",
    "a\nb",
    "a b",
    "~",
    "%",
    "%~",
    "a~",
    ".hidden",
    "C:x",
    "\udcff",
    "é",
    "x" * 300,
    "x" * 299 + "y",
    "é" * 300,
    "$x_1$",
    "|",
    "<script>",
    "a\u2028b",
    "a\x85b",
]


def test_file_names_stay_inside_the_folder_and_differ(tmp_path):
    names = [safe_file_name(text) for text in HOSTILE]
    assert len(set(names)) == len(HOSTILE)
    for name in names:
        assert name and os.path.basename(name) == name and not name.startswith(".") and name.isascii()
        (tmp_path / f"{name}.tsv").write_text("")
    assert len(list(tmp_path.iterdir())) == len(HOSTILE)
    # What a long id becomes is not the name of a short one.
    assert safe_file_name(safe_file_name("x" * 300)) != safe_file_name("x" * 300)
    assert safe_file_name("1abc_A") == "1abc_A"


def test_text_shows_what_it_says():
    assert plain_text("a\tb\n\x1b[31mc\0") == "a b \ufffd[31mc\ufffd"
    assert picture_text("$\\frac$\nx") == r"\$\frac\$ x"
    assert picture_text("x" * 300) == "x" * 79 + "…"
    assert markdown_cell("a|b\n| c <script> \\|") == r"a\|b \| c &lt;script> \\\|"
