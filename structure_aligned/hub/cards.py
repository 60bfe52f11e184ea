"""Model cards: written by the training, extended by evaluations, checked before they are uploaded."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..models.trunks import trunk_digest
from ..training.pretrained import load_aligned_model, load_language_model
from ..utils.files import atomic_file, read_bytes, read_json, read_text, write_text
from .card_text import render
from .results import EVAL_FILE, RESULTS_FOLDER, check_results, file_digest, read_table
from .run_facts import RunFacts, license_of


logger = logging.get_logger(__name__)

CARD_NAME = "README.md"
PREVIOUS_NAME = "README.previous.md"


def write_model_card(
    folder: str | os.PathLike,
    trainer: Trainer | None = None,
    *,
    facts: RunFacts | Mapping[str, Any] | None = None,
    results: Sequence[str] | None = None,
    name: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
) -> Path:
    """
    Writes `README.md`, the model card, and `training_run.json`, the facts in it, into a model's folder.

    Results are those of JSON files in the folder; each is named in the card with its SHA-256. What is not known is
    said to be unknown. A card that somebody has edited is kept as `README.previous.md`.

    Args:
        folder (`str` or `os.PathLike`): Of the saved model.
        trainer ([`StructureAlignmentTrainer`], *optional*): That trained it; only its main process writes.
        facts ([`RunFacts`], *optional*): Instead of a trainer; by default those written before, else what the
            configuration and the weights tell.
        results (`list[str]`, *optional*): JSON files in the folder with the Trainer's metrics, first of after and then
            (if given) of before the training. By default those written before; of a trainer, `eval_results.json` where
            it is of the trainer's own last training.
        name, base_model, license (`str`, *optional*): Replace what was found; ids of the hub.

    Returns:
        `Path`: Of the card.

    Raises:
        ValueError: `trainer` and `facts` are both given, or a file of results is missing or of another form.
    """
    folder = Path(folder)
    if trainer is not None and facts is not None:
        raise ValueError("trainer and facts are both given; the facts of a run come from one of them.")
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; save the model there first.")
    if trainer is not None:
        if not trainer.is_world_process_zero():
            return folder / CARD_NAME
        facts = RunFacts.of_trainer(trainer)
        facts.results = _own_results(folder, trainer)
    elif facts is None:
        facts = RunFacts.of_folder(folder)
    elif isinstance(facts, Mapping):
        facts = RunFacts(**facts)
    if base_model is not None:
        facts.base_model, facts.base_note, facts.license = base_model, f"`{base_model}`", license_of(base_model)
    facts.name, facts.license = name or facts.name, license or facts.license
    if results is not None:
        facts.results = [{"files": list(results), "model": None}] if results else []
    return _write(folder, facts)


def add_results(
    folder: str | os.PathLike, report: str | os.PathLike, model: str | None = None, *, check_weights: bool = True
) -> Path:
    """
    Copies results into a model's folder, as `results/<name>`, and writes its card again.

    Args:
        folder (`str` or `os.PathLike`): Of the saved model.
        report (`str` or `os.PathLike`): The `report.json` of an evaluation, or a JSON list with one
            `{"task", "dataset", "metric", "value"}`, and optionally a 95 % `"interval"` `[low, high]`, per result. It
            is shared with the model as it is, with whatever paths it names.
        model (`str`, *optional*): What the report calls the model; needed where it is of several, none of them loaded
            from `folder`.
        check_weights (`bool`, *optional*, defaults to `True`): Refuse a report of other weights: those of the folder
            are loaded and compared with the digest that the report states.

    Raises:
        ValueError: The report is of other weights or another form, does not say which model is meant, or another file
            of that name was added before.
    """
    folder, report = Path(folder), Path(report)
    content = read_json(report)
    if isinstance(content, Mapping) and "estimates" in content:
        model = _model_of(content, folder, model)
        stated = content["models"].get(model, {}).get("trunk_digest")
        if check_weights and stated is not None:
            found = trunk_digest(_load(folder))
            if found != stated:
                raise ValueError(
                    f"{report} is of other weights: it states the digest {stated[:12]}… for {model!r}, and {folder} "
                    f"has {found[:12]}…. Evaluate this model."
                )
    target = folder / RESULTS_FOLDER / report.name
    if target.exists() and file_digest(target) != file_digest(report):
        raise ValueError(f"{target} is there already, with other content; rename {report} or delete the former.")
    facts = RunFacts.of_folder(folder)
    entry = {"files": [f"{RESULTS_FOLDER}/{report.name}"], "model": model}
    read_table(report.parent, [report.name], model)  # before anything is written
    if not target.exists():
        with atomic_file(target) as file:
            file.write(read_bytes(report, "a JSON file"))
    facts.results = [one for one in facts.results if one["files"] != entry["files"]] + [entry]
    return _write(folder, facts)


def check_card(folder: str | os.PathLike) -> ModelCard:
    """
    The card of a folder, after a check of all that can be checked without the network.

    Raises:
        ValueError: There is no card, its metadata are none, or it states results that are in none of its files.
    """
    path = Path(folder) / CARD_NAME
    if not path.is_file():
        raise ValueError(f"{folder} has no {CARD_NAME}; write one with write_model_card.")
    try:
        card = ModelCard(read_text(path, "a model card"))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} cannot be read as a model card ({error}); write it with write_model_card."
        ) from error
    found = card.data.to_dict()
    for key in ("license", "library_name", "tags"):
        if not found.get(key):
            raise ValueError(f"The metadata of {path} have no {key!r}; write the card with write_model_card.")
    values = [result.metric_value for result in card.data.get("eval_results") or ()]
    check_results(folder, card.text, values)
    return card


class ModelCardCallback(TrainerCallback):
    """
    Writes the card of a training: into every checkpoint, and into `output_dir` at the end of the training. The
    Trainer's own `push_to_hub` uploads this card, too.

    Args:
        trainer ([`StructureAlignmentTrainer`]): Whose training it is, as in
            `trainer.add_callback(ModelCardCallback(trainer))`.
        name, base_model, license (`str`, *optional*): As for [`write_model_card`].
    """

    def __init__(
        self,
        trainer: Trainer,
        *,
        name: str | None = None,
        base_model: str | None = None,
        license: str | None = None,
    ) -> None:
        self.trainer = trainer
        self.stated = {"name": name, "base_model": base_model, "license": license}
        self._data: dict[str, Any] | None = None
        self._results: list[dict[str, Any]] | None = None
        self._resumed_at: int | None = None
        trainer.create_model_card = self._create_model_card

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Results of an earlier training in the same folder are none of this model.
        self._results, self._resumed_at = None, state.global_step or None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            self._try_to_write(folder, finished=False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            Path(args.output_dir).mkdir(parents=True, exist_ok=True)
            self._try_to_write(Path(args.output_dir))

    def write(self, results: Sequence[str] | None = None) -> Path | None:
        """
        The card in `output_dir`, on the main process alone.

        Args:
            results (`list[str]`, *optional*): As for [`write_model_card`].
        """
        if not self.trainer.is_world_process_zero():
            return None
        folder = Path(self.trainer.args.output_dir)
        if results is not None:
            self._results = [{"files": list(results), "model": None}]
        return self._write(folder, _own_results(folder, self.trainer) if self._results is None else self._results)

    def _try_to_write(self, folder: Path, finished: bool = True) -> None:
        try:
            self._write(folder, finished=finished)
        except Exception as error:  # of any kind: a card is not worth a training
            logger.warning(f"The model card in {folder} could not be written: {type(error).__name__}: {error}")

    def _write(self, folder: Path, results: Sequence[dict[str, Any]] = (), finished: bool = True) -> Path:
        facts = RunFacts.of_trainer(self.trainer, finished=finished, data=self._data)
        self._data = facts.data  # the datasets of a training do not change, and reading them may take seconds
        facts.run["resumed_at"] = self._resumed_at or facts.run["resumed_at"]
        facts.results = list(results)
        return write_model_card(folder, facts=facts, **self.stated)

    def _create_model_card(self, model_name: str | None = None, **kwargs: Any) -> None:
        """In the place of the Trainer's own; what it takes besides a name, this card says from facts."""
        if self.trainer.is_world_process_zero():
            self.stated["name"] = model_name or self.stated["name"]
            self.write()


def _write(folder: Path, facts: RunFacts) -> Path:
    tables = [read_table(folder, entry["files"], entry.get("model")) for entry in facts.results]
    card = render(facts, tables)
    check_results(folder, card.text, [result.metric_value for result in card.data.get("eval_results") or ()])
    path = folder / CARD_NAME
    if path.is_file() and not facts.adapters and file_digest(path) != RunFacts.of_folder(folder).card:
        # PEFT writes its own into folders of adapters; any other is somebody's work.
        names = itertools.chain([PREVIOUS_NAME], (f"README.previous-{number}.md" for number in itertools.count(2)))
        kept = next(folder / name for name in names if not (folder / name).exists())
        path.replace(kept)
        logger.warning(f"{path} was not written by this package, or was edited; it is now {kept.name}.")
    write_text(path, str(card))
    facts.card = file_digest(path)
    facts.write(folder)
    return path


def _load(folder: Path) -> PreTrainedModel:
    if (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"{folder} holds adapters, whose weights cannot be compared with a report's; export the model and add the "
            "results to that, or give check_weights=False."
        )
    aligned = read_json(folder / "config.json", kind=dict).get("structure_alignment")
    return load_aligned_model(folder) if aligned else load_language_model(folder, lm_head=False)


def _own_results(folder: Path, trainer: Trainer) -> list[dict[str, Any]]:
    """`eval_results.json`, where its loss is one that this training has logged: it may be of an earlier one."""
    path = folder / EVAL_FILE
    if not path.is_file():
        return []
    loss = read_json(path).get("eval_loss")
    if loss is None or loss not in [log.get("eval_loss") for log in trainer.state.log_history]:
        return []
    return [{"files": [EVAL_FILE], "model": None}]


def _model_of(report: Mapping[str, Any], folder: Path, wanted: str | None) -> str:
    known = list(dict.fromkeys(row["series"] for row in report["estimates"]))
    if wanted is None:
        here = folder.resolve()
        loaded = [name for name, facts in report["models"].items() if Path(facts["path"]).resolve() == here]
        wanted = loaded[0] if len(loaded) == 1 else known[0] if len(known) == 1 else None
    if wanted not in known:
        raise ValueError(f"The report is of {', '.join(known)}; say with model=… which of them {folder} holds.")
    return wanted
