"""The example scripts as a user starts them."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, EsmForMaskedLM

from structure_aligned import (
    AmplifyForStructureAlignment,
    AmplifyModel,
    AutoModelForStructureAlignment,
    EsmForStructureAlignment,
    esm2_config,
    esm2_tokenizer,
)
from structure_aligned.hub.cards import check_card
from structure_aligned.models.pgnn import untrained_gearnet
from structure_aligned.structure.io import read_chains, write_mmcif
from structure_aligned.structure.synthetic import write_synthetic_folds


ROOT = Path(__file__).parents[2]
TINY = ("--num_hidden_layers", 2, "--hidden_size", 32, "--num_attention_heads", 4, "--use_cpu")


def start(script, *arguments, check=True):
    command = [sys.executable, str(ROOT / "examples" / script), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    if check and result.returncode != 0:
        pytest.fail(result.stderr[-3000:])
    return result


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two folders of folds, a saved GearNet, and the dataset that prepare.py makes of them."""
    root = tmp_path_factory.mktemp("examples")
    write_synthetic_folds(root / "train", 12, seed=0, max_length=60)
    write_synthetic_folds(root / "validation", 4, seed=1, max_length=60)
    (root / "train" / "broken.pdb").write_text("ATOM  nothing\n")
    untrained_gearnet([16, 16]).save_pretrained(root / "gearnet")
    output = start(
        "prepare.py",
        *("--structures", root / "train", "--validation_structures", root / "validation"),
        *("--pgnn", root / "gearnet", "--output", root / "dataset", "--cache_dir", root / "cache", "--num_proc", 2),
    ).stdout
    return root, output


def test_prepare_writes_the_dataset_and_says_what_it_left_out(prepared):
    root, output = prepared
    data = datasets.load_from_disk(root / "dataset")
    assert {split: len(rows) for split, rows in data.items()} == {"train": 12, "validation": 4}
    assert data["train"][0]["structure_embedding_shape"][1] == 16
    report = json.loads((root / "dataset" / "build_report.json").read_text())
    assert [Path(item["source"]).name for item in report["skipped"]] == ["broken.pdb"]
    assert "12 chains" in output and "left out, unreadable: 1" in output
    refused = start(
        "prepare.py",
        "--structures",
        root / "train",
        "--pgnn",
        root / "gearnet",
        "--output",
        root / "dataset",
        check=False,
    )
    assert refused.returncode != 0 and "is not empty" in refused.stderr


def test_prepare_splits_by_quality_date_and_clusters(prepared, tmp_path):
    root, _ = prepared
    folder = tmp_path / "files"
    folder.mkdir()
    paths = sorted((root / "train").glob("*.cif*"))
    for index, path in enumerate(paths):
        (chain,) = read_chains(path)
        quality = {"method": "X-RAY DIFFRACTION", "resolution": 1.5, "deposition_date": f"20{10 + index}-01-01"}
        quality["r_free"] = None if index == 0 else 0.2
        write_mmcif(replace(chain, predicted=False, **quality), folder / f"{chain.entry_id}.cif")
    ids = [read_chains(path)[0].id for path in paths]
    clusters = tmp_path / "all_cluster.tsv"
    # The last chain, of the test by its date, has a relative from before.
    clusters.write_text("".join(f"{name if name != ids[-1] else ids[0]}\t{name}\n" for name in ids))
    common = ("--structures", folder, "--pgnn", root / "gearnet", "--cache_dir", root / "cache")
    output = start(
        "prepare.py",
        *(*common, "--output", tmp_path / "dataset", "--clusters", clusters, "--max_b_factor", 50),
        *("--split_resolution", 2.0, "--split_r_free", 0.25, "--reference_fraction", 0.5),
        *("--split_date", "2018-01-01", "--validation_fraction", 0.2),
    ).stdout
    data = datasets.load_from_disk(tmp_path / "dataset")
    assert list(data) == ["reference", "train", "validation", "test"]
    assert data["test"]["id"][:] == ids[8:-1]
    assert ids[0] not in data["reference"]["id"] and sum(map(len, data.values())) == 11
    summary = json.loads((tmp_path / "dataset" / "splits.json").read_text())
    assert [item["source"] for item in summary["left_out"]] == [ids[-1]]
    assert "in no split, both sides of the date: 1" in output and "splits.json" in output
    assert (tmp_path / "dataset" / "build_report.json").exists()

    for options, message in (
        (("--clusters", clusters), "say also which splits to make"),
        (("--test_fraction", 0.1, "--validation_structures", folder), "Both --validation_structures and options"),
        (("--split_plddt", 0.9), "min_plddt is 0.9"),
    ):
        refused = start("prepare.py", *common, "--output", tmp_path / "refused", *options, check=False)
        assert refused.returncode != 0 and message in refused.stderr


def test_train_on_a_prepared_dataset_from_a_checkpoint(prepared, tmp_path):
    root, _ = prepared
    torch.manual_seed(0)
    EsmForMaskedLM(esm2_config(2, 32, 4)).save_pretrained(tmp_path / "esm")
    esm2_tokenizer().save_pretrained(tmp_path / "esm")
    output = start(
        "train.py",
        *("--dataset", root / "dataset", "--model_name_or_path", tmp_path / "esm", "--output_dir", tmp_path / "out"),
        *("--num_train_epochs", 2, "--use_cpu", "--learning_rate", 1e-3),
    ).stdout
    assert "| token_accuracy |" in output and "| retrieval_at_1 |" in output
    assert "| 3Di token accuracy (n = 4) |" in output and "4 of 4 validation chains" in output
    assert "contacts P@L" not in output and "No contacts: a prepared dataset has no coordinates." in output
    card = check_card(tmp_path / "out")
    assert "| token_accuracy |" in card.text and "by reason: unreadable: 1." in card.text
    aligned = EsmForStructureAlignment.from_pretrained(tmp_path / "out")
    assert aligned.config.structure_alignment["structure_dim"] == 16
    assert aligned.config.structure_alignment["pgnn"] == datasets.load_from_disk(root / "dataset")["train"][0]["pgnn"]
    model = AutoModel.from_pretrained(tmp_path / "out", add_pooling_layer=False)
    assert (
        model(**AutoTokenizer.from_pretrained(tmp_path / "out")("MKV", return_tensors="pt"))
        .last_hidden_state.isfinite()
        .all()
    )
    assert not torch.equal(
        aligned.esm.embeddings.word_embeddings.weight,
        EsmForMaskedLM.from_pretrained(tmp_path / "esm").esm.embeddings.word_embeddings.weight,
    )


def test_train_on_files_with_a_config_and_overrides(prepared, tmp_path):
    root, _ = prepared
    (tmp_path / "config.yaml").write_text("num_train_epochs: 5\npgnn: gearnet\npgnn_dim: 8\nlearning_rate: 1.0e-3\n")
    output = start(
        "train.py",
        *(tmp_path / "config.yaml", "--structures", root / "train", "--validation_fraction", 0.25, *TINY),
        *("--output_dir", tmp_path / "out", "--cache_dir", tmp_path / "cache", "--num_train_epochs", 1),
    ).stdout
    assert "| contacts P@L (n = 3) |" in output and "fitted anew to 9 training chains" in output
    state = json.loads(next((tmp_path / "out").glob("checkpoint-*/trainer_state.json")).read_text())
    assert state["epoch"] == 1.0
    assert EsmForStructureAlignment.from_pretrained(tmp_path / "out").config.structure_alignment["structure_dim"] == 8

    (tmp_path / "config.yaml").write_text("learning_rat: 1.0e-3\n")
    refused = start("train.py", tmp_path / "config.yaml", check=False)
    assert refused.returncode != 0 and "unknown options ['learning_rat']" in refused.stderr


def test_train_an_amplify_with_proteinmpnn(tmp_path):
    """The quickstart with other families on both sides, made smaller; the result knows its pGNN."""
    options = ("--num_synthetic", 12, "--num_train_epochs", 1, "--cache_dir", tmp_path / "cache")
    names = ("--model_type", "AMPLIFY", "--pgnn", "proteinmpnn", "--pgnn_dim", 16)
    output = start("train.py", *names, *options, *TINY, "--output_dir", tmp_path / "out").stdout
    assert "| token_accuracy |" in output and "AutoModel.from_pretrained loads it." in output
    # Of an untrained trunk: no attention map tells of contacts, and the table says so.
    (line,) = [line.split("|") for line in output.splitlines() if line.startswith("| contacts P@L (n = 8) |")]
    assert line[2].split()[0] == line[6].strip() and "Contacts before: no attention map tells of contacts" in output
    aligned = AutoModelForStructureAlignment.from_pretrained(tmp_path / "out")
    assert type(aligned) is AmplifyForStructureAlignment
    settings = aligned.config.structure_alignment
    assert settings["structure_dim"] == 16 and settings["pgnn"].startswith("ProteinMPNNEncoder:")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    trunk = AutoModel.from_pretrained(tmp_path / "out")
    assert type(trunk) is AmplifyModel and trunk(**tokenizer("MKV", return_tensors="pt")).logits.shape == (1, 5, 27)

    again = ("--model_name_or_path", tmp_path / "out", "--output_dir", tmp_path / "again", "--use_cpu")
    refused = start("train.py", *again, "--pgnn", "gearnet", "--pgnn_dim", 16, *options, check=False)
    assert refused.returncode != 0 and "ProteinMPNNEncoder" in refused.stderr and "GearNetModel" in refused.stderr


def test_train_without_a_validation_split_holds_some_chains_out(prepared, tmp_path):
    root, _ = prepared
    datasets.DatasetDict(train=datasets.load_from_disk(root / "dataset")["train"]).save_to_disk(tmp_path / "dataset")
    options = (*TINY, "--num_train_epochs", 1, "--validation_fraction", 0.25, "--output_dir", tmp_path / "out")
    output = start("train.py", "--dataset", tmp_path / "dataset", "--structures", root / "train", *options).stdout
    assert "No validation split: 25% of the chains" in output and "| token_accuracy |" in output
    # The dataset's coordinates are in the files it was made of.
    assert "| contacts P@L (n = 3) |" in output


def test_best_checkpoint_is_what_is_saved(prepared, tmp_path):
    """A rate that ruins the model: the best epoch is not the last, and its LayerNorms come back too."""
    root, _ = prepared
    output = start(
        "train.py",
        *("--dataset", root / "dataset", *TINY, "--output_dir", tmp_path, "--num_train_epochs", 4),
        *("--structures", root / "train", "--validation_structures", root / "validation"),
        *("--learning_rate", 0.5, "--lr_scheduler_type", "constant_with_warmup", "--warmup_steps", 2),
        *("--save_total_limit", 10, "--optim", "sgd", "--max_grad_norm", 0, "--closing_contacts", "false"),
    ).stdout
    assert "| 3Di token accuracy (n = 4) |" in output and "ontacts" not in output
    states = {path.parent: json.loads(path.read_text()) for path in tmp_path.glob("checkpoint-*/trainer_state.json")}
    last = max(states, key=lambda path: states[path]["global_step"])
    best = Path(states[last]["best_model_checkpoint"])
    assert len(states) == 4
    saved, expected = (EsmForStructureAlignment.from_pretrained(path).state_dict() for path in (tmp_path, best))
    assert all(torch.equal(saved[name], expected[name]) for name in expected)
