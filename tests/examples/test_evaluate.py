"""examples/evaluate.py as a user starts it."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from structure_aligned.structure.synthetic import write_synthetic_folds
from tests import tiny
from tests.evaluation.report_data import Page


SCRIPT = Path(__file__).parents[2] / "examples" / "evaluate.py"


@pytest.fixture(scope="module")
def main():
    """The script's own, without the seconds that a process takes to begin."""
    spec = importlib.util.spec_from_file_location("evaluate_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda *arguments: module.main([str(argument) for argument in arguments])


def trained_on_one_letter():
    """Expects leucine everywhere, which the sequences below are rich in and their mutants to it are fit."""
    model = tiny.esm_model()
    leucine = tiny.FAMILIES["esm"].tokenizer().convert_tokens_to_ids("L")
    with torch.no_grad():
        model.lm_head.bias[leucine] += 3
    return model


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluate")
    write_synthetic_folds(root / "test", 3, seed=0, min_length=40, max_length=50)
    write_synthetic_folds(root / "train", 5, seed=1, min_length=40, max_length=50)
    trained_on_one_letter().save_pretrained(root / "good")
    shuffled = trained_on_one_letter()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in shuffled.parameters():
            flat = parameter.flatten()
            parameter.copy_(flat[torch.randperm(len(flat), generator=generator)].view_as(parameter))
    shuffled.save_pretrained(root / "shuffled")
    rng = np.random.default_rng(0)
    (root / "dms").mkdir()
    for number in range(8):
        wild_type = "".join(rng.choice(list("AGSTV"), 20))
        rows = [
            f"{letter}{index}{other},{float(other == 'L') + 0.1 * rng.normal():.3f}"
            for index, letter in enumerate(wild_type, 1)
            for other in "LKDE"
        ]
        (root / "dms" / f"assay{number}.csv").write_text("mutant,DMS_score\n" + "\n".join(rows))
        (root / "dms" / f"assay{number}.fasta").write_text(f">a\n{wild_type}\n")
    rich = ("".join(rng.choice(list("LLLAGSTV"), 40)) for _ in range(12))
    (root / "natural.fasta").write_text("".join(f">n{index}\n{one}\n" for index, one in enumerate(rich)))
    return root


def test_shuffled_weights_lose(root, tmp_path, main, capsys):
    arguments = (
        *("--models", f"good={root / 'good'}", f"shuffled={root / 'shuffled'}", "--structures", root / "test"),
        *("--train_structures", root / "train", "--dms", root / "dms", "--sequences", root / "natural.fasta"),
        *(
            "--output",
            tmp_path / "out",
            "--tasks",
            "contacts",
            "fitness",
            "perplexity",
            "--num_examples",
            1,
            "--use_cpu",
        ),
    )
    main(*arguments)
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text(), parse_constant=pytest.fail)
    rows = {(row["task"], row["table"]): row for row in report["summary"]}
    for key in (("fitness", "fitness"), ("perplexity", "natural, one-by-one")):
        assert rows[key]["verdict"] == "worse" and rows[key]["holm"] < 0.05, key
    assert re.search(r"Effects of mutations, Spearman +shuffled .* worse", printed)
    assert str(tmp_path / "out" / "report.html") in printed
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert page.problems == [] and "▼ worse" in page.text
    assert str(SCRIPT) in page.text and "--train_structures" in page.text
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "results").iterdir()}
    assert len(before) == 6
    main(*arguments)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "results").iterdir()} == before
    assert json.loads((tmp_path / "out" / "report.json").read_text())["run"]["computed"] == []


@pytest.mark.parametrize(
    ("models", "more", "message"),
    [
        (["good"], (), "error: --models has 'good'; expected NAME=PATH"),
        (["a=x", "a=y"], (), "has the name 'a' twice; number seeds of one model: a#1, a#2"),
        (["a=x"], ("--dms", "nowhere"), "error: nowhere holds no assay"),
        (["a=x"], ("--structures", "nowhere"), "error: nowhere is neither a file nor a folder"),
        (["a=x"], (), "None of the tasks can be run: contacts needs --structures and --train_structures"),
        (["a=x"], ("--max_proteins", "0"), "max_proteins is 0; expected at least 1"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(tmp_path, main, models, more, message):
    with pytest.raises(SystemExit, match=re.escape(message)):
        main("--models", *models, "--output", tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_not_there(root, tmp_path, main):
    models = (f"good={root / 'good'}", f"gone={tmp_path / 'gone'}")
    arguments = ("--dms", root / "dms", "--fitness_tokens", 800, "--output", tmp_path / "out", "--use_cpu")
    with pytest.raises(SystemExit, match="error: .*gone"):
        main("--models", *models, "--tasks", "fitness", *arguments)
    assert len(list((tmp_path / "out" / "results").iterdir())) == 1  # the first model's is not lost
