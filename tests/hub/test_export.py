"""Exported trunks: plain layouts, equal logits, from models, folders and adapters; nothing half-written or lost."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM, EsmForMaskedLM

from structure_aligned.hub.export import export_trunk
from structure_aligned.models.alignment import AmplifyForStructureAlignment, AutoModelForStructureAlignment
from structure_aligned.models.amplify import AmplifyModel
from structure_aligned.training.adapters import add_lora, merge_adapters
from tests import tiny
from tests.models import test_alignment


FAMILIES = list(tiny.FAMILIES)


def inputs(family):
    return test_alignment.inputs(tiny.FAMILIES[family], labels=False)


@pytest.fixture(scope="module", params=FAMILIES)
def aligned(request, tmp_path_factory):
    """Family, and the folder of an aligned model as training leaves it."""
    folder = tmp_path_factory.mktemp("aligned") / "model"
    family = tiny.FAMILIES[request.param]
    family.model().save_pretrained(folder)
    family.tokenizer().save_pretrained(folder)
    (folder / "checkpoint-1").mkdir()
    return request.param, folder


def test_esm_loads_without_this_package_with_identical_logits(tmp_path):
    """Of another process, in which `import structure_aligned` fails; in float32 and in bfloat16."""
    tiny.esm_model().save_pretrained(tmp_path / "aligned")
    for dtype in ("float32", "bfloat16"):
        assert export_trunk(tmp_path / "aligned", tmp_path / dtype, dtype=dtype) == tmp_path / dtype
    torch.save(inputs("esm"), tmp_path / "inputs.pt")
    script = (
        "import sys, torch; sys.modules['structure_aligned'] = None; torch.set_num_threads(1)\n"
        "from transformers import EsmForMaskedLM\n"
        "inputs = torch.load('inputs.pt', weights_only=True)\n"
        "for dtype in ('float32', 'bfloat16'):\n"
        "    model, info = EsmForMaskedLM.from_pretrained(dtype, output_loading_info=True)\n"
        "    assert not any(info.values()), info\n"
        "    torch.save(model.eval()(**inputs).logits.detach(), dtype + '.pt')\n"
        "assert not any(name.startswith('structure_aligned.') for name in sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    for dtype in (torch.float32, torch.bfloat16):
        found = torch.load(tmp_path / f"{dtype}.pt".removeprefix("torch."), weights_only=True)
        model = AutoModelForStructureAlignment.from_pretrained(tmp_path / "aligned", dtype=dtype).eval()
        assert found.dtype == dtype and torch.equal(found, model(**inputs("esm")).logits)


def test_esm_has_the_published_names_and_configuration(tmp_path):
    output = export_trunk(tiny.esm_model(), tmp_path / "exported")
    names = set(load_file(output / "model.safetensors"))
    table = "esm.encoder.layer.{}.attention.self.rotary_embeddings.inv_freq"
    assert {table.format(0), table.format(1)} <= names
    assert "esm.encoder.layer.1.attention.LayerNorm.weight" in names
    assert not any(name.endswith(("gamma", "beta")) or "alignment" in name or "*" in name for name in names)
    config = json.loads((output / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("esm", ["EsmForMaskedLM"])
    assert "structure_alignment" not in config
    for loader in (EsmForMaskedLM, AutoModelForMaskedLM):
        model, info = loader.from_pretrained(output, output_loading_info=True)
        assert type(model) is EsmForMaskedLM and not any(info.values())
    sequence = AutoTokenizer.from_pretrained(output)("MKTAYIAKQR<mask>", return_tensors="pt")
    assert sequence["input_ids"].shape == (1, 13) and sequence["input_ids"][0, -2] == 32
    # The trunk alone, as for embeddings; only its pooler is made anew, as for published checkpoints.
    trunk, info = AutoModel.from_pretrained(output, output_loading_info=True)
    assert all(key.startswith("pooler.") for key in info["missing_keys"])
    expected = tiny.esm_model().esm(**inputs("esm")).last_hidden_state
    assert torch.equal(trunk.eval()(**inputs("esm")).last_hidden_state, expected)


def test_amplify_gets_back_the_published_layout(golden, tmp_path):
    """Aligned, then exported: file and configuration are those that it came from, and so are the logits."""
    published = golden("amplify_tiny")
    model = AmplifyForStructureAlignment.from_pretrained(published)
    model.save_pretrained(tmp_path / "aligned")
    output = export_trunk(tmp_path / "aligned", tmp_path / "exported")
    expected, found = load_file(published / "model.safetensors"), load_file(output / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    original, written = (json.loads((folder / "config.json").read_text()) for folder in (published, output))
    # Remote code that is not in the folder must not be named there.
    assert {name: written.get(name) for name in original if name != "auto_map"} == {
        name: value for name, value in original.items() if name != "auto_map"
    }
    assert set(written) - set(original) <= {"dtype", "transformers_version", "tie_word_embeddings"} | {
        "other_special_token_ids"
    }
    reloaded, info = AutoModel.from_pretrained(output, output_loading_info=True)
    assert type(reloaded) is AmplifyModel and not any(info.values())
    tensors = load_file(published / "expected.safetensors")
    logits = reloaded(tensors["input_ids"], attention_mask=tensors["attention_mask"]).logits
    torch.testing.assert_close(logits, tensors["logits"], rtol=0, atol=1e-5)
    assert torch.equal(logits, model.eval()(tensors["input_ids"], attention_mask=tensors["attention_mask"]).logits)
    assert AutoTokenizer.from_pretrained(output)("MK|T")["input_ids"] == [3, 22, 17, 5, 13, 4]


@pytest.mark.parametrize("dtype", ["float32", torch.bfloat16, "float16", "torch.float64"])
def test_precisions(aligned, tmp_path, dtype):
    family, folder = aligned
    output = export_trunk(folder, tmp_path / "exported", dtype=dtype)
    wanted = getattr(torch, str(dtype).removeprefix("torch."))
    saved = load_file(output / "model.safetensors")
    assert {v.dtype for name, v in saved.items() if "inv_freq" not in name} == {wanted}
    assert all(v.dtype == torch.float32 for name, v in saved.items() if "inv_freq" in name)
    model = tiny.FAMILIES[family].plain.from_pretrained(output)
    assert model.dtype == wanted
    expected = AutoModelForStructureAlignment.from_pretrained(folder, dtype=wanted).eval()
    assert torch.equal(model.eval()(**inputs(family)).logits, expected(**inputs(family)).logits)


def test_models_and_folders_give_the_same_file(aligned, tmp_path):
    _, folder = aligned
    model = AutoModelForStructureAlignment.from_pretrained(folder)
    outputs = [
        export_trunk(given, tmp_path / name) for name, given in (("a", model), ("b", folder), ("c", str(folder)))
    ]
    contents = {output.joinpath("model.safetensors").read_bytes() for output in outputs}
    assert len(contents) == 1
    assert hasattr(model, "alignment") and model.config.structure_alignment["structure_dim"] == 24
    assert not list(outputs[0].glob("checkpoint*"))
    # What was exported is a trunk to be aligned again, and to be exported again.
    again = AutoModelForStructureAlignment.from_pretrained(outputs[0], structure_alignment={"structure_dim": 8})
    assert again.alignment.structure_projection.in_features == 8
    assert export_trunk(outputs[0], tmp_path / "d").joinpath("model.safetensors").read_bytes() in contents


def test_adapters_are_merged_first(aligned, tmp_path):
    family, folder = aligned
    model = add_lora(AutoModelForStructureAlignment.from_pretrained(folder), rank=4)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(parameter.requires_grad * 0.1 * torch.randn_like(parameter))
    model.eval().save_pretrained(tmp_path / "adapters")
    expected = model(**inputs(family)).logits
    outputs = [export_trunk(given, tmp_path / n) for n, given in (("a", model), ("b", tmp_path / "adapters"))]
    merged = merge_adapters(tmp_path / "adapters").eval()(**inputs(family)).logits
    for output in outputs:
        loaded, info = tiny.FAMILIES[family].plain.from_pretrained(output, output_loading_info=True)
        assert not any(info.values())
        logits = loaded.eval()(**inputs(family)).logits
        assert torch.equal(logits, merged)
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    plain = AutoModelForStructureAlignment.from_pretrained(folder).eval()(**inputs(family)).logits
    assert (expected - plain).abs().max() > 1e-3
    folder.rename(folder.with_name("moved"))
    try:
        export_trunk(tmp_path / "adapters", tmp_path / "c", base=folder.with_name("moved"))
    finally:
        folder.with_name("moved").rename(folder)
    same = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("b", "c")]
    assert same[0] == same[1]


def test_the_tokenizer_beside_the_model_goes_along(tmp_path):
    tokenizer = tiny.FAMILIES["esm"].tokenizer()
    tokenizer.model_max_length = 77
    tiny.esm_model().save_pretrained(tmp_path / "aligned")
    tokenizer.save_pretrained(tmp_path / "aligned")
    output = export_trunk(tmp_path / "aligned", tmp_path / "a")
    assert AutoTokenizer.from_pretrained(output).model_max_length == 77
    tokenizer.model_max_length = 88
    output = export_trunk(tmp_path / "aligned", tmp_path / "b", tokenizer=tokenizer)
    assert AutoTokenizer.from_pretrained(output).model_max_length == 88


def test_folders_that_hold_something_are_refused(aligned, tmp_path):
    _, folder = aligned
    output = tmp_path / "exported"
    output.mkdir()
    export_trunk(folder, output)  # an empty one is no obstacle
    before = (output / "model.safetensors").read_bytes()
    (output / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty .*overwrite=True"):
        export_trunk(folder, output)
    assert (output / "notes.txt").exists()
    export_trunk(folder, output, dtype="bfloat16", overwrite=True)
    assert not (output / "notes.txt").exists() and (output / "model.safetensors").read_bytes() != before
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="holds no model"):
        export_trunk(folder, tmp_path / "home", overwrite=True)
    for inside in (folder, folder / "checkpoint-1" / ".."):
        with pytest.raises(ValueError, match="would be lost"):
            export_trunk(folder, inside, overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        export_trunk(folder, tmp_path / "file")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_an_export_that_fails_leaves_nothing_and_loses_nothing(aligned, tmp_path, monkeypatch):
    _, folder = aligned
    output = export_trunk(folder, tmp_path / "exported")
    before = {path.name: path.read_bytes() for path in output.iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("structure_aligned.hub.export.tokenizer_beside", full)
    with pytest.raises(OSError, match="No space left"):
        export_trunk(folder, output, overwrite=True)
    with pytest.raises(OSError, match="No space left"):
        export_trunk(folder, tmp_path / "new")
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]


def test_what_has_no_plain_layout_is_refused(tmp_path):
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    with pytest.raises(ValueError, match="no plain layout for a BertForMaskedLM of type 'bert'"):
        export_trunk(BertForMaskedLM(config), tmp_path / "exported")
    with pytest.raises(ValueError, match="EsmModel has no masked-LM head"):
        export_trunk(tiny.esm_model().esm, tmp_path / "exported")
    for dtype in ("int8", "half a float", torch.int64):
        with pytest.raises(ValueError, match="expected one of floating point"):
            export_trunk(tiny.esm_model(), tmp_path / "exported", dtype=dtype)
    with pytest.raises(ValueError, match="no adapters to put on it"):
        export_trunk(tiny.esm_model(), tmp_path / "exported", base="facebook/esm2_t6_8M_UR50D")
    assert not list(tmp_path.iterdir())
