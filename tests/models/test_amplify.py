"""AMPLIFY: equal to its authors' code, loaded from and saved to their layout."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer, pipeline

from structure_aligned import AmplifyConfig, AmplifyForMaskedLM, AmplifyForStructureAlignment, AmplifyModel
from structure_aligned.models.amplify import AmplifyRMSNorm, apply_rotary, rotary_table
from structure_aligned.models.amplify_tokenizer import AMPLIFY_VOCABULARY, amplify_tokenizer
from tests import tiny
from tests.closeness import assert_same_but_rounding
from tests.models.amplify_reference import amplify


HUB_CONFIG = {
    "_name_or_path": "AMPLIFY_120M",
    "architectures": ["AMPLIFY"],
    "att_bias": False,
    "auto_map": {"AutoConfig": "amplify.AMPLIFYConfig", "AutoModel": "amplify.AMPLIFY"},
    "bos_token_id": 3,
    "decoder_init_range": 0.02,
    "dropout_prob": 0,
    "embedding_init_range": 0.02,
    "eos_token_id": 4,
    "ffn_bias": False,
    "hidden_act": "SwiGLU",
    "hidden_size": 640,
    "intermediate_size": 2560,
    "layer_norm_after_embedding": False,
    "layer_norm_before_last_layer": True,
    "mask_token_id": 2,
    "max_length": 2048,
    "model_type": "AMPLIFY",
    "norm_eps": 1e-05,
    "num_attention_heads": 10,
    "num_hidden_layers": 24,
    "other_special_token_ids": None,
    "pad_token_id": 0,
    "rms_norm": True,
    "torch_dtype": "float32",
    "transformers_version": "4.38.2",
    "unk_token_id": 1,
    "vocab_path": "conf/tokenizer/amplify_vocab.txt",
    "vocab_size": 27,
}


def config(**changes):
    return tiny.FAMILIES["AMPLIFY"].config(structure_alignment=None, **changes)


def model(seed=0, model_class=AmplifyModel, **changes):
    torch.manual_seed(seed)
    return model_class(config(**changes)).eval()


def tokens(length=20, batch=1, seed=0):
    return torch.randint(6, 26, (batch, length), generator=torch.Generator().manual_seed(seed))


def hub_folder(folder, source):
    """Laid out as on the hub, with remote code that must not run."""
    shutil.copytree(source, folder)
    for name in ("amplify.py", "rmsnorm.py", "rotary.py"):
        (folder / name).write_text("raise SystemExit('remote code was run')\n")
    amplify_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def published(golden, tmp_path):
    return hub_folder(tmp_path / "hub", golden("amplify_tiny"))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_equals_the_authors_code(golden, published, implementation):
    loaded = AutoModel.from_pretrained(published, attn_implementation=implementation)
    assert type(loaded) is AmplifyModel and not loaded.training
    expected = load_file(golden("amplify_tiny", "expected.safetensors"))
    mask = expected["attention_mask"]
    with torch.no_grad():
        out = loaded(expected["input_ids"], attention_mask=mask, output_hidden_states=True, output_attentions=True)
        plain = loaded(expected["input_ids"], attention_mask=mask)
        single = loaded(expected["input_ids"][1:2, : int(mask[1].sum())]).logits
    assert len(out.hidden_states) == len(out.attentions) == 3
    for logits in (out.logits, plain.logits):
        torch.testing.assert_close(logits, expected["logits"], rtol=0, atol=1e-5)
    for layer in range(3):
        torch.testing.assert_close(out.hidden_states[layer], expected[f"hidden_{layer + 1}"], rtol=0, atol=1e-5)
        torch.testing.assert_close(out.attentions[layer], expected[f"attention_{layer + 1}"], rtol=0, atol=1e-5)
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)
    torch.testing.assert_close(single, expected["single_logits"], rtol=0, atol=1e-5)
    torch.testing.assert_close(plain.logits[1:2, : single.shape[1]], single, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_class", [AmplifyModel, AmplifyForMaskedLM, AmplifyForStructureAlignment])
def test_what_is_written_is_the_published_layout(golden, published, tmp_path, model_class):
    loaded, info = model_class.from_pretrained(published, output_loading_info=True)
    fresh = {"alignment"} if model_class is AmplifyForStructureAlignment else set()
    assert {key.split(".")[0] for key in info["missing_keys"]} == fresh and not info["unexpected_keys"]
    loaded.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    expected = load_file(golden("amplify_tiny", "model.safetensors"))
    trunk = {key: value for key, value in saved.items() if not key.startswith("alignment.")}
    assert {key: value.shape for key, value in trunk.items()} == {k: v.shape for k, v in expected.items()}
    assert all(torch.equal(value, expected[key]) for key, value in trunk.items())
    assert (len(trunk) < len(saved)) == bool(fresh)
    written = json.loads((tmp_path / "saved" / "config.json").read_text())
    original = json.loads(golden("amplify_tiny", "config.json").read_text())
    assert "auto_map" not in written
    for name in set(original) - {"auto_map", "architectures"}:
        assert written[name] == original[name], name
    again = AutoModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(tokens()).logits, loaded(tokens()).logits)


def test_float64_equals_the_plain_reference():
    ours = model().double()
    ids = tokens(40)
    expected = amplify(ours.state_dict(), ids[0], num_heads=4)
    for implementation in ("eager", "sdpa"):
        ours.set_attn_implementation(implementation)
        with torch.no_grad():
            out = ours(ids, output_hidden_states=True, output_attentions=True)
        # The angles are float32 in ours, as in the authors' code: up to 40 radians, off by up to 2.4e-6, of which a
        # small part reaches the outputs.
        torch.testing.assert_close(out.logits[0], expected[0], rtol=0, atol=2e-6)
        for layer in range(2):
            torch.testing.assert_close(out.hidden_states[layer][0], expected[1][layer], rtol=0, atol=2e-6)
            torch.testing.assert_close(out.attentions[layer][0], expected[2][layer], rtol=0, atol=2e-6)


@pytest.mark.parametrize("model_class", [AmplifyModel, AmplifyForMaskedLM])
@pytest.mark.parametrize("safe", [True, False])
def test_saves_and_loads(tmp_path, model_class, safe):
    ours = model(model_class=model_class)
    ours.save_pretrained(tmp_path)
    if not safe:
        torch.save(ours.state_dict(), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    for loaded in (model_class.from_pretrained(tmp_path), AutoModelForMaskedLM.from_pretrained(tmp_path)):
        assert torch.equal(loaded(tokens()).logits, ours(tokens()).logits)


def test_the_hubs_config_is_taken_whole(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(HUB_CONFIG))
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is AmplifyConfig
    for name, value in HUB_CONFIG.items():
        if name not in ("auto_map", "torch_dtype", "transformers_version", "_name_or_path"):
            assert getattr(loaded, name) == value, name
    assert loaded.dtype == torch.float32 and loaded.head_dim == 64 and loaded.ffn_dim == 1712
    larger = {"hidden_size": 960, "num_hidden_layers": 32, "num_attention_heads": 15, "intermediate_size": 3840}
    assert AmplifyConfig(**larger).ffn_dim == 2560
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in AmplifyModel(c).parameters()) for c in (loaded, AmplifyConfig(**larger))]
    assert [round(4 * size / 1e6) for size in sizes] == [473, 1416]  # the published float32 files, in MB


def test_refuses_configurations_that_make_no_sense():
    with pytest.raises(ValueError, match="no even head width"):
        AmplifyConfig(hidden_size=30, num_attention_heads=4)
    with pytest.raises(ValueError, match="hidden_act is 'mish'"):
        AmplifyConfig(hidden_act="mish")
    with pytest.raises(ValueError, match="beyond_max_length is 'crop'"):
        AmplifyConfig(beyond_max_length="crop")


def test_rotary_positions_survive_loading_moving_and_casting(tmp_path):
    """Transformers 5 loads on the meta device: tables in attributes or temporary buffers would be lost there."""
    ours = model()
    ours.save_pretrained(tmp_path)
    loaded = AmplifyModel.from_pretrained(tmp_path)
    assert not list(loaded.buffers())
    assert all(p.device.type == "cpu" for p in loaded.parameters())
    assert torch.equal(loaded(tokens(50)).logits, ours(tokens(50)).logits)
    assert torch.equal(loaded.double().float()(tokens(50)).logits, ours(tokens(50)).logits)
    with torch.device("meta"):
        empty = AmplifyModel(config())
    empty.to_empty(device="cpu").load_state_dict(ours.state_dict())
    assert torch.equal(empty.eval()(tokens(50)).logits, ours(tokens(50)).logits)


def test_rotary_pairs_are_adjacent_and_relative():
    vectors = torch.zeros(1, 1, 3, 8, dtype=torch.float64)
    vectors[..., 2] = 1.0
    table = rotary_table(torch.arange(3)[None], 8, 10_000.0)
    rotated = apply_rotary(vectors, tuple(values.unsqueeze(1) for values in table))
    angle = torch.arange(3, dtype=torch.float64) * 10_000.0 ** (-2 / 8)
    # A table in float32, of angles up to 2.
    torch.testing.assert_close(rotated[0, 0, :, 2], angle.cos(), rtol=0, atol=1e-6)
    torch.testing.assert_close(rotated[0, 0, :, 3], angle.sin(), rtol=0, atol=1e-6)
    assert rotated[..., [0, 1, 4, 5, 6, 7]].abs().max() == 0
    ours = model()
    shifted = ours(tokens(30), position_ids=torch.arange(100, 130)[None]).logits
    # Angles in float32 of up to 130 radians, each off by up to 8e-6.
    torch.testing.assert_close(shifted, ours(tokens(30)).logits, rtol=0, atol=1e-4)


def test_longer_than_max_length_is_an_error_or_an_extension(tmp_path):
    ours = model(max_length=16)
    assert ours(tokens(16)).logits.shape == (1, 16, 27)
    with pytest.raises(ValueError, match="17 tokens.*at most 16.*beyond_max_length='extend'"):
        ours(tokens(17))
    ours.save_pretrained(tmp_path)
    extended = AutoModel.from_pretrained(tmp_path, beyond_max_length="extend")
    assert torch.equal(extended(tokens(40)).logits, model(max_length=64)(tokens(40)).logits)


def test_padding_changes_no_real_residue():
    ours = model()
    ids = tokens(20, batch=2)
    mask = torch.ones_like(ids)
    mask[1, 13:] = 0
    for implementation in ("eager", "sdpa"):
        ours.set_attn_implementation(implementation)
        expected = ours(ids[1:, :13]).logits
        for filler in (0, 9):
            padded = torch.where(mask.bool(), ids, filler)
            for form in (mask, mask.bool(), mask.float()):
                out = ours(padded, attention_mask=form).logits[1:, :13]
                assert_same_but_rounding(out, expected)


def test_masks_of_pairs_keep_packed_proteins_apart():
    ours = model()
    first, second = tokens(9, seed=1), tokens(14, seed=2)
    owner = torch.tensor([0] * 9 + [1] * 14)
    pairs = (owner[:, None] == owner)[None, None]
    positions = torch.cat([torch.arange(9), torch.arange(14)])[None]
    for implementation in ("eager", "sdpa"):
        ours.set_attn_implementation(implementation)
        out = ours(torch.cat([first, second], dim=1), attention_mask=pairs, position_ids=positions).logits
        assert_same_but_rounding(out[:, :9], ours(first).logits)
        assert_same_but_rounding(out[:, 9:], ours(second).logits)


@pytest.mark.slow
def test_flex_attention_agrees():
    # Of 200 tokens: torch's CPU kernel gives wrong numbers for masked rows shorter than one of its blocks (128).
    ours = model(max_length=200)
    ids = tokens(200, batch=3)
    mask = torch.ones_like(ids)
    mask[1, 150:] = 0
    with torch.no_grad():
        expected = ours(ids, attention_mask=mask).logits[mask.bool()]
        ours.set_attn_implementation("flex_attention")
        found = ours(ids, attention_mask=mask).logits[mask.bool()]
    assert_same_but_rounding(found, expected)


def test_refuses_additive_masks():
    additive = torch.zeros(1, 20)
    additive[:, 15:] = float("-inf")
    with pytest.raises(ValueError, match="additive masks"):
        model()(tokens(), attention_mask=additive)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()()


def test_asking_for_attentions_gives_them_under_every_implementation():
    ours = model(attn_implementation="sdpa")
    out = ours(tokens(), output_attentions=True)
    assert ours.config._attn_implementation == "sdpa"
    assert [weights.shape for weights in out.attentions] == [(1, 4, 20, 20)] * 2
    torch.testing.assert_close(out.attentions[0].sum(-1), torch.ones(1, 4, 20))
    assert ours(tokens()).attentions is None and ours(tokens()).hidden_states is None


def test_outputs_as_tuples_begin_as_the_authors_do():
    ours = model(model_class=AmplifyForMaskedLM)
    out = ours(tokens(), output_hidden_states=True)
    logits, last, hidden = ours(tokens(), output_hidden_states=True, return_dict=False)
    assert torch.equal(logits, out.logits) and torch.equal(last, hidden[-1])
    loss, logits, _ = ours(tokens(), labels=tokens(), return_dict=False)
    expected = torch.nn.functional.cross_entropy(out.logits[0], tokens()[0])
    torch.testing.assert_close(loss, expected)
    assert torch.equal(ours(inputs_embeds=ours.encoder(tokens())).logits, out.logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rms_norm_is_computed_in_float32(dtype):
    norm = AmplifyRMSNorm(64, 1e-5)
    values = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)) * 300
    narrow = norm.to(dtype)(values.to(dtype))
    assert narrow.dtype == dtype and narrow.isfinite().all()  # 300² is beyond float16
    exact = values.to(dtype).double()
    exact = exact / (exact.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(narrow.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "GELU", "ffn_bias": True},
        {"hidden_act": "ReLU", "att_bias": True},
        {"rms_norm": False, "layer_norm_after_embedding": True},
        {"layer_norm_before_last_layer": False, "dropout_prob": 0.1},
    ],
)
def test_the_variants_of_the_configuration(tmp_path, changes):
    ours = model(**changes)
    plain = model()
    assert not torch.equal(ours(tokens()).logits, plain(tokens()).logits) or "dropout_prob" in changes
    ours.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(tokens()).logits, ours(tokens()).logits)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert ("layer_norm_1.weight" in names) == bool(changes.get("layer_norm_after_embedding"))
    assert ("layer_norm_2.weight" in names) == changes.get("layer_norm_before_last_layer", True)
    assert ("transformer_encoder.0.q.bias" in names) == bool(changes.get("att_bias"))
    if "hidden_act" in changes:
        assert {"transformer_encoder.0.ffn.0.weight", "transformer_encoder.0.ffn.2.weight"} <= names
    if "dropout_prob" in changes:
        loaded.train()
        assert not torch.equal(loaded(tokens()).logits, loaded(tokens()).logits)


def test_fresh_weights_are_uniform_within_the_configured_range():
    ours = model(embedding_init_range=0.3, decoder_init_range=0.1)
    for name, parameter in ours.named_parameters():
        if "norm" in name:
            assert (parameter == 1).all()
        elif name.endswith("bias"):
            assert (parameter == 0).all()
        else:
            bound = 0.3 if name == "encoder.weight" else 0.1
            assert 0.95 * bound < parameter.abs().max() <= bound
            assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_tokenizer_has_the_published_vocabulary(tmp_path):
    tokenizer = amplify_tokenizer()
    assert tokenizer.convert_ids_to_tokens(range(27)) == list(AMPLIFY_VOCABULARY)
    assert len(tokenizer) == 27
    assert tokenizer("MKX V\nB|<mask>U")["input_ids"] == [3, 22, 17, 1, 9, 26, 5, 2, 1, 4]
    batch = tokenizer(["MKV", "M"], padding=True)
    assert batch["input_ids"] == [[3, 22, 17, 9, 4], [3, 22, 4, 0, 0]]
    assert batch["attention_mask"] == [[1] * 5, [1, 1, 1, 0, 0]] and set(batch) == {"input_ids", "attention_mask"}
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(HUB_CONFIG))
    for drop in ((), ("tokenizer_config.json",)):
        for name in drop:
            (tmp_path / name).unlink()
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        assert loaded("MKX<mask>")["input_ids"] == [3, 22, 17, 1, 2, 4]


def test_the_hubs_tokenizer_files_work(tmp_path):
    """As written by Transformers 4.38: a generic fast tokenizer with its special tokens in a map."""
    written = json.loads(amplify_tokenizer().backend_tokenizer.to_str())
    (tmp_path / "tokenizer.json").write_text(json.dumps(written))
    special = {f"{name}_token": f"<{name}>" for name in ("pad", "unk", "mask", "bos", "eos")}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 2048, **special})
    )
    (tmp_path / "config.json").write_text(json.dumps(HUB_CONFIG))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("MKV")["input_ids"] == [3, 22, 17, 9, 4]
    assert (loaded.pad_token_id, loaded.mask_token_id, loaded.model_max_length) == (0, 2, 2048)


def test_fill_mask_pipeline(tmp_path):
    model(model_class=AmplifyForMaskedLM).save_pretrained(tmp_path)
    amplify_tokenizer().save_pretrained(tmp_path)
    fill = pipeline("fill-mask", model=str(tmp_path), tokenizer=str(tmp_path), device="cpu")
    found = fill("MK<mask>VL", top_k=3)
    assert len(found) == 3 and all(item["token_str"] in AMPLIFY_VOCABULARY for item in found)


def test_weights_with_foreign_names_are_reported(tmp_path):
    ours = model()
    config().save_pretrained(tmp_path)
    state = {f"amplify.{key}": value.clone() for key, value in ours.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _, info = AmplifyModel.from_pretrained(tmp_path, output_loading_info=True)
    assert len(info["missing_keys"]) == len(info["unexpected_keys"]) == len(state)
