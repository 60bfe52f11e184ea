"""Errors of scripts: one line for what the user gave, a traceback for what is wrong in the code."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("script", ["prepare", "train", "train_reference", "export", "inspect_selection", "push"])
def test_scripts_end_with_one_line(tmp_path, script):
    none = str(tmp_path / "none")
    arguments = {
        "prepare": ("--structures", none, "--pgnn", none, "--output", none),
        "train": ("--dataset", none, "--output_dir", none, "--use_cpu"),
        "train_reference": ("--output_dir", none, "--use_cpu"),
        "export": ("--model", none, "--output", str(tmp_path / "out")),
        "inspect_selection": ("--model", none, "--dataset", none, "--output", none),
        "push": (none, "owner/name"),
    }[script]
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "examples" / f"{script}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ") and "Traceback" not in done.stderr, done.stderr[-2000:]


def test_printing_never_fails(tmp_path):
    code = "from structure_aligned.utils.scripts import clean_errors; clean_errors(lambda: print('\\xc5 \\udcff'))()"
    env = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env, check=True)
    assert done.stdout == b"\\xc5 \\udcff\n"
