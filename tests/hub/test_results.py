"""Results in model cards: read from files of several forms, added, and found again in what the card prints."""

import hashlib
import json
import math
import time

import pytest

from structure_aligned.hub.cards import add_results, check_card, write_model_card
from structure_aligned.hub.results import check_results, read_table, shown
from structure_aligned.models.trunks import trunk_digest
from tests import tiny


def report(names, digests):
    """Of the form that an evaluation of checkpoints writes."""
    key = {"task": "contacts", "table": "contacts", "key": "long_P@L", "label": "Contacts, |i − j| ≥ 24, P@L"}
    key |= {"unit": "protein", "higher": True, "headline": True, "logarithm": False, "chance": None}
    rows = [
        key | {"series": name, "value": 0.25 + index / 7, "low": 0.2, "high": 0.5, "n": 12, "guessing": None}
        for index, name in enumerate(names)
    ]
    rows += [row | {"key": "short_P@L", "headline": False} for row in rows]
    compared = key | {"baseline": names[0], "series": names[-1], "base": 0.25, "other": 0.25 + 1 / 7, "n": 12}
    compared |= {"difference": 1 / 7, "low": -0.0123456, "high": 0.3, "p": 0.0004, "holm": 0.0008}
    models = {name: {"path": f"folders/{name}", "trunk_digest": digest} for name, digest in zip(names, digests)}
    inputs = {"test_chains": {"count": 12, "digest": "ab" * 32}}
    return {
        "models": models,
        "baseline": names[0],
        "estimates": rows,
        "summary": [compared],
        "run": {"inputs": inputs},
    }


def test_results_of_an_evaluation_are_added(tmp_path):
    folder = tmp_path / "model"
    model = tiny.esm_model()
    model.save_pretrained(folder)
    content = report(["ESM2", "mine"], ["0" * 64, trunk_digest(model)])
    path = tmp_path / "report.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is of ESM2, mine; say with model"):
        add_results(folder, path)
    with pytest.raises(ValueError, match="of other weights"):
        add_results(folder, path, "ESM2")
    assert not (folder / "README.md").exists() and not (folder / "results").exists()
    add_results(folder, path, "mine")
    card = check_card(folder)
    assert "Contacts, \\|i − j\\| ≥ 24, P@L | 0.3929 | 0.2000 to 0.5000 | 12 |" in card.text
    assert "difference from ESM2" in card.text and "| -0.0123 |" in card.text and "| 8.00e-04 |" in card.text
    assert "1 more metrics are in the file" in card.text
    (result,) = card.data.eval_results
    assert result.metric_value == 0.25 + 1 / 7 and result.dataset_name == "test chains abababababab"
    assert "contact prediction" not in card.text.split("## Limits")[1]
    assert "effects of mutations" in card.text.split("## Limits")[1]
    # Once more, and another file: both stay.
    add_results(folder, path, "mine")
    listed = [{"task": "mutations", "dataset": "BLAT", "metric": "Spearman", "value": 0.4, "interval": [0.3, 0.5]}]
    (tmp_path / "fitness.json").write_text(json.dumps(listed))
    add_results(folder, tmp_path / "fitness.json")
    card = check_card(folder)
    assert len(card.data.eval_results) == 2 and "| mutations: Spearman | 0.4000 | 0.3000 to 0.5000 |" in card.text
    path.write_text(json.dumps(content | {"more": 1}))
    with pytest.raises(ValueError, match="is there already, with other content"):
        add_results(folder, path, "mine")
    # By the folder that the report says the model was loaded from.
    content["models"]["mine"]["path"] = str(folder)
    (tmp_path / "second.json").write_text(json.dumps(content))
    add_results(folder, tmp_path / "second.json")
    assert len(check_card(folder).data.eval_results) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ({"accuracy": 0.5}, "no results that are known"),
        ([], "no results that are known"),
        ([{"task": "a", "dataset": "b", "metric": "c"}], "expected a dict with task, dataset, metric, value"),
        ([{"task": "a", "dataset": "b", "metric": "c", "value": "0.5"}], "expected finite numbers"),
        ([{"task": "a", "dataset": "b", "metric": "c", "value": math.nan}], "expected finite numbers"),
        ([{"task": "a", "dataset": "b", "metric": "c", "value": 1, "interval": [0]}], r"expected \[low, high\]"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "some.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path, ["some.json"])


def test_results_outside_the_folder_are_refused(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "eval_results.json").write_text('{"eval_loss": 1.0}')
    with pytest.raises(ValueError, match="files beside it only"):
        write_model_card(tmp_path / "model", results=["../eval_results.json"])


@pytest.mark.parametrize("value", [0.0, 0.5, -0.12345678, 12.3456789, 3.21e-7, 1234.5, 7, 0.00099999])
def test_shown_numbers_are_found_again(tmp_path, value):
    (tmp_path / "r.json").write_text(json.dumps([value]))
    digest = hashlib.sha256((tmp_path / "r.json").read_bytes()).hexdigest()
    text = f"## Results\n\n### T\n\nFrom [`r.json`](r.json) (SHA-256 `{digest}`).\n\n| m | v |\n|---|---:|\n| m | "
    check_results(tmp_path, f"{text}{shown(value)} |\n")
    with pytest.raises(ValueError, match="in none of the files"):
        check_results(tmp_path, f"{text}{shown(value + 1.5)} |\n")


def test_checking_a_card_takes_no_longer_than_it_is(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps([number / 7 for number in range(20_000)]))
    digest = hashlib.sha256((tmp_path / "r.json").read_bytes()).hexdigest()
    rows = "".join(f"| m | {shown(number / 7)} |\n" for number in range(20_000))
    text = f"## Results\n\n### T\n\nFrom [`r.json`](r.json) (SHA-256 `{digest}`).\n\n| m | v |\n|---|---:|\n{rows}\n"
    start = time.process_time()
    check_results(tmp_path, f"{text}{'[`x`](' * 50_000}")
    assert time.process_time() - start < 10  # minutes, where every number or bracket looks through all the others


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", '{"name"', "\udcff"])
def test_damaged_files_beside_a_model_are_named(tmp_path, content):
    folder = tmp_path / "model"
    tiny.esm_model().save_pretrained(folder)
    (folder / "training_run.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match="training_run.json"):
        write_model_card(folder)
