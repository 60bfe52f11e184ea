"""Adapters from the command line: trained, exported, merged; and what train.py refuses."""

import importlib

import pytest
import torch
from transformers import AutoTokenizer, EsmForMaskedLM

from structure_aligned import EsmForStructureAlignment
from structure_aligned.training.adapters import load_adapters
from tests import tiny
from tests.examples.test_examples import ROOT, start


@pytest.fixture
def script(monkeypatch):
    """`script(name)`: the module of an example, in this process."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module


def test_train_with_adapters_and_export(tmp_path, script, capsys):
    tiny.esm_model().save_pretrained(tmp_path / "base")
    tiny.FAMILIES["esm"].tokenizer().save_pretrained(tmp_path / "base")
    printed = start(
        "train.py",
        *("--model_name_or_path", tmp_path / "base", "--use_lora", "--lora_rank", 2, "--lora_target", "attention+ffn"),
        *("--num_synthetic", 6, "--pgnn", "gearnet", "--pgnn_dim", 24, "--max_steps", 2, "--use_cpu"),
        *("--output_dir", tmp_path / "lora"),
        *("--eval_strategy", "steps", "--eval_steps", 1, "--save_strategy", "steps", "--save_steps", 1),
    ).stdout
    assert "Merge them with examples/export.py" in printed and "| token_accuracy |" in printed
    adapted = load_adapters(None, tmp_path / "lora")
    assert adapted.peft_config["default"].r == 2
    assert not (tmp_path / "lora" / "model.safetensors").exists()
    export = script("export").main
    export(["--model", str(tmp_path / "lora"), "--output", str(tmp_path / "plain")])
    export(["--model", str(tmp_path / "lora"), "--output", str(tmp_path / "merged"), "--with_heads"])
    assert capsys.readouterr().out.count("Saved ") == 2
    tokens = AutoTokenizer.from_pretrained(tmp_path / "plain")("MKTAYIAKQR", return_tensors="pt")
    expected = adapted(**tokens)
    plain, info = EsmForMaskedLM.from_pretrained(tmp_path / "plain", output_loading_info=True)
    assert not any(info.values())
    torch.testing.assert_close(plain.eval()(**tokens).logits, expected.logits, rtol=1e-5, atol=1e-5)
    merged = EsmForStructureAlignment.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(merged(**tokens).structure_logits, expected.structure_logits, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="is not empty"):
        export(["--model", str(tmp_path / "lora"), "--output", str(tmp_path / "plain")])


def test_options_without_what_they_need_are_refused(script, capsys):
    parse = script("train").parse_arguments
    with pytest.raises(ValueError, match="--use_lora came without a --model_name_or_path"):
        parse(["--use_lora", "--use_cpu"])
    with pytest.raises(ValueError, match="--load_in_4bit came without --use_lora"):
        parse(["--load_in_4bit", "--use_cpu"])
    for options, message in ((["--base", "x"], "--base is for adapters"), (["--with_heads"], "merges adapters")):
        with pytest.raises(SystemExit):
            script("export").parse_arguments(["--model", "none", "--output", "y", *options])
        assert message in capsys.readouterr().err
