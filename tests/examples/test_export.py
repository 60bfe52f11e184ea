"""Adapters from the command line: trained, exported, merged; and what train.py refuses."""

import torch
from transformers import AutoTokenizer, EsmForMaskedLM

from structure_aligned import EsmForStructureAlignment
from structure_aligned.training.adapters import load_adapters
from tests import tiny
from tests.examples.test_examples import start


def test_train_with_adapters_and_export(tmp_path):
    tiny.esm_model().save_pretrained(tmp_path / "base")
    tiny.FAMILIES["esm"].tokenizer().save_pretrained(tmp_path / "base")
    printed = start(
        "train.py",
        *("--model_name_or_path", tmp_path / "base", "--use_lora", "--lora_rank", 2, "--lora_target", "attention+ffn"),
        *("--num_synthetic", 6, "--pgnn_dim", 24, "--max_steps", 2, "--use_cpu", "--output_dir", tmp_path / "lora"),
        *("--eval_strategy", "steps", "--eval_steps", 1, "--save_strategy", "steps", "--save_steps", 1),
    ).stdout
    assert "Merge them with examples/export.py" in printed and "| token_accuracy |" in printed
    adapted = load_adapters(None, tmp_path / "lora")
    assert adapted.peft_config["default"].r == 2
    assert not (tmp_path / "lora" / "model.safetensors").exists()
    start("export.py", "--model", tmp_path / "lora", "--output", tmp_path / "plain")
    start("export.py", "--model", tmp_path / "lora", "--output", tmp_path / "merged", "--with_heads")
    tokens = AutoTokenizer.from_pretrained(tmp_path / "plain")("MKTAYIAKQR", return_tensors="pt")
    expected = adapted(**tokens)
    plain, info = EsmForMaskedLM.from_pretrained(tmp_path / "plain", output_loading_info=True)
    assert not any(info.values())
    torch.testing.assert_close(plain.eval()(**tokens).logits, expected.logits, rtol=1e-5, atol=1e-5)
    merged = EsmForStructureAlignment.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(merged(**tokens).structure_logits, expected.structure_logits, rtol=1e-5, atol=1e-5)
    refused = start("export.py", "--model", tmp_path / "lora", "--output", tmp_path / "plain", check=False)
    assert refused.returncode != 0 and "is not empty" in refused.stderr


def test_options_without_what_they_need_are_refused():
    refused = start("train.py", "--use_lora", "--use_cpu", check=False)
    assert "--use_lora came without a --model_name_or_path" in refused.stderr
