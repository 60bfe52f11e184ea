"""Signals that were planted in the embeddings are found, and what is not there is not."""

import numpy as np
import pytest

from structure_aligned.evaluation import probes
from structure_aligned.evaluation.probes import evaluate_labelled_sequences, evaluate_probes
from structure_aligned.evaluation.residue_labels import (
    NO_LABEL,
    LabelledSequence,
    fold_class,
    secondary_structure_labels,
    structure_token_labels,
)
from structure_aligned.structure.io import read_chains
from structure_aligned.structure.synthetic import synthetic_chains
from tests import tiny


TASKS = ("secondary_structure", "structure_tokens", "fold_class")


@pytest.fixture(scope="module")
def chains():
    """Folds, of which some have lost residues; those for training and those for the test."""
    made = synthetic_chains(48, seed=0, max_length=70)
    for chain in made[::3]:
        chain.coords[5:9] = np.nan
    return made[:32], made[32:]


def plant(monkeypatch, embed):
    """The states of a sequence are what `embed(sequence)` gives, (L, hidden_size)."""

    def stream(model, sequences, tokenizer, max_tokens, description):
        for index in sorted(range(len(sequences)), key=lambda i: -len(sequences[i])):
            yield index, embed(sequences[index]).astype(np.float32)

    monkeypatch.setattr(probes, "stream_hidden_states", stream)


def labels_by_sequence(chains, labels_of):
    return {chain.sequence: labels_of(chain) for part in chains for chain in part}


def one_hot(labels, size):
    return np.where(labels[:, None] == NO_LABEL, 0.0, np.eye(size)[labels])


def column(rows, name):
    return np.array([row[name] for row in rows])


def test_planted_labels_are_found(monkeypatch, chains):
    secondary = labels_by_sequence(chains, secondary_structure_labels)
    tokens = labels_by_sequence(chains, structure_token_labels)
    classes = labels_by_sequence(chains, fold_class)
    names = sorted(set(classes.values()))

    def embed(sequence):
        parts = [one_hot(secondary[sequence], 3), 0.1 * one_hot(tokens[sequence], 20)]
        one = np.full(len(sequence), names.index(classes[sequence]))
        noise = np.random.default_rng(len(sequence)).normal(size=(len(sequence), 4))
        return np.concatenate([*parts, 0.1 * one_hot(one, len(names)), 0.01 * noise], axis=1)

    plant(monkeypatch, embed)
    # There are so few strands that more neighbours would have to be of other states.
    rows = evaluate_probes(tiny.esm_model(), *chains, tasks=TASKS, k=3, progress=False)
    assert [row["id"] for row in rows] == [chain.id for chain in chains[1]]
    assert column(rows, "secondary_structure").min() == 1
    assert column(rows, "structure_tokens").mean() > 0.98
    assert column(rows, "fold_class").mean() == 1
    assert column(rows, "knn_purity").min() == 1 and column(rows, "silhouette").min() > 0.5
    assert column(rows, "knn_purity_chance").max() < 0.7
    for row, chain in zip(rows, chains[1]):
        assert row["length"] == len(chain)
        assert row["secondary_structure_residues"] == (secondary_structure_labels(chain) != NO_LABEL).sum()
        assert row["structure_tokens_residues"] == (structure_token_labels(chain) != NO_LABEL).sum()


def test_noise_gives_what_guessing_gives(monkeypatch, chains):
    def embed(sequence):
        generator = np.random.default_rng(np.frombuffer(sequence.encode(), np.uint8))
        return generator.normal(size=(len(sequence), 16))

    plant(monkeypatch, embed)
    rows = evaluate_probes(tiny.esm_model(), *chains, tasks=TASKS, progress=False)
    for task, margin in (("secondary_structure", 0.08), ("structure_tokens", 0.08), ("fold_class", 0.35)):
        majority = column(rows, f"{task}_majority").mean()
        assert abs(column(rows, task).mean() - majority) < margin, task
    assert abs(column(rows, "knn_purity").mean() - column(rows, "knn_purity_chance").mean()) < 0.04
    # A little below 0, as the nearer one of two other states is what the own state is compared with.
    assert -0.06 < column(rows, "silhouette").mean() < 0.01


def test_majority_by_hand(monkeypatch, chains):
    plant(monkeypatch, lambda sequence: np.random.default_rng(0).normal(size=(len(sequence), 3)))
    rows = evaluate_probes(tiny.esm_model(), *chains, tasks=("secondary_structure",), progress=False)
    train = np.concatenate([secondary_structure_labels(chain) for chain in chains[0]])
    usual = np.bincount(train[train != NO_LABEL]).argmax()
    for row, chain in zip(rows, chains[1]):
        labels = secondary_structure_labels(chain)
        assert row["secondary_structure_majority"] == pytest.approx((labels[labels != NO_LABEL] == usual).mean())
    assert "structure_tokens" not in rows[0] and "fold_class" not in rows[0]


@pytest.mark.parametrize("family", tiny.FAMILIES.values(), ids=tiny.FAMILIES)
def test_models_of_both_families(family, chains):
    model, tokenizer = family.model(), family.tokenizer()
    train, test = chains[0][:12], chains[1][:6]
    options = {"tasks": TASKS, "max_train_residues": 300, "separability_residues": 100, "progress": False}
    rows = evaluate_probes(model, train, test, tokenizer, **options)
    assert all(np.isfinite(value) for row in rows for name, value in row.items() if name != "id")
    assert rows == evaluate_probes(model, train, test, **options)  # to the last bit
    alone = evaluate_probes(model, train, test, max_tokens=1, **options)  # without padding
    for row, other in zip(rows, alone):
        for name in ("silhouette", "knn_purity_chance"):
            assert row[name] == pytest.approx(other[name], abs=1e-4)
        assert abs(row["secondary_structure"] - other["secondary_structure"]) < 0.05
    other = evaluate_probes(model, train, test, seed=1, **options)
    assert [row["silhouette"] for row in rows] != [row["silhouette"] for row in other]


def test_residues_are_drawn_by_seed_within_bounds(chains):
    probing = probes.Probing(500, 90, 10, 1.0, 100, 4096, 0, False)
    items = [
        LabelledSequence(chain.id, chain.sequence, {"secondary_structure": secondary_structure_labels(chain)})
        for chain in chains[0]
    ]
    drawn = probing._draw_residues(items, "secondary_structure")
    assert sum(map(len, drawn)) == 500 and min(map(len, drawn)) < max(map(len, drawn))
    for item, positions in zip(items, drawn):
        assert (item.labels["secondary_structure"][positions] != NO_LABEL).all()
        assert len(set(positions)) == len(positions)
    shares = probing._draw_for_separability(items[:20])
    assert sum(map(len, shares.values())) == 90 and {len(own) for own in shares.values()} == {4, 5}
    few = probing._draw_for_separability(items[:1])
    assert len(few[0]) == min(90, (items[0].labels["secondary_structure"] != NO_LABEL).sum())


def test_a_chain_without_labels_is_nan(monkeypatch, chains):
    plant(monkeypatch, lambda sequence: np.random.default_rng(len(sequence)).normal(size=(len(sequence), 3)))
    lost = tiny.chain(20, seed=5)
    lost.coords[:] = np.nan
    rows = evaluate_probes(tiny.esm_model(), chains[0], [lost, *chains[1]], tasks=TASKS, progress=False)
    assert all(np.isnan(rows[0][name]) for name in (*TASKS, "silhouette", "knn_purity", "structure_tokens_majority"))
    assert rows[0]["secondary_structure_residues"] == 0 and not np.isnan(rows[1]["silhouette"])


def test_given_fold_classes(monkeypatch, chains):
    train, test = chains
    classes = {chain.id: f"class {index % 2}" for index, chain in enumerate((*train, *test))}
    unlabelled = test[0].id
    by_sequence = {chain.sequence: classes[chain.id] for chain in (*train, *test)}
    del classes[unlabelled]
    plant(monkeypatch, lambda s: np.full((len(s), 2), float(by_sequence[s][-1])) + np.arange(len(s))[:, None] * 1e-3)
    rows = evaluate_probes(tiny.esm_model(), train, test, tasks=("fold_class",), fold_classes=classes, progress=False)
    assert np.isnan(rows[0]["fold_class"]) and {row["fold_class"] for row in rows[1:]} == {1.0}


def test_labelled_sequences(monkeypatch):
    rng = np.random.default_rng(0)

    def make(index):
        labels = rng.integers(0, 3, 30)
        labels[:3] = NO_LABEL
        sequence = "".join(rng.choice(list(tiny.AMINO_ACIDS), 30))
        return LabelledSequence(f"s{index}", sequence, {"secondary_structure": labels})

    splits = {"train": [make(index) for index in range(40)], "test": [make(100 + index) for index in range(5)]}
    known = {item.sequence: item.labels["secondary_structure"] for part in splits.values() for item in part}
    asked = []

    def embed(sequence):
        asked.append(sequence)
        return one_hot(known[sequence], 3) + 0.01 * rng.normal(size=(len(sequence), 3))

    plant(monkeypatch, embed)
    rows = evaluate_labelled_sequences(tiny.esm_model(), splits, max_train_sequences=10, progress=False)
    assert len(asked) == 15 and len(rows) == 5
    assert {(row["secondary_structure"], row["knn_purity"]) for row in rows} == {(1.0, 1.0)}
    assert rows[0]["secondary_structure_residues"] == 27
    with pytest.raises(ValueError, match="The splits dev are empty or missing; there are train, test"):
        evaluate_labelled_sequences(tiny.esm_model(), splits, test="dev")
    with pytest.raises(ValueError, match="s100 has labels for secondary_structure but not for disorder"):
        evaluate_labelled_sequences(tiny.esm_model(), splits | {"train": splits["test"]}, tasks=("disorder",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ("solubility",)}, "tasks has \\['solubility'\\]"),
        ({"tasks": ()}, "tasks is empty"),
        ({"max_train_residues": 1}, "max_train_residues is 1"),
        ({"k": 0}, "k is 0"),
        ({"C": 0}, "C is 0"),
        ({"fold_classes": {}, "tasks": ("fold_class",)}, "fold_class has 0 classes"),
    ],
)
def test_bad_options_are_refused(chains, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_probes(tiny.esm_model(), chains[0][:3], chains[1][:2], progress=False, **options)


def test_bad_chains_are_refused(chains):
    model, (train, test) = tiny.esm_model(), chains
    with pytest.raises(ValueError, match="no training chains"):
        evaluate_probes(model, [], test)
    with pytest.raises(ValueError, match="no test chains"):
        evaluate_probes(model, train, [])
    with pytest.raises(ValueError, match="have the sequence of a training chain"):
        evaluate_probes(model, train, [test[0], train[3]])
    lost = tiny.chain(20)
    lost.coords[:] = np.nan
    with pytest.raises(ValueError, match="secondary_structure has 0 classes"):
        evaluate_probes(model, [lost], test[:2], tasks=("secondary_structure",), progress=False)


def test_a_model_that_gives_nan_is_refused(chains):
    model = tiny.esm_model()
    model.esm.encoder.emb_layer_norm_after.weight.data[0] = float("nan")
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        evaluate_probes(model, chains[0][:4], chains[1][:2], progress=False)


def test_windows_of_letters_tell_about_the_states_of_real_chains(monkeypatch, real_data):
    """What is known since the seventies: a linear rule on 17 letters finds some 60 % of three states."""
    paths = sorted(real_data("structures", "valid").glob("*.cif.gz"))[:60]
    real = [chain for path in paths for chain in read_chains(path)]

    def embed(sequence):
        letters = np.zeros((len(sequence) + 16, 20))
        for position, letter in enumerate(sequence):
            if letter in tiny.AMINO_ACIDS:
                letters[position + 8, tiny.AMINO_ACIDS.index(letter)] = 1
        return np.concatenate([letters[shift : shift + len(sequence)] for shift in range(17)], axis=1)

    plant(monkeypatch, embed)
    options = {"tasks": ("secondary_structure",), "C": 1e-3, "separability_residues": 800, "progress": False}
    rows = evaluate_probes(tiny.esm_model(), real[:45], real[45:], **options)
    accuracy = column(rows, "secondary_structure").mean()
    assert accuracy > column(rows, "secondary_structure_majority").mean() + 0.08 and accuracy < 0.75
