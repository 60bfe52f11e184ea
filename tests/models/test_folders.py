"""Stored weights of half the size that load as they were, up to rounding."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from structure_aligned.models.folders import halve_stored_weights
from structure_aligned.models.pgnn import untrained_gearnet


def test_halved_weights_load_in_float32(tmp_path):
    pgnn = untrained_gearnet([16])
    pgnn.save_pretrained(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    halve_stored_weights(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16, torch.int64}
    assert (tmp_path / "model.safetensors").stat().st_size < 0.75 * size
    loaded = AutoModel.from_pretrained(tmp_path)
    for name, parameter in loaded.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, pgnn.get_parameter(name).half().float())


def test_what_float16_does_not_hold_is_left_alone(tmp_path):
    with pytest.raises(ValueError, match=r"has no model.safetensors"):
        halve_stored_weights(tmp_path)
    pgnn = untrained_gearnet([16])
    with torch.no_grad():
        pgnn.layers[0].linear.bias[0] = 1e6
    pgnn.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"layers.0.linear.bias.*beyond the range of float16"):
        halve_stored_weights(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
