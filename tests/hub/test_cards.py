"""Model cards: of real tiny trainings, with results that have a file, and of recipes."""

import json
import logging
import math
import re

import datasets
import peft
import pytest
import torch
import yaml
from huggingface_hub import ModelCard, metadata_load

from structure_aligned import DataCollatorForStructureAlignment
from structure_aligned.hub.card_text import UNKNOWN, render
from structure_aligned.hub.cards import ModelCardCallback, add_results, check_card, write_model_card
from structure_aligned.hub.results import CardResult, ResultTable, check_results
from structure_aligned.hub.run_facts import FACTS_NAME, RunFacts, argument_facts, split_facts
from structure_aligned.training.arguments import StructureAlignmentTrainingArguments
from structure_aligned.training.trainer import StructureAlignmentTrainer
from tests import tiny
from tests.hub.test_results import report


def make_trainer(folder, family="esm", **options):
    one = tiny.FAMILIES[family]
    arguments = StructureAlignmentTrainingArguments(
        **(
            {
                **{"output_dir": str(folder), "use_cpu": True, "report_to": [], "disable_tqdm": True, "seed": 3},
                **{"num_train_epochs": 3, "per_device_train_batch_size": 2, "hub_token": "hf_" + "x" * 34},
                **{"learning_rate": 5e-4, "save_strategy": "epoch", "save_total_limit": 1},
            }
            | options
        )
    )
    tokenizer = one.tokenizer()
    return StructureAlignmentTrainer(
        one.model(),
        arguments,
        DataCollatorForStructureAlignment(tokenizer, max_length=64),
        train_dataset=tiny.dataset(5),
        eval_dataset=tiny.dataset(3),
        processing_class=tokenizer,
    )


@pytest.fixture(scope="module", params=list(tiny.FAMILIES))
def trained(request, tmp_path_factory):
    """Folder and trainer of a training as examples/common.py runs it."""
    folder = tmp_path_factory.mktemp("run") / f"aligned_{request.param}"
    trainer = make_trainer(folder, request.param)
    card = ModelCardCallback(trainer)
    trainer.add_callback(card)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    trainer.save_model()
    trainer.save_metrics("before_training", before, combined=False)
    trainer.save_metrics("eval", after)
    card.write(["eval_results.json", "before_training_results.json"])
    return folder, trainer, after


def test_the_card_of_a_training_says_what_was_done(trained):
    folder, trainer, _ = trained
    text = (folder / "README.md").read_text()
    data = trainer.train_dataset
    residues = sum(data["length"][:])
    assert f"| train | 5 | {residues:,} | 0 | 0 | `{data._fingerprint}` |" in text
    assert "| `learning_rate` | 0.0005 | 0.0001 |" in text and "| `head_learning_rate` | 0.001 |  |" in text
    assert "| `seed` | 3 | 42 |" in text and "| `selection_ratio` | 1.0 | 0.8 with" in text
    assert f"torch {torch.__version__}" in text and f"`{tiny.row(0)['pgnn']}`" in text
    assert "| reference model | none |" in text and "| tokens to which longer proteins were cropped | 64 |" in text
    assert f"| updates | {trainer.state.global_step} of {trainer.state.max_steps} |" in text
    model = trainer.model
    heads = sum(parameter.numel() for parameter in model.alignment.parameters())
    assert f"| parameters | {model.num_parameters() - heads:,} |" in text and f"{heads:,}" in text
    # AMPLIFY needs the package; ESM2 does not.
    assert ("import structure_aligned" in text) == (model.config.model_type == "AMPLIFY")
    assert ("Is Scaling Necessary" in text) == (model.config.model_type == "AMPLIFY")
    assert "arXiv:2505.16896" in text and str(folder.parent) not in text
    # What nobody knows is said to be unknown.
    assert "fresh weights" in text and f"The licence of the base model is {UNKNOWN} here" in text
    assert "whether chains of two splits are related, is not known" in text and "no build_report.json" in text


def test_the_snippet_of_the_card_runs(trained):
    folder, _, _ = trained
    text = (folder / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1].replace(f'"{folder.name}"', repr(str(folder)))
    names = {}
    exec(code, names)
    assert names["outputs"].hidden_states[-1].shape[:2] == names["inputs"]["input_ids"].shape


def test_metadata_are_what_the_hub_reads(trained):
    folder, trainer, after = trained
    card = check_card(folder)
    found = metadata_load(folder / "README.md")
    assert found["license"] == "unknown" and found["pipeline_tag"] == "fill-mask" and "language" not in found
    assert found["library_name"] == "transformers" and "base_model" not in found
    family = {"esm": "esm2", "AMPLIFY": "amplify"}[trainer.model.config.model_type]
    assert {"protein-language-model", "structure-aligned", family} <= set(found["tags"])
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results["token_accuracy"] == after["eval_token_accuracy"] and results["mlm_loss"] == after["eval_mlm_loss"]
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()
    assert found["model-index"][0]["name"] == folder.name


def test_every_number_of_the_results_is_in_a_file(trained, tmp_path):
    folder, _, _ = trained
    text = (folder / "README.md").read_text()
    stored = json.loads((folder / "eval_results.json").read_text())
    rows = dict(re.findall(r"^\| (\w+) \| ([\d.]+) \|", text.split("## Results")[1], re.MULTILINE))
    assert rows["token_loss"] == f"{stored['eval_token_loss']:.4f}"
    earlier = json.loads((folder / "before_training_results.json").read_text())["eval_token_loss"]
    assert f"| token_loss | {rows['token_loss']} | {earlier:.4f} |" in text and f"{earlier:.4f}" != rows["token_loss"]
    assert "before the training" in text and "before_training_results.json" in text
    check_results(folder, text)
    changed = text.replace(f"| {rows['token_loss']} |", "| 0.1234 |")
    assert changed != text
    with pytest.raises(ValueError, match=r"states 0\.1234 .* in none of the files"):
        check_results(folder, changed)
    with pytest.raises(ValueError, match=r"metadata state 0\.5"):
        check_results(folder, text, [0.5])
    unnamed = re.sub(r"^From .*$", "", text, flags=re.MULTILINE)
    with pytest.raises(ValueError, match="in none of the files"):
        check_results(folder, unnamed)
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(ValueError, match=r"eval_results\.json, which is not in"):
        check_card(tmp_path)
    for name in ("eval_results.json", "before_training_results.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes() + b" ")
    with pytest.raises(ValueError, match="has changed; write the card again"):
        check_card(tmp_path)


def test_checkpoints_have_a_card_without_results(trained):
    folder, _, _ = trained
    (checkpoint,) = folder.glob("checkpoint-*")
    card = check_card(checkpoint)
    assert "not finished" in card.text and "No result of this model has been measured" in card.text
    assert card.data.eval_results is None


def test_no_token_and_no_private_path_is_written(trained):
    folder, _, _ = trained
    for path in folder.rglob("*"):
        if path.name in ("README.md", FACTS_NAME):
            assert "hf_xxx" not in path.read_text() and str(folder.parent) not in path.read_text()


def test_the_trainers_own_push_uploads_this_card(trained, monkeypatch):
    folder, trainer, _ = trained
    uploaded = {}

    class Api:
        def upload_folder(self, **options):
            uploaded.update(options, text=(folder / "README.md").read_text())

    monkeypatch.setattr("transformers.trainer.hf_api", Api, raising=False)
    monkeypatch.setattr("transformers.trainer.upload_folder", Api().upload_folder, raising=False)
    trainer.hub_model_id = "owner/name"
    (folder / "README.md").unlink()
    trainer.push_to_hub()
    assert "structure_aligned" in uploaded["text"] and "before the training" in uploaded["text"]
    assert check_card(folder)


def test_a_new_training_in_the_folder_states_none_of_the_old_results(trained):
    folder, _, _ = trained
    if "esm" not in folder.name:
        pytest.skip("the same for every family")
    other = folder.parent / "again"
    other.mkdir()
    (other / "eval_results.json").write_bytes((folder / "eval_results.json").read_bytes())
    trainer = make_trainer(other, save_strategy="no")
    trainer.add_callback(ModelCardCallback(trainer))
    trainer.train()
    assert "No result of this model" in (other / "README.md").read_text()
    write_model_card(other, trainer)
    assert "No result of this model" in (other / "README.md").read_text()
    trainer.save_metrics("eval", trainer.evaluate(), combined=False)
    write_model_card(other, trainer)
    assert "token_accuracy" in (other / "README.md").read_text()


def test_a_folder_without_a_record_says_that_nothing_is_known(tmp_path):
    model = tiny.FAMILIES["AMPLIFY"].model()
    model.save_pretrained(tmp_path / "bare")
    write_model_card(tmp_path / "bare")
    text = check_card(tmp_path / "bare").text
    heads = sum(parameter.numel() for parameter in model.alignment.parameters())
    assert f"| parameters | {model.num_parameters() - heads:,} |" in text and f"| {heads:,} |" in text
    for unknown in ("Which data it was trained on is not known", "| time | not known |", "| pGNN | not known |"):
        assert unknown in text
    assert "What structures it was trained on is not known" in text
    write_model_card(tmp_path / "bare", base_model="chandar-lab/AMPLIFY_120M")
    card = check_card(tmp_path / "bare")
    assert (card.data.base_model, card.data.license) == ("chandar-lab/AMPLIFY_120M", "mit")
    with pytest.raises(ValueError, match="no folder"):
        write_model_card(tmp_path / "nothing")


def test_an_edited_card_is_kept(tmp_path):
    tiny.esm_model().save_pretrained(tmp_path)
    write_model_card(tmp_path)
    write_model_card(tmp_path)
    assert not (tmp_path / "README.previous.md").exists()
    (tmp_path / "README.md").write_text("my own words")
    write_model_card(tmp_path)
    assert (tmp_path / "README.previous.md").read_text() == "my own words" and check_card(tmp_path)
    (tmp_path / "README.md").write_text("more words")
    write_model_card(tmp_path)
    assert (tmp_path / "README.previous.md").read_text() == "my own words"
    assert (tmp_path / "README.previous-2.md").read_text() == "more words"


def test_data_facts():
    rows = [tiny.row(index) | {"predicted": index < 2, "entry": f"syn0000{index}"} for index in range(3)]
    data = datasets.Dataset.from_list(rows, features=tiny.FEATURES)
    facts = split_facts(data)
    assert facts["chains"] == 3 and facts["predicted"] == 2 and facts["synthetic"] == 3
    assert split_facts(data.remove_columns(["length", "predicted"]))["residues"] is None
    assert split_facts(None) is None and split_facts(iter([]))["chains"] is None
    text = str(render(RunFacts(data={"train": facts})))
    assert "3 of 3 training chains are synthetic folds" in text
    text = str(render(RunFacts(data={"train": facts | {"synthetic": 0}})))
    assert "2 of 3 training structures are predictions" in text


def test_arguments_are_the_main_ones_and_what_differs(tmp_path):
    arguments = StructureAlignmentTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, label_smoothing_factor=0.1, hub_token="hf_secret", run_name="private"
    )
    found = argument_facts(arguments)
    assert found["label_smoothing_factor"] == {"value": 0.1, "default": 0.0}
    assert next(iter(found)) == "num_train_epochs" and found["lr_scheduler_type"]["value"] == "cosine"
    assert not {"output_dir", "hub_token", "run_name", "use_cpu", "logging_steps", "accelerator_config"} & set(found)


def test_build_report_and_splits_beside_the_dataset_are_read(tmp_path):
    datasets.DatasetDict(train=tiny.dataset(2)).save_to_disk(tmp_path / "data")
    skipped = [{"source": "/home/someone/a.cif", "reason": "resolution: 4.0 is more than 3.0"}] * 2
    built = {"files": 4, "chains": 4, "rows": 2, "skipped": skipped}
    (tmp_path / "data" / "build_report.json").write_text(json.dumps(built))
    (tmp_path / "data" / "splits.json").write_text(json.dumps({"options": {"date": "2023-01-01", "quality": None}}))
    trainer = make_trainer(tmp_path / "out")
    trainer.train_dataset = datasets.load_from_disk(tmp_path / "data")["train"]
    facts = RunFacts.of_trainer(trainer)
    assert facts.build == {"files": 4, "chains": 4, "rows": 2, "left_out": {"resolution": 2}}
    text = str(render(facts))
    assert "Built from 4 files with 4 chains." in text and "by reason: resolution: 2." in text
    assert "Splits were made by `split_chains`: date = 2023-01-01." in text and "someone" not in text


def test_adapters_are_said_to_be_adapters(tmp_path):
    model = tiny.esm_model()
    plain = RunFacts.of_trainer(make_trainer(tmp_path / "plain"))
    settings = peft.LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["alignment"])
    trainer = make_trainer(tmp_path / "adapters")
    trainer.model = peft.get_peft_model(model, settings)
    facts = RunFacts.of_trainer(trainer)
    assert facts.adapters and (facts.parameters, facts.head_parameters) == (plain.parameters, plain.head_parameters)
    trainer.model.save_pretrained(tmp_path / "adapters")
    write_model_card(tmp_path / "adapters", facts=facts)
    card = check_card(tmp_path / "adapters")
    assert card.data.library_name == "peft" and "export_trunk" in card.text
    assert "holds adapters and alignment heads" in card.text
    assert "| adapters | LORA, rank 2, alpha 8, on query, value |" in card.text
    (tmp_path / "adapters" / FACTS_NAME).unlink()
    assert RunFacts.of_folder(tmp_path / "adapters").adapters == facts.adapters
    (tmp_path / "report.json").write_text(json.dumps(report(["ESM2", "mine"], ["0" * 64] * 2)))
    with pytest.raises(ValueError, match="holds adapters, whose weights cannot be compared"):
        add_results(tmp_path / "adapters", tmp_path / "report.json", "mine")


def test_a_card_that_fails_does_not_end_a_training(tmp_path, monkeypatch, caplog):
    trainer = make_trainer(tmp_path, save_strategy="no", num_train_epochs=1)
    trainer.add_callback(ModelCardCallback(trainer))
    monkeypatch.setattr("structure_aligned.hub.cards.render", lambda *arguments: 1 / 0)
    monkeypatch.setattr(logging.getLogger("structure_aligned"), "propagate", True)
    trainer.train()
    assert not (tmp_path / "README.md").exists() and trainer.state.global_step > 0
    assert "could not be written: ZeroDivisionError" in caplog.text


def test_a_loss_of_nan_is_shown_and_not_in_the_metadata(tmp_path):
    tiny.esm_model().save_pretrained(tmp_path)
    (tmp_path / "eval_results.json").write_text(json.dumps({"eval_loss": math.nan, "eval_mlm_loss": 2.5}))
    write_model_card(tmp_path, results=["eval_results.json"])
    card = check_card(tmp_path)
    assert [result.metric_type for result in card.data.eval_results] == ["mlm_loss"] and "| loss | nan |" in card.text


def test_a_resumed_training_says_since_when(tmp_path):
    options = {"num_train_epochs": 2, "save_total_limit": 2, "eval_strategy": "epoch", "load_best_model_at_end": True}
    make_trainer(tmp_path, **options).train()
    checkpoint = sorted(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))[0]
    trainer = make_trainer(tmp_path, **options)
    trainer.add_callback(ModelCardCallback(trainer))
    trainer.train(resume_from_checkpoint=str(checkpoint))
    trainer.save_metrics("eval", trainer.evaluate(), combined=False)
    write_model_card(tmp_path, trainer)
    text = (tmp_path / "README.md").read_text()
    assert "also decided which checkpoint was kept" in text
    assert f"since it was resumed at update {checkpoint.name.split('-')[1]}; before that not known" in text


def test_labels_cannot_break_the_table_or_the_template():
    row = CardResult("task", "{{ 7 * 7 }}", "a|b\n{{ 7 * 7 }}", 0.5, others={"x|y": 2})
    text = str(render(RunFacts(name="{{ 7 * 7 }}"), [ResultTable("title", {"f.json": "0" * 64}, [row])]))
    assert "49" not in text.split("---\n")[2].split("## Citation")[0] and "a\\|b {{ 7 * 7 }}" in text
    assert yaml.safe_load(text.split("---\n")[1])["model-index"][0]["name"] == "{{ 7 * 7 }}"
