"""The contract of the alignment classes: shapes, save and load in both directions, precision, batch independence."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, BertConfig, EsmForMaskedLM

from structure_aligned.models.alignment import AutoModelForStructureAlignment, EsmForStructureAlignment
from structure_aligned.models.heads import INITIAL_LOGIT_SCALE, StructureAlignmentOutput
from structure_aligned.objectives.losses import IGNORE_INDEX
from tests import tiny


BATCH, LENGTH = 3, 24


def inputs(labels=True):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 24, (BATCH, LENGTH), generator=generator)
    ids[:, 0] = 0
    attention_mask = torch.ones_like(ids)
    attention_mask[1, 15:] = 0
    ids[attention_mask == 0] = 1
    ids[:, 5] = 32
    given = {"input_ids": ids, "attention_mask": attention_mask}
    if labels:
        residue = attention_mask.bool() & (ids > 3)
        given["labels"] = torch.where(ids == 32, 7, IGNORE_INDEX)
        given["structure_labels"] = torch.where(residue, ids % 20, IGNORE_INDEX)
        given["residue_mask"] = residue
        embeddings = torch.randn(BATCH, LENGTH, tiny.STRUCTURE_DIM, generator=generator)
        given["structure_embeddings"] = embeddings.masked_fill(~residue[..., None], float("nan"))
    return given


def test_shapes_and_what_depends_on_what():
    model = tiny.esm_model()
    out = model(**inputs(), output_hidden_states=True)
    assert isinstance(out, StructureAlignmentOutput)
    assert out.logits.shape == (BATCH, LENGTH, 33)
    assert out.structure_logits.shape == (BATCH, LENGTH, 20)
    assert out.sequence_projection.shape == out.structure_projection.shape == (BATCH, LENGTH, tiny.STRUCTURE_DIM)
    torch.testing.assert_close(out.sequence_projection.norm(dim=-1), torch.ones(BATCH, LENGTH))
    assert out.logit_scale.item() == pytest.approx(INITIAL_LOGIT_SCALE)
    assert out.loss.ndim == 0 and out.loss.isfinite()
    assert len(out.hidden_states) == 3
    plain = model(**inputs(labels=False))
    assert plain.loss is None and plain.structure_projection is None
    assert torch.equal(plain.logits, out.logits)
    parts = model(inputs()["input_ids"], labels=inputs()["labels"])
    assert parts.loss.isfinite() and parts.loss < out.loss
    assert isinstance(model(**inputs(labels=False), return_dict=False), tuple)


def test_nan_outside_the_residue_mask_reaches_no_gradient():
    model = tiny.esm_model()
    model(**inputs()).loss.backward()
    gradients = [parameter.grad for name, parameter in model.named_parameters() if "contact_head" not in name]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_logit_scale_has_a_floor():
    model = tiny.esm_model()
    with torch.no_grad():
        model.alignment.logit_scale.fill_(-20.0)
    assert model(**inputs(labels=False)).logit_scale.exp().item() == pytest.approx(0.01)


def test_heads_on_a_plain_trunk_are_fresh_and_initialised(tmp_path, capfd):
    torch.manual_seed(0)
    plain = EsmForMaskedLM(tiny.esm_config(structure_alignment=None)).eval()
    plain.save_pretrained(tmp_path)
    model = EsmForStructureAlignment.from_pretrained(tmp_path, structure_alignment={"structure_dim": 40})
    assert torch.equal(model(**inputs(labels=False)).logits, plain(**inputs(labels=False)).logits)
    heads = model.alignment
    assert heads.logit_scale.item() == pytest.approx(INITIAL_LOGIT_SCALE)
    assert heads.structure_projection.weight.shape == (32, 40)
    for linear in (heads.token_classifier[0], heads.token_classifier[2], heads.sequence_projection):
        bound = linear.in_features**-0.5
        assert linear.weight.abs().max() <= bound
        assert linear.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.15)
        assert 0 < linear.bias.abs().max() <= bound


def test_loading_a_plain_trunk_says_that_the_heads_are_new(tmp_path):
    EsmForMaskedLM(tiny.esm_config()).save_pretrained(tmp_path)
    _, info = EsmForStructureAlignment.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] and all(key.startswith("alignment.") for key in info["missing_keys"])
    assert not info["unexpected_keys"] and not info["mismatched_keys"]


def test_loads_the_layout_of_the_published_checkpoints(tmp_path):
    """ESM2 on the hub: one rotary table per layer, position ids, the tied decoder written out, torch's file format."""
    torch.manual_seed(0)
    plain = EsmForMaskedLM(tiny.esm_config(structure_alignment=None)).eval()
    state = {key: value for key, value in plain.state_dict().items() if "rotary" not in key}
    table = plain.state_dict()["esm.rotary_embeddings.inv_freq"]
    for layer in range(2):
        state[f"esm.encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq"] = table.clone()
    state["esm.embeddings.position_ids"] = torch.arange(1026)[None]
    plain.config.save_pretrained(tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin")
    model, info = EsmForStructureAlignment.from_pretrained(tmp_path, output_loading_info=True)
    assert all(key.startswith("alignment.") for key in info["missing_keys"])
    assert torch.equal(model(**inputs(labels=False)).logits, plain(**inputs(labels=False)).logits)


def test_save_and_load_give_the_same_model(tmp_path):
    model = tiny.esm_model()
    model.save_pretrained(tmp_path)
    for loaded in (
        EsmForStructureAlignment.from_pretrained(tmp_path),
        AutoModelForStructureAlignment.from_pretrained(tmp_path),
    ):
        assert type(loaded) is EsmForStructureAlignment
        assert loaded.config.structure_alignment == model.config.structure_alignment
        for name, value in model.state_dict().items():
            assert torch.equal(value, loaded.state_dict()[name]), name
        assert torch.equal(loaded(**inputs()).loss, model(**inputs()).loss)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "esm"


@pytest.mark.parametrize("reload", [False, True])
def test_saved_names_are_the_models_own(tmp_path, reload):
    """What Trainer needs to resume: it loads with `load_state_dict`, which renames nothing."""
    model = tiny.esm_model()
    if reload:
        model.save_pretrained(tmp_path / "first")
        model = EsmForStructureAlignment.from_pretrained(tmp_path / "first")
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert set(model.state_dict()) - set(saved) == {"lm_head.decoder.weight"}  # tied
    assert set(saved) <= set(model.state_dict())


def test_plain_transformers_load_the_folder(tmp_path):
    model = tiny.esm_model()
    model.save_pretrained(tmp_path)
    logits = model(**inputs(labels=False)).logits
    masked_lm = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert type(masked_lm) is EsmForMaskedLM
    assert torch.equal(masked_lm(**inputs(labels=False)).logits, logits)
    trunk = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False)
    assert torch.equal(
        trunk(**inputs(labels=False)).last_hidden_state, model.esm(**inputs(labels=False)).last_hidden_state
    )


def test_a_process_without_this_package_gives_identical_logits(tmp_path):
    model = tiny.esm_model()
    model.save_pretrained(tmp_path)
    torch.save(inputs(labels=False), tmp_path / "inputs.pt")
    script = (
        "import sys, torch; from transformers import EsmForMaskedLM; folder = sys.argv[1];"
        "torch.set_num_threads(1);"
        "model = EsmForMaskedLM.from_pretrained(folder).eval();"
        "inputs = torch.load(folder + '/inputs.pt', weights_only=True);"
        "torch.save(model(**inputs).logits.detach(), folder + '/logits.pt');"
        "assert not any(name.startswith('structure_aligned') for name in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert torch.equal(torch.load(tmp_path / "logits.pt", weights_only=True), model(**inputs(labels=False)).logits)


def test_sdpa_and_eager_agree():
    eager = tiny.esm_model(attn_implementation="eager")
    sdpa = tiny.esm_model(attn_implementation="sdpa")
    assert eager.config._attn_implementation != sdpa.config._attn_implementation
    given = inputs()
    real = given["attention_mask"].bool()
    torch.testing.assert_close(eager(**given).logits[real], sdpa(**given).logits[real], rtol=0, atol=1e-5)
    torch.testing.assert_close(eager(**given).loss, sdpa(**given).loss, rtol=0, atol=1e-5)


def test_auto_class(tmp_path):
    config = tiny.esm_config()
    assert type(AutoModelForStructureAlignment.from_config(config)) is EsmForStructureAlignment
    EsmForMaskedLM(config).save_pretrained(tmp_path)
    model = AutoModelForStructureAlignment.from_pretrained(tmp_path, structure_alignment={"structure_dim": 7})
    assert model.config.structure_alignment["structure_dim"] == 7
    with pytest.raises(ValueError, match="no alignment model for checkpoints of type 'bert'"):
        AutoModelForStructureAlignment.from_config(BertConfig())
    with pytest.raises(OSError, match="from_pretrained"):
        AutoModelForStructureAlignment()


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = tiny.esm_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**inputs()).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-7)


@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16_is_close(autocast):
    expected = tiny.esm_model()(**inputs())
    model = tiny.esm_model() if autocast else tiny.esm_model().bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model(**inputs())
    assert out.loss.dtype == torch.float32
    assert out.loss.item() == pytest.approx(expected.loss.item(), rel=0.02)
    assert out.sequence_projection.dtype == (torch.float32 if autocast else torch.bfloat16)


def test_a_protein_does_not_see_its_batch():
    model = tiny.esm_model()
    given = inputs(labels=False)
    together = model(**given)
    alone = model(given["input_ids"][1:2, :15])
    for name in ("logits", "structure_logits", "sequence_projection"):
        torch.testing.assert_close(getattr(together, name)[1:2, :15], getattr(alone, name), rtol=0, atol=1e-5)


def test_refuses_inputs_that_do_not_fit():
    model = tiny.esm_model()
    given = inputs()
    with pytest.raises(ValueError, match="23.*aligned with input_ids"):
        model(**given | {"structure_labels": given["structure_labels"][:, 1:]})
    with pytest.raises(ValueError, match="7 wide but this model's heads expect 24"):
        model(**given | {"structure_embeddings": given["structure_embeddings"][..., :7]})
    with pytest.raises(ValueError, match="without residue_mask"):
        model(**given | {"residue_mask": None})


def test_refuses_settings_that_make_no_sense():
    with pytest.raises(ValueError, match="unknown keys"):
        tiny.esm_model(structure_alignment={"width": 3})
    with pytest.raises(ValueError, match="positive integer"):
        tiny.esm_model(structure_alignment={"structure_dim": 0})
    with pytest.raises(ValueError, match="three numbers"):
        tiny.esm_model(structure_alignment={"loss_weights": [1, 2]})
