"""examples/score_mutations.py as a user starts it."""

import csv
import gzip
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from structure_aligned.evaluation.fitness import score_mutations
from tests import tiny


ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "score_mutations.py"
WILD_TYPE = "MKVLAWDERT"


def start(*arguments):
    """In a process of its own, as from a shell."""
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    if result.returncode != 0:
        pytest.fail(result.stderr[-3000:])
    return result.stdout


@pytest.fixture(scope="module")
def main():
    """The script's own, without the seconds that a process takes to begin."""
    spec = importlib.util.spec_from_file_location("score_mutations_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda *arguments: module.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("scoring")
    for name, family in tiny.FAMILIES.items():
        family.model().save_pretrained(root / name)
        family.tokenizer().save_pretrained(root / name)
    with gzip.open(root / "wt.fasta.gz", "wt") as file:
        file.write(f">wt of a test\n{WILD_TYPE[:4]}\n{WILD_TYPE[4:]}\n")
    return root


@pytest.mark.parametrize(("name", "strategy"), [("esm", "masked-marginals"), ("AMPLIFY", "wt-marginals")])
def test_scores_are_appended(root, tmp_path, main, capsys, name, strategy):
    mutants = ["K25A", "V26G:L27P", "WT", "T33A", "K25C"]
    rows = [f'{index},"a, {index}",{mutant},{0.10 * index:.2f}' for index, mutant in enumerate(mutants)]
    with gzip.open(tmp_path / "in.csv.gz", "wt", newline="") as file:
        file.write("\r\n".join(["id,note,variant,DMS_score", *rows[:4], rows[4].replace("0.40", "NA")]))
    output = tmp_path / "new" / "out.csv"
    arguments = {
        "--model": root / name,
        "--fasta": root / "wt.fasta.gz",
        "--csv": tmp_path / "in.csv.gz",
        "--output": output,
        "--strategy": strategy,
        "--offset": 24,
        "--mutant_column": "variant",
    }
    arguments = [part for pair in arguments.items() for part in pair]
    if name == "AMPLIFY":
        printed = start(*arguments, "--use_cpu")
    else:
        main(*arguments, "--use_cpu")
        printed = capsys.readouterr().out
    with open(output, newline="") as file:
        written = list(csv.DictReader(file))
    assert list(written[0]) == ["id", "note", "variant", "DMS_score", "score"]
    assert [row["variant"] for row in written] == mutants
    assert [row["note"] for row in written] == [f"a, {index}" for index in range(5)]
    assert [row["DMS_score"] for row in written] == ["0.00", "0.10", "0.20", "0.30", "NA"]
    expected = score_mutations(tiny.FAMILIES[name].model(), WILD_TYPE, mutants, strategy=strategy, offset=24)
    np.testing.assert_allclose([float(row["score"]) for row in written], expected, atol=1e-5)
    spearman = spearmanr(expected[:4], range(4)).statistic
    assert f"Spearman {spearman:.4f} (n = 4, 1 without a DMS_score left out)" in printed


def test_compressed_output_and_no_overwriting(root, tmp_path, main, capsys):
    (tmp_path / "in.csv").write_text("mutant\nK2A\n")
    files = ("--model", root / "esm", "--fasta", root / "wt.fasta.gz", "--csv", tmp_path / "in.csv", "--use_cpu")
    output = tmp_path / "out.csv.gz"
    main(*files, "--output", output)
    assert "Spearman" not in capsys.readouterr().out
    with gzip.open(output, "rt") as file:
        first = file.read()
    assert first.startswith("mutant,score\nK2A,")
    with pytest.raises(SystemExit, match="out.csv.gz exists; give another --output, or --overwrite"):
        main(*files, "--output", output)
    main(*files, "--output", output, "--overwrite", "--strategy", "wt-marginals")
    with gzip.open(output, "rt") as file:
        assert file.read() != first


def test_what_ends_while_it_writes_leaves_the_table_that_was_there(root, tmp_path, main, monkeypatch):
    def die(*arguments):
        raise KeyboardInterrupt

    (tmp_path / "in.csv").write_bytes(b"\xef\xbb\xbfmutant\rK2A\r")
    (tmp_path / "out.csv").write_text("mine")
    files = ("--model", root / "esm", "--fasta", root / "wt.fasta.gz", "--csv", tmp_path / "in.csv", "--use_cpu")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", die)
        main(*files, "--output", tmp_path / "out.csv", "--overwrite")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out.csv"]
    assert (tmp_path / "out.csv").read_text() == "mine"
    main(*files, "--output", tmp_path / "out.csv", "--overwrite")
    assert (tmp_path / "out.csv").read_text().startswith("mutant,score\nK2A,")


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ("mutant\nK2A\nA3G\n", (), "error: Row 2 ('A3G') says A at position 3, where the wild type has V"),
        ("mutant\nK2A\n", ("--offset", 2), "error: Row 1 ('K2A') says K at position 2"),
        ("mutation\nK2A\n", (), "has no column 'mutant' but mutation; choose with --mutant_column"),
        ("mutant,score\nK2A,1\n", (), "already has a column 'score'; choose another --score_column"),
        ("mutant\n", (), "has no rows"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(root, tmp_path, main, table, options, message):
    (tmp_path / "in.csv").write_text(table)
    with pytest.raises(SystemExit, match=re.escape(message)):
        main(
            *("--model", tmp_path / "none", "--fasta", root / "wt.fasta.gz", "--csv", tmp_path / "in.csv"),
            *("--output", tmp_path / "out.csv", *options),
        )
    assert not (tmp_path / "out.csv").exists()
