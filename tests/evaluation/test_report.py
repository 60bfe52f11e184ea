"""The evaluation of several checkpoints: stored results, statistics that can fail, and the page."""

import json
import re
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from structure_aligned.evaluation import report as report_module
from structure_aligned.evaluation import report_tasks
from structure_aligned.evaluation.assays import Assay
from structure_aligned.evaluation.contact_heads import ContactRegression
from structure_aligned.evaluation.contact_prediction import predict_contacts
from structure_aligned.evaluation.fitness import score_mutations
from structure_aligned.evaluation.perplexity import pseudo_perplexity
from structure_aligned.evaluation.report import evaluate_models
from structure_aligned.evaluation.report_inputs import (
    EvaluationInputs,
    EvaluationOptions,
    load_inputs,
    position_fraction,
)
from structure_aligned.evaluation.report_models import load_checkpoint
from structure_aligned.evaluation.report_store import ResultStore, plain, to_json
from structure_aligned.evaluation.report_tables import (
    baseline_of,
    comparisons,
    estimates,
    metrics_of,
    over_seeds,
    series_of,
    values_of,
)
from structure_aligned.structure.synthetic import write_synthetic_folds
from tests import tiny
from tests.evaluation.report_data import Page, fitness_result, perplexity_result


TASKS = ("contacts", "fitness", "perplexity")
OPTIONS = EvaluationOptions(num_contact_chains=3, num_probe_chains=3, num_examples=2)


@pytest.fixture(scope="module")
def folds(tmp_path_factory):
    root = tmp_path_factory.mktemp("folds")
    write_synthetic_folds(root / "test", 5, seed=0, min_length=40, max_length=60)
    write_synthetic_folds(root / "train", 4, seed=1, min_length=40, max_length=60)
    return root


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Of both families, a copy of one of them, one with other weights and one without a masked-LM head."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name, family in tiny.FAMILIES.items():
        family.model().save_pretrained(root / name)
        family.tokenizer().save_pretrained(root / name)
    tiny.esm_model().save_pretrained(root / "copy")  # and no tokenizer
    tiny.esm_model(seed=1).save_pretrained(root / "other")
    tiny.esm_model().esm.save_pretrained(root / "bare")
    return root


@pytest.fixture(scope="module")
def inputs(folds):
    found = load_inputs(OPTIONS, folds / "test", folds / "train", progress=False)
    rng = np.random.default_rng(0)
    for number in range(3):
        wild_type = "".join(rng.choice(list(tiny.AMINO_ACIDS), 20))
        mutants = [f"{letter}{index}{'A' if letter != 'A' else 'G'}" for index, letter in enumerate(wild_type, 1)]
        found.assays.append(Assay(f"<i>{number}", wild_type, mutants, rng.normal(size=20)))
    found.sequences = {f"natural{i}": "".join(rng.choice(list(tiny.AMINO_ACIDS), 30)) for i in range(4)}
    return found


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, checkpoints, inputs):
    output = tmp_path_factory.mktemp("report")
    models = {"base": checkpoints / "esm", "copy": checkpoints / "copy", "<b>other": checkpoints / "other"}
    return output, evaluate_models(models, inputs, output, OPTIONS, TASKS, progress=False), models


def test_results_are_those_of_the_functions(evaluated, checkpoints, inputs):
    report = evaluated[1]
    model = tiny.esm_model()
    assay = inputs.assays[0]
    rows = report["results"]["fitness"]["base"]["tables"]["fitness"]
    scores = score_mutations(model, assay.wild_type, assay.mutants)
    ranks = np.argsort(np.argsort(scores)), np.argsort(np.argsort(assay.measured))
    assert rows[0]["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    expected = pseudo_perplexity(model, list(inputs.sequences.values()), position_fraction=1.0)
    rows = report["results"]["perplexity"]["base"]["tables"]["natural, one-by-one"]
    np.testing.assert_allclose([row["log_perplexity"] for row in rows], np.log(expected.per_protein), rtol=1e-5)
    shown = next(
        row
        for row in report["estimates"]
        if (row["table"], row["series"]) == ("natural, one-by-one", "base") and row["task"] == "perplexity"
    )
    assert shown["value"] == pytest.approx(np.exp(np.log(expected.per_protein).mean()), rel=1e-5)


def test_maps_and_calibration(checkpoints, inputs):
    checkpoint = load_checkpoint("base", checkpoints / "esm")
    result = plain(report_tasks.TASKS["contacts"].run(checkpoint, inputs, OPTIONS, False))
    head = ContactRegression.fit(checkpoint.model, inputs.contact_chains)
    maps = predict_contacts(checkpoint.model, [chain.sequence for chain in inputs.test_chains], head=head)
    assert list(result["maps"]) and set(result["maps"]) == set(inputs.examples(2))
    pairs, total = 0, 0.0
    for chain, expected in zip(inputs.test_chains, maps):
        above = np.triu(np.ones((len(chain), len(chain)), dtype=bool), k=6)
        pairs, total = pairs + above.sum(), total + expected.numpy()[above].astype(float).sum()
        if chain.id in result["maps"]:
            decoded = report_tasks.decode_map(result["maps"][chain.id])
            np.testing.assert_allclose(decoded, expected.numpy(), atol=0.5 / 255 + 1e-6)
    assert sum(result["calibration"]["pairs"]) == pairs
    assert sum(result["calibration"]["probability"]) == pytest.approx(total, rel=1e-4)


def test_identical_checkpoints_do_not_differ(evaluated):
    output, report, _ = evaluated
    rows = [row for row in report["comparisons"] if row["series"] == "copy"]
    assert len(rows) == len(metrics_of(report["results"]))
    assert all(row["p"] == 1 and row["holm"] == 1 and row["verdict"] == "identical" for row in rows if row["n"])
    assert all(row["difference"] == (1 if row["logarithm"] else 0) for row in rows if row["n"])
    assert report["models"]["base"]["digest"] == report["models"]["copy"]["digest"]
    for text in ((output / "report.json").read_text(), Page((output / "report.html").read_text()).text):
        assert not re.search(r"\b(nan|inf|infinity|None)\b", text, flags=re.IGNORECASE)
    json.loads((output / "report.json").read_text(), parse_constant=pytest.fail)


def test_the_page(evaluated):
    output, report, _ = evaluated
    text = (output / "report.html").read_text()
    page = Page(text)
    assert page.problems == []
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    assert not re.search(r"https?:|//\w+\.|url\(|@import|<script", text)
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= {
        attributes["id"] for _, attributes in page.tags if "id" in attributes
    }
    assert "<b>other" not in text and "<b>other" in page.text
    assert "<i>0" not in text and "<i>0" in page.text
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) > 8 and all(attributes["alt"] for attributes in images)
    for row in report["summary"]:
        assert row["label"] in page.text
    # Tables scroll in a box of their own.
    assert text.count("<table>") == text.count('<div class="scroll"><table>')


def test_a_second_run_computes_nothing(evaluated, inputs, monkeypatch):
    output, first, models = evaluated
    assert len(first["run"]["computed"]) == 2 * len(TASKS)  # the copy shares those of the first
    before = {path.name: path.stat().st_mtime_ns for path in (output / "results").iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr(report_module, "draw_plots", lambda *a: ({}, None))  # takes most of the time
        patched.setattr(report_module._Run, "_timed", lambda *a: lambda: pytest.fail("computed"))
        second = evaluate_models(models, inputs, output, OPTIONS, TASKS, progress=False)
    assert second["run"]["computed"] == []
    assert {path.name: path.stat().st_mtime_ns for path in (output / "results").iterdir()} == before
    assert plain(second["comparisons"]) == plain(first["comparisons"])


def test_what_changed_is_computed_again(tmp_path, checkpoints, inputs):
    folder = tmp_path / "model"
    tiny.esm_model().save_pretrained(folder)

    def computed(used=inputs, options=OPTIONS, tasks=("fitness", "perplexity")):
        report = evaluate_models({"one": folder}, used, tmp_path / "out", options, tasks, progress=False)
        return [name.split("-")[0] for name in report["run"]["computed"]]

    assert computed() == ["fitness", "perplexity"]
    assert computed() == []
    # One weight of the masked-LM head by less than bfloat16 shows.
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.bias"][5] += 1e-6
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert computed() == ["fitness", "perplexity"]
    changed = EvaluationInputs(**(vars(inputs) | {"sequences": {"natural0": "MKV" * 12}}))
    assert computed(changed) == ["perplexity"]
    assert computed(options=EvaluationOptions(**(vars(OPTIONS) | {"strategy": "wt-marginals"}))) == ["fitness"]
    assert computed() == []  # back to what was
    damaged = next((tmp_path / "out" / "results").glob("fitness-*"))
    damaged.write_text(damaged.read_text()[:50])
    assert computed() in (["fitness"], [])
    for path in (tmp_path / "out" / "results").glob("fitness-*"):
        path.write_text("{}")
    assert computed() == ["fitness"]


def test_code_and_precision_are_part_of_the_key(checkpoints, inputs):
    task = report_tasks.TASKS["fitness"]
    one, half = (load_checkpoint("a", checkpoints / "esm", dtype=kind) for kind in (torch.float32, torch.bfloat16))
    store = ResultStore(checkpoints / "none")
    paths = {
        store.path(task.name, task.depends_on(model, inputs, OPTIONS, code))
        for model in (one, half)
        for code in ("1", "2")
    }
    assert len(paths) == 4


def test_a_failing_task_is_named_and_tried_again(tmp_path, checkpoints, inputs):
    short = EvaluationInputs(assays=[Assay("wrong", "MKV", ["A1C"], np.ones(1))], sequences=inputs.sequences)
    models = {"base": checkpoints / "esm"}
    report = evaluate_models(models, short, tmp_path, OPTIONS, ("fitness", "perplexity"), progress=False)
    assert "says A at position 1" in report["failed"]["fitness"]["base"]
    assert "perplexity" in report["results"]
    page = Page((tmp_path / "report.html").read_text())
    assert "failed for base" in page.text and page.problems == []
    short.assays[:] = inputs.assays
    assert "fitness" in evaluate_models(models, short, tmp_path, OPTIONS, ("fitness",), progress=False)["results"]


def test_families_side_by_side_and_a_bare_trunk(tmp_path, checkpoints, inputs):
    models = {name: checkpoints / name for name in ("esm", "AMPLIFY", "bare")}
    report = evaluate_models(models, inputs, tmp_path, OPTIONS, TASKS, progress=False)
    assert set(report["results"]["contacts"]) == set(models)
    assert set(report["results"]["fitness"]) == {"esm", "AMPLIFY"}
    assert "no masked-LM head" in report["not_possible"]["fitness"]["bare"]
    trunks = {name: report["models"][name]["trunk_digest"] for name in models}
    assert trunks["esm"] == trunks["bare"] != trunks["AMPLIFY"]
    rows = [row for row in report["summary"] if row["series"] == "bare" and row["task"] == "fitness"]
    assert rows and all(row["p"] is None and row["why"] == "not run for bare" for row in rows)
    page = Page((tmp_path / "report.html").read_text())
    assert page.problems == [] and "not run for bare" in page.text


def test_without_matplotlib_there_are_tables(tmp_path, checkpoints, inputs, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    models = {"base": checkpoints / "esm", "other#1": checkpoints / "other", "other#2": checkpoints / "copy"}
    evaluate_models(models, inputs, tmp_path, OPTIONS, ("fitness",), progress=False)
    page = Page((tmp_path / "report.html").read_text())
    assert page.problems == [] and "Over seeds" in page.text and "other (2 seeds)" in page.text
    assert 'pip install "structure-aligned[plot]"' in page.text
    assert not any(tag == "img" for tag, _ in page.tags) and any(tag == "table" for tag, _ in page.tags)


def test_probes_and_tokens(tmp_path, checkpoints, inputs):
    pytest.importorskip("structure_aligned.evaluation.probes")
    pytest.importorskip("structure_aligned.evaluation.tokens")
    models = {name: checkpoints / name for name in ("esm", "AMPLIFY", "bare")}
    report = evaluate_models(models, inputs, tmp_path, OPTIONS, ("probes", "tokens"), progress=False)
    assert report["failed"] == {}
    assert set(report["results"]["tokens"]) == {"esm", "AMPLIFY"}
    assert "no masked-LM head" in report["not_possible"]["tokens"]["bare"]
    found = {(row["task"], row["key"]): row for row in report["summary"] if row["series"] == "AMPLIFY"}
    assert {"secondary_structure", "structure_tokens"} <= {key for task, key in found if task == "probes"}
    assert found["tokens", "token_accuracy"]["n"] == len(inputs.test_chains)
    # The bare trunk is the first one's: the same probes, computed once.
    assert len([name for name in report["run"]["computed"] if name.startswith("probes")]) == 2


def test_a_task_that_is_not_installed_says_so(inputs, monkeypatch):
    monkeypatch.setitem(sys.modules, "structure_aligned.evaluation.probes", None)
    assert "cannot be run by this installation" in report_tasks.TASKS["probes"].lacking(inputs)


def test_what_cannot_be_run(tmp_path, checkpoints):
    models, nothing = {"base": checkpoints / "esm"}, EvaluationInputs()
    with pytest.raises(ValueError, match="None of the tasks can be run: contacts needs --structures and --train"):
        evaluate_models(models, nothing, tmp_path, OPTIONS, TASKS, progress=False)
    with pytest.raises(ValueError, match=r"tasks has \['nonsense'\]; expected some of contacts"):
        evaluate_models(models, nothing, tmp_path, OPTIONS, ("nonsense",), progress=False)
    with pytest.raises(ValueError, match="baseline 'x' is none of the models: base"):
        evaluate_models(models, nothing, tmp_path, OPTIONS, TASKS, "x", progress=False)
    with pytest.raises(ValueError, match="models is empty"):
        evaluate_models({}, nothing, tmp_path, progress=False)


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    tiny.esm_model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["esm.encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"lacks 1 of the weights that are needed, such as .*layer.1.output.dense.weight"
    ):
        load_checkpoint("broken", tmp_path)


def test_better_and_worse_are_found():
    """Planted: shuffled weights lose everywhere by more than the spread between assays."""
    rng = np.random.default_rng(0)
    good = rng.uniform(0.3, 0.6, 24)
    results = {
        "fitness": {
            "base": fitness_result(good),
            "shuffled": fitness_result(rng.normal(0, 0.05, 24)),
            "aligned": fitness_result(good + 0.05 + rng.normal(0, 0.02, 24)),
            "same": fitness_result(good + rng.normal(0, 0.02, 24)),
        },
        "perplexity": {
            "base": perplexity_result(rng.normal(2.0, 0.3, 40)),
            "shuffled": perplexity_result(rng.normal(3.0, 0.3, 40)),
        },
    }
    names = ["base", "shuffled", "aligned", "same"]
    found = comparisons(results, series_of(names), baseline_of(names))
    verdicts = {(row["task"], row["series"]): row for row in found}
    assert verdicts["fitness", "shuffled"]["verdict"] == "worse"
    assert verdicts["fitness", "aligned"]["verdict"] == "better"
    assert verdicts["fitness", "same"]["verdict"] == "no clear difference"
    higher = verdicts["perplexity", "shuffled"]  # more is worse here
    assert higher["verdict"] == "worse" and higher["low"] < higher["difference"] < higher["high"]
    assert higher["difference"] == pytest.approx(higher["other"] / higher["base"])
    assert verdicts["perplexity", "same"]["why"] == "not run for same"
    tested = [row for row in found if row["p"] is not None]
    smallest = min(tested, key=lambda row: row["p"])
    assert smallest["holm"] == pytest.approx(min(1, smallest["p"] * len(tested)))


def test_no_difference_is_found_where_there_is_none():
    """Of 40 pairs of models that differ by noise alone, at most a few are told apart."""
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(40):
        results = {"fitness": {name: fitness_result(rng.normal(0.4, 0.1, 12)) for name in ("a", "b")}}
        found = comparisons(results, series_of(["a", "b"]), baseline_of(["a", "b"]))
        wrong += found[0]["verdict"] in ("better", "worse")
    assert wrong <= 6


def test_undefined_values_are_counted_not_averaged():
    results = {"fitness": {"a": fitness_result([0.1, np.nan, 0.3, 0.4]), "b": fitness_result([0.2, 0.9, np.nan, 0.5])}}
    series = series_of(["a", "b"])
    rows = {row["series"]: row for row in estimates(results, series) if row["key"] == "spearman"}
    assert (rows["a"]["n"], rows["a"]["undefined"]) == (3, 1)
    assert rows["a"]["value"] == pytest.approx(0.8 / 3)
    row = comparisons(results, series, series[0])[0]
    assert (row["n"], row["dropped"]) == (2, 2)
    assert row["difference"] == pytest.approx(0.1)
    nothing = {"fitness": {"a": fitness_result([0.1, np.nan]), "b": fitness_result([np.nan, 0.2])}}
    row = comparisons(nothing, series, series[0])[0]
    assert row["p"] is None and row["why"] == "no assay has a value for both"
    one = comparisons({"fitness": {"a": fitness_result([0.1]), "b": fitness_result([0.2])}}, series, series[0])[0]
    assert one["p"] == 1 and one["low"] is None and one["why"] == "one assay alone has no interval"
    to_json(one)


def test_seeds_are_compared_as_one_and_summarised():
    values = {"base": [0.1, 0.2, 0.3], "aligned#1": [0.2, 0.3, 0.5], "aligned#2": [0.4, 0.3, 0.5]}
    results = {"fitness": {name: fitness_result(own) for name, own in values.items()}}
    series = series_of(list(values))
    assert [one.name for one in series] == ["base", "aligned#1", "aligned#2", "aligned (2 seeds)"]
    metric = metrics_of(results)[0]
    assert list(values_of(results, metric, series[-1]).values()) == pytest.approx([0.3, 0.3, 0.5])
    row = over_seeds(results, series)[0]
    means = [np.mean(values["aligned#1"]), np.mean(values["aligned#2"])]
    assert (row["mean"], row["sd"]) == pytest.approx((np.mean(means), np.std(means, ddof=1)))
    assert len(comparisons(results, series, baseline_of(list(values)))) == 3
    assert baseline_of(list(values), "aligned").members == ("aligned#1", "aligned#2")
    assert baseline_of(["x#1", "x#2", "y"]).name == "x (2 seeds)"
    # A group is not compared with its own members.
    against = comparisons(results, series, baseline_of(list(values), "aligned"))
    assert [row["series"] for row in against] == ["base"]


def test_inputs_are_drawn_and_named(tmp_path, folds):
    options = EvaluationOptions(max_proteins=2, num_contact_chains=2, num_probe_chains=3)
    (tmp_path / "natural.fasta").write_text(
        ">a one\nMKV\n" + ">b\n" + "MKVL" * 10 + "\n>c\n" + "acdefghikl" * 5 + "*\n>d\n" + "MK-V" * 20
    )
    first, second = (
        load_inputs(options, folds / "test", folds, sequences=tmp_path / "natural.fasta", progress=False)
        for _ in range(2)
    )
    assert len(first.test_chains) == 2 and len(first.contact_chains) == 2 and len(first.probe_chains) == 3
    tested = {chain.sequence for chain in first.test_chains}
    assert not any(chain.sequence in tested for chain in first.probe_chains)
    assert first.sequences == {"b": "MKVL" * 10, "c": "ACDEFGHIKL" * 5}
    assert any("2 training chains left out: a test chain has their sequence" in note for note in first.notes)
    assert any("2 sequences left out" in note for note in first.notes)
    for part in ("test_chains", "contact_chains", "sequences"):
        assert first.digest(part) == second.digest(part)
    moved = first.test_chains[0].coords.copy()
    moved[0, 0, 0] += 1e-3
    changed = EvaluationInputs(test_chains=[tiny.chain(len(moved), coords=moved), *first.test_chains[1:]])
    assert changed.digest("test_chains") != first.digest("test_chains")
    with pytest.raises(ValueError, match="are test chains; give others"):
        load_inputs(EvaluationOptions(), folds / "test", folds / "test", progress=False)
    with pytest.raises(ValueError, match="max_proteins is 0; expected at least 1"):
        EvaluationOptions(max_proteins=0)


def test_budgets():
    assert position_fraction(["A" * 100] * 10, 10_000) == 0.1
    assert position_fraction(["A" * 10], 10_000) == 1
    assert EvaluationOptions(max_proteins=10).probe_chains == 50
    assert EvaluationOptions().probe_chains == 200
    assert EvaluationOptions().budget("fitness") == 1_500_000
    assert EvaluationOptions(max_proteins=10).budget("perplexity") == 50_000
    assert EvaluationOptions(max_proteins=10, perplexity_tokens=7).budget("perplexity") == 7


def test_assays_are_cut_to_the_budget(tmp_path):
    wild_type = "MKVLAWDERTGHIKLPNQSY"
    rows = [
        f"{letter}{index}{other},{index + 0.1 * k}"
        for index, letter in enumerate(wild_type, 1)
        for k, other in enumerate("ACDE")
    ]
    (tmp_path / "one.csv").write_text("mutant,DMS_score\n" + "\n".join(rows))
    (tmp_path / "one.fasta").write_text(f">one\n{wild_type}\n")
    whole = load_inputs(EvaluationOptions(), dms=tmp_path, progress=False).assays[0]
    assert len(whole.mutants) == 80
    found = load_inputs(EvaluationOptions(fitness_tokens=200), dms=tmp_path, progress=False)
    (cut,) = found.assays
    assert len({mutant[1:-1] for mutant in cut.mutants}) == 10 and len(cut.mutants) == 40
    measured = dict(zip(whole.mutants, whole.measured))
    assert [measured[mutant] for mutant in cut.mutants] == cut.measured.tolist()
    assert any("50% of its mutated positions" in note for note in found.notes)


def test_a_result_is_written_whole_or_not_at_all(tmp_path):
    store = ResultStore(tmp_path)
    with pytest.raises(ValueError):
        store.get("task", {"a": 1}, lambda: {"bad": {1, 2}} and (_ for _ in ()).throw(ValueError("stopped")))
    assert list(tmp_path.iterdir()) == []
    assert store.get("task", {"a": 1}, lambda: {"x": np.float32("nan"), "y": np.arange(2)})["x"] is None
    assert store.get("task", {"a": 1}, lambda: pytest.fail("computed"))["y"] == [0, 1]
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]
