"""Uploads: the plan, what stays, what is refused, and that a token is written nowhere."""

import json
import logging
import runpy
import socket
import sys
import traceback
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModelForMaskedLM, AutoTokenizer

from structure_aligned.hub.cards import write_model_card
from structure_aligned.hub.push import plan_push, push_to_hub
from tests import tiny
from tests.hub.hub_server import HubServer


EXAMPLE = Path(__file__).parents[2] / "examples" / "push.py"
TOKEN = "hf_" + "Secret0Token9" * 3
JUNK = {
    "checkpoint-10/model.safetensors": "a checkpoint",
    "checkpoint-10/README.md": "a checkpoint",
    "last/checkpoint-3/config.json": "a checkpoint",
    "optimizer.pt": "state of the training",
    "rng_state_0.pth": "state of the training",
    "trainer_state.json": "state of the training",
    "model.safetensors.tmp": "temporary",
    "tmp1234": "temporary",
    ".cache/x.json": "hidden",
    "training_args.bin": "a pickle",
    "pytorch_model.bin": "a pickle",
    "synthetic_folds/train/a.cif": "no part of a model",
    "runs/events.out": "no part of a model",
    "train_results.txt": "no part of a model",
    "all_results.json": "results that the card does not name",
    "results/of_an_earlier_training.json": "results that the card does not name",
}


@pytest.fixture
def folder(tmp_path):
    """A saved model with its card, in the midst of what a training leaves behind."""
    path = tmp_path / "aligned"
    torch.manual_seed(0)
    tiny.esm_model().save_pretrained(path)
    tiny.FAMILIES["esm"].tokenizer().save_pretrained(path)
    (path / "eval_results.json").write_text(json.dumps({"eval_loss": 3.25}))
    write_model_card(path, results=["eval_results.json"])
    for name in JUNK:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("{}")
    return path


@pytest.fixture
def online(monkeypatch):
    """Requests to this machine are let through, and no token but the given one is known."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("structure_aligned.hub.push.get_token", lambda: None)


def model_files(folder):
    return {path.name for path in folder.iterdir() if path.is_file()} - set(JUNK)


def test_the_plan_names_what_goes_and_why_others_stay(folder, monkeypatch, capsys):
    def no_network(*arguments, **options):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    plan = push_to_hub(folder, "owner/name", dry_run=True, token=TOKEN, private=True)
    assert set(plan.files) == model_files(folder) and "model.safetensors" in plan.files
    assert plan.files["config.json"] == (folder / "config.json").stat().st_size
    for name, reason in JUNK.items():
        assert plan.left_out[name].startswith(reason), name
    shown = capsys.readouterr().out
    assert "owner/name" in shown and "private" in shown and "README.md" in shown and TOKEN not in shown + repr(plan)
    assert "stays, a pickle" in shown and "synthetic_folds/train/a.cif" in shown
    assert "runs/events.out" in plan_push(folder, "owner/name", include=["runs/*", "*.pt"]).files
    assert "optimizer.pt" not in plan_push(folder, "owner/name", include=["*.pt"]).files


def test_what_is_uploaded_loads_again(folder, online, tmp_path):
    with HubServer() as hub:
        plan = push_to_hub(folder, "owner/name", token=TOKEN, private=True, endpoint=hub.endpoint)
    assert set(hub.files) == set(plan.files)
    created = json.loads(next(body for path, body, _ in hub.requests if path == "/api/repos/create"))
    assert (created["organization"], created["name"], created["visibility"]) == ("owner", "name", "private")
    assert all(authorization == f"Bearer {TOKEN}" for _, _, authorization in hub.requests)
    got = tmp_path / "got"
    got.mkdir()
    for name, content in hub.files.items():
        (got / name).write_bytes(content)
        if name != "README.md":
            assert content == (folder / name).read_bytes()
    # The code in the card loads it from where it is now.
    text = hub.files["README.md"].decode()
    assert 'from_pretrained("owner/name")' in text and '"aligned"' not in text.split("```")[1]
    assert text.replace('("owner/name"', '("aligned"') == (folder / "README.md").read_text()
    model = AutoModelForMaskedLM.from_pretrained(got)
    expected = AutoModelForMaskedLM.from_pretrained(folder).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert len(AutoTokenizer.from_pretrained(got)) == 33


@pytest.mark.parametrize("refuse", ["/api/repos", "/api/validate-yaml", "/api/models/owner/name/commit"])
@pytest.mark.parametrize("given", [True, False])
def test_a_token_is_in_no_error_log_or_file(folder, online, caplog, capsys, monkeypatch, refuse, given):
    """The server repeats the token in its answer; it is given, or that of a login."""
    if not given:
        monkeypatch.setattr("structure_aligned.hub.push.get_token", lambda: TOKEN)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
    caplog.set_level(logging.DEBUG)
    with (
        HubServer(refuse=refuse) as hub,
        pytest.raises(RuntimeError, match="was not uploaded to owner/name") as caught,
    ):
        push_to_hub(folder, "owner/name", token=TOKEN if given else None, endpoint=hub.endpoint)
    assert f"Bearer {TOKEN}" in [authorization for _, _, authorization in hub.requests]
    told = "".join(traceback.format_exception(caught.value)) + caplog.text + "".join(capsys.readouterr())
    assert "<token>" in told or refuse == "/api/validate-yaml"
    assert TOKEN not in told and caught.value.__context__ is None and caught.value.__cause__ is None
    for path in folder.parent.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", f'{{"token": "{TOKEN}"}}', "looks like an access token"),
        ("vocab.txt", "x ghp_" + "a1" * 20, "looks like an access token"),
        ("LICENSE", "-----BEGIN RSA PRIVATE KEY-----\n", "looks like an access token"),
        ("LICENSE.secret", "{}", "looks like a secret by its name"),
    ],
)
def test_secrets_are_refused_and_not_shown(folder, name, content, message):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        plan_push(folder, "owner/name")
    assert name in str(caught.value) and TOKEN not in str(caught.value)


def test_a_secret_that_stays_is_no_obstacle_until_it_is_asked_for(folder):
    (folder / "hub_token").write_text(TOKEN)
    assert "hub_token" in plan_push(folder, "owner/name").left_out
    with pytest.raises(ValueError, match="looks like a secret by its name"):
        plan_push(folder, "owner/name", include=["*"])


def test_folders_without_card_or_weights_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        plan_push(tmp_path / "nothing", "owner/name")
    with pytest.raises(ValueError, match="repo_id|Repo id"):
        plan_push(folder, "owner/name/more")
    (folder / "eval_results.json").write_text(json.dumps({"eval_loss": 0.25}))
    with pytest.raises(ValueError, match="has changed; write the card again"):
        plan_push(folder, "owner/name")
    write_model_card(folder)
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="no weights"):
        plan_push(folder, "owner/name")
    (folder / "README.md").unlink()
    with pytest.raises(ValueError, match=r"no README\.md; write one with write_model_card"):
        plan_push(folder, "owner/name")


def test_the_example(folder, tmp_path, online, monkeypatch, capsys):
    def start(*arguments):
        monkeypatch.setattr(sys, "argv", ["push.py", *map(str, arguments)])
        runpy.run_path(str(EXAMPLE), run_name="__main__")
        return capsys.readouterr().out

    listed = [{"task": "contacts", "dataset": "mine", "metric": "P@L", "value": 0.5}]
    (tmp_path / "measured.json").write_text(json.dumps(listed))
    options = ("--report", tmp_path / "measured.json", "--base_model", "facebook/esm2_t6_8M_UR50D")
    assert "results/measured.json" in start(folder, "owner/name", "--dry_run", *options)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with HubServer() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        sent = start(folder, "owner/name", "--public")
    assert "Uploaded." in sent and TOKEN not in sent
    text = hub.files["README.md"].decode()
    assert "base_model: facebook/esm2_t6_8M_UR50D" in text and "license: mit" in text
    assert "| contacts: P@L | 0.5000 |" in text and "results/measured.json" in hub.files
