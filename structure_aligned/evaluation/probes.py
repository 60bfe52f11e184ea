"""Linear probes: what can be read from the residue embeddings of a frozen protein language model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..models.trunks import tokenizer_of
from ..structure.chain import ProteinChain
from .residue_labels import NO_LABEL, RESIDUE_TASKS, LabelledSequence, fold_class
from .separability import neighbour_purity, silhouettes
from .trunk_outputs import stream_hidden_states


logger = logging.get_logger(__name__)

FOLD_TASK = "fold_class"
SEPARABILITY_TASK = "secondary_structure"
"""The labels that embeddings are to be separable by."""

_TRAIN_DRAW, _TEST_DRAW, _SEQUENCE_DRAW = 0, 1, 2  # so that one seed gives each its own random numbers


def evaluate_probes(
    model: PreTrainedModel,
    train_chains: Sequence[ProteinChain],
    test_chains: Sequence[ProteinChain],
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    tasks: Sequence[str] = ("secondary_structure", "structure_tokens"),
    fold_classes: Mapping[str, str] | Callable[[ProteinChain], str | None] = fold_class,
    max_train_residues: int = 20_000,
    separability_residues: int = 5_000,
    k: int = 10,
    C: float = 1.0,
    max_iter: int = 1000,
    max_tokens: int = 4096,
    seed: int = 0,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """
    What a logistic regression reads from the last hidden state of a frozen model, and how separable it is.

    The trunk is run once over the chains and never trained. Embeddings are standardised by the training residues. The
    residues drawn depend on the chains and the seed alone, so that two models are judged by the same ones.

    Args:
        model ([`PreTrainedModel`]): An ESM2 or AMPLIFY, with whatever heads.
        train_chains, test_chains (`Sequence[ProteinChain]`): As [`read_chains`] gives them; no sequence may be in
            both, and relatives should not.
        tokenizer ([`PreTrainedTokenizerBase`], *optional*): The family's by default.
        tasks (`Sequence[str]`, *optional*): Of `"secondary_structure"` (three states; see
            [`secondary_structure_labels`] for which), `"structure_tokens"` (3Di) and `"fold_class"` (from the mean of
            a chain's residue embeddings).
        fold_classes (`Mapping` or `Callable`, *optional*): Classes by chain id, such as CATH's, or what gives a
            chain's. By default [`fold_class`], from the content of secondary structure.
        max_train_residues (`int`, *optional*, defaults to 20000): Of each residue task, drawn from all training
            chains; memory is `4 · hidden_size` bytes for each, and some copies.
        separability_residues (`int`, *optional*, defaults to 5000): Of the test set, for silhouette and purity: about
            as many of every protein. 0 leaves both out.
        k (`int`, *optional*, defaults to 10): Neighbours that purity looks at.
        C, max_iter (*optional*, default to 1.0 and 1000): Of [`LogisticRegression`].
        max_tokens (`int`, *optional*, defaults to 4096): Of a batch, padding included.
        seed (`int`, *optional*, defaults to 0): Of the residues drawn.
        progress (`bool`, *optional*, defaults to `True`): Whether to show progress bars.

    Returns:
        `list[dict[str, Any]]`: A row per test chain, in their order, with `id`, `length` and

        * for each residue task its accuracy over the chain's labelled residues, by the task's name; `<task>_majority`,
          the accuracy of always giving the training residues' most frequent class; and `<task>_residues`, how many
          there are. Residues without coordinates (or 3Di token) have no label. A chain without any has NaN;
        * with `"fold_class"`, 1.0 where the class is right and 0.0 where not, and `fold_class_majority`;
        * with `"secondary_structure"`, means over the residues drawn of the chain: `silhouette` by secondary structure
          ([`silhouettes`]), `knn_purity` and `knn_purity_chance` ([`neighbour_purity`]: neighbours are residues of
          **other** proteins only, as those beside it in the sequence would fake it).

    Raises:
        ValueError: There are no chains, a task is unknown or has fewer than two classes in training, or a sequence is
            in both sets.

    Example:

    ```python
    before, after = (evaluate_probes(model, train, test) for model in (plain, aligned))
    result = compare([row["silhouette"] for row in after], [row["silhouette"] for row in before])
    ```
    """
    if unknown := [task for task in tasks if task not in (*RESIDUE_TASKS, FOLD_TASK)]:
        raise ValueError(f"tasks has {unknown}; expected some of {', '.join((*RESIDUE_TASKS, FOLD_TASK))}.")

    def class_of(chain: ProteinChain) -> str | None:
        if FOLD_TASK not in tasks:
            return None
        return fold_classes.get(chain.id) if isinstance(fold_classes, Mapping) else fold_classes(chain)

    train, test = (label_chains(chains, tasks, class_of) for chains in (train_chains, test_chains))
    probing = Probing(max_train_residues, separability_residues, k, C, max_iter, max_tokens, seed, progress)
    return probing.run(model, train, test, tokenizer, list(tasks))


def label_chains(
    chains: Sequence[ProteinChain],
    tasks: Sequence[str],
    class_of: Callable[[ProteinChain], str | None] = lambda chain: None,
) -> list[LabelledSequence]:
    """Chains with the labels of residue tasks, and the class that `class_of` gives."""
    residue_tasks = [task for task in tasks if task in RESIDUE_TASKS]
    return [
        LabelledSequence(
            chain.id, chain.sequence, {task: RESIDUE_TASKS[task](chain) for task in residue_tasks}, class_of(chain)
        )
        for chain in chains
    ]


def evaluate_labelled_sequences(
    model: PreTrainedModel,
    splits: Mapping[str, Sequence[LabelledSequence]],
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    train: str = "train",
    test: str = "test",
    tasks: Sequence[str] = ("secondary_structure",),
    max_train_sequences: int | None = 1_000,
    max_train_residues: int = 20_000,
    separability_residues: int = 5_000,
    k: int = 10,
    C: float = 1.0,
    max_iter: int = 1000,
    max_tokens: int = 4096,
    seed: int = 0,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """
    [`evaluate_probes`] for sequences whose labels come from a file, as [`read_residue_labels`] gives them.

    Args:
        splits (`Mapping[str, Sequence[LabelledSequence]]`): By name.
        train, test (`str`, *optional*, default to `"train"` and `"test"`): The splits to fit on and to judge by.
        tasks (`Sequence[str]`, *optional*): Names of labels, and `"fold_class"`.
        max_train_sequences (`int`, *optional*, defaults to 1000): Drawn from the training split, so that not all of a
            large set has to be run for the few residues that are used; `None` takes all of them.

        All others are those of [`evaluate_probes`], and so are rows and errors.
    """
    if missing := [name for name in (train, test) if not splits.get(name)]:
        raise ValueError(f"The splits {', '.join(missing)} are empty or missing; there are {', '.join(splits)}.")
    fitted = list(splits[train])
    if max_train_sequences is not None and len(fitted) > max_train_sequences:
        if max_train_sequences < 1:
            raise ValueError(f"max_train_sequences is {max_train_sequences}; expected at least 1, or None for all.")
        generator = np.random.default_rng([seed, _SEQUENCE_DRAW])
        chosen = generator.choice(len(fitted), max_train_sequences, replace=False)
        fitted = [fitted[index] for index in np.sort(chosen)]
    for item in (*fitted, *splits[test]):
        if absent := [task for task in tasks if task != FOLD_TASK and task not in item.labels]:
            raise ValueError(f"{item.id} has labels for {', '.join(item.labels)} but not for {', '.join(absent)}.")
    probing = Probing(max_train_residues, separability_residues, k, C, max_iter, max_tokens, seed, progress)
    return probing.run(model, fitted, splits[test], tokenizer, list(tasks))


@dataclass
class Probing:
    """Draws residues, fits a probe per task and judges it: what both kinds of embeddings share."""

    max_train_residues: int
    separability_residues: int
    k: int
    C: float
    max_iter: int
    max_tokens: int
    seed: int
    progress: bool

    def __post_init__(self) -> None:
        for name, least in (("max_train_residues", 2), ("separability_residues", 0), ("k", 1), ("max_iter", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}.")
        if not self.C > 0:
            raise ValueError(f"C is {self.C}; expected a number above 0, as LogisticRegression does.")

    def run(
        self,
        model: PreTrainedModel,
        train: Sequence[LabelledSequence],
        test: Sequence[LabelledSequence],
        tokenizer: PreTrainedTokenizerBase | None,
        tasks: list[str],
    ) -> list[dict[str, Any]]:
        tokenizer = tokenizer_of(model.config) if tokenizer is None else tokenizer
        return self.judge(_States(model, tokenizer, self.max_tokens, self.progress), train, test, tasks)

    def judge(
        self,
        states: _States | EmbeddedChains,
        train: Sequence[LabelledSequence],
        test: Sequence[LabelledSequence],
        tasks: list[str],
    ) -> list[dict[str, Any]]:
        """Rows of the test chains, from wherever their embeddings come."""
        if not tasks:
            raise ValueError("tasks is empty; expected at least one.")
        _check_sets(train, test)
        residue_tasks = [task for task in tasks if task != FOLD_TASK]
        probes = self._fit(states, train, residue_tasks, FOLD_TASK in tasks)

        rows: list[dict[str, Any]] = [{"id": item.id, "length": len(item)} for item in test]
        separability = SEPARABILITY_TASK in tasks and self.separability_residues > 0
        drawn = self._draw_for_separability(test) if separability else {}
        kept: dict[int, np.ndarray] = {}
        for index, own in states.of(test, "Probes: test chains"):
            for task in residue_tasks:
                rows[index] |= probes[task].judge_residues(task, own, test[index].labels[task])
            if FOLD_TASK in tasks:
                rows[index] |= probes[FOLD_TASK].judge_class(own.mean(axis=0), test[index].fold_class)
            if index in drawn:
                kept[index] = own[drawn[index]]
        if separability:
            self._add_separability(rows, test, drawn, kept)
        return rows

    def _fit(
        self, states: _States, train: Sequence[LabelledSequence], residue_tasks: list[str], pooled: bool
    ) -> dict[str, _Probe]:
        """A probe per task, of one pass over the training sequences that residues were drawn from."""
        chosen = {task: self._draw_residues(train, task) for task in residue_tasks}
        features: dict[str, list[np.ndarray]] = {task: [np.empty(0)] * len(train) for task in residue_tasks}
        means: dict[int, np.ndarray] = {}
        needed = [
            index
            for index, item in enumerate(train)
            if (pooled and item.fold_class is not None) or any(len(chosen[task][index]) for task in residue_tasks)
        ]
        for position, own in states.of([train[index] for index in needed], "Probes: training chains"):
            index = needed[position]
            for task in residue_tasks:
                features[task][index] = own[chosen[task][index]]
            means[index] = own.mean(axis=0)
        probes = {}
        for task in residue_tasks:
            used = [index for index in needed if len(chosen[task][index])]
            labels = [train[index].labels[task][chosen[task][index]] for index in used]
            probes[task] = self._regression(task, [features[task][index] for index in used], labels)
            del features[task]
        if pooled:
            classes = [(index, train[index].fold_class) for index in sorted(means) if train[index].fold_class]
            vectors = [means[index][None] for index, _ in classes]
            probes[FOLD_TASK] = self._regression(FOLD_TASK, vectors, [np.array([name]) for _, name in classes])
        return probes

    def _regression(self, task: str, features: list[np.ndarray], labels: list[np.ndarray]) -> _Probe:
        found, counts = np.unique(np.concatenate(labels), return_counts=True) if labels else ([], [])
        if len(found) < 2:
            raise ValueError(
                f"{task} has {len(found)} classes among the labels of the training set; expected at least two. Give "
                "more chains, or others."
            )
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=self.C, max_iter=self.max_iter))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # said below, with what to do
            pipeline.fit(np.concatenate(features), np.concatenate(labels))
        if pipeline[-1].n_iter_.max() >= self.max_iter:
            logger.warning(f"The probe of {task} has not converged after {self.max_iter} iterations; raise max_iter.")
        return _Probe(pipeline, found[np.argmax(counts)])

    def _draw_residues(self, train: Sequence[LabelledSequence], task: str) -> list[np.ndarray]:
        """Positions in each sequence, sorted: at most `max_train_residues` of all labelled ones."""
        labelled = [np.flatnonzero(item.labels[task] != NO_LABEL) for item in train]
        ends = np.cumsum([len(positions) for positions in labelled])
        generator = np.random.default_rng([self.seed, _TRAIN_DRAW])
        drawn = np.sort(generator.choice(ends[-1], min(self.max_train_residues, ends[-1]), replace=False))
        parts = np.split(drawn, np.searchsorted(drawn, ends[:-1]))
        return [own[part - (end - len(own))] for own, part, end in zip(labelled, parts, ends)]

    def _draw_for_separability(self, test: Sequence[LabelledSequence]) -> dict[int, np.ndarray]:
        """Labelled residues by protein: equal shares, and what short proteins lack from longer ones."""
        labelled = {
            index: np.flatnonzero(item.labels[SEPARABILITY_TASK] != NO_LABEL) for index, item in enumerate(test)
        }
        generator = np.random.default_rng([self.seed, _TEST_DRAW])
        remaining, drawn = self.separability_residues, {}
        by_length = sorted((index for index in labelled if len(labelled[index])), key=lambda i: len(labelled[i]))
        for position, index in enumerate(by_length):
            share = min(len(labelled[index]), -(-remaining // (len(by_length) - position)))
            if share:
                drawn[index] = np.sort(generator.choice(labelled[index], share, replace=False))
            remaining -= share
        return drawn

    def _add_separability(
        self,
        rows: list[dict[str, Any]],
        test: Sequence[LabelledSequence],
        drawn: dict[int, np.ndarray],
        kept: dict[int, np.ndarray],
    ) -> None:
        values = {name: np.full(len(rows), np.nan) for name in ("silhouette", "knn_purity", "knn_purity_chance")}
        if drawn:
            order = sorted(drawn)
            proteins = np.repeat(order, [len(drawn[index]) for index in order])
            embeddings = np.concatenate([kept[index] for index in order])
            labels = np.concatenate([test[index].labels[SEPARABILITY_TASK][drawn[index]] for index in order])
            per_residue = (silhouettes(embeddings, labels), *neighbour_purity(embeddings, labels, proteins, self.k))
            for column, numbers in zip(values.values(), per_residue):
                for index in order:
                    column[index] = numbers[proteins == index].mean()
        for index, row in enumerate(rows):
            row |= {name: float(column[index]) for name, column in values.items()}


@dataclass
class _States:
    """Residue embeddings of labelled sequences, one after the other."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_tokens: int
    progress: bool

    def of(self, items: Sequence[LabelledSequence], description: str) -> Any:
        sequences = [item.sequence for item in items]
        shown = description if self.progress else None
        return stream_hidden_states(self.model, sequences, self.tokenizer, self.max_tokens, shown)


@dataclass
class EmbeddedChains:
    """Residue embeddings that are there already, by the name of the chain: `(L, width)` arrays."""

    embeddings: Mapping[str, np.ndarray]

    def of(self, items: Sequence[LabelledSequence], description: str) -> Iterator[tuple[int, np.ndarray]]:
        return ((index, self.embeddings[item.id]) for index, item in enumerate(items))


@dataclass
class _Probe:
    pipeline: Pipeline
    majority: Any

    def judge_residues(self, task: str, states: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        known = labels != NO_LABEL
        right = majority = float("nan")
        if known.any():
            right = float((self.pipeline.predict(states[known]) == labels[known]).mean())
            majority = float((labels[known] == self.majority).mean())
        return {task: right, f"{task}_majority": majority, f"{task}_residues": int(known.sum())}

    def judge_class(self, state: np.ndarray, name: str | None) -> dict[str, float]:
        right = majority = float("nan")
        if name is not None:
            right, majority = float(self.pipeline.predict(state[None])[0] == name), float(name == self.majority)
        return {FOLD_TASK: right, f"{FOLD_TASK}_majority": majority}


def _check_sets(train: Sequence[LabelledSequence], test: Sequence[LabelledSequence]) -> None:
    for name, items in (("training", train), ("test", test)):
        if not items:
            raise ValueError(f"There are no {name} chains; expected at least one.")
    known = {item.sequence: item.id for item in train}
    if shared := [(item.id, known[item.sequence]) for item in test if item.sequence in known]:
        raise ValueError(
            f"{len(shared)} test chains have the sequence of a training chain, such as {shared[0][0]} that of "
            f"{shared[0][1]}. A probe would be judged by what it was fitted on; leave them out of one of the two."
        )
