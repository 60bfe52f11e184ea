"""The README as a reader takes it: every block runs, every script is there, every explained error is raised."""

import gzip
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import EsmForMaskedLM

from structure_aligned import (
    AmplifyForMaskedLM,
    amplify_tokenizer,
    esm2_config,
    esm2_tokenizer,
    fresh_trunk,
    synthetic_chains,
    write_mmcif,
)
from structure_aligned.models.pgnn import untrained_gearnet


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)

# What makes a command a matter of seconds. Everything else is run as it stands.
SHORT = ("--use_cpu", "--max_steps", "2", "--eval_strategy", "no", "--save_strategy", "no")
SHORT += ("--load_best_model_at_end", "false", "--max_length", "128", "--logging_steps", "1")
FRESH = ("--num_synthetic", "12", "--num_hidden_layers", "1", "--hidden_size", "32", "--num_attention_heads", "4")
ADDED = {
    "train.py": SHORT,
    "train_reference.py": SHORT,
    "prepare.py": ("--cache_dir", "cache"),
    "evaluate.py": ("--tasks", "contacts", "tokens", "--max_proteins", "3"),
    "embed.py": (),
    "export.py": (),
    "fetch_structures.py": (),
    "push.py": (),
    "pretrain_gearnet.py": ("--epochs", "1", "--hidden_dims", "16"),
    "pretrain_mlm.py": ("--use_cpu", "--max_steps", "2", "--num_hidden_layers", "1", "--validation_fraction", "0.3"),
    "score_mutations.py": (),
}


def test_the_first_two_blocks_are_one_line_of_bash_each():
    for language, text in BLOCKS[:2]:
        assert language == "bash"
        assert len(text.splitlines()) == 1
        assert text.startswith("python3 -m venv .venv && ")


def test_every_script_and_file_that_is_named_exists():
    named = set(re.findall(r"(?:examples|benchmarks|docs|model_cards)/[\w./-]*\w", README))
    assert len(named) > 15
    assert not [path for path in sorted(named) if not (ROOT / path).exists()]


def test_every_error_that_is_explained_is_really_raised():
    source = "".join(path.read_text() for path in sorted((ROOT / "structure_aligned").rglob("*.py")))
    # Messages are written as literals of several lines.
    source = re.sub(r'"\s*\n\s*f?"', "", source)
    table = README[README.index("## When something goes wrong") :].split("\n## ")[0]
    rows = re.findall(r"^\| `(.+?)` \|", table, re.MULTILINE)
    assert len(rows) >= 8
    for row in rows:
        parts = [part.strip() for part in re.split(r"…|\b[NM]\b", row)]
        missing = [part for part in parts if len(part) > 8 and part not in source]
        assert not missing, (row, missing)


def write_inputs(folder):
    """The files that the README speaks of, small; models of the hub as folders of their names."""
    folder.mkdir()
    (folder / "examples").symlink_to(ROOT / "examples")
    chains = list(synthetic_chains(14, seed=0, max_length=60))
    for name, some in (("pdb_files", chains[:11]), ("test_files", chains[11:])):
        (folder / name).mkdir()
        for index, chain in enumerate(some):
            quality = {"method": "X-RAY DIFFRACTION", "resolution": 1.5 if index < 5 else 2.5, "r_free": 0.19}
            quality["predicted"] = False
            write_mmcif(replace(chain, **quality), folder / name / f"{chain.entry_id}.cif.gz")
    single = replace(chains[0], entry_id="1abc")
    write_mmcif(single, folder / "1abc.cif.gz")
    # Sound files of the wanted entries are kept, and nothing is asked of a server.
    write_mmcif(single, folder / "pdb_files" / "1abc.cif.gz")
    (folder / "ids.txt").write_text("1abc\n")
    members = [(chain.id, chain.id) for chain in chains[:11]] + [(chains[0].id, single.id)]
    (folder / "pdb_cluster.tsv").write_text("".join(f"{first}\t{member}\n" for first, member in members))
    torch.save(dict(untrained_gearnet([16, 16]).state_dict()), folder / "mc_gearnet_edge.pth")
    for name in ("esm2_t6_8M_UR50D", "esm2_t12_35M_UR50D", "esm2_t33_650M_UR50D"):
        EsmForMaskedLM(esm2_config(1, 32, 4)).save_pretrained(folder / "facebook" / name)
        esm2_tokenizer().save_pretrained(folder / "facebook" / name)
    amplify = folder / "chandar-lab" / "AMPLIFY_120M"
    AmplifyForMaskedLM(fresh_trunk("AMPLIFY", 1, 32, 4)[0]).save_pretrained(amplify)
    amplify_tokenizer().save_pretrained(amplify)
    sequence = chains[0].sequence
    (folder / "wild_type.fasta").write_text(f">wild type\n{sequence}\n")
    (folder / "mutants.csv").write_text(f"mutant,note\n{sequence[3]}4A,one\n{sequence[3]}4G:{sequence[5]}6V,two\n")
    with gzip.open(folder / "proteins.fasta.gz", "wt") as file:
        file.writelines(f">{chain.id}\n{chain.sequence}\n" for chain in chains)


def command_of(line):
    """A line of the README, in this environment, in one process, and short."""
    words = shlex.split(line)
    if words[0] == ".venv/bin/accelerate":
        assert words[1:3] == ["launch", "--config_file"] and (ROOT / words[3]).exists(), line
        words = words[4:]
    else:
        assert words[0] == ".venv/bin/python", line
        words = words[1:]
    script = Path(words[0]).name
    added = ADDED[script] if "--cache_dir" not in words else ()
    if script == "train.py" and "--dataset" not in words:
        added += FRESH
    if "--validation_fraction" in words:
        added += ("--validation_fraction", "0.3")  # of a dozen chains
    return [sys.executable, *words, *added]


def run(folder, command):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    if result.returncode != 0:
        pytest.fail(f"{' '.join(map(str, command))}\n{result.stdout[-1000:]}\n{result.stderr[-3000:]}")
    return result


@pytest.mark.slow
def test_all_blocks_run_in_their_order(tmp_path):
    folder = tmp_path / "reader"
    write_inputs(folder)
    python, ran = "", 0
    for language, text in BLOCKS[2:]:
        assert language in ("bash", "python")
        if language == "python":
            # One session: later blocks may use what earlier ones have made.
            python += f"{text}\n"
            (folder / "session.py").write_text(f"import warnings\n{python}")
            continue
        for line in text.splitlines():
            run(folder, command_of(line))
            ran += 1
    assert ran > 12
    run(folder, [sys.executable, "session.py"])
    for path in ("evaluation/report.html", "exported/saesm2_35m/model.safetensors", "scored.csv", "embeddings"):
        assert (folder / path).exists(), path
