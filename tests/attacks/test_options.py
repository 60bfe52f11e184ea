"""Hostile and unlucky options: of the trainer, and of files in YAML."""

import sys

import pytest

from structure_aligned.objectives.losses import LossWeights
from structure_aligned.training.arguments import StructureAlignmentTrainingArguments

from .hostile import ROOT, check, files_below, refused, write


NAN, INFINITY = float("nan"), float("inf")
VALUES = [
    ("mlm_weight", NAN),
    ("physical_weight", INFINITY),
    ("latent_weight", -1.0),
    ("learning_rate", NAN),
    ("learning_rate", -1e-4),
    ("head_learning_rate", INFINITY),
    ("weight_decay", NAN),
    ("warmup_steps", NAN),
    ("max_grad_norm", NAN),
    ("adam_beta1", NAN),
    ("adam_epsilon", INFINITY),
    ("num_train_epochs", INFINITY),
    ("selection_ratio", NAN),
    ("selection_ratio", 0.0),
    ("selection_ratio", 1.5),
    ("tokens_per_batch", 0),
    ("batching", "../../tokens"),
    ("negatives", "none"),
    ("selection_keep", "most"),
    ("remove_unused_columns", True),
    ("lr_scheduler_kwargs", {"min_lr": NAN}),
]


# Other words for an option, in the message of what it belongs to.
MENTIONED = {"mlm_weight": "weight", "latent_weight": "loss weights", "selection_ratio": "selection"}


@pytest.mark.parametrize(("name", "value"), VALUES)
def test_training_option(tmp_path, name, value):
    def make():
        StructureAlignmentTrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True, **{name: value})

    check(make, refused(MENTIONED.get(name, name)))
    assert not files_below(tmp_path)


@pytest.mark.parametrize("weights", [(0, 0, 0), (NAN, 1, 1), (1, INFINITY, 1), (1, 1, -1)])
def test_loss_weights(weights):
    check(lambda: LossWeights(*weights), refused("weight"))


RUN = "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [ran]]"
LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in zip("abcdefghijkl", "bcdefghijklm")
)
MERGES = "a: &a {k: 1}\n" + "".join(
    f"{b}: &{b} {{<<: [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}]}}\n" for a, b in zip("abcdefghijkl", "bcdefghijklm")
)
YAML = {
    "a number with an exponent": ("learning_rate: 1e-3\n", 1e-3),
    "a mark and CRLF": ("\ufefflearning_rate: 0.001\r\nseed: 7\r\n", 1e-3),
    "nothing": ("", 1e-4),
    "only a comment": ("# learning_rate: 1\n", 1e-4),
    "an option that does not exist": ("learning_rat: 1e-3\n", refused("unknown options", "learning_rat")),
    "a name that is a number": ("1: 2\n", refused("unknown options")),
    "NaN": ("learning_rate: .nan\n", refused("learning_rate is nan")),
    "infinity": ("mlm_weight: .inf\n", refused("mlm_weight is inf")),
    "code": (f"learning_rate: {RUN}\n", refused("YAML")),
    "a list": ("- learning_rate\n", refused("x.yaml")),
    "a text": ("learning_rate\n", refused("x.yaml")),
    "a list that is never closed": ("learning_rate: [1\n", refused("YAML")),
    "a depth of 3,000": ("a: " + "[" * 3_000, refused("YAML")),
    "aliases that multiply": (LAUGHS, refused("unknown options")),
    "merge keys that multiply": (MERGES, refused("x.yaml")),
    "a day that does not exist": ("learning_rate: 2020-99-99\n", refused("YAML")),
    "Latin-1": (b"learning_rate: \xe9\n", refused("0xe9")),
    "a size that no options have": ("# " + "x" * 2_000_000, refused("bytes")),
    "a tab for an indent": ("learning_rate:\n\t1\n", refused("YAML")),
}


@pytest.mark.parametrize("name", YAML)
def test_file_of_options(tmp_path, monkeypatch, name):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.chdir(tmp_path)
    import common

    content, expected = YAML[name]
    path = write(tmp_path, "x.yaml", content)
    classes = (common.ModelArguments, common.DataArguments, StructureAlignmentTrainingArguments)

    def parse():
        return common.parse_arguments([str(path), "--use_cpu"], classes, str(tmp_path / "out"))[2].learning_rate

    check(parse, expected)
    assert list(files_below(tmp_path)) == [path.relative_to(tmp_path)]
