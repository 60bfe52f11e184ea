"""What a newcomer meets first: the README's commands and the public names."""

import ast
import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import yaml

import structure_aligned
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
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    assert for_type_checkers == set(structure_aligned.__all__) - {"__version__"}
    assert set(structure_aligned.__all__) <= set(dir(structure_aligned))


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
    configs = sorted((ROOT / "examples" / "configs").glob("*.yaml"))
    assert len(configs) >= 3
    for path in configs:
        assert set(yaml.safe_load(path.read_text())) <= known, path
