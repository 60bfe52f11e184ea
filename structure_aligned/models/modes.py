"""Modes that are put back as they were: evaluation of modules, and what Transformers says while it loads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers.utils import logging


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`eval()` inside; every module is then put back into the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def without_load_report() -> Iterator[None]:
    """Loading a model inside says nothing of missing and unexpected weights, for callers that judge them."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
