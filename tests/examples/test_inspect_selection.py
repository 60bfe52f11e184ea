"""examples/inspect_selection.py as a user starts it."""

import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch

from structure_aligned import (
    AutoModelForStructureAlignment,
    StructureDatasetBuilder,
    esm2_tokenizer,
    fresh_trunk,
    untrained_gearnet,
    write_synthetic_folds,
)
from structure_aligned.utils.names import safe_file_name


ROOT = Path(__file__).parents[2]


def start(*arguments, check=True):
    command = [sys.executable, str(ROOT / "examples" / "inspect_selection.py"), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    if check and result.returncode != 0:
        pytest.fail(result.stderr[-3000:])
    return result


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A dataset of eight folds and two aligned models that know its pGNN."""
    root = tmp_path_factory.mktemp("inspect")
    write_synthetic_folds(root / "folds", 8, max_length=60)
    torch.manual_seed(0)
    builder = StructureDatasetBuilder(root / "folds", untrained_gearnet([16, 16]), root / "cache")
    builder.download_and_prepare()
    data = builder.as_dataset()
    datasets.DatasetDict(data).save_to_disk(root / "data")
    heads = {"structure_dim": data["train"][0]["structure_embedding_shape"][1], "pgnn": data["train"][0]["pgnn"]}
    for seed, name in enumerate(("model", "reference")):
        torch.manual_seed(seed)
        config, _ = fresh_trunk("esm", 2, 32, 4, structure_alignment=heads)
        AutoModelForStructureAlignment.from_config(config).save_pretrained(root / name)
        esm2_tokenizer().save_pretrained(root / name)
    return root


def test_report_with_a_reference_and_structures(root, tmp_path):
    output = start(
        *("--model", root / "model", "--dataset", root / "data", "--output", tmp_path, "--use_cpu"),
        *("--reference_model", root / "reference", "--reference_allow_seen", "--structures", root / "folds"),
        *("--chains", "syn00000_A", "syn00003_A", "--selection_ratio", 0.5, "--per_device_train_batch_size", 4),
    ).stdout
    assert "2 chains, largest 50% of each batch kept" in output and "| H | E | C | ρ with pLDDT |" in output
    for name in ("syn00000_A", "syn00003_A"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        lines = (tmp_path / f"{name}.tsv").read_text().splitlines()
        assert sum(line.split("\t")[3] == "H" for line in lines) > 10  # helix folds


@pytest.mark.slow
def test_report_by_the_models_own_loss(root, tmp_path):
    common = ("--model", root / "model", "--dataset", root / "data", "--output", tmp_path, "--use_cpu")
    output = start(*common, "--num_chains", 1).stdout
    assert "ranked by the model's own loss" in output and "| residues | all |" in output
    assert len(list(tmp_path.glob("*.png"))) == len(list(tmp_path.glob("*.tsv"))) == 1
    refused = start(*common, "--split", "test", check=False)
    assert refused.returncode != 0 and "has the splits train and no 'test'" in refused.stderr


def test_an_id_stays_inside_the_folder_and_is_no_formula(root, tmp_path):
    data = datasets.load_from_disk(root / "data")["train"]
    hostile = "../../x$\\frac$\t<b>"
    renamed = data.map(lambda row, index: {"id": hostile if index == 0 else row["id"]}, with_indices=True)
    datasets.DatasetDict(train=renamed.cast(data.features)).save_to_disk(tmp_path / "data")
    output = tmp_path / "a" / "b"
    start(
        *("--model", root / "model", "--dataset", tmp_path / "data", "--output", output, "--use_cpu"),
        *("--num_chains", 1, "--selection_ratio", 0.5),
    )
    name = safe_file_name(hostile)
    assert {path.name for path in output.iterdir()} == {f"{name}.png", f"{name}.tsv"}
    assert {path.name for path in tmp_path.iterdir()} == {"a", "data"}
    assert {path.name for path in output.parent.iterdir()} == {"b"}
