"""Datasets on the hub: the plan, the round trip through a stand-in of it, and that a token is written nowhere."""

import runpy
import sys
from pathlib import Path

import datasets
import pytest
from huggingface_hub import constants

from structure_aligned import load_prepared_dataset, plan_dataset_push, push_dataset_to_hub, write_synthetic_folds
from structure_aligned.data.sharding import prepare_dataset
from structure_aligned.models.pgnn import untrained_gearnet
from tests.hub.hub_server import HubServer


EXAMPLE = Path(__file__).parents[2] / "examples" / "push.py"
TOKEN = "hf_" + "Secret0Token9" * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished dataset of two splits."""
    root = tmp_path_factory.mktemp("prepared")
    write_synthetic_folds(root / "pdb", 6, seed=0, max_length=60)
    write_synthetic_folds(root / "more", 3, seed=1, max_length=60)
    structures = {"train": root / "pdb", "validation": root / "more"}
    prepare_dataset(structures, untrained_gearnet([8, 8]), root / "dataset", feature_cache=root / "cache")
    return root / "dataset"


@pytest.fixture
def hub(monkeypatch):
    with HubServer() as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # which asks servers of its own
        monkeypatch.setattr("structure_aligned.hub.push.get_token", lambda: None)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.endpoint)
        yield server


def test_the_plan_says_what_goes_without_the_network(folder, hub, capsys):
    plan = push_dataset_to_hub(folder, "owner/folds", dry_run=True, license="cc0-1.0")
    shown = capsys.readouterr().out
    assert hub.requests == []
    data = datasets.load_from_disk(folder)
    for split, rows in data.items():
        assert plan.splits[split]["chains"] == len(rows)
        assert plan.splits[split]["residues"] == sum(rows["length"])
        assert f"{split}: {len(rows)} chains, {sum(rows['length'])} residues" in shown
    assert plan.pgnns == [data["train"][0]["pgnn"]] and plan.pgnns[0] in shown
    assert str(folder.parent) not in plan.card  # nothing of this machine goes
    assert "license: cc0-1.0" in plan.card and f"| train | {len(data['train'])} |" in plan.card


@pytest.mark.parametrize("create_pr", [False, True])
def test_what_is_uploaded_loads_again(folder, hub, tmp_path, create_pr):
    push_dataset_to_hub(folder, "owner/folds", token=TOKEN, create_pr=create_pr)
    commits = [path for path, _, _ in hub.requests if "/commit/" in path]
    assert len(commits) == 2 and ("refs%2Fpr%2F1" in commits[1]) == create_pr
    for name, content in hub.files.items():
        (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clone" / name).write_bytes(content)
        assert TOKEN.encode() not in content
    sent = datasets.load_dataset(str(tmp_path / "clone"), cache_dir=str(tmp_path / "cache"))
    local = datasets.load_from_disk(folder)
    assert set(sent) == set(local)
    for split in local:
        assert sent[split].features == local[split].features
        assert sent[split].to_list() == local[split].to_list()
    assert "dataset_info" in hub.files["README.md"].decode() and "## Columns" in hub.files["README.md"].decode()


def test_a_card_that_is_there_stays(folder, hub):
    hub.repositories.add("owner/folds")
    hub.files["README.md"] = b"---\nlicense: mit\n---\n\n# My own words\n"
    push_dataset_to_hub(folder, "owner/folds", revision="v2")
    card = hub.files["README.md"].decode()
    assert "My own words" in card and "license: mit" in card and "dataset_info" in card and "## Columns" not in card
    assert hub.branches and set(hub.branches) == {"v2"}


@pytest.mark.parametrize(
    "refuse", ["/api/repos", "/api/datasets/owner/folds/preupload", "/api/datasets/owner/folds/c"]
)
def test_a_token_is_in_no_error(folder, hub, refuse):
    hub.refuse = refuse
    with pytest.raises(RuntimeError, match="was not uploaded to owner/folds") as caught:
        push_dataset_to_hub(folder, "owner/folds", token=TOKEN)
    assert TOKEN not in str(caught.value) and caught.value.__context__ is None


def test_other_folders_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        plan_dataset_push(tmp_path / "nothing", "owner/folds")
    with pytest.raises(ValueError, match="holds no dataset"):
        load_prepared_dataset(tmp_path)
    rows = datasets.Dataset.from_dict({"id": ["a"]})
    rows.save_to_disk(tmp_path / "one")
    with pytest.raises(ValueError, match="holds a Dataset"):
        load_prepared_dataset(tmp_path / "one")
    datasets.DatasetDict(train=rows).save_to_disk(tmp_path / "other")
    with pytest.raises(ValueError, match="Split train .* has no column .*sequence"):
        load_prepared_dataset(tmp_path / "other")
    earlier = datasets.load_from_disk(folder)
    earlier = datasets.DatasetDict({name: rows.remove_columns(["entry", "chain"]) for name, rows in earlier.items()})
    earlier.save_to_disk(tmp_path / "earlier")
    with pytest.raises(ValueError, match="has no column chain, entry; .*earlier version .*prepared again"):
        load_prepared_dataset(tmp_path / "earlier")
    with pytest.raises(ValueError, match="no/such/name"):
        plan_dataset_push(folder, "no/such/name")
    for missing in ("datasets/missing", tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match=f"no folder {missing}, .* examples/prepare.py wrote"):
            load_prepared_dataset(missing)


def test_the_example(folder, hub, monkeypatch, capsys):
    def start(*arguments):
        monkeypatch.setattr(sys, "argv", ["push.py", *map(str, arguments)])
        runpy.run_path(str(EXAMPLE), run_name="__main__")
        return capsys.readouterr().out

    assert "train: 6 chains" in start(folder, "owner/folds", "--dry_run") and hub.files == {}
    assert "Uploaded." in start(folder, "owner/folds", "--private", "--license", "cc0-1.0")
    assert {name.split("-")[0] for name in hub.files} == {"README.md", "data/train", "data/validation"}
    with pytest.raises(SystemExit, match="error: .*--base_model are for models"):
        start(folder, "owner/folds", "--base_model", "facebook/esm2_t6_8M_UR50D")
