"""What an aligned ESM2 is beyond the common contract: a checkpoint of plain Transformers."""

import subprocess
import sys

import torch
from transformers import AutoModel, AutoModelForMaskedLM, EsmForMaskedLM

from structure_aligned.models.alignment import EsmForStructureAlignment
from tests import tiny
from tests.models import test_alignment


def inputs():
    return test_alignment.inputs(tiny.FAMILIES["esm"], labels=False)


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
    assert torch.equal(model(**inputs()).logits, plain(**inputs()).logits)


def test_a_process_without_this_package_gives_identical_logits(tmp_path):
    model = tiny.esm_model()
    model.save_pretrained(tmp_path)
    torch.save(inputs(), tmp_path / "inputs.pt")
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
    assert torch.equal(torch.load(tmp_path / "logits.pt", weights_only=True), model(**inputs()).logits)


def test_plain_transformers_load_the_folder(tmp_path):
    model = tiny.esm_model()
    model.save_pretrained(tmp_path)
    logits = model(**inputs()).logits
    masked_lm = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert type(masked_lm) is EsmForMaskedLM
    assert torch.equal(masked_lm(**inputs()).logits, logits)
    trunk = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False)
    assert torch.equal(trunk(**inputs()).last_hidden_state, model.esm(**inputs()).last_hidden_state)
