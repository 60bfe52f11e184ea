"""examples/embed.py as a user starts it: killed, resumed, from standard input, by two processes."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from structure_aligned.inference.embedding_files import read_embeddings
from structure_aligned.inference.embeddings import embed_sequences
from tests import tiny


ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "embed.py"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def main():
    """The script's own, without the seconds that a process takes to begin."""
    spec = importlib.util.spec_from_file_location("embed_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda *arguments: module.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("embedding")
    for name, family in tiny.FAMILIES.items():
        family.model().save_pretrained(root / name)
        family.tokenizer().save_pretrained(root / name)
    rng = np.random.default_rng(0)
    records = [(f"id{n}", "".join(rng.choice(list(tiny.AMINO_ACIDS), rng.integers(5, 60)))) for n in range(150)]
    (root / "in.fasta").write_text("".join(f">{name} x\n{sequence}\n" for name, sequence in records))
    return root


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_embeddings_of_a_fasta_file(root, tmp_path, main, capsys, name):
    arguments = ("--model", root / name, "--fasta", root / "in.fasta", "--output", tmp_path / "out", "--device", "cpu")
    main(*arguments, "--pooling", "both", "--layer", 1)
    printed = capsys.readouterr().out
    sequences = (root / "in.fasta").read_text().split("\n")[1::2]
    count = sum(map(len, sequences))
    assert f"150 sequences, {count:,} residues, 1 files\nembedded now: {count:,} residues in " in printed
    assert re.search(r" s, [\d,]+ residues/s\n", printed)
    expected = embed_sequences(tiny.FAMILIES[name].model(), sequences, pooling="both", layer=1, progress=False)
    for number, (found, wanted) in enumerate(zip(read_embeddings(tmp_path / "out"), expected)):
        assert found[0] == f"id{number}"
        np.testing.assert_allclose(found[1].residues, wanted.residues, atol=1e-5)
        np.testing.assert_allclose(found[1].mean, wanted.mean, atol=1e-5)
    main(*arguments, "--pooling", "both", "--layer", 1)
    assert "finished before; nothing to do" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="error: .* of another job: pooling 'both', now 'mean'; layer 1, now -1"):
        main(*arguments)
    with pytest.raises(SystemExit, match="computed_in 'float32', now 'bfloat16'"):
        main(*arguments, "--pooling", "both", "--layer", 1, "--compute_dtype", "bfloat16")


def test_killed_and_started_again_from_standard_input(root, tmp_path, main, capsys):
    options = ("--model", root / "esm", "--device", "cpu", "--pooling", "residue", "--shard_residues", 100)
    main(*options, "--fasta", root / "in.fasta", "--output", tmp_path / "whole")
    output = tmp_path / "killed"
    command = [sys.executable, str(SCRIPT), *map(str, options), "--fasta", "-", "--output", str(output)]
    with open(root / "in.fasta", "rb") as file:
        process = subprocess.Popen(command, stdin=file, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not list(output.glob("*-00001-of-*.parquet")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    written, files = len(list(output.glob("*.parquet"))), len(list((tmp_path / "whole").glob("*.parquet")))
    assert 2 <= written < files
    capsys.readouterr()
    main(*options, "--fasta", root / "in.fasta", "--output", output)
    assert contents(output) == contents(tmp_path / "whole")
    count = sum(map(len, (root / "in.fasta").read_text().split("\n")[1::2]))
    embedded = int(re.search(r"embedded now: ([\d,]+)", capsys.readouterr().out)[1].replace(",", ""))
    assert 0 < embedded < count


@pytest.mark.slow
def test_two_processes_equal_one(root, tmp_path, main):
    options = ("--model", root / "AMPLIFY", "--device", "cpu", "--format", "safetensors", "--shard_residues", 100)
    options += ("--fasta", root / "in.fasta")
    main(*options, "--output", tmp_path / "one")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    launch += [str(ROOT / "examples" / "accelerate" / "ddp_cpu.yaml"), str(SCRIPT)]
    result = subprocess.run(
        [*launch, *map(str, options), "--output", str(tmp_path / "two")],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("150 sequences") == 1
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_errors_are_one_line(root, tmp_path, main):
    (tmp_path / "bad.fasta").write_text(">a\nMK\n>b\n\n>c\nMK\n")
    arguments = ("--model", root / "esm", "--output", tmp_path / "out", "--device", "cpu", "--fasta")
    with pytest.raises(SystemExit, match=r"error: Record 2 \(b\) of .*bad.fasta is empty"):
        main(*arguments, tmp_path / "bad.fasta")
    with pytest.raises(SystemExit, match="error: .*none does not exist"):
        main(*arguments, tmp_path / "none")
