"""The tasks of an evaluation: what each needs, what its results depend on, and how one model does it."""

from __future__ import annotations

import base64
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..structure.chain import ProteinChain
from .assays import evaluate_fitness
from .contact_heads import MIN_SEPARATION, ContactHead, ContactRegression
from .contact_prediction import evaluate_contacts
from .pair_head import PairHead
from .perplexity import METHODS, pseudo_perplexity
from .report_inputs import EvaluationInputs, EvaluationOptions, position_fraction
from .report_models import LoadedCheckpoint


Result = dict[str, Any]
"""`tables`: rows per protein or assay, by name; and what else the page shows of a task. All of it JSON."""

CALIBRATION_EDGES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Task:
    """
    Args:
        name, title (`str`): As options and page call it.
        parts (`tuple[str, ...]`): Fields of [`EvaluationInputs`] that results depend on.
        options (`tuple[str, ...]`): Those of [`EvaluationOptions`] beyond them.
        run (`Callable`): Takes a [`LoadedCheckpoint`], the inputs, options and whether to show progress.
        required (`dict[str, str]`, *optional*): Of the parts, those that must be there, and the option that gives it.
        module (`str`, *optional*): Of this package, where what is run may not be installed.
        weights (`str`, *optional*, defaults to `"all"`): What of a checkpoint is read: `"trunk"`, `"all"` with the
            masked-LM head, or `"alignment"` with the alignment heads as well.
        any_of (`bool`, *optional*, defaults to `False`): Whether one of `required` is enough.
    """

    name: str
    title: str
    parts: tuple[str, ...]
    options: tuple[str, ...]
    run: Callable[[LoadedCheckpoint, EvaluationInputs, EvaluationOptions, bool], Result]
    required: dict[str, str]
    module: str | None = None
    weights: str = "all"
    any_of: bool = False

    def lacking(self, inputs: EvaluationInputs) -> str | None:
        """Why no model can do it, if so."""
        absent = [option for part, option in self.required.items() if not getattr(inputs, part)]
        if absent and (not self.any_of or len(absent) == len(self.required)):
            return f"needs {(' or ' if self.any_of else ' and ').join(absent)}"
        if self.module is not None:
            try:
                importlib.import_module(f".{self.module}", __package__)
            except ModuleNotFoundError as error:
                return f"cannot be run by this installation: {error}"
        return None

    def lacking_in(self, checkpoint: LoadedCheckpoint) -> str | None:
        """Why this model cannot do it, if so."""
        facts = checkpoint.facts
        if self.weights != "trunk" and not facts.has_lm_head:
            return "the checkpoint has no masked-LM head"
        if self.weights == "alignment" and facts.alignment_digest is None:
            return "the checkpoint has no alignment heads"
        return None

    def depends_on(
        self, checkpoint: LoadedCheckpoint, inputs: EvaluationInputs, options: EvaluationOptions, code: str
    ) -> dict[str, Any]:
        """All that the result is a function of: its key."""
        facts = checkpoint.facts
        weights = facts.exact_trunk_digest if self.weights == "trunk" else facts.digest
        model = {"digest": weights, "trunk_digest": facts.trunk_digest, "dtype": facts.dtype}
        if self.weights == "alignment":
            model["alignment"] = facts.alignment_digest
        return {
            "model": model,
            "inputs": {part: inputs.digest(part) for part in self.parts},
            "options": {name: getattr(options, name) for name in self.options},
            "code": code,
        }


class _MapReceiver:
    """Keeps a few maps, and of all others how often a probability came true."""

    def __init__(self, kept: list[str]) -> None:
        self.kept, self.maps = kept, {}
        bins = len(CALIBRATION_EDGES) - 1
        self.pairs, self.contacts, self.probability = (np.zeros(bins) for _ in range(3))

    def __call__(self, chain: ProteinChain, prediction: torch.Tensor, contacts: np.ndarray, valid: np.ndarray) -> None:
        prediction = prediction.numpy()
        pairs = np.triu(valid, k=MIN_SEPARATION)
        probabilities, labels = prediction[pairs].astype(np.float64), contacts[pairs]
        index = np.clip(np.digitize(probabilities, CALIBRATION_EDGES) - 1, 0, len(self.pairs) - 1)
        self.pairs += np.bincount(index, minlength=len(self.pairs))
        self.contacts += np.bincount(index, labels, minlength=len(self.pairs))
        self.probability += np.bincount(index, probabilities, minlength=len(self.pairs))
        if chain.id in self.kept:
            quantised = np.round(prediction * 255).astype(np.uint8)
            self.maps[chain.id] = {
                "length": len(chain),
                "map": base64.b64encode(quantised.tobytes()).decode(),  # 1/255 steps, row after row
            }

    def calibration(self) -> dict[str, Any]:
        """Per bin of predicted probability its pairs, contacts and mean probability, and the error over all pairs."""
        total = self.pairs.sum()
        error = np.abs(self.contacts - self.probability).sum() / total if total else None
        return {
            "edges": CALIBRATION_EDGES,
            "pairs": self.pairs,
            "contacts": self.contacts,
            "probability": self.probability,
            "error": error,
        }


def decode_map(stored: dict[str, Any]) -> np.ndarray:
    """`(L, L)` of probabilities, as `_MapReceiver` packed it."""
    values = np.frombuffer(base64.b64decode(stored["map"]), dtype=np.uint8)
    return values.reshape(stored["length"], stored["length"]) / 255


def _heads_kept(head: ContactRegression) -> str:
    """What the L1 penalty has left: with none, all pairs have one probability, which explains equal results."""
    return f"{int((head.weight != 0).sum())} of {head.weight.numel()}"


def _contacts(head_class: type[ContactHead]) -> Callable[..., Result]:
    def run(
        checkpoint: LoadedCheckpoint, inputs: EvaluationInputs, options: EvaluationOptions, progress: bool
    ) -> Result:
        model, tokenizer = checkpoint.model, checkpoint.tokenizer
        head = head_class.fit(model, inputs.contact_chains, tokenizer, seed=options.seed)
        receiver = _MapReceiver(inputs.examples(options.num_examples))
        rows = evaluate_contacts(model, inputs.test_chains, head, tokenizer, progress=progress, receive=receiver)
        return {
            "tables": {"contacts": rows},
            "maps": receiver.maps,
            "calibration": receiver.calibration(),
            "fitted_on": [chain.id for chain in inputs.contact_chains],
            "attention_heads": _heads_kept(head) if isinstance(head, ContactRegression) else None,
        }

    return run


def _fitness(
    checkpoint: LoadedCheckpoint, inputs: EvaluationInputs, options: EvaluationOptions, progress: bool
) -> Result:
    rows = evaluate_fitness(
        checkpoint.model,
        inputs.assays,
        checkpoint.tokenizer,
        options.strategy,
        max_tokens=options.max_tokens,
        progress=progress,
    )
    return {"tables": {"fitness": [{"id": row.pop("assay")} | row for row in rows]}, "strategy": options.strategy}


def perplexity_sets(inputs: EvaluationInputs) -> dict[str, dict[str, str]]:
    """Sequences by id, of each set there is."""
    sets = {
        "structures": {chain.id: chain.sequence for chain in inputs.test_chains},
        "natural": inputs.sequences,
    }
    return {name: sequences for name, sequences in sets.items() if sequences}


def _perplexity(
    checkpoint: LoadedCheckpoint, inputs: EvaluationInputs, options: EvaluationOptions, progress: bool
) -> Result:
    tables, drawn = {}, {}
    for name, sequences in perplexity_sets(inputs).items():
        values = list(sequences.values())
        drawn[name] = fraction = position_fraction(values, options.budget("perplexity"))
        for method in METHODS:
            result = pseudo_perplexity(
                checkpoint.model,
                values,
                checkpoint.tokenizer,
                method,
                position_fraction=fraction,
                seed=options.seed,
                max_tokens=options.max_tokens,
                progress=progress,
            )
            tables[f"{name}, {method}"] = [
                {
                    "id": one,
                    "length": len(sequence),
                    "nll": float(nll),
                    "count": int(count),
                    "log_perplexity": float(nll / count) if count else None,
                }
                for (one, sequence), nll, count in zip(sequences.items(), result.nll, result.count)
            ]
    return {"tables": tables, "position_fraction": drawn}


def _probes(
    checkpoint: LoadedCheckpoint, inputs: EvaluationInputs, options: EvaluationOptions, progress: bool
) -> Result:
    from .probes import evaluate_probes
    from .residue_labels import fold_class

    classes = {fold_class(chain) for chain in inputs.probe_chains} - {None}
    rows = evaluate_probes(
        checkpoint.model,
        inputs.probe_chains,
        inputs.test_chains,
        checkpoint.tokenizer,
        tasks=("secondary_structure", "structure_tokens", *(("fold_class",) if len(classes) > 1 else ())),
        max_train_residues=options.max_train_residues,
        seed=options.seed,
        progress=progress,
    )
    return {"tables": {"probes": rows}, "fitted_on": [chain.id for chain in inputs.probe_chains]}


def _secondary_structure(
    checkpoint: LoadedCheckpoint, inputs: EvaluationInputs, options: EvaluationOptions, progress: bool
) -> Result:
    from .probes import evaluate_labelled_sequences

    rows = evaluate_labelled_sequences(
        checkpoint.model,
        inputs.labelled,
        checkpoint.tokenizer,
        max_train_residues=options.max_train_residues,
        seed=options.seed,
        progress=progress,
    )
    return {"tables": {"secondary_structure": rows}, "fitted_on": [one.id for one in inputs.labelled["train"]]}


def _tokens(
    checkpoint: LoadedCheckpoint, inputs: EvaluationInputs, options: EvaluationOptions, progress: bool
) -> Result:
    from .tokens import evaluate_structure_tokens

    rows = evaluate_structure_tokens(
        checkpoint.aligned_model(), inputs.test_chains, checkpoint.tokenizer, progress=progress
    )
    return {"tables": {"tokens": rows}}


_TEST = {"test_chains": "--structures"}
_HEAD_PARTS = ("test_chains", "contact_chains")
_HEAD_NEEDS = _TEST | {"contact_chains": "--train_structures"}
_PROBE_NEEDS = _TEST | {"probe_chains": "--train_structures"}

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "contacts",
            "Contacts from attention maps",
            _HEAD_PARTS,
            ("seed", "num_examples"),
            _contacts(ContactRegression),
            _HEAD_NEEDS,
            weights="trunk",
        ),
        Task(
            "pair_head",
            "Contacts from hidden states",
            _HEAD_PARTS,
            ("seed", "num_examples"),
            _contacts(PairHead),
            _HEAD_NEEDS,
            weights="trunk",
        ),
        Task("fitness", "Effects of mutations", ("assays",), ("strategy",), _fitness, {"assays": "--dms"}),
        Task(
            "perplexity",
            "Pseudo-perplexity",
            ("test_chains", "sequences"),
            ("seed", "max_proteins", "perplexity_tokens"),
            _perplexity,
            _TEST | {"sequences": "--sequences"},
            any_of=True,
        ),
        Task(
            "probes",
            "Probes on frozen embeddings",
            ("test_chains", "probe_chains"),
            ("seed", "max_train_residues"),
            _probes,
            _PROBE_NEEDS,
            module="probes",
            weights="trunk",
        ),
        Task(
            "secondary_structure",
            "Probe on labelled secondary structure",
            ("labelled",),
            ("seed", "max_train_residues"),
            _secondary_structure,
            {"labelled": "--secondary_structure"},
            module="probes",
            weights="trunk",
        ),
        Task(
            "tokens",
            "3Di tokens by the alignment heads",
            ("test_chains",),
            (),
            _tokens,
            _TEST,
            module="tokens",
            weights="alignment",
        ),
    )
}

DEFAULT_TASKS = ("contacts", "fitness", "perplexity", "probes", "secondary_structure", "tokens")
