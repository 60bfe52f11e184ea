"""Checkpoints that are not whole, not finite or come with code of their own."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

from structure_aligned.evaluation.contact_heads import ContactRegression
from structure_aligned.hub.export import export_trunk
from structure_aligned.models.alignment import AutoModelForStructureAlignment
from structure_aligned.models.configuration import GearNetConfig, ProteinMPNNConfig
from structure_aligned.models.gearnet import GearNetModel
from structure_aligned.models.pgnn import load_pgnn
from structure_aligned.models.proteinmpnn import ProteinMPNNEncoder
from structure_aligned.models.weights import is_finite, load_auto, load_whole
from structure_aligned.training.adapters import add_lora, load_adapters, merge_adapters
from structure_aligned.training.pretrained import load_aligned_model, load_language_model, load_tokenizer
from tests import tiny


WEIGHTS = "model.safetensors"
LAYER = {"esm": "esm.encoder.layer.1.output.dense.weight", "AMPLIFY": "transformer_encoder.1.wo.weight"}
HEAD = {"esm": "lm_head.dense.weight", "AMPLIFY": "decoder.weight"}
LOADERS = {
    "score": load_language_model,
    "embed": lambda folder: load_language_model(folder, lm_head=False),
    "train": AutoModelForStructureAlignment.from_pretrained,
    "adapt": load_aligned_model,
}


@pytest.fixture(scope="module", params=list(tiny.FAMILIES))
def saved(request, tmp_path_factory):
    """An aligned model of a family, saved."""
    folder = tmp_path_factory.mktemp("saved")
    family = tiny.FAMILIES[request.param]
    family.model().save_pretrained(folder)
    return family, folder


def changed(saved, folder, change):
    """A copy whose tensors `change` has changed."""
    shutil.copytree(saved, folder)
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS, {"format": "pt"})
    return folder


@pytest.mark.parametrize("use", LOADERS)
def test_a_layer_that_is_missing_is_refused(saved, tmp_path, use):
    family, folder = saved
    name = LAYER[family.model_type]
    broken = changed(folder, tmp_path / "broken", lambda state: state.pop(name))
    with pytest.raises(ValueError, match=f"broken lacks 1 of the weights that are needed, such as {name}"):
        LOADERS[use](broken)


@pytest.mark.parametrize("use", LOADERS)
def test_a_layer_of_another_shape_is_refused(saved, tmp_path, use):
    family, folder = saved
    name = LAYER[family.model_type]
    broken = changed(folder, tmp_path / "broken", lambda state: state.update({name: torch.zeros(3, 3)}))
    with pytest.raises(ValueError, match=f"broken has other shapes for 1 of the weights .*{name}"):
        LOADERS[use](broken)


@pytest.mark.parametrize("use", LOADERS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(saved, tmp_path, use, value):
    family, folder = saved
    name = LAYER[family.model_type]
    broken = changed(folder, tmp_path / "broken", lambda state: state[name].view(-1)[-1:].fill_(value))
    with pytest.raises(ValueError, match=f"{name} in .*broken holds NaN or infinity"):
        LOADERS[use](broken)


def test_embeddings_need_no_masked_lm_head_and_scores_do(saved, tmp_path):
    family, folder = saved
    name = HEAD[family.model_type]
    headless = changed(folder, tmp_path / "headless", lambda state: state.pop(name))
    assert LOADERS["embed"](headless) is not None
    for use in ("score", "train", "adapt"):
        with pytest.raises(ValueError, match=f"lacks 1 of the weights .*{name}"):
            LOADERS[use](headless)
    with pytest.raises(ValueError, match=f"lacks 1 of the weights .*{name}"):
        export_trunk(headless, tmp_path / "exported")


def test_alignment_heads_are_fresh_as_a_whole_or_not_at_all(saved, tmp_path):
    _, folder = saved

    def without_heads(state):
        for name in [name for name in state if name.startswith("alignment.")]:
            del state[name]

    plain = changed(folder, tmp_path / "plain", without_heads)
    assert LOADERS["train"](plain).alignment.logit_scale.isfinite().all()
    half = changed(folder, tmp_path / "half", lambda state: state.pop("alignment.sequence_projection.weight"))
    with pytest.raises(ValueError, match=r"lacks 1 of the weights .*alignment.sequence_projection.weight"):
        LOADERS["train"](half)
    # A configuration that says the heads were trained.
    config = json.loads((plain / "config.json").read_text())
    config["structure_alignment"]["pgnn"] = "gearnet:last:1234"
    (plain / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"lacks 9 of the weights .*alignment.logit_scale"):
        LOADERS["train"](plain)


def test_layers_beyond_the_configuration_are_refused(saved, tmp_path):
    _, folder = saved
    shutil.copytree(folder, tmp_path / "short")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "short" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    for load in LOADERS.values():
        with pytest.raises(ValueError, match=r"weights of layers that its configuration does not have"):
            load(tmp_path / "short")


@pytest.mark.parametrize("keep", [0, 7, 2000])
def test_files_that_are_cut_off_are_refused(saved, tmp_path, keep):
    _, folder = saved
    shutil.copytree(folder, tmp_path / "cut")
    (tmp_path / "cut" / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:keep])
    for load in LOADERS.values():
        with pytest.raises(ValueError, match=r"The weights of .*cut cannot be loaded"):
            load(tmp_path / "cut")


@pytest.mark.parametrize(
    "pgnn", [GearNetModel(GearNetConfig(hidden_dims=[8, 8])), ProteinMPNNEncoder(ProteinMPNNConfig(hidden_size=16))]
)
def test_half_a_pgnn_is_refused(tmp_path, pgnn):
    pgnn.save_pretrained(tmp_path / "whole")
    assert load_pgnn(tmp_path / "whole").weights_digest() == pgnn.eval().weights_digest()
    names = sorted(load_file(tmp_path / "whole" / WEIGHTS))
    name = next(name for name in names if name.endswith("weight"))
    for load in (load_pgnn, type(pgnn).from_pretrained):
        folder = tmp_path / load.__name__
        half = changed(tmp_path / "whole", folder, lambda state: [state.pop(one) for one in names[::2]])
        with pytest.raises(ValueError, match=f"lacks {len(names[::2])} of the weights|lacks .* of the weights"):
            load(half)
        shutil.rmtree(folder)
        odd = changed(tmp_path / "whole", folder, lambda state: state[name].view(-1)[:1].fill_(torch.nan))
        with pytest.raises(ValueError, match=f"{name} in .* holds NaN or infinity"):
            load(odd)
    # Whoever asks for what is missing judges it.
    assert type(pgnn).from_pretrained(half, output_loading_info=True)[1]["missing_keys"] == set()


def test_adapters_that_are_not_whole_are_refused(saved, tmp_path):
    family, folder = saved
    adapted = add_lora(AutoModelForStructureAlignment.from_pretrained(folder))
    adapted.save_pretrained(tmp_path / "whole")
    state = load_file(tmp_path / "whole" / SAFETENSORS_WEIGHTS_NAME)
    lora = next(name for name in state if "lora_A" in name)
    head = next(name for name in state if "token_classifier" in name)
    for number, name in enumerate((lora, head)):
        changes = {
            f"missing are {name}": {name: None},
            f"of another shape are {name}": {name: torch.zeros(3, 3)},
            f"{name} in .* holds NaN or infinity": {name: torch.full_like(state[name], torch.nan)},
        }
        for place, (match, change) in enumerate(changes.items()):
            odd = tmp_path / f"odd_{number}_{place}"
            shutil.copytree(tmp_path / "whole", odd)
            tensors = {key: tensor for key, tensor in (state | change).items() if tensor is not None}
            save_file(tensors, odd / SAFETENSORS_WEIGHTS_NAME, {"format": "pt"})
            with pytest.raises(ValueError, match=match):
                load_adapters(None, odd)
    # A base that is not whole.
    broken = changed(folder, tmp_path / "broken", lambda s: s.pop(LAYER[family.model_type]))
    with pytest.raises(ValueError, match=f"broken lacks 1 of the weights .*{LAYER[family.model_type]}"):
        load_adapters(broken, tmp_path / "whole")


def test_adapters_are_loaded_with_their_trunk_or_refused(saved, tmp_path):
    _, folder = saved
    adapted = add_lora(AutoModelForStructureAlignment.from_pretrained(folder)).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(tmp_path)
    input_ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        expected = adapted(input_ids)
        for load in (load_language_model, load_aligned_model):
            found = load(tmp_path)(input_ids)
            torch.testing.assert_close(found.logits, expected.logits)
            torch.testing.assert_close(found.structure_logits, expected.structure_logits)
    with pytest.raises(ValueError, match=r"holds adapters .* load_adapters\(None, folder\) .* merge_adapters"):
        AutoModelForStructureAlignment.from_pretrained(tmp_path)


def test_contact_heads_that_are_not_finite_are_refused(tmp_path):
    head = ContactRegression(2, 4)
    with torch.no_grad():
        head.weight.fill_(torch.nan)
    head.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"weight in .* holds NaN or infinity"):
        ContactRegression.from_pretrained(tmp_path)


def test_packed_and_narrow_numbers_are_taken():
    assert is_finite(torch.tensor([255], dtype=torch.uint8)) and is_finite(torch.empty(2, device="meta"))
    assert is_finite(torch.ones(2, dtype=torch.float8_e4m3fn))
    assert not is_finite(torch.tensor([torch.inf], dtype=torch.bfloat16))


HOSTILE = "from pathlib import Path\nPath(__file__).with_name('ran').write_text('')\nraise SystemExit(3)\n"


@pytest.fixture
def hostile(tmp_path):
    """A folder whose configuration and tokenizer ask for code beside them."""
    auto_map = {"AutoConfig": "modeling.C", "AutoModel": "modeling.M", "AutoModelForMaskedLM": "modeling.M"}
    auto_map["AutoTokenizer"] = ["modeling.T", None]
    content = {"model_type": "hostile", "auto_map": auto_map, "architectures": ["M"]}
    folder = tmp_path / "hostile"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T", "auto_map": auto_map}))
    (folder / "modeling.py").write_text(HOSTILE)
    save_file({"x": torch.zeros(1)}, folder / WEIGHTS, {"format": "pt"})
    return folder


def test_code_of_a_checkpoint_is_never_run_and_never_asked_about(hostile, tmp_path, monkeypatch):
    def asked(*args):
        raise AssertionError("somebody was asked")

    monkeypatch.setattr("builtins.input", asked)
    loads = [
        load_language_model,
        load_aligned_model,
        load_tokenizer,
        load_pgnn,
        AutoModelForStructureAlignment.from_pretrained,
        lambda folder: load_auto(AutoConfig, folder),
        lambda folder: load_auto(AutoTokenizer, folder),
        lambda folder: load_whole(AutoModelForMaskedLM, folder),
        lambda folder: export_trunk(folder, tmp_path / "exported"),
    ]
    for load in loads:
        with pytest.raises(ValueError, match=r"code that comes with it, which is never run|of type 'hostile'"):
            load(hostile)
    with pytest.raises(ValueError, match="holds no adapters"):
        merge_adapters(hostile)
    assert not list(tmp_path.rglob("ran"))


# One that reads and one that trains in the quick run; the others load in the same ways.
@pytest.mark.parametrize(
    "script",
    [
        "embed",
        "train",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("score_mutations", "evaluate", "export", "pretrain_mlm")
        ),
    ],
)
def test_no_script_runs_code_of_a_checkpoint(hostile, tmp_path, script):
    fasta = tmp_path / "one.fasta"
    fasta.write_text(">one\nMKVLAWTNGH\n" if script != "pretrain_mlm" else ">a\nMKVLAWTNGH\n>b\nMKVLAWTNGHA\n")
    (tmp_path / "mutants.csv").write_text("mutant\nK2A\n")
    options = {
        "embed": ["--model", hostile, "--fasta", fasta, "--output", tmp_path / "out"],
        "score_mutations": [
            *(
                "--model",
                hostile,
                "--fasta",
                fasta,
                "--csv",
                tmp_path / "mutants.csv",
                "--output",
                tmp_path / "out.csv",
            )
        ],
        "evaluate": [
            *(
                "--models",
                f"one={hostile}",
                "--sequences",
                fasta,
                "--tasks",
                "perplexity",
                "--output",
                tmp_path / "out",
            ),
            *("--min_length", "5"),
        ],
        "export": ["--model", hostile, "--output", tmp_path / "out"],
        "train": [
            *("--model_name_or_path", hostile, "--num_synthetic", "2", "--output_dir", tmp_path / "out", "--use_cpu"),
            *("--cache_dir", tmp_path / "cache"),
        ],
        "pretrain_mlm": [
            *("--model_name_or_path", hostile, "--sequences", fasta, "--output_dir", tmp_path / "out", "--use_cpu"),
            *("--validation_fraction", "0.5"),
        ],
    }
    root = __file__.split("tests")[0]
    command = [sys.executable, f"{root}examples/{script}.py", *map(str, options[script])]
    done = subprocess.run(command, input="y\n", capture_output=True, text=True, timeout=300, cwd=root)
    assert done.returncode != 0 and not list(tmp_path.rglob("ran"))
    assert "never run" in done.stderr and "custom code" not in done.stdout, done.stderr[-2000:]
