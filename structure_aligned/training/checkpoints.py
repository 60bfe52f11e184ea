"""Checkpoints that a killed process or a full disk cannot spoil: half-written ones are never resumed from."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..utils.files import MAX_BYTES, read_json


logger = logging.get_logger(__name__)


def is_complete(checkpoint: Path) -> bool:
    """Whether the Trainer finished it: its own state is what it writes last."""
    try:
        read_json(checkpoint / TRAINER_STATE_NAME, max_bytes=MAX_BYTES)
    except ValueError:
        return False
    return True


def last_complete_checkpoint(folder: str | Path) -> Path | None:
    """The newest checkpoint of a training folder that was written to its end; a warning names newer ones."""
    numbered = []
    for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if path.is_dir() and (match := re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name)):
            numbered.append((int(match[1]), path))
    for _, path in sorted(numbered, reverse=True):
        if is_complete(path):
            return path
        logger.warning(f"{path} was not written to its end (the process was killed, or the disk full); passed over.")
    return None


def discard_failed_checkpoint(checkpoint: Path, error: Exception) -> OSError:
    """Removes what is there of a checkpoint that could not be written, to make room, and gives the error to raise."""
    shutil.rmtree(checkpoint, ignore_errors=True)
    last = last_complete_checkpoint(checkpoint.parent)
    kept = f"{last} is complete" if last is not None else "there is no earlier one"
    free = shutil.disk_usage(checkpoint.parent).free / 2**20
    return OSError(
        f"The checkpoint {checkpoint} could not be written: {type(error).__name__}: {error}. {free:,.0f} MiB are free "
        f"there; what was written of it is removed, and {kept}. Make room (save_total_limit keeps fewer checkpoints) "
        "and go on with resume_from_checkpoint=True."
    )
