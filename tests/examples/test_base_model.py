"""The base model that is kept in the repository: whole, small, what its card says, with some context learnt."""

import hashlib
import json
import random

import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForMaskedLM, AutoTokenizer

from structure_aligned import AutoModelForStructureAlignment
from structure_aligned.evaluation.perplexity import pseudo_perplexity

from .test_examples import ROOT


FOLDER = ROOT / "examples" / "base" / "esm2_4m"
DIGEST = "5c4d09cebf53012bb057e2114676f871f86f0d9425780ca781ce380f7685fd43"

# Three proteins that anybody knows: hen egg-white lysozyme, sperm-whale myoglobin, E. coli thioredoxin.
SEQUENCES = [
    "KVFGRCELAAAMKRHGLDNYRGYSLGNWVCAAKFESNFNTQATNRNTDGSTDYGILQINSRWWCNDGRTPGSRNLCNIPCSALLSSDITASVNCAKKIVSDGNGMNAWVAWRNR"
    "CKGTDVQAWIRGCRL",
    "VLSEGEWQLVLHVWAKVEADVAGHGQDILIRLFKSHPETLEKFDRFKHLKTEAEMKASEDLKKHGVTVLTALGAILKKKGHHEAELKPLAQSHATKHKIPIKYLEFISEAIIHVL"
    "HSRHPGDFGADAQGAMNKALELFRKDIAAKYKELGYQG",
    "SDKIIHLTDDSFDTDVLKADGAILVDFWAEWCGPCKMIAPILDEIADEYQGKLTVAKLNIDQNPGTAPKYGIRGIPTLLLFKNGEVAATKVGALSKGQLKEFLDANLA",
]


def test_it_is_the_file_of_the_card():
    weights = (FOLDER / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == DIGEST
    assert len(weights) <= 8_000_000
    summary = json.loads((FOLDER / "pretraining.json").read_text())
    card = ModelCard.load(FOLDER / "README.md")
    (result,) = card.data.eval_results
    assert result.metric_value == round(summary["perplexity"], 2)
    assert f"{summary['steps']:,} of" in card.text and f"{summary['proteins']:,} natural proteins" in card.text


def test_it_loads_in_float32_and_has_learnt_some_context():
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    rng = random.Random(0)
    shuffled = ["".join(rng.sample(sequence, len(sequence))) for sequence in SEQUENCES * 4]
    real, other = (
        pseudo_perplexity(model, some, tokenizer, "masked", num_maskings=8).value for some in (SEQUENCES, shuffled)
    )
    assert real < 0.99 * other
    aligned = AutoModelForStructureAlignment.from_pretrained(FOLDER, structure_alignment={"structure_dim": 8})
    outputs = aligned(**tokenizer(SEQUENCES[0], return_tensors="pt"))
    assert outputs.structure_logits.shape == (1, len(SEQUENCES[0]) + 2, 20)
