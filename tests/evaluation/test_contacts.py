import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from structure_aligned.evaluation.contacts import contact_map, contact_precision, contact_summary
from structure_aligned.structure.io import read_chains
from tests import tiny


def symmetric(rng, length):
    upper = np.triu(rng.normal(size=(length, length)), k=1)
    return upper + upper.T


def labels(length, pairs):
    contacts = np.zeros((length, length), dtype=bool)
    for i, j in pairs:
        contacts[i, j] = contacts[j, i] = True
    return contacts


def scored(length, values):
    scores = np.zeros((length, length))
    for (i, j), value in values.items():
        scores[i, j] = scores[j, i] = value
    return scores


def test_contacts_by_a_loop_over_pairs():
    chain = tiny.chain(60, seed=3)
    coords = chain.coords.copy()
    coords[7, 4] = np.nan  # no CB
    coords[20] = np.nan  # no atom
    sequence = chain.sequence[:9] + "GG" + chain.sequence[11:]
    coords[9, 4] = np.nan  # glycine needs none
    coords[10, 1] = np.nan  # nor may one stand in for its CA
    assert sequence[7] != "G" and sequence[20] != "G"
    contacts, valid = contact_map(coords, sequence)
    seen = set()
    for i in range(60):
        for j in range(60):
            a, b = (coords[k, 1 if sequence[k] == "G" else 4].astype(np.float64) for k in (i, j))
            distance = np.sqrt(((a - b) ** 2).sum())
            assert valid[i, j] == np.isfinite(distance)
            assert contacts[i, j] == (distance < 8)
            seen.add((bool(valid[i, j]), bool(contacts[i, j])))
    assert seen == {(True, True), (True, False), (False, False)}
    assert not valid[[7, 20, 10]].any() and valid[9].any()


def test_the_threshold_itself_is_no_contact():
    coords = np.zeros((2, 5, 3))
    coords[1, 4, 0] = 8.0
    assert not contact_map(coords, "AA")[0][0, 1]
    assert contact_map(coords, "AA", threshold=8.001)[0][0, 1]


def test_precision_by_hand():
    # L = 30: the top 30, 15 and 6 pairs. 24 to 29 apart are 6+5+4+3+2+1 = 21 pairs.
    length = 30
    ranked = [(0, 29), (0, 28), (1, 29), (0, 27), (1, 28), (2, 29), (0, 26)]
    scores = scored(length, {pair: 10.0 - rank for rank, pair in enumerate(ranked)})
    contacts = labels(length, [(0, 29), (1, 29), (0, 27), (0, 26), (5, 29)])
    result = contact_precision(scores, contacts)
    assert result["resolved"] == 30
    assert (result["long_pairs"], result["long_contacts"]) == (21, 5)
    assert result["long_P@L/5"] == pytest.approx(3 / 6)
    # 7 ranked pairs with 4 contacts; 8 more of the 14 that are tied at 0, of which one is a contact.
    assert result["long_P@L/2"] == pytest.approx((4 + 8 * 1 / 14) / 15)
    # Fewer pairs than L: all 21 of them.
    assert result["long_P@L"] == pytest.approx(5 / 21)
    assert result["short_P@L"] == 0 and np.isnan(result["short_AP"])
    assert result["short_pairs"] == sum(length - k for k in range(6, 12))
    assert result["medium_pairs"] == sum(length - k for k in range(12, 24))
    assert result["all_pairs"] == result["short_pairs"] + result["medium_pairs"] + result["long_pairs"]


def test_pairs_six_apart_do_not_count_for_the_paper():
    length = 20  # the top 4
    near, far = [(0, 6), (1, 7), (2, 8)], [(0, 7), (3, 10), (2, 9), (4, 11)]
    scores = scored(length, {pair: 9.0 - rank for rank, pair in enumerate(near + far)})
    result = contact_precision(scores, labels(length, near + far[:3]))
    assert result["all_P@L/5"] == 1.0
    assert result["paper_P@L/5"] == pytest.approx(3 / 4)


def test_constant_predictions_have_the_base_rate():
    rng = np.random.default_rng(0)
    contacts = np.abs(symmetric(rng, 50)) > 1.5
    result = contact_precision(np.full((50, 50), 0.3), contacts)
    for name in ("short", "medium", "long", "all"):
        rate = result[f"{name}_contacts"] / result[f"{name}_pairs"]
        assert 0 < rate < 1
        for metric in ("P@L", "P@L/2", "P@L/5", "AP"):
            assert result[f"{name}_{metric}"] == pytest.approx(rate)


@pytest.mark.parametrize("decimals", [0, 6])
def test_ties_are_the_mean_over_random_orders(decimals):
    rng = np.random.default_rng(1)
    length = 40
    scores, contacts = np.round(symmetric(rng, length), decimals), np.abs(symmetric(rng, length)) > 1
    first, second = np.triu_indices(length, k=6)
    own_scores, own_labels = scores[first, second], contacts[first, second]
    found = []
    for _ in range(4000 if decimals == 0 else 1):
        order = rng.permutation(len(own_scores))
        order = order[np.argsort(-own_scores[order], kind="stable")]
        found.append(own_labels[order[:20]].mean())
    result = contact_precision(scores, contacts)
    deviation = np.std(found) / np.sqrt(len(found))
    assert (deviation > 0) == (decimals == 0)
    assert result["all_P@L/2"] == pytest.approx(np.mean(found), abs=4 * deviation + 1e-12)
    assert result["all_AP"] == pytest.approx(average_precision_score(own_labels, own_scores))


def test_unresolved_residues_are_neither_pairs_nor_counted():
    rng = np.random.default_rng(2)
    length, missing = 45, [0, 11, 12, 44]
    scores, contacts = symmetric(rng, length), np.abs(symmetric(rng, length)) > 1
    valid = np.ones((length, length), dtype=bool)
    valid[missing] = valid[:, missing] = False
    scores[missing] = scores[:, missing] = np.nan  # their predictions may be anything
    result = contact_precision(scores, contacts, valid)
    kept = [(i, j) for i in range(length) for j in range(i + 24, length) if not {i, j} & set(missing)]
    ranked = sorted(kept, key=lambda pair: -scores[pair])
    assert result["resolved"] == 41
    assert result["long_pairs"] == len(kept)
    assert result["long_P@L/5"] == pytest.approx(np.mean([contacts[pair] for pair in ranked[:8]]))
    rest = [contacts[pair] for pair in kept], [scores[pair] for pair in kept]
    assert result["long_AP"] == pytest.approx(average_precision_score(*rest))


@pytest.mark.parametrize("length", [1, 6, 7, 11])
def test_short_chains(length):
    contacts = np.ones((length, length), dtype=bool)
    result = contact_precision(torch.rand(length, length), contacts)
    for name in ("medium", "long"):
        assert result[f"{name}_pairs"] == 0
        assert all(np.isnan(result[f"{name}_{metric}"]) for metric in ("P@L", "P@L/2", "P@L/5", "AP"))
    assert np.isnan(result["short_P@L"]) == (length <= 6)
    assert np.isnan(result["paper_P@L/5"]) == (length <= 7)
    if length > 6:
        assert result["short_P@L"] == result["short_P@L/5"] == result["all_AP"] == 1.0


def test_fewer_than_five_resolved_residues_take_one_pair():
    valid = np.zeros((30, 30), dtype=bool)
    keep = [0, 12, 29]
    valid[np.ix_(keep, keep)] = True
    scores = scored(30, {(0, 29): 0.9, (0, 12): 0.1})
    result = contact_precision(scores, labels(30, [(0, 29)]), valid)
    assert (result["resolved"], result["all_pairs"]) == (3, 3)
    assert result["all_P@L/5"] == result["long_P@L/5"] == 1.0
    assert result["medium_P@L/5"] == 0.0


def test_asymmetric_scores_are_averaged():
    rng = np.random.default_rng(3)
    scores, contacts = rng.normal(size=(30, 30)), np.abs(symmetric(rng, 30)) > 1
    results = [contact_precision(own, contacts) for own in (scores, scores.T, (scores + scores.T) / 2)]
    for other in results[1:]:
        np.testing.assert_equal(other, results[0])


def test_summary_leaves_out_what_is_undefined_and_counts_it():
    rng = np.random.default_rng(4)
    rows = [
        {"id": str(length), "length": length, **contact_precision(symmetric(rng, length), symmetric(rng, length) > 1)}
        for length in (60, 50, 10)
    ]
    summary = contact_summary(rows)
    expected = np.mean([row["long_P@L"] for row in rows[:2]])
    assert summary["long_P@L"] == {"mean": pytest.approx(expected), "n": 2, "undefined": 1}
    assert summary["short_P@L"]["n"] == 3
    assert "resolved" not in summary and "long_pairs" not in summary and "id" not in summary
    assert contact_summary([]) == {}
    assert np.isnan(contact_summary(rows[2:])["long_AP"]["mean"])


def test_what_is_wrong_is_said():
    contacts = np.zeros((9, 9), dtype=bool)
    with pytest.raises(ValueError, match=r"predictions have shape \(8, 8\)"):
        contact_precision(np.zeros((8, 8)), contacts)
    with pytest.raises(ValueError, match=r"expected \(L, L\)"):
        contact_precision(np.zeros((9, 8)), contacts[:, :8])
    with pytest.raises(ValueError, match="NaN or infinity"):
        contact_precision(np.full((9, 9), np.nan), contacts)
    contacts[0, 8] = True
    with pytest.raises(ValueError, match="contacts differ above and below"):
        contact_precision(np.zeros((9, 9)), contacts)
    with pytest.raises(ValueError, match="the sequence has 4 residues"):
        contact_map(np.zeros((3, 5, 3)), "ACDE")
    with pytest.raises(ValueError, match="threshold is 0"):
        contact_map(np.zeros((3, 5, 3)), "ACD", threshold=0)


def test_real_chains_have_contacts_of_every_range(real_data):
    paths = sorted(real_data("structures", "test").glob("*.cif.gz"))[:4]
    for chain in (chain for path in paths for chain in read_chains(path)):
        contacts, valid = contact_map(chain.coords, chain.sequence)
        result = contact_precision(contacts.astype(float), contacts, valid)
        # Proteins have a few contacts per residue beyond |i − j| of 6, more the larger they are.
        assert 0.5 < result["all_contacts"] / result["resolved"] < 8
        assert result["all_AP"] == 1.0 and result["all_P@L/5"] == 1.0
        rng = np.random.default_rng(0)
        random = [contact_precision(rng.random(contacts.shape), contacts, valid)["all_P@L"] for _ in range(10)]
        rate = result["all_contacts"] / result["all_pairs"]
        assert np.mean(random) == pytest.approx(rate, abs=4 * np.sqrt(rate / len(chain) / 10))
