"""LoRA: what is adapted, trained, saved, loaded, merged and refused, in both families."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from structure_aligned.data.collator import DataCollatorForStructureAlignment
from structure_aligned.models.alignment import AutoModelForStructureAlignment
from structure_aligned.models.trunks import fresh_trunk
from structure_aligned.training import adapters
from structure_aligned.training.adapters import add_lora, load_adapters, merge_adapters
from structure_aligned.training.arguments import StructureAlignmentTrainingArguments
from structure_aligned.training.compiling import compile_trunk
from structure_aligned.training.trainer import StructureAlignmentTrainer
from tests import tiny
from tests.closeness import assert_same_but_rounding
from tests.models import test_alignment
from tests.training import job
from tests.training.test_processes import PLAIN_STEPS, largest_difference, launch, parameters


FAMILIES = list(tiny.FAMILIES)
ROOT = Path(__file__).parents[2]


def inputs(family):
    return test_alignment.inputs(tiny.FAMILIES[family], labels=False)


def adapted(family, disturbed=False, **options):
    """A tiny model with adapters, which when fresh change nothing; disturbed, adapters and heads are random."""
    model = add_lora(tiny.FAMILIES[family].model(), **({"rank": 4} | options))
    if disturbed:
        torch.manual_seed(5)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def trainer_of(tmp_path, family, model, **options):
    arguments = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": [], "disable_tqdm": True}
    arguments |= {"save_strategy": "no", "warmup_steps": 0}
    tokenizer = tiny.FAMILIES[family].tokenizer()
    return StructureAlignmentTrainer(
        model,
        StructureAlignmentTrainingArguments(**(arguments | options)),
        DataCollatorForStructureAlignment(tokenizer),
        train_dataset=tiny.dataset(8),
        eval_dataset=tiny.dataset(4),
        processing_class=tokenizer,
    )


def assert_same_outputs(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **tolerance)


LAYERS = {
    ("esm", "attention"): {
        "esm.encoder.layer.{}.attention." + name for name in ("self.query", "self.key", "self.value", "output.dense")
    },
    ("esm", "ffn"): {"esm.encoder.layer.{}.intermediate.dense", "esm.encoder.layer.{}.output.dense"},
    ("AMPLIFY", "attention"): {"transformer_encoder.{}." + name for name in ("q", "k", "v", "wo")},
    ("AMPLIFY", "ffn"): {"transformer_encoder.{}.ffn.w12", "transformer_encoder.{}.ffn.w3"},
}


@pytest.mark.parametrize("target", ["attention", "attention+ffn"])
@pytest.mark.parametrize("family", FAMILIES)
def test_presets_adapt_the_layers_they_name(family, target):
    model = adapted(family, rank=3, target=target)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    layers = set().union(*(LAYERS[family, part] for part in target.split("+")))
    expected = {
        f"base_model.model.{layer.format(number)}.lora_{matrix}.default.weight"
        for layer in layers
        for number in range(2)
        for matrix in "AB"
    }
    heads = {name.removeprefix("alignment.") for name, _ in tiny.FAMILIES[family].model().named_parameters()
             if name.startswith("alignment.")}  # fmt: skip
    expected |= {f"base_model.model.alignment.modules_to_save.default.{name}" for name in heads}
    assert "logit_scale" in heads and trained == expected
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (3, 6, 0.0)


def test_feed_forward_networks_without_swiglu_are_adapted():
    model = add_lora(tiny.FAMILIES["AMPLIFY"].model(hidden_act="GELU"), target="attention+ffn")
    names = {name for name, _ in model.named_modules() if name.endswith(("ffn.0.lora_A", "ffn.2.lora_A"))}
    assert len(names) == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_adapters_change_no_output(tmp_path, family):
    plain, model = tiny.FAMILIES[family].model(), adapted(family)
    assert_same_outputs(model(**inputs(family)), plain(**inputs(family)), rtol=0, atol=0)
    metrics = [trainer_of(tmp_path, family, each).evaluate() for each in (plain, model)]
    names = [name for name in metrics[0] if "time" not in name and "per_second" not in name]
    assert "eval_token_accuracy" in names
    assert all(metrics[0][name] == metrics[1][name] for name in names)


@pytest.mark.parametrize("batching", ["tokens", "packed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_steps_change_adapters_and_heads_and_nothing_else(tmp_path, family, batching):
    model = adapted(family, target="attention+ffn", dropout=0.1)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = trainer_of(tmp_path, family, model, max_steps=2, batching=batching, logging_steps=1)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
    expected = {name for name in start if "lora_" in name or "modules_to_save" in name}
    assert {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, start[name])} == expected
    assert len(expected) == 2 * 2 * 6 + 9
    assert model.config._attn_implementation == ("packed" if batching == "packed" else "sdpa")
    assert trainer.label_names == ["labels", "structure_labels"]


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_losses_equal_padded_ones(tmp_path, family):
    totals = []
    for batching in ("tokens", "packed"):
        trainer = trainer_of(tmp_path, family, adapted(family, disturbed=True), batching=batching)
        totals.append(trainer.compute_loss(trainer.model, trainer.data_collator([tiny.row(i) for i in range(5)])))
    torch.testing.assert_close(totals[0], totals[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_have_their_own_learning_rate(tmp_path, family):
    trainer = trainer_of(tmp_path, family, adapted(family), learning_rate=1e-4, head_learning_rate=3e-3)
    groups = trainer.create_optimizer().param_groups
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    rate = {names[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}
    assert {name: "alignment." in name for name in rate} == {name: value == 3e-3 for name, value in rate.items()}
    assert set(rate) == {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    decay = {names[id(parameter)]: group["weight_decay"] for group in groups for parameter in group["params"]}
    assert [name for name, value in decay.items() if "logit_scale" in name and value == 0]


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_gives_the_same_gradients(tmp_path, family, use_reentrant):
    gradients = []
    for checkpointing in (False, True):
        model = adapted(family, disturbed=True).train()
        options = {"gradient_checkpointing_kwargs": {"use_reentrant": use_reentrant}} if checkpointing else {}
        trainer = trainer_of(
            tmp_path, family, model, max_steps=1, gradient_checkpointing=checkpointing, max_grad_norm=0.0,
            optim="sgd", learning_rate=1.0, head_learning_rate=1.0, tokens_per_batch=4096, **options,
        )  # fmt: skip
        start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        trainer.train()
        gradients.append({name: start[name] - value.detach() for name, value in model.named_parameters()})
        # Checkpointing makes embeddings want gradients by a hook; what is merged has none of it.
        merged = merge_adapters(model)
        assert not merged.get_input_embeddings()._forward_hooks
        assert bool(model.get_base_model().get_input_embeddings()._forward_hooks) == checkpointing
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, atol=1e-6, rtol=1e-4, msg=name)
    assert sum(value.abs().max() > 0 for value in gradients[0].values()) == 2 * 2 * 4 + 9


@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_layers_run_the_adapters(family):
    calls = []

    def counting(graph, example_inputs):
        calls.append(1)
        return graph.forward

    torch._dynamo.reset()
    expected = adapted(family, disturbed=True)(**inputs(family))
    model = adapted(family, disturbed=True)
    assert compile_trunk(model, counting) == 2
    found = model(**inputs(family))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_same_but_rounding(found[name], value, 16, msg=name)
    assert calls
    torch._dynamo.reset()


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_loaded_gives_the_same_outputs(tmp_path, family):
    base = tiny.FAMILIES[family].model()
    base.save_pretrained(tmp_path / "base")
    model = adapted(family, disturbed=True, target="attention+ffn")
    model.config.structure_alignment["pgnn"] = "tiny"
    expected = model(**inputs(family))
    model.save_pretrained(tmp_path / "adapters")
    saved = load_file(tmp_path / "adapters" / "adapter_model.safetensors")
    assert not any("word_embeddings" in name or "decoder" in name for name in saved)
    for given in (base, tmp_path / "base", str(tmp_path / "base")):
        loaded = load_adapters(given, tmp_path / "adapters")
        assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
        assert loaded.config.structure_alignment["pgnn"] == "tiny"
        assert_same_outputs(loaded(**inputs(family)), expected, rtol=0, atol=0)
    trainable = load_adapters(tmp_path / "base", tmp_path / "adapters", is_trainable=True)
    asked = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable.training
    assert {name for name, parameter in trainable.named_parameters() if parameter.requires_grad} == asked


def test_from_a_plain_trunk_by_the_name_in_the_folder(tmp_path):
    """The heads' width is the adapters', and the base has none; in bfloat16 it is still the same trunk."""
    family = tiny.FAMILIES["esm"]
    torch.manual_seed(0)
    family.plain(family.config(structure_alignment=None)).save_pretrained(tmp_path / "base")
    base = AutoModelForStructureAlignment.from_pretrained(tmp_path / "base", structure_alignment={"structure_dim": 24})
    model = add_lora(base, rank=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(parameter.requires_grad * 0.1)
    model.eval().save_pretrained(tmp_path / "adapters")
    assert_same_outputs(load_adapters(None, tmp_path / "adapters")(**inputs("esm")), model(**inputs("esm")))
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"adapts .*base, which cannot be loaded here .*; give it as base"):
        load_adapters(None, tmp_path / "adapters")
    (tmp_path / "moved").rename(tmp_path / "base")
    rounded = AutoModelForStructureAlignment.from_pretrained(
        tmp_path / "base", structure_alignment={"structure_dim": 24}, dtype=torch.bfloat16
    )
    assert load_adapters(rounded, tmp_path / "adapters").trunk_digest == model.trunk_digest


def test_a_base_without_heads_is_taken_and_one_without_a_masked_lm_head_refused(tmp_path, monkeypatch, capfd):
    family = tiny.FAMILIES["esm"]
    plain = family.plain(family.config(structure_alignment=None))
    plain.save_pretrained(tmp_path / "base")
    plain.esm.save_pretrained(tmp_path / "trunk")
    base = AutoModelForStructureAlignment.from_pretrained(tmp_path / "base", structure_alignment={"structure_dim": 24})
    add_lora(base, rank=2).save_pretrained(tmp_path / "adapters")
    said = []
    monkeypatch.setattr(adapters.logger, "warning", said.append)
    capfd.readouterr()
    load_adapters(tmp_path / "base", tmp_path / "adapters")
    assert said == [] and "MISSING" not in "".join(capfd.readouterr())
    with pytest.raises(ValueError, match=r"lacks 5 of the weights .* lm_head.dense.weight"):
        load_adapters(tmp_path / "trunk", tmp_path / "adapters")


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_of_another_trunk_are_refused(tmp_path, family):
    adapted(family).save_pretrained(tmp_path / "adapters")
    other = tiny.FAMILIES[family].model(seed=1)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ValueError, match="were trained on another trunk"):
        load_adapters(other, tmp_path / "adapters")
    assert other.state_dict().keys() == before.keys()
    with pytest.raises(ValueError, match="were trained on another trunk"):
        add_lora(other, rank=4).load_adapter(tmp_path / "adapters", "default")
    # Other heads on the same trunk are no obstacle: the folder has its own.
    same = tiny.FAMILIES[family].model()
    with torch.no_grad():
        same.alignment.sequence_projection.weight.add_(1)
    assert_same_outputs(
        load_adapters(same, tmp_path / "adapters")(**inputs(family)), adapted(family)(**inputs(family))
    )


def test_what_cannot_be_loaded_is_refused(tmp_path):
    adapted("esm").save_pretrained(tmp_path / "adapters")
    with pytest.raises(ValueError, match="of a trunk of type 'esm', and the model is of type 'AMPLIFY'"):
        load_adapters(tiny.FAMILIES["AMPLIFY"].model(), tmp_path / "adapters")
    with pytest.raises(ValueError, match="structure_dim is 24 there and 8 here"):
        load_adapters(tiny.esm_model(structure_alignment={"structure_dim": 8}), tmp_path / "adapters")
    with pytest.raises(ValueError, match="does not say what model it adapts"):
        load_adapters(None, tmp_path / "adapters")
    with pytest.raises(TypeError, match="EsmForMaskedLM; expected an EsmForStructureAlignment"):
        load_adapters(tiny.FAMILIES["esm"].plain(tiny.esm_config()), tmp_path / "adapters")
    with pytest.raises(ValueError, match="holds no adapters"):
        load_adapters(tiny.esm_model(), tmp_path)
    (tmp_path / "adapters" / adapters.RECORD_NAME).unlink()
    with pytest.raises(ValueError, match="has no structure_alignment.json"):
        load_adapters(tiny.esm_model(), tmp_path / "adapters")


def test_options_that_make_no_sense_are_refused():
    for options, message in (
        ({"rank": 0}, "rank is 0"),
        ({"alpha": 0}, "alpha is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"target": "ffn"}, "target is 'ffn'; choose one of attention, attention"),
    ):
        with pytest.raises(ValueError, match=message):
            add_lora(tiny.esm_model(), **options)
    with pytest.raises(ValueError, match="has adapters already"):
        add_lora(adapted("esm"))
    model = tiny.esm_model()
    model.config.model_type = "other"
    with pytest.raises(ValueError, match="no preset for models of type 'other'"):
        add_lora(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_equals_unmerged_and_needs_no_peft(tmp_path, family):
    tiny.FAMILIES[family].model().save_pretrained(tmp_path / "base")
    base = AutoModelForStructureAlignment.from_pretrained(tmp_path / "base")
    fresh = base(**inputs(family))
    model = add_lora(base, rank=4, target="attention+ffn")
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.eval()
    expected = model(**inputs(family))
    assert (expected.logits - fresh.logits).abs().max() > 1e-2
    model.save_pretrained(tmp_path / "adapters")
    merged = merge_adapters(tmp_path / "adapters", tmp_path / "merged")
    assert type(merged) is tiny.FAMILIES[family].aligned
    for found in (merged, merge_adapters(model)):
        assert_same_outputs(found(**inputs(family)), expected, rtol=1e-5, atol=1e-5)
        assert found.state_dict().keys() == tiny.FAMILIES[family].model().state_dict().keys()
        assert all(parameter.requires_grad for parameter in found.parameters())
    assert_same_outputs(model(**inputs(family)), expected, rtol=0, atol=0)  # as it was
    torch.save(inputs(family), tmp_path / "inputs.pt")
    script = (
        "import sys, torch; sys.modules['peft'] = None; torch.set_num_threads(1);"
        "from structure_aligned import AutoModelForStructureAlignment; folder = sys.argv[1];"
        "model = AutoModelForStructureAlignment.from_pretrained(folder + '/merged').eval();"
        "outputs = model(**torch.load(folder + '/inputs.pt', weights_only=True));"
        "torch.save({k: v.detach() for k, v in outputs.items()}, folder + '/outputs.pt'); print(type(model).__name__)"
    )
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip() == tiny.FAMILIES[family].aligned.__name__
    saved = torch.load(tmp_path / "outputs.pt", weights_only=True)
    assert_same_outputs(saved, merged(**inputs(family)), rtol=0, atol=0)
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["architectures"] == [tiny.FAMILIES[family].aligned.__name__]
    assert not any("peft" in key or "lora" in key for key in config)


def test_merging_replaces_only_what_it_may(tmp_path):
    base = tiny.esm_model()
    model = adapted("esm", disturbed=True)
    model.save_pretrained(tmp_path / "adapters")
    with pytest.raises(ValueError, match="would be lost"):
        merge_adapters(tmp_path / "adapters", tmp_path / "adapters", base, overwrite=True)
    with pytest.raises(ValueError, match="would be lost"):
        (tmp_path / "config.json").write_text("{}")
        merge_adapters(tmp_path / "adapters", tmp_path, base, overwrite=True)
    before = base(**inputs("esm"))
    merge_adapters(tmp_path / "adapters", tmp_path / "merged", base)
    assert_same_outputs(base(**inputs("esm")), before, rtol=0, atol=0)  # the base that was given stays as it was
    with pytest.raises(ValueError, match="is not empty"):
        merge_adapters(tmp_path / "adapters", tmp_path / "merged", base)
    merge_adapters(tmp_path / "adapters", tmp_path / "merged", base, overwrite=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_resumed_equals_uninterrupted(tmp_path, family):
    options = {"family": family, "lora": {"rank": 4, "dropout": 0.1}, "per_device_train_batch_size": 2}
    options |= {"batching": "proteins", "max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    job.run(tmp_path / "whole", **options)
    names = {path.name for path in (tmp_path / "whole" / "checkpoint-4").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", adapters.RECORD_NAME} <= names
    assert "model.safetensors" not in names
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "resumed" / "checkpoint-4")
    (tmp_path / "resumed" / "checkpoint-5").mkdir()  # half-written
    job.run(tmp_path / "resumed", resume=True, **options)
    expected, found = parameters(tmp_path / "whole"), parameters(tmp_path / "resumed")
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_the_best_adapters_come_back_at_the_end(tmp_path):
    """With such a learning rate the first evaluation is the best; training ends with its adapters and heads."""
    model = adapted("esm")
    trainer = trainer_of(
        tmp_path, "esm", model, max_steps=3, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
        load_best_model_at_end=True, metric_for_best_model="eval_loss", learning_rate=1.0, head_learning_rate=1.0,
        lr_scheduler_type="constant",
    )  # fmt: skip
    trainer.train()
    losses = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    best = min(range(3), key=losses.__getitem__)
    assert best != 2 and trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best + 1}")
    assert trainer.evaluate()["eval_loss"] == losses[best]
    loaded = load_adapters(tiny.esm_model(), trainer.state.best_model_checkpoint)
    assert_same_outputs(loaded(**inputs("esm")), model.eval()(**inputs("esm")), rtol=0, atol=0)
    trainer.save_model(tmp_path / "saved")
    again = load_adapters(tiny.esm_model(), tmp_path / "saved")
    assert_same_outputs(again(**inputs("esm")), loaded(**inputs("esm")), rtol=0, atol=0)
    assert (tmp_path / "saved" / "tokenizer_config.json").exists()


@pytest.mark.parametrize("family", ["esm", pytest.param("AMPLIFY", marks=pytest.mark.slow)])
def test_two_processes_equal_one(tmp_path, family):
    options = PLAIN_STEPS | {"family": family, "rows": 16, "batching": "proteins", "max_steps": 2}
    options |= {"lora": {"rank": 4}, "gradient_checkpointing": True, "learning_rate": 0.5, "negatives": "global"}
    job.run(tmp_path / "one", per_device_train_batch_size=4, **options)
    launch(tmp_path / "two", processes=2, per_device_train_batch_size=2, **options)
    torch.manual_seed(0)
    start = dict(add_lora(tiny.FAMILIES[family].model().double(), rank=4).named_parameters())
    expected, found = parameters(tmp_path / "one"), parameters(tmp_path / "two")
    moved = {name for name, value in expected.items() if not torch.equal(value, start[name])}
    assert moved == {name for name, value in start.items() if value.requires_grad}
    assert largest_difference({name: expected[name] for name in moved}, found, start) < 1e-8
    assert all(torch.equal(found[name], start[name]) for name in set(start) - moved)


def test_four_bits_without_bitsandbytes_say_what_is_missing(monkeypatch):
    monkeypatch.setattr(adapters.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install bitsandbytes"):
        adapters.four_bit_config()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trunk_in_four_bits_is_trained_around(tmp_path, family):
    pytest.importorskip("bitsandbytes")
    # Wide enough for blocks of 64 values.
    options = {"structure_alignment": {"structure_dim": tiny.STRUCTURE_DIM}} | tiny.FAMILIES[family].config_options
    torch.manual_seed(0)
    config = fresh_trunk(tiny.FAMILIES[family].model_type, 2, 64, 4, **options)[0]
    AutoModelForStructureAlignment.from_config(config).save_pretrained(tmp_path / "base")
    base = AutoModelForStructureAlignment.from_pretrained(
        tmp_path / "base", quantization_config=adapters.four_bit_config(), device_map="cpu"
    )
    model = add_lora(base, rank=4, target="attention+ffn")
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = trainer_of(tmp_path, family, model, max_steps=2, logging_steps=1)
    trainer.train()
    assert all(math.isfinite(log["loss"]) for log in trainer.state.log_history if "loss" in log)
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, start[name])}
    assert moved == {name for name, value in model.named_parameters() if value.requires_grad}
    assert model.base_model.model.alignment.modules_to_save.default.sequence_projection.weight.dtype == torch.float32
    with pytest.raises(ValueError, match="would be rounded as well"):
        merge_adapters(model)
    trainer.save_model(tmp_path / "adapters")
    merged = merge_adapters(tmp_path / "adapters", base=tmp_path / "base")
    similar = torch.nn.functional.cosine_similarity(
        merged(**inputs(family)).sequence_projection, model.eval()(**inputs(family)).sequence_projection, dim=-1
    )
    assert isinstance(model, PeftModel) and similar.min() > 0.8
