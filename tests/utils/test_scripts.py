"""Errors of scripts: one line for what the user gave, a traceback for what is wrong in the code."""

import os
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from structure_aligned.utils.scripts import clean_errors


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a\n b"), "error: a b"),
        (FileNotFoundError(2, "No such file or directory", "x"), "error: [Errno 2] No such file or directory: 'x'"),
        (ImportError("needs y"), "error: needs y"),
        (RecursionError(), "error: RecursionError"),
    ],
)
def test_expected_errors_are_one_line(error, line, capsys):
    def main(argv):
        raise error

    with pytest.raises(SystemExit) as ended:
        clean_errors(main)([])
    assert ended.value.code == line
    with pytest.raises(SystemExit) as ended:
        partial(clean_errors, code=2)(main)([])
    assert ended.value.code == 2 and capsys.readouterr().err == line + "\n"


def test_other_errors_and_results_pass():
    assert clean_errors(lambda value: value)(3) == 3
    with pytest.raises(ZeroDivisionError):
        clean_errors(lambda: 1 / 0)()


ARGUMENTS = {
    "embed": ("--model", "none", "--fasta", "none", "--output", "out"),
    "evaluate": ("--models", "none", "--structures", "none", "--output", "out"),
    "export": ("--model", "none", "--output", "out"),
    "fetch_structures": ("--file", "none", "--output", "out"),
    "inspect_selection": ("--model", "none", "--dataset", "none", "--output", "out"),
    "prepare": ("--structures", "none", "--pgnn", "gearnet-small", "--output", "out"),
    "pretrain_gearnet": ("--structures", "none", "--validation_structures", "none"),
    "pretrain_mlm": ("--sequences", "none", "--use_cpu"),
    "push": ("none", "owner/name"),
    "score_mutations": ("--model", "none", "--fasta", "none", "--csv", "none", "--output", "out"),
    "train": ("--dataset", "none", "--output_dir", "out", "--use_cpu"),
    "train_reference": ("--output_dir", "out", "--use_cpu"),
}


def test_all_scripts_are_tried():
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py") if "__main__" in path.read_text()}
    assert scripts == set(ARGUMENTS)


@pytest.mark.parametrize("script", ARGUMENTS)
def test_scripts_end_with_one_line(tmp_path, monkeypatch, capsys, script):
    path = ROOT / "examples" / f"{script}.py"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(path.parent)
    monkeypatch.setattr(sys, "argv", [str(path), *ARGUMENTS[script]])
    threads = torch.get_num_threads()
    try:
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(path), run_name="__main__")
    finally:
        torch.set_num_threads(threads)  # the training scripts take all
    code = ended.value.code
    line = capsys.readouterr().err.splitlines()[-1] if code == 2 else code
    assert line.startswith("error: ") and "\n" not in line


def test_printing_never_fails(tmp_path):
    code = "from structure_aligned.utils.scripts import clean_errors; clean_errors(lambda: print('\\xc5 \\udcff'))()"
    env = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env, check=True)
    assert done.stdout == b"\\xc5 \\udcff\n"
