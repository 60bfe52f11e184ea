"""
The contract of the alignment classes, the same for every trunk: shapes, save and load in both directions, precision,
batch independence. The training step over two processes is in `tests/training/test_processes.py`.
"""

import inspect
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, BertConfig
from transformers.utils.generic import find_labels

from structure_aligned.models.alignment import AutoModelForStructureAlignment
from structure_aligned.models.heads import INITIAL_LOGIT_SCALE, StructureAlignmentOutput
from structure_aligned.objectives.losses import IGNORE_INDEX
from tests import tiny
from tests.closeness import assert_same_but_rounding


BATCH, LENGTH = 3, 24


@pytest.fixture(params=list(tiny.FAMILIES))
def family(request):
    return tiny.FAMILIES[request.param]


def inputs(family, labels=True):
    tokenizer = family.tokenizer()
    residues = torch.tensor(tokenizer.convert_tokens_to_ids(list(tiny.AMINO_ACIDS)))
    generator = torch.Generator().manual_seed(1)
    ids = residues[torch.randint(0, 20, (BATCH, LENGTH), generator=generator)]
    ids[:, 0] = tokenizer("")["input_ids"][0]
    attention_mask = torch.ones_like(ids)
    attention_mask[1, 15:] = 0
    ids[attention_mask == 0] = tokenizer.pad_token_id
    ids[:, 5] = tokenizer.mask_token_id
    given = {"input_ids": ids, "attention_mask": attention_mask}
    if labels:
        residue = attention_mask.bool().clone()
        residue[:, 0] = False
        given["labels"] = torch.where(ids == tokenizer.mask_token_id, 7, IGNORE_INDEX)
        given["structure_labels"] = torch.where(residue, ids % 20, IGNORE_INDEX)
        given["residue_mask"] = residue
        embeddings = torch.randn(BATCH, LENGTH, tiny.STRUCTURE_DIM, generator=generator)
        given["structure_embeddings"] = embeddings.masked_fill(~residue[..., None], float("nan"))
    return given


def test_shapes_and_what_depends_on_what(family):
    model = family.model()
    out = model(**inputs(family), output_hidden_states=True)
    assert isinstance(out, StructureAlignmentOutput)
    assert out.logits.shape == (BATCH, LENGTH, len(family.tokenizer()))
    assert out.structure_logits.shape == (BATCH, LENGTH, 20)
    assert out.sequence_projection.shape == out.structure_projection.shape == (BATCH, LENGTH, tiny.STRUCTURE_DIM)
    torch.testing.assert_close(out.sequence_projection.norm(dim=-1), torch.ones(BATCH, LENGTH))
    assert out.logit_scale.item() == pytest.approx(INITIAL_LOGIT_SCALE)
    assert out.loss.ndim == 0 and out.loss.isfinite()
    assert len(out.hidden_states) == family.hidden_states
    plain = model(**inputs(family, labels=False))
    assert plain.loss is None and plain.structure_projection is None
    assert torch.equal(plain.logits, out.logits)
    parts = model(inputs(family)["input_ids"], labels=inputs(family)["labels"])
    assert parts.loss.isfinite() and parts.loss < out.loss
    assert torch.equal(model(**inputs(family, labels=False), return_dict=False)[0], out.logits)
    loss, logits, *_ = model(**inputs(family), return_dict=False)
    assert torch.equal(loss, out.loss) and torch.equal(logits, out.logits)


def named_arguments(model_class):
    parameters = inspect.signature(model_class.forward).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]


def test_forward_takes_the_arguments_of_its_parent_in_their_order_and_then_its_own(family):
    arguments, parents = named_arguments(family.aligned), named_arguments(family.plain)
    own = ["structure_labels", "structure_embeddings", "residue_mask"]
    assert arguments[: len(parents) + len(own)] == parents + own
    named = {"position_ids", "inputs_embeds", "output_attentions", "output_hidden_states", "return_dict"}
    assert named <= set(arguments)
    assert find_labels(family.aligned) == ["labels", "structure_labels"]


def test_arguments_by_position_are_those_of_the_parent(family):
    model, given = family.model(), inputs(family)
    plain = family.plain(family.config()).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    embeddings = torch.randn(BATCH, LENGTH, 32)
    positions = torch.arange(0, 3 * LENGTH, 3).expand(BATCH, LENGTH)
    by_position = (None, given["attention_mask"], positions, embeddings)
    assert torch.equal(model(*by_position).logits, plain(*by_position).logits)
    by_name = dict(zip(("attention_mask", "position_ids", "inputs_embeds"), by_position[1:]))
    assert torch.equal(model(**by_name).logits, plain(**by_name).logits)
    assert not torch.equal(model(inputs_embeds=embeddings).logits, model(**by_name).logits)


def test_what_is_recorded_is_asked_for_by_argument_or_configuration(family):
    model, given = family.model(attn_implementation="eager"), inputs(family, labels=False)
    out = model(**given, output_attentions=True, output_hidden_states=True)
    assert len(out.attentions) == 2 and len(out.hidden_states) == family.hidden_states
    model.config.output_hidden_states = True
    assert len(model(**given).hidden_states) == family.hidden_states
    assert model(**given, output_hidden_states=False).hidden_states is None
    model.config.return_dict = False
    assert isinstance(model(**given), tuple)
    assert isinstance(model(**given, return_dict=True), StructureAlignmentOutput)


def test_nan_outside_the_residue_mask_reaches_no_gradient(family):
    model = family.model()
    model(**inputs(family)).loss.backward()
    gradients = [parameter.grad for name, parameter in model.named_parameters() if "contact_head" not in name]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_logit_scale_has_a_floor(family):
    model = family.model()
    with torch.no_grad():
        model.alignment.logit_scale.fill_(-20.0)
    assert model(**inputs(family, labels=False)).logit_scale.exp().item() == pytest.approx(0.01)


def test_heads_on_a_plain_trunk_are_fresh_and_initialised(family, tmp_path, capfd):
    torch.manual_seed(0)
    plain = family.plain(family.config(structure_alignment=None)).eval()
    plain.save_pretrained(tmp_path)
    model = family.aligned.from_pretrained(tmp_path, structure_alignment={"structure_dim": 40})
    assert torch.equal(model(**inputs(family, labels=False)).logits, plain(**inputs(family, labels=False)).logits)
    heads = model.alignment
    assert heads.logit_scale.item() == pytest.approx(INITIAL_LOGIT_SCALE)
    assert heads.structure_projection.weight.shape == (32, 40)
    for linear in (heads.token_classifier[0], heads.token_classifier[2], heads.sequence_projection):
        bound = linear.in_features**-0.5
        assert linear.weight.abs().max() <= bound
        assert linear.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.15)
        assert 0 < linear.bias.abs().max() <= bound


def test_loading_a_plain_trunk_says_that_the_heads_are_new(family, tmp_path):
    family.plain(family.config()).save_pretrained(tmp_path)
    _, info = family.aligned.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] and all(key.startswith("alignment.") for key in info["missing_keys"])
    assert not info["unexpected_keys"] and not info["mismatched_keys"]


def test_save_and_load_give_the_same_model(family, tmp_path):
    model = family.model()
    model.save_pretrained(tmp_path)
    for loaded in (
        family.aligned.from_pretrained(tmp_path),
        AutoModelForStructureAlignment.from_pretrained(tmp_path),
    ):
        assert type(loaded) is family.aligned
        assert loaded.config.structure_alignment == model.config.structure_alignment
        for name, value in model.state_dict().items():
            assert torch.equal(value, loaded.state_dict()[name]), name
        assert torch.equal(loaded(**inputs(family)).loss, model(**inputs(family)).loss)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == family.model_type


@pytest.mark.parametrize("reload", [False, True])
def test_saved_names_are_the_models_own(family, tmp_path, reload):
    """What Trainer needs to resume: it loads with `load_state_dict`, which renames nothing."""
    model = family.model()
    if reload:
        model.save_pretrained(tmp_path / "first")
        model = family.aligned.from_pretrained(tmp_path / "first")
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    tied = {"lm_head.decoder.weight"} if family.model_type == "esm" else set()
    assert set(model.state_dict()) - set(saved) == tied
    assert set(saved) <= set(model.state_dict())


def test_auto_classes_load_the_folder(family, tmp_path):
    model = family.model()
    model.save_pretrained(tmp_path)
    out = model(**inputs(family, labels=False), output_hidden_states=True)
    masked_lm, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(masked_lm) is family.plain
    assert not info["missing_keys"] and all(key.startswith("alignment.") for key in info["unexpected_keys"])
    assert torch.equal(masked_lm(**inputs(family, labels=False)).logits, out.logits)
    options = {"add_pooling_layer": False} if family.model_type == "esm" else {}
    trunk = AutoModel.from_pretrained(tmp_path, **options)
    hidden = trunk(**inputs(family, labels=False)).last_hidden_state
    assert torch.equal(hidden, out.hidden_states[-1])


def test_sdpa_and_eager_agree(family):
    eager = family.model(attn_implementation="eager")
    sdpa = family.model(attn_implementation="sdpa")
    assert eager.config._attn_implementation != sdpa.config._attn_implementation
    given = inputs(family)
    real = given["attention_mask"].bool()
    assert_same_but_rounding(eager(**given).logits[real], sdpa(**given).logits[real])
    assert_same_but_rounding(eager(**given).loss, sdpa(**given).loss, 8)


def test_auto_class(family, tmp_path):
    config = family.config()
    assert type(AutoModelForStructureAlignment.from_config(config)) is family.aligned
    family.plain(config).save_pretrained(tmp_path)
    model = AutoModelForStructureAlignment.from_pretrained(tmp_path, structure_alignment={"structure_dim": 7})
    assert model.config.structure_alignment["structure_dim"] == 7
    with pytest.raises(ValueError, match="no alignment model for checkpoints of type 'bert'"):
        AutoModelForStructureAlignment.from_config(BertConfig())
    with pytest.raises(OSError, match="from_pretrained"):
        AutoModelForStructureAlignment()


def test_gradient_checkpointing_gives_the_same_gradients(family):
    gradients = []
    for checkpointing in (False, True):
        model = family.model().double().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**inputs(family)).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16_is_close(family, autocast):
    expected = family.model()(**inputs(family))
    model = family.model() if autocast else family.model().bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model(**inputs(family))
    assert out.loss.dtype == torch.float32
    assert out.loss.item() == pytest.approx(expected.loss.item(), rel=0.02)
    assert out.sequence_projection.dtype == (torch.float32 if autocast else torch.bfloat16)


def test_a_protein_does_not_see_its_batch(family):
    model = family.model()
    given = inputs(family, labels=False)
    together = model(**given)
    alone = model(given["input_ids"][1:2, :15])
    for name in ("logits", "structure_logits", "sequence_projection"):
        assert_same_but_rounding(getattr(together, name)[1:2, :15], getattr(alone, name))


def test_refuses_inputs_that_do_not_fit(family):
    model = family.model()
    given = inputs(family)
    with pytest.raises(ValueError, match="23.*aligned with input_ids"):
        model(**given | {"structure_labels": given["structure_labels"][:, 1:]})
    with pytest.raises(ValueError, match="7 wide but this model's heads expect 24"):
        model(**given | {"structure_embeddings": given["structure_embeddings"][..., :7]})
    with pytest.raises(ValueError, match="without residue_mask"):
        model(**given | {"residue_mask": None})


def test_refuses_a_width_other_than_the_pgnns_it_was_aligned_with(family, tmp_path):
    model = family.model(structure_alignment={"structure_dim": tiny.STRUCTURE_DIM, "pgnn": "WindowGNN:last:24:abc"})
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="aligned with WindowGNN.*24 wide.*structure_dim of 7.*another pGNN"):
        AutoModelForStructureAlignment.from_pretrained(tmp_path, structure_alignment={"structure_dim": 7})
    same = {"structure_dim": tiny.STRUCTURE_DIM, "loss_weights": [1.0, 0.0, 1.0]}
    assert AutoModelForStructureAlignment.from_pretrained(tmp_path, structure_alignment=same).config.to_dict()


def test_refuses_settings_that_make_no_sense(family):
    with pytest.raises(ValueError, match="unknown keys"):
        family.model(structure_alignment={"width": 3})
    with pytest.raises(ValueError, match="positive integer"):
        family.model(structure_alignment={"structure_dim": 0})
    with pytest.raises(ValueError, match="three numbers"):
        family.model(structure_alignment={"loss_weights": [1, 2]})
