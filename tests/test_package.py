"""What a newcomer meets first: the README's commands and the public names."""

import ast
import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import structure_aligned
from structure_aligned import AmplifyConfig, GearNetConfig, ProteinMPNNConfig
from structure_aligned.data import collator


ROOT = Path(__file__).parents[1]


def test_the_first_two_fences_of_the_readme_are_commands_of_one_line():
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    for language, content in fences[:2]:
        assert language == "bash" and content.count("\n") == 1
        assert "-m venv" in content and "constraints-cpu.txt" in content
    assert "examples/train.py" in fences[0][1] and "pytest" in fences[1][1]


def test_the_readmes_python_compiles_and_names_what_exists():
    fences = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    imported = set()
    for content in fences:
        for node in ast.walk(ast.parse(content)):
            if isinstance(node, ast.ImportFrom) and node.module == "structure_aligned":
                imported |= {alias.name for alias in node.names}
    assert imported and imported <= set(structure_aligned.__all__)


def test_public_names_are_lazy_and_complete():
    script = "import sys, structure_aligned; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
    for name in structure_aligned.__all__:
        assert getattr(structure_aligned, name) is not None
    tree = ast.parse(Path(structure_aligned.__file__).read_text())
    for_type_checkers = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level and node.module
        for alias in node.names
    }
    assert for_type_checkers == set(structure_aligned.__all__) - {"__version__"}
    assert set(structure_aligned.__all__) <= set(dir(structure_aligned))


AUTO_FIRST = "from transformers import AutoModel"
OURS_FIRST = "import structure_aligned"
# As programs do it: the Auto classes before us, after us, through something else, or not at all before the model.
IMPORTS = {
    "after": f"{OURS_FIRST}; {AUTO_FIRST}",
    "before": f"{AUTO_FIRST}; {OURS_FIRST}",
    "trainer": f"{OURS_FIRST}; from transformers import Trainer, pipeline; {AUTO_FIRST}",
    "peft": f"{OURS_FIRST}, peft; {AUTO_FIRST}",
    "esm": f"{OURS_FIRST}; from transformers import EsmForMaskedLM; {AUTO_FIRST}",
    "layers": f"{OURS_FIRST}; import transformers.modeling_layers; {AUTO_FIRST}",
    "alignment": f"from structure_aligned import EsmForStructureAlignment; {AUTO_FIRST}",
    "amplify": f"from structure_aligned import AmplifyModel; {AUTO_FIRST}",
    "gearnet": f"import structure_aligned.models.gearnet; {AUTO_FIRST}",
    "proteinmpnn": f"import structure_aligned.models.proteinmpnn; {AUTO_FIRST}",
    "configuration": f"import structure_aligned.models.configuration; {AUTO_FIRST}",
}


# Five seconds each: what differs least from another is left to the slow run.
SELDOM = ("peft", "layers", "alignment", "gearnet", "configuration")


@pytest.mark.parametrize(
    "order", [pytest.param(name, marks=[pytest.mark.slow] * (name in SELDOM)) for name in IMPORTS]
)
def test_the_auto_classes_know_our_networks_whatever_is_imported_first(tmp_path, order):
    AmplifyConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2).save_pretrained(tmp_path / "amplify")
    GearNetConfig(hidden_dims=[4]).save_pretrained(tmp_path / "gearnet")
    ProteinMPNNConfig(hidden_size=4, num_encoder_layers=1).save_pretrained(tmp_path / "proteinmpnn")
    script = (
        f"{IMPORTS[order]}; import sys; from transformers import AutoConfig;"
        "names = [type(AutoModel.from_config(AutoConfig.from_pretrained(path))).__name__ for path in sys.argv[1:]];"
        "assert names == ['AmplifyModel', 'GearNetModel', 'ProteinMPNNEncoder'], names"
    )
    command = [sys.executable, "-c", script, *(str(tmp_path / n) for n in ("amplify", "gearnet", "proteinmpnn"))]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-2000:]


def test_auto_config_alone_knows_our_configurations(tmp_path):
    AmplifyConfig().save_pretrained(tmp_path)
    script = (
        "import structure_aligned, sys; from transformers import AutoConfig;"
        "assert type(AutoConfig.from_pretrained(sys.argv[1])).__name__ == 'AmplifyConfig';"
        "assert 'transformers.models.auto.modeling_auto' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, cwd=ROOT)


def test_doctests():
    assert doctest.testmod(collator).failed == 0 < doctest.testmod(collator).attempted


def test_configs_name_options_that_exist():
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        train = importlib.import_module("train")
    finally:
        sys.path.pop(0)
    classes = (train.ModelArguments, train.DataArguments, train.StructureAlignmentTrainingArguments)
    known = {name for arguments in classes for name in arguments.__dataclass_fields__}
    configs = sorted((ROOT / "examples" / "configs").rglob("*.yaml"))
    assert len(configs) >= 3
    for path in configs:
        assert set(yaml.safe_load(path.read_text())) <= known, path
