"""Hostile and unlucky checkpoints and folders of adapters."""

import json
import pickle
import resource
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from structure_aligned.models.alignment import AutoModelForStructureAlignment
from structure_aligned.models.pgnn import load_pgnn, untrained_gearnet
from structure_aligned.training.adapters import add_lora, load_adapters
from structure_aligned.training.pretrained import load_language_model, load_tokenizer
from tests import tiny

from .hostile import check, files_below, refused, write


WEIGHTS = "model.safetensors"
ADAPTERS = "adapter_model.safetensors"


class Runs:
    """What a pickle of it does when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A tiny aligned ESM2, adapters of it, and a tiny pGNN."""
    root = tmp_path_factory.mktemp("saved")
    tiny.esm_model().save_pretrained(root / "model")
    add_lora(AutoModelForStructureAlignment.from_pretrained(root / "model"), rank=2).save_pretrained(root / "adapters")
    untrained_gearnet([8, 8]).save_pretrained(root / "pgnn")
    return root


def json_with(name, **changes):
    def change(folder):
        content = json.loads((folder / name).read_text())
        for key, value in changes.items():
            if isinstance(value, dict) and isinstance(content.get(key), dict):
                content[key] |= value
            else:
                content[key] = value
        (folder / name).write_text(json.dumps(content))

    return change


def file_with(name, content):
    return lambda folder: write(folder, name, content)


def tensors_with(name, edit):
    def change(folder):
        state = load_file(folder / name)
        edit(state)
        save_file(state, folder / name, {"format": "pt"})

    return change


def header(content, data=b""):
    """A safetensors file with this header."""
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def pickled(name, *instead_of):
    def change(folder):
        for other in instead_of:
            (folder / other).unlink()
        state = {"esm.embeddings.word_embeddings.weight": Runs(folder / "ran")}
        (folder / name).write_bytes(pickle.dumps(state))

    return change


def torch_file(name, *instead_of):
    def change(folder):
        for other in instead_of:
            (folder / other).unlink()
        torch.save({"esm.embeddings.word_embeddings.weight": Runs(folder / "ran")}, folder / name)

    return change


# What Transformers and PEFT call a file that they do not find, or that is not JSON.
ABSENT = refused(errors=(ValueError, OSError))
# Kernels from the hub would be other people's code: without the package `kernels` Transformers has nothing to load.
NOT_FETCHED = refused(errors=(ValueError, OSError, ImportError))
HUGE = {"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
OVERLAP = {
    "x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    "y": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
}
AUTO_MAP = {"AutoConfig": "evil.C", "AutoModel": "evil.M", "AutoModelForMaskedLM": "evil.M"}

CHECKPOINTS = {
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), ABSENT),
    "weights of nothing": (file_with(WEIGHTS, b""), refused("cannot be loaded")),
    "a header that is longer than the file": (
        file_with(WEIGHTS, struct.pack("<Q", 2**62) + b"{}"),
        refused("cannot be loaded"),
    ),
    "a header of random bytes": (file_with(WEIGHTS, header(b"\xff" * 100)), refused("cannot be loaded")),
    "a header that is a list": (file_with(WEIGHTS, header([])), refused("cannot be loaded")),
    "a header of 100,000 brackets": (file_with(WEIGHTS, header(b"[" * 100_000)), refused("cannot be loaded")),
    "a tensor of four terabytes": (file_with(WEIGHTS, header(HUGE)), refused("cannot be loaded")),
    "tensors that overlap": (file_with(WEIGHTS, header(OVERLAP, b"\0" * 4)), refused("cannot be loaded")),
    "a type that does not exist": (
        file_with(WEIGHTS, header({"x": {"dtype": "F33", "shape": [0], "data_offsets": [0, 0]}})),
        refused("cannot be loaded"),
    ),
    "a page of a server": (file_with(WEIGHTS, b"<!DOCTYPE html><p>not found</p>"), refused("cannot be loaded")),
    "a pointer of git-lfs": (
        file_with(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1\n"),
        refused("cannot be loaded"),
    ),
    "weights of another model": (
        lambda folder: save_file({"x": torch.zeros(1)}, folder / WEIGHTS, {"format": "pt"}),
        refused("lacks"),
    ),
    "a pickle that runs code": (pickled("pytorch_model.bin", WEIGHTS), refused()),
    "a torch file that runs code": (torch_file("pytorch_model.bin", WEIGHTS), refused()),
    "one infinity": (
        tensors_with(WEIGHTS, lambda state: state["esm.encoder.layer.0.output.dense.bias"].fill_(torch.inf)),
        refused("esm.encoder.layer.0.output.dense.bias", "NaN or infinity"),
    ),
    "a configuration that is cut": (file_with("config.json", b'{"model_type": "esm", '), ABSENT),
    "a configuration that is a list": (file_with("config.json", b"[]"), refused()),
    "a configuration of another family": (json_with("config.json", model_type="bert"), refused()),
    "a configuration of an unknown family": (json_with("config.json", model_type="evil"), refused()),
    "a configuration that names code": (
        json_with("config.json", model_type="evil", auto_map=AUTO_MAP),
        refused("code"),
    ),
    "a known family that names code": (json_with("config.json", auto_map=AUTO_MAP), "esm"),
    "attention from the hub": (
        json_with("config.json", _attn_implementation="evil/kernels", attn_implementation="evil/kernels"),
        NOT_FETCHED,
    ),
    "sizes that do not divide": (json_with("config.json", num_attention_heads=5), refused()),
    "no attention heads": (json_with("config.json", num_attention_heads=0), refused()),
    "a size that is text": (json_with("config.json", hidden_size="32; rm -rf"), refused()),
    "a size below zero": (json_with("config.json", hidden_size=-32), refused()),
    "a size that is not a number": (json_with("config.json", hidden_size=float("nan")), refused()),
    "a vocabulary of another size": (json_with("config.json", vocab_size=99), refused("other shapes")),
}

HEADS = {
    "heads of no width": (json_with("config.json", structure_alignment={"structure_dim": 0}), refused()),
    "heads of a width that is text": (json_with("config.json", structure_alignment={"structure_dim": "x"}), refused()),
    "heads that are a list": (json_with("config.json", structure_alignment=[1]), refused()),
}


def attack(saved, tmp_path, kind, change):
    folder = tmp_path / "input"
    shutil.copytree(saved / kind, folder)
    change(folder)
    if kind != "pgnn":
        write(folder, "evil.py", "open(__file__ + '.ran', 'w')\n")
    return folder, files_below(tmp_path)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoint(saved, tmp_path, name):
    change, expected = CHECKPOINTS[name]
    folder, before = attack(saved, tmp_path, "model", change)
    names = () if expected is NOT_FETCHED else (folder,)
    for load in (AutoModelForStructureAlignment.from_pretrained, load_language_model):
        check(lambda load=load: load(folder).config.model_type, expected, *names)
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("name", HEADS)
def test_alignment_heads(saved, tmp_path, name):
    change, expected = HEADS[name]
    folder, _ = attack(saved, tmp_path, "model", change)
    check(lambda: AutoModelForStructureAlignment.from_pretrained(folder), expected, folder)
    assert load_language_model(folder).config.model_type == "esm"  # which does not use them


PGNNS = {
    "a header that is longer than the file": (file_with(WEIGHTS, struct.pack("<Q", 2**62) + b"{}"), refused()),
    "a torch file that runs code": (torch_file("pytorch_model.bin", WEIGHTS), refused()),
    "a configuration that names code": (json_with("config.json", model_type="evil", auto_map=AUTO_MAP), refused()),
    "a language model": (json_with("config.json", model_type="esm"), refused()),
    "layers of no width": (json_with("config.json", hidden_dims=[0]), refused()),
    "no layers": (json_with("config.json", hidden_dims=[]), refused()),
    "layers of a width that is text": (json_with("config.json", hidden_dims=["x"]), refused()),
}


@pytest.mark.parametrize("name", PGNNS)
def test_pgnn(saved, tmp_path, name):
    change, expected = PGNNS[name]
    folder, before = attack(saved, tmp_path, "pgnn", change)
    check(lambda: load_pgnn(folder), expected, folder)
    assert files_below(tmp_path) == before


RECORD, SETTINGS = "structure_alignment.json", "adapter_config.json"
FOLDERS = {
    "no record": (lambda folder: (folder / RECORD).unlink(), refused(RECORD)),
    "a record that is cut": (file_with(RECORD, b'{"model_type": '), refused(RECORD)),
    "a record that is a list": (file_with(RECORD, b"[]"), refused(RECORD)),
    "a record of another trunk": (json_with(RECORD, trunk_digest="0" * 64), refused("another trunk")),
    "a record of another family": (json_with(RECORD, model_type="AMPLIFY"), refused("AMPLIFY")),
    "heads of another width": (
        json_with(RECORD, structure_alignment={"structure_dim": 7}),
        refused("alignment.structure_projection"),
    ),
    "settings that are cut": (file_with(SETTINGS, b"{"), refused()),
    "settings that are a list": (file_with(SETTINGS, b"[]"), refused()),
    "a kind that does not exist": (json_with(SETTINGS, peft_type="EVIL"), refused()),
    "a rank of 0": (json_with(SETTINGS, r=0), refused()),
    "another rank": (json_with(SETTINGS, r=3), refused("of another shape")),
    "a scale that is not a number": (json_with(SETTINGS, lora_alpha=float("nan")), refused()),
    "layers that do not exist": (json_with(SETTINGS, target_modules=["evil"]), refused()),
    "a mapping that names code": (
        json_with(SETTINGS, auto_mapping={"base_model_class": "M", "parent_library": "evil"}),
        "esm",
    ),
    "no weights": (lambda folder: (folder / ADAPTERS).unlink(), ABSENT),
    "weights that are cut": (
        lambda folder: (folder / ADAPTERS).write_bytes((folder / ADAPTERS).read_bytes()[:-9]),
        refused(ADAPTERS),
    ),
    "a pickle that runs code": (pickled("adapter_model.bin", ADAPTERS), refused("adapter_model.bin")),
    "a torch file that runs code": (torch_file("adapter_model.bin", ADAPTERS), refused("adapter_model.bin")),
    "a weight that is not a number": (
        tensors_with(ADAPTERS, lambda state: next(iter(state.values())).fill_(torch.nan)),
        refused("NaN or infinity"),
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_adapters(saved, tmp_path, name):
    change, expected = FOLDERS[name]
    folder, before = attack(saved, tmp_path, "adapters", change)
    check(lambda: load_adapters(saved / "model", folder).config.model_type, expected, folder)
    assert files_below(tmp_path) == before


TOKENIZERS = {
    "a vocabulary of random bytes": file_with("vocab.txt", bytes(range(256)) * 9),
    "a tokenizer that is cut": file_with("tokenizer.json", b'{"version": '),
    "a configuration that names code": file_with(
        "tokenizer_config.json",
        json.dumps({"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["evil.T", None]}}).encode(),
    ),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizer(saved, tmp_path, name):
    folder, before = attack(saved, tmp_path, "model", TOKENIZERS[name])
    check(lambda: load_tokenizer(folder), refused())
    assert files_below(tmp_path) == before


def test_a_configuration_that_asks_for_all_memory(saved, tmp_path):
    folder, _ = attack(saved, tmp_path, "model", json_with("config.json", vocab_size=2_000_000_000))
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (64 * 1024**3, limits[1]))
    try:
        check(lambda: AutoModelForStructureAlignment.from_pretrained(folder), refused(), folder)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
