"""Which folder a training may write into: never one that holds an earlier result, unless the user says so."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..objectives.distributed import is_distributed
from .checkpoints import last_complete_checkpoint


logger = logging.get_logger(__name__)

OVERWRITE_HELP = "Train into a folder that holds an earlier model or checkpoints, which are removed."
"""Of the option `overwrite_output_dir`, which Transformers 5 no longer has."""

_CHECKPOINTS = f"{PREFIX_CHECKPOINT_DIR}-*"

_RESULTS = (
    "config.json",
    "adapter_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "*.bin",
    "*.bin.index.json",
    _CHECKPOINTS,
)
"""What makes a folder used. Prepared data, logs and the user's own files do not: a training does not replace them."""


def check_output_dir(args: Any) -> None:
    """
    Refuses an output folder that holds an earlier result. To be called by all ranks, before anything is written.

    The main process decides for all of them: another rank might otherwise see what the main process has just written.

    Args:
        args ([`StructureAlignmentTrainingArguments`]): Or anything else with `output_dir`, `resume_from_checkpoint`
            and `overwrite_output_dir`.

    Raises:
        ValueError: On all ranks, if the folder holds a model or checkpoints and neither of the two options is given,
            if the two contradict each other, or if there is nothing to resume from.
    """
    refused = [None]
    if _is_main(args):
        try:
            _check(Path(args.output_dir), args.resume_from_checkpoint, args.overwrite_output_dir)
        except ValueError as error:
            refused = [str(error)]
    if is_distributed():
        broadcast_object_list(refused)
    if refused[0] is not None:
        raise ValueError(refused[0])


def clear_output_dir(args: Any) -> None:
    """
    With `overwrite_output_dir`, removes the earlier model and checkpoints. To be called right before the training, so
    that the folder may be the one that the base model was loaded from, and a dataset that is refused costs no model.
    """
    if not (args.overwrite_output_dir and _is_main(args)):
        return
    for path in _results(Path(args.output_dir)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def checkpoint_to_resume(resume: str | bool | Path | None, output_dir: str | Path) -> Path | None:
    """
    The checkpoint that `resume_from_checkpoint` asks for.

    Args:
        resume (`str` or `bool`, *optional*): A folder; or `True` for the newest complete checkpoint of `output_dir`.
            The command line's `"true"` and `"false"` are strings.
        output_dir (`str` or `Path`): Output folder of the training.

    Returns:
        `Path`, *optional*: `None` to start from the beginning. A warning says so where `True` was asked for but the
        earlier run was stopped before its first checkpoint.

    Raises:
        ValueError: The checkpoint is not a folder.
    """
    if not _is_asked_for(resume):
        return None
    if not _is_newest(resume):
        if not Path(resume).is_dir():
            raise ValueError(
                f"resume_from_checkpoint is {str(resume)!r}, which is not a folder; give a checkpoint folder, or true "
                "for the newest checkpoint of the output folder."
            )
        return Path(resume)
    checkpoint = last_complete_checkpoint(output_dir)
    if checkpoint is None:
        logger.warning(
            f"There is no complete checkpoint in {output_dir} to resume from: the training starts from the beginning."
        )
    return checkpoint


def _check(folder: Path, resume: str | bool | None, overwrite: bool) -> None:
    if _is_asked_for(resume) and not _is_newest(resume):
        checkpoint_to_resume(resume, folder)  # says what is wrong with a path
    own = _is_asked_for(resume) and (_is_newest(resume) or Path(resume).resolve().parent == folder.resolve())
    if own and overwrite:
        raise ValueError(
            f"--overwrite_output_dir would remove the checkpoints of {folder} that --resume_from_checkpoint {resume} "
            "asks for; give one of the two options."
        )
    found = [path.name for path in _results(folder)]
    if not found or overwrite or (own and any(folder.glob(_CHECKPOINTS))):
        return
    listed = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
    if own:
        raise ValueError(
            f"{folder} holds a finished model ({listed}) but no checkpoint to resume from. To keep it, give another "
            "--output_dir; to replace it, add --overwrite_output_dir instead of --resume_from_checkpoint."
        )
    raise ValueError(
        f"{folder} already holds the result of a training ({listed}). To keep it, give another --output_dir; to "
        "replace it, add --overwrite_output_dir; to continue a run that was interrupted, add "
        "--resume_from_checkpoint true."
    )


def _is_main(args: Any) -> bool:
    return getattr(args, "process_index", 0) == 0


def _is_asked_for(resume: Any) -> bool:
    return resume is not None and str(resume).lower() not in ("", "false")


def _is_newest(resume: Any) -> bool:
    return str(resume).lower() == "true"


def _results(folder: Path) -> Iterator[Path]:
    for pattern in _RESULTS:
        yield from sorted(folder.glob(pattern))
