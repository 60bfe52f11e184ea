"""model_cards/: up to date, plainly recipes, and their configs and commands are ones that the examples take."""

import dataclasses
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, metadata_load
from transformers import HfArgumentParser

from structure_aligned.hub.cards import check_card
from structure_aligned.hub.template import TEMPLATE


ROOT = Path(__file__).parents[2]
CARDS = ROOT / "model_cards"
NOTHING = "No training was run for this card; there are no results."


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their annotations up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def recipes():
    return load(CARDS / "make_recipes.py")


@pytest.fixture
def examples(monkeypatch):
    """Modules of examples/ by name."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    yield lambda name: load(ROOT / "examples" / f"{name}.py")
    for name in ("common", "train", "train_reference", "prepare"):
        sys.modules.pop(name, None)


def test_cards_and_template_are_up_to_date(recipes, monkeypatch, tmp_path):
    made = recipes.documents()
    assert made["TEMPLATE.md"] == TEMPLATE and len(recipes.RECIPES) == 6
    assert {path.name for path in CARDS.glob("*.md")} == set(made)
    for name, text in made.items():
        assert (CARDS / name).read_text(encoding="utf-8") == text, f"run python model_cards/make_recipes.py ({name})"
    monkeypatch.setattr(recipes, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["make_recipes.py", "--check"])
    with pytest.raises(SystemExit, match="Not up to date: TEMPLATE.md"):
        recipes.main()


def test_cards_of_trained_models_hold_what_their_files_say():
    folders = [path.parent for path in (CARDS / "trained").glob("*/README.md")]
    assert folders
    for folder in folders:
        check_card(folder)
        assert ModelCard.load(folder / "README.md").data.eval_results


def test_recipes_are_marked_and_hold_no_results(recipes, tmp_path):
    for recipe in recipes.RECIPES:
        path = CARDS / f"{recipe.name}.md"
        found, card = metadata_load(path), ModelCard.load(path)
        assert "recipe" in found["tags"] and "model-index" not in found and found["license"] == "mit"
        assert found["base_model"] == recipe.base_model and f"| [{recipe.name}]" in (CARDS / "README.md").read_text()
        assert (
            "**This is a recipe, not a model.** No training was run for this card; there are no results." in card.text
        )
        results = card.text.split("## Results\n")[1].split("## ")[0]
        assert results.strip() == "No training was run for this card; there are no results."
        (tmp_path / "README.md").write_text(path.read_text())
        check_card(tmp_path)


def test_configs_and_commands_of_recipes_are_known_to_the_examples(recipes, examples, monkeypatch):
    train, reference = examples("train"), examples("train_reference")
    known = {}
    for name, module in (("train.py", train), ("train_reference.py", reference)):
        classes = (module.ModelArguments, module.DataArguments, module.StructureAlignmentTrainingArguments)
        known[name] = {field.name for one in classes for field in dataclasses.fields(one)}
        assert HfArgumentParser(list(classes))
    prepare = examples("prepare")
    for recipe in recipes.RECIPES:
        text = (CARDS / f"{recipe.name}.md").read_text()
        configs = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
        blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
        commands = [shlex.split(block.replace("\\\n", " ")) for block in blocks]
        assert len(configs) == 2 and len(commands) == 3
        assert set(configs[0]) <= known["train_reference.py"] and set(configs[1]) <= known["train.py"]
        assert configs[1]["reference_model"] == configs[0]["output_dir"]
        assert configs[1]["model_name_or_path"] == recipe.base_model
        assert configs[0]["model_name_or_path"] == recipe.reference
        for command in commands[1:]:
            place = next(index for index, word in enumerate(command) if word.startswith("examples/"))
            options = {word[2:] for word in command[place:] if word.startswith("--")}
            assert options <= known[Path(command[place]).name]
        monkeypatch.setattr(sys, "argv", commands[0][1:])
        args = prepare.parse_arguments()
        assert prepare.split_options(args)["quality"].max_resolution == args.split_resolution
        assert str(args.output) == commands[1][-1] == commands[2][-1]
