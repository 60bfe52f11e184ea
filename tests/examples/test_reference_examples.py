"""A reference model from quality splits to residue selection, as a user starts the scripts."""

import importlib
import os
import sys
from dataclasses import replace

import datasets
import pytest
import torch
import yaml

from structure_aligned import (
    AutoModelForStructureAlignment,
    chain_keys,
    load_adapters,
    write_synthetic_folds,
)
from structure_aligned.data.seen import RECORD_NAME, read_training_chains, training_chains_of
from structure_aligned.models.pgnn import untrained_gearnet
from structure_aligned.structure.io import read_chains, write_mmcif

from .test_examples import ROOT, TINY, start


EXAMPLES = ROOT / "examples"
ROWS = sorted((EXAMPLES / "configs" / "ablation").glob("*.yaml"))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A dataset with the splits of prepare.py and a reference model trained on its good chains."""
    root = tmp_path_factory.mktemp("reference")
    write_synthetic_folds(root / "folds", 18, seed=0, max_length=50)
    (root / "files").mkdir()
    for index, path in enumerate(sorted((root / "folds").iterdir())):
        (chain,) = read_chains(path)
        quality = {"method": "X-RAY DIFFRACTION", "resolution": 1.5 if index < 8 else 2.5, "r_free": 0.19}
        write_mmcif(replace(chain, predicted=False, **quality), root / "files" / f"{chain.entry_id}.cif")
    untrained_gearnet([16]).save_pretrained(root / "gearnet")
    start(
        "prepare.py",
        *("--structures", root / "files", "--pgnn", root / "gearnet", "--output", root / "dataset"),
        *("--cache_dir", root / "cache", "--split_resolution", 1.7, "--split_r_free", 0.2),
        *("--validation_fraction", 0.2),
    )
    output = start(
        "train_reference.py",
        *("--dataset", root / "dataset", *TINY, "--output_dir", root / "reference", "--num_train_epochs", 2),
    ).stdout
    return root, output


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a script in this process, in a tenth of the time of a new one; returns what it prints."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, arguments)])
        capsys.readouterr()
        importlib.import_module(script).main()
        return capsys.readouterr().out

    return run


def kept_fraction(folder):
    """What the log of a run says of selection."""
    state = yaml.safe_load(next(folder.glob("checkpoint-*/trainer_state.json")).read_text())
    return [logs["selection/token_kept"] for logs in state["log_history"] if "selection/token_kept" in logs]


ONE_EPOCH = ("--num_train_epochs", 1, "--logging_steps", 1, *TINY)


def test_a_reference_model_says_what_it_was_trained_on(reference):
    root, output = reference
    data = datasets.load_from_disk(root / "dataset")
    assert set(data) == {"reference", "train", "validation"} and max(data["reference"]["resolution"]) == 1.5
    expected = chain_keys(data["reference"])
    folders = [root / "reference", *(root / "reference").glob("checkpoint-*")]
    assert len(folders) > 1
    for folder in folders:
        assert read_training_chains(folder) == expected
    assert f"trained on the {len(expected)} chains" in output and "| token_accuracy |" in output
    model = AutoModelForStructureAlignment.from_pretrained(root / "reference")
    assert training_chains_of(model) == expected
    assert model.config.structure_alignment["pgnn"] == data["train"][0]["pgnn"]


def test_train_with_precomputed_losses(reference, tmp_path, call):
    root, _ = reference
    common = ("--dataset", root / "dataset", "--reference_model", root / "reference", *ONE_EPOCH)
    output = call("train", *common, "--cache_dir", tmp_path / "cache", "--output_dir", tmp_path / "out")
    assert "train: 0 of" in output and "validation: 0 of" in output and "| token_accuracy |" in output
    assert kept_fraction(tmp_path / "out") and all(0.7 < kept < 0.8 for kept in kept_fraction(tmp_path / "out"))
    train = datasets.load_from_disk(root / "dataset")["train"]
    records = list((tmp_path / "cache" / "reference_losses").glob("*/*/*.safetensors"))
    assert len(records) == len(train)


@pytest.mark.parametrize("options", [("--reference_mode", "online"), ("--selection_keep", "smallest")])
def test_train_with_other_selections(reference, tmp_path, call, options):
    root, _ = reference
    common = ("--dataset", root / "dataset", "--reference_model", root / "reference", *ONE_EPOCH)
    call("train", *common, *options, "--output_dir", tmp_path / "out", "--cache_dir", tmp_path / "cache")
    assert kept_fraction(tmp_path / "out")
    assert (tmp_path / "cache").exists() == (options[1] != "online")


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_every_row_of_the_ablations_trains(reference, tmp_path, call, path):
    root, _ = reference
    inputs = ("--dataset", root / "dataset", "--reference_model", root / "reference")
    options = yaml.safe_load(path.read_text())
    if options.get("use_lora"):
        inputs += ("--model_name_or_path", root / "reference")
    call("train", path, *inputs, *ONE_EPOCH, "--output_dir", tmp_path, "--cache_dir", tmp_path.parent / "losses")
    if options.get("use_lora"):
        model = load_adapters(root / "reference", tmp_path)
    else:
        model = AutoModelForStructureAlignment.from_pretrained(tmp_path)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    selects = options.get("selection_ratio") != 1.0 and path.stem != "mlm_only"
    assert bool(kept_fraction(tmp_path)) == selects


def test_the_rows_differ_in_one_thing_each():
    rows = {path.stem: yaml.safe_load(path.read_text()) for path in ROWS}
    assert {"full", "online", "no_selection", "own_loss", "keep_smallest", "mlm_only"} < set(rows)
    for name, options in rows.items():
        assert options.pop("output_dir") == f"outputs/ablation/{name}"
        assert (EXAMPLES / "configs" / "ablation" / f"{name}.yaml").read_text().startswith('# Row "')
    assert len({tuple(sorted(options.items())) for options in rows.values()}) == len(rows)


def test_what_the_reference_has_seen_is_left_out(reference, tmp_path, call):
    root, _ = reference
    data = datasets.load_from_disk(root / "dataset")
    both = datasets.concatenate_datasets([data["reference"], data["train"]])
    datasets.DatasetDict(train=both, validation=data["validation"]).save_to_disk(tmp_path / "both")
    # One more of train and one of validation are relatives of reference chains.
    relatives = [data[split][0]["id"] for split in ("train", "validation")]
    name = data["reference"][0]["id"]
    (tmp_path / "clusters.tsv").write_text("".join(f"{name}\t{one}\n" for one in (name, *relatives)))
    common = ("--reference_model", root / "reference", *ONE_EPOCH, "--cache_dir", tmp_path / "losses")
    common += ("--reference_clusters", tmp_path / "clusters.tsv", "--output_dir", tmp_path / "out")
    output = call("train", "--dataset", tmp_path / "both", *common)
    assert f"train: {len(data['reference']) + 1} of {len(both)} chains left out" in output
    assert f"validation: 1 of {len(data['validation'])} chains left out" in output

    common += ("--overwrite_output_dir",)
    datasets.DatasetDict(train=data["reference"], validation=data["validation"]).save_to_disk(tmp_path / "seen")
    with pytest.raises(ValueError, match=r"has seen all \d+ chains of 'train'.*--reference_allow_seen"):
        call("train", "--dataset", tmp_path / "seen", *common)
    output = call("train", "--dataset", tmp_path / "seen", *common, "--reference_allow_seen")
    assert "left out" not in output and "| token_accuracy |" in output


@pytest.mark.parametrize("mode", ["precomputed", "online"])
def test_a_reference_of_unknown_provenance_is_refused(reference, tmp_path, call, mode):
    root, _ = reference
    model = AutoModelForStructureAlignment.from_pretrained(root / "reference")
    model.save_pretrained(tmp_path / "model")
    common = ("--dataset", root / "dataset", "--reference_model", tmp_path / "model", "--reference_mode", mode)
    with pytest.raises(ValueError, match=f"has no {RECORD_NAME}.*train_reference.py.*--reference_allow_seen"):
        call("train", *common, *ONE_EPOCH, "--output_dir", tmp_path / "out")


def test_a_reference_from_files_holds_groups_out(reference, tmp_path, call):
    root, _ = reference
    folder = tmp_path / "files"
    folder.mkdir()
    for path in sorted((root / "files").iterdir())[:6]:
        (chain,) = read_chains(path)
        write_mmcif(chain, folder / path.name)
        write_mmcif(replace(chain, entry_id=f"{chain.entry_id}copy"), folder / f"{path.stem}copy.cif")
    options = ("--structures", folder, "--pgnn", root / "gearnet", "--cache_dir", tmp_path / "cache")
    options += ("--validation_fraction", 0.4, *ONE_EPOCH, "--output_dir", tmp_path / "out")
    output = call("train_reference", *options)
    assert "40% of the groups" in output
    chains = read_training_chains(tmp_path / "out")
    entries = {one.entry for one in chains}
    assert len(chains) == 8 and len({one.sequence for one in chains}) == 4
    assert all(f"{entry}copy" in entries for entry in entries if not entry.endswith("copy"))


def test_what_cannot_be_a_reference_run_is_refused(reference, tmp_path, call):
    root, _ = reference
    data = ("--dataset", root / "dataset", "--output_dir", tmp_path / "out", *TINY)
    datasets.DatasetDict(train=datasets.load_from_disk(root / "dataset")["train"]).save_to_disk(tmp_path / "plain")
    for script, options, message in (
        ("train_reference", (*data, "--selection_ratio", 0.8), "selection_ratio is 0.8 and reference_mode 'auto'"),
        ("train_reference", (*data, "--reference_mode", "online"), "and reference_mode 'online'"),
        ("train_reference", data[2:], "--dataset is None and --structures None; give one"),
        ("train_reference", (*data, "--dataset", tmp_path / "plain"), "has the splits train and no 'reference'"),
        ("train_reference", (*data, "--model_name_or_path", root / "reference"), "has been aligned before"),
        ("train", (*data, "--reference_mode", "online"), "--reference_mode online came without a --reference_model"),
        ("train", (*data, "--reference_mode", "precomputed"), "no reference_losses"),
        ("train", (*data, "--reference_clusters", "c.tsv"), "--reference_clusters came without a --reference_model"),
    ):
        with pytest.raises(ValueError, match=message):
            call(script, *options)


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("train", ("--dataset", "nowhere", "--use_cpu")),
        ("train_reference", ("--dataset", "nowhere", "--use_cpu")),
        ("pretrain_mlm", ("--sequences", "nowhere", "--use_cpu")),
        ("pretrain_gearnet", ("--structures", "nowhere", "--validation_structures", "nowhere")),
    ],
)
def test_no_training_replaces_an_earlier_result(tmp_path, call, script, options):
    """Refused before there is any data."""
    (tmp_path / "model.safetensors").write_bytes(b"dear to somebody")
    with pytest.raises(ValueError, match="already holds the result of a training .*add --overwrite_output_dir"):
        call(script, *options, "--output_dir", tmp_path)
    with pytest.raises(ValueError, match="finished model .* but no checkpoint to resume from"):
        call(script, *options, "--output_dir", tmp_path, "--resume_from_checkpoint", "true")
    with pytest.raises((ValueError, OSError), match="nowhere"):
        call(script, *options, "--output_dir", tmp_path, "--overwrite_output_dir")
    assert (tmp_path / "model.safetensors").read_bytes() == b"dear to somebody"  # removed only when all is ready


def test_a_training_is_resumed_or_overwritten_as_is_said(reference, tmp_path, call, caplog):
    root, _ = reference
    common = ("--dataset", root / "dataset", *ONE_EPOCH, "--output_dir", tmp_path / "out")
    call("train", *common, "--resume_from_checkpoint", "true")  # nothing there: killed before its first checkpoint
    assert "the training starts from the beginning" in caplog.text
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")
    first = (tmp_path / "out" / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="already holds the result of a training"):
        call("train", *common)
    call("train", *common, "--resume_from_checkpoint", "true")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == first
    short = ("--seed", 7, "--save_strategy", "no", "--eval_strategy", "no", "--load_best_model_at_end", "false")
    call("train", *common, *short, "--overwrite_output_dir")
    assert not checkpoint.exists() and (tmp_path / "out" / "model.safetensors").read_bytes() != first


def test_without_options_it_is_the_quickstart(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    train = importlib.import_module("train")
    model_args, data_args, training_args = train.parse_arguments([])
    options = yaml.safe_load((EXAMPLES / "configs" / "quickstart.yaml").read_text())
    known = vars(model_args) | vars(data_args) | vars(training_args)
    assert {name: known[name] for name in options} == options
    assert data_args.reference_model is None and training_args.reference_mode == "auto"
    assert model_args.model_name_or_path is data_args.structures is data_args.dataset is None


def test_runs_with_and_without_a_reference_start_from_the_same_weights(reference, tmp_path, call, monkeypatch):
    root, _ = reference
    started = []
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(
        importlib.import_module("common"), "run", lambda trainer, _: started.append(trainer.model.state_dict())
    )
    common = ("--dataset", root / "dataset", *ONE_EPOCH, "--output_dir", tmp_path / "out")
    with_reference = (*common, "--reference_model", root / "reference", "--cache_dir", tmp_path / "losses")
    call("train", *common)
    for mode in ("precomputed", "online", "none"):
        call("train", *with_reference, "--reference_mode", mode)
    first, *others = started
    assert all(torch.equal(other[name], first[name]) for other in others for name in first)
