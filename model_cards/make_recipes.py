"""
Writes the recipe cards, TEMPLATE.md and README.md of this folder; `--check` only says whether they are up to date.

    python model_cards/make_recipes.py
    python model_cards/make_recipes.py --check
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from structure_aligned.hub.card_text import render
from structure_aligned.hub.run_facts import RunFacts, license_of
from structure_aligned.hub.template import TEMPLATE


FOLDER = Path(__file__).parent
CONFIGS = FOLDER.parent / "examples" / "configs"


@dataclass(frozen=True)
class Recipe:
    """A model of the paper: its base, and the base of its reference model, the paper's choice or one made here."""

    name: str
    model_type: str
    base_model: str
    reference: str
    of_paper: bool


RECIPES = (
    Recipe("SaESM2_8M", "esm", "facebook/esm2_t6_8M_UR50D", "facebook/esm2_t6_8M_UR50D", False),
    Recipe("SaESM2_35M", "esm", "facebook/esm2_t12_35M_UR50D", "facebook/esm2_t6_8M_UR50D", False),
    Recipe("SaESM2_150M", "esm", "facebook/esm2_t30_150M_UR50D", "facebook/esm2_t12_35M_UR50D", False),
    Recipe("SaESM2_650M", "esm", "facebook/esm2_t33_650M_UR50D", "facebook/esm2_t30_150M_UR50D", True),
    Recipe("SaAMPLIFY_120M", "AMPLIFY", "chandar-lab/AMPLIFY_120M", "chandar-lab/AMPLIFY_120M", False),
    Recipe("SaAMPLIFY_350M", "AMPLIFY", "chandar-lab/AMPLIFY_350M", "chandar-lab/AMPLIFY_120M", True),
)

STEPS = """
The authors have published a model of this name, `chandar-lab/{name}`; it was not made with this package.

**Data**: chains of the PDB, and GearNet's weights as its authors published them (`mc_gearnet_edge.pth`, Zenodo record
7593637). `pdb_cluster.tsv` is MMseqs2's clustering of the chains. The thresholds of high quality are examples: the
paper's are not known.

```bash
python examples/prepare.py --structures pdb_files --pgnn mc_gearnet_edge.pth --output datasets/pdb_splits \\
    --clusters pdb_cluster.tsv --split_resolution 1.7 --split_r_free 0.20 --validation_fraction 0.02
```

**Reference model**, trained from `{reference}` ({choice}) with `reference.yaml`:

```yaml
{reference_config}```

```bash
accelerate launch --multi_gpu --num_processes 8 examples/train_reference.py reference.yaml \\
    --dataset datasets/pdb_splits
```

**Training**, with `{name}.yaml`: the paper's optimisation on 8 GPUs, in which each update sees 5,120 proteins.

```yaml
{config}```

```bash
accelerate launch --multi_gpu --num_processes 8 examples/train.py {name}.yaml --dataset datasets/pdb_splits
```

Fewer GPUs or a smaller dataset need fewer accumulation steps. What this takes in hours was not measured.
"""

INDEX = """\
# Model cards

Written by `python model_cards/make_recipes.py`.

* [TEMPLATE.md](TEMPLATE.md): the text that every card is made from, in Jinja's form. A training with
  `examples/train.py` or `examples/train_reference.py` writes its own card, `README.md`, beside the model.
* Recipes: how one would train each model of the paper. **No training was run for these cards; they hold no
  results.**

| recipe | base model | reference model's base | licence of the base |
|---|---|---|---|
{rows}

`trained/` has the cards of models that were trained here, with the files that they cite:
[SaESM2_4M](trained/SaESM2_4M/README.md), seed 0 of `benchmarks/RESULTS.md`, of the small base model in
`examples/base/esm2_4m`. Its weights are not in the repository.

A card states results only from JSON files in the model's folder, and names each with its SHA-256:

```python
from structure_aligned.hub.cards import add_results, check_card

add_results("outputs/saesm2_35m", "outputs/evaluation/report.json", model="saesm2_35m")
check_card("outputs/saesm2_35m")  # raises where a number of the card is in none of its files
```

`examples/push.py FOLDER OWNER/NAME --dry_run` shows what an upload would send.
"""


def configuration(file: str, **changes: object) -> str:
    """A config of examples/configs with some options changed, as YAML."""
    options = yaml.safe_load((CONFIGS / file).read_text())
    return yaml.safe_dump(options | changes, sort_keys=False)


def card(recipe: Recipe) -> str:
    reference = f"outputs/{recipe.name}_reference"
    text = STEPS.format(
        name=recipe.name,
        reference=recipe.reference,
        choice="as in the paper" if recipe.of_paper else "chosen here; the paper's is not known",
        reference_config=configuration("reference.yaml", model_name_or_path=recipe.reference, output_dir=reference),
        config=configuration(
            "paper.yaml",
            model_name_or_path=recipe.base_model,
            output_dir=f"outputs/{recipe.name}",
            reference_model=reference,
        ),
    )
    facts = RunFacts(
        name=recipe.name,
        model_type=recipe.model_type,
        base_model=recipe.base_model,
        license=license_of(recipe.base_model),
        pgnn="GearNetModel:mc_gearnet_edge.pth",
        reference=f"of `{recipe.reference}`, trained on structures of high quality",
    )
    return str(render(facts, recipe=text))


def documents() -> dict[str, str]:
    """Content by file name."""
    rows = [
        f"| [{one.name}]({one.name}.md) | `{one.base_model}` | `{one.reference}` | {license_of(one.base_model)} |"
        for one in RECIPES
    ]
    found = {"TEMPLATE.md": TEMPLATE, "README.md": INDEX.format(rows="\n".join(rows))}
    return found | {f"{one.name}.md": card(one) for one in RECIPES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file is not up to date")
    check = parser.parse_args().check
    outdated = [
        name
        for name, text in documents().items()
        if not (FOLDER / name).is_file() or (FOLDER / name).read_text(encoding="utf-8") != text
    ]
    if check and outdated:
        sys.exit(f"Not up to date: {', '.join(outdated)}. Run python model_cards/make_recipes.py.")
    for name in outdated:
        (FOLDER / name).write_text(documents()[name], encoding="utf-8")
    print(f"{'Written' if outdated else 'Up to date'}: {', '.join(outdated or documents())}")


if __name__ == "__main__":
    main()
