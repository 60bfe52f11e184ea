"""The part of the closing table that is judged protein by protein: contacts and 3Di tokens, before and after."""

from pathlib import Path
from typing import Any

import datasets

from structure_aligned import StructureAlignmentTrainer, comparison_table
from structure_aligned.data.finding import find_chains
from structure_aligned.evaluation.before_after import (
    ProteinScores,
    affordable_chains,
    compare_scores,
    draw_rows,
    score_proteins,
)
from structure_aligned.evaluation.contact_heads import labelled_pairs


MAX_CHAINS = 40
"""Validation chains that are judged."""

FIT_CHAINS = 20
"""Training chains that the contact regression is fitted on."""

MAX_UNNAMED_FILES = 1000
"""Structure files that are searched for chains that no file name tells of."""


class ClosingTable:
    """
    Scores some validation chains twice and prints what the training changed.

    One process works and the others wait. Where processes hold parts of the model only (FSDP, DeepSpeed), none does,
    and the table has no lines of proteins.

    Args:
        trainer ([`StructureAlignmentTrainer`]): Before its training.
        structures (`Any`): The structure files of its datasets, as for [`StructureDatasetBuilder`]; `None` for none.
        contacts (`bool`, *optional*, defaults to `True`): Whether to judge contacts.
    """

    def __init__(self, trainer: StructureAlignmentTrainer, structures: Any, contacts: bool = True) -> None:
        self.trainer, self.notes, self.chains, self.fit_chains = trainer, [], [], []
        self.is_main = trainer.is_world_process_zero()
        self.whole_model = not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)
        self.scores: list[ProteinScores] = []
        if not self.is_main:
            return
        if not self.whole_model:
            self.notes.append("No contacts and no intervals: the processes hold parts of the model (FSDP, DeepSpeed).")
            return
        self.rows = draw_rows(trainer.eval_dataset, MAX_CHAINS)
        if len(self.rows) == 0:
            self.notes.append("No contacts and no intervals: all validation chains are too long for them.")
            self.whole_model = False
            return
        self.notes.append(
            f"Lines with (n = …): means over {len(self.rows)} of {len(trainer.eval_dataset)} validation chains, read "
            "unmasked, with 95 % bootstrap intervals over proteins and a paired permutation test."
        )
        if contacts:
            self._find_structures(structures)

    def _find_structures(self, structures: Any) -> None:
        if not structures:
            self.notes.append("No contacts: a prepared dataset has no coordinates. Give its --structures as well.")
            return
        fit_rows = draw_rows(self.trainer.train_dataset, FIT_CHAINS)
        names = [part.select_columns(["entry", "chain", "digest"]) for part in (self.rows, fit_rows)]
        found = find_chains(structures, datasets.concatenate_datasets(names), MAX_UNNAMED_FILES)
        chains = [chain for chain in found[: len(self.rows)] if chain is not None]
        fit_chains = [chain for chain in found[len(self.rows) :] if chain is not None]
        missing = f"{len(chains)} of {len(self.rows)} validation and {len(fit_chains)} of {len(fit_rows)} training"
        if not chains or not fit_chains:
            self.notes.append(f"No contacts: only {missing} chains were found in the structure files.")
            return
        if len(chains) < len(self.rows) or len(fit_chains) < len(fit_rows):
            self.notes.append(f"Contacts: of {missing} chains, those that were found in the structure files.")
        try:
            labelled_pairs(affordable_chains(self.trainer.model, fit_chains))
        except ValueError as error:  # said, but no reason not to train
            self.notes.append(f"No contacts: {error}")
            return
        self.chains, self.fit_chains = chains, fit_chains

    def score(self) -> None:
        """To be called by all processes, once before and once after the training."""
        if self.is_main and self.whole_model:
            tokenizer = self.trainer.processing_class
            scores = score_proteins(self.trainer.model, self.rows, tokenizer, self.chains, self.fit_chains)
            self.scores.append(scores)
        self.trainer.accelerator.wait_for_everyone()

    def text(self, before: dict[str, float], after: dict[str, float]) -> str:
        """The table and what there is to say of it, from the metrics of the trainer and both scores."""
        lines, notes = (), list(self.notes)
        if self.scores:
            lines = compare_scores(*self.scores)
        if self.chains:
            fitted = len(affordable_chains(self.trainer.model, self.fit_chains))
            notes.append(
                f"Contacts: CB within 8 Å, at least 6 residues apart; regression on attention maps, fitted anew to "
                f"{fitted} training chains for each model."
            )
            for name, scores in zip(("before", "after"), self.scores):
                if scores.empty_regression:
                    notes.append(
                        f"Contacts {name}: no attention map tells of contacts (the regression keeps none), so that "
                        "precision is what guessing gives."
                    )
        table = comparison_table(before, after, self.trainer.eval_dataset, lines)
        return "\n".join([table, "", *notes]).rstrip()


def structure_files(
    structures: str | None, validation_structures: str | None, dataset: str | None, output_dir: str
) -> Any:
    """Where the chains of the training scripts' data come from; `None` where nobody knows."""
    if structures is None and dataset is None:
        return [Path(output_dir) / "synthetic_folds"]
    return [given for given in (structures, validation_structures) if given is not None] or None
