import numpy as np
import pytest

from structure_aligned.evaluation import before_after
from structure_aligned.evaluation.before_after import affordable_chains, compare_scores, draw_rows, score_proteins
from structure_aligned.evaluation.contacts import contact_map
from structure_aligned.structure.synthetic import synthetic_chains
from structure_aligned.training.report import comparison_table
from tests import tiny
from tests.evaluation.planted import planted_attention


@pytest.fixture(scope="module")
def folds():
    return synthetic_chains(14, seed=0, max_length=60)


@pytest.mark.parametrize("family", tiny.FAMILIES.values(), ids=tiny.FAMILIES)
def test_a_model_that_attends_to_contacts_scores_higher(family, folds):
    model, tokenizer, data = family.model(), family.tokenizer(), tiny.dataset(6)
    maps = {chain.sequence: contact_map(chain.coords, chain.sequence)[0].astype(float) for chain in folds}
    before = score_proteins(model, data, tokenizer, folds[10:], folds[:10], progress=False)
    with planted_attention(model, tokenizer, maps, layer=1, head=2):
        after = score_proteins(model, data, tokenizer, folds[10:], folds[:10], progress=False)
    assert before.empty_regression and not after.empty_regression
    contacts, tokens = compare_scores(before, after)
    assert contacts.name == "contacts P@L" and tokens.name == "3Di token accuracy"
    rates = [row["all_contacts"] / row["all_pairs"] for row in before.contacts]
    assert contacts.guessing == pytest.approx(np.mean(rates)) == pytest.approx(contacts.before.value)
    assert contacts.after.value == pytest.approx(np.mean([row["all_P@L"] for row in after.contacts]))
    assert contacts.after.value > 0.5 > contacts.before.value and contacts.comparison.low > 0
    assert contacts.comparison.n == 4 and tokens.comparison.n == 6
    assert tokens.before.low <= tokens.before.value <= tokens.before.high
    assert tokens.comparison.difference == pytest.approx(tokens.after.value - tokens.before.value)


def test_contacts_need_structures(folds):
    model, tokenizer = tiny.esm_model(), tiny.FAMILIES["esm"].tokenizer()
    scores = score_proteins(model, tiny.dataset(3), tokenizer, chains=folds[:2], progress=False)
    assert scores.contacts == []
    (tokens,) = compare_scores(scores, scores)
    assert tokens.comparison.p == 1 and tokens.comparison.difference == 0


def test_a_metric_that_no_protein_has_is_left_out():
    rows = [{"token_accuracy": float("nan"), "token_accuracy_majority": float("nan")}]
    short = [{"all_P@L": float("nan"), "all_contacts": 0, "all_pairs": 0}]
    scores = before_after.ProteinScores(rows, short)
    assert compare_scores(scores, scores) == []


def test_what_the_regression_can_be_fitted_on(monkeypatch, folds):
    model = tiny.esm_model()  # 8 heads
    costs = [8 * (len(chain) - 6) * (len(chain) - 5) // 2 for chain in folds]
    assert affordable_chains(model, folds) == folds
    monkeypatch.setattr(before_after, "MAX_FEATURES", costs[0] + costs[1])
    assert affordable_chains(model, folds)[:2] == folds[:2]
    monkeypatch.setattr(before_after, "MAX_FEATURES", 1)
    assert affordable_chains(model, folds) == [min(folds, key=len)]


def test_rows_are_drawn_by_seed_and_length():
    data = tiny.dataset(20)
    data = data.map(lambda row, index: {"length": 5000 if index == 4 else row["length"]}, with_indices=True)
    assert draw_rows(data, 100)["id"][:] == [name for name in data["id"] if name != "row4_A"]
    five = draw_rows(data, 5)["id"][:]
    assert five == draw_rows(data, 5)["id"][:] and len(five) == 5 and five != draw_rows(data, 5, seed=1)["id"][:]


def test_the_table():
    tokenizer, data = tiny.FAMILIES["esm"].tokenizer(), tiny.dataset(6)
    before, after = (score_proteins(tiny.esm_model(seed), data, tokenizer, progress=False) for seed in (0, 1))
    metrics = {"eval_loss": 3.0, "eval_token_accuracy": 0.25}
    lines = comparison_table(metrics, metrics | {"eval_loss": 2.0}, data, compare_scores(before, after)).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {len(line) for line in cells} == {6}
    (tokens,) = compare_scores(before, after)
    assert cells[2][0] == "3Di token accuracy (n = 6)"
    assert cells[2][1] == f"{tokens.before.value:.3f} ({tokens.before.low:.3f} to {tokens.before.high:.3f})"
    assert cells[2][4] == f"{tokens.comparison.p:.2g}" and cells[2][5] == f"{tokens.guessing:.3f}"
    assert cells[3] == ["loss", "3.0000", "2.0000", "-1.0000", "", ""]
    assert cells[4][:4] == ["token_accuracy", "0.2500", "0.2500", "+0.0000"]
