"""The house as DESIGN and README draw it: which module may import which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "trl_recipes"
MODULES = sorted(PACKAGE.rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").glob("*.py"))


def imports(path):
    """Every dotted name that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = path.relative_to(ROOT).parent.parts
                base = ".".join([*package[: len(package) - node.level + 1], base]).rstrip(".")
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def test_the_files_are_found():
    assert len(MODULES) > 20
    assert len(RECIPES) >= 6


@pytest.mark.parametrize("path", MODULES + RECIPES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_needs_trl_experimental(path):
    knows = any(name.startswith("trl.experimental") for name in imports(path))
    assert not knows or path == PACKAGE / "benchmark" / "trl_baseline.py"


@pytest.mark.parametrize("name", ["objective.py", "controllers.py"])
def test_the_mathematics_imports_torch_and_nothing_of_ours(name):
    allowed = ("torch", "collections", "typing")
    assert all(module.split(".")[0] in allowed for module in imports(PACKAGE / "ppo" / name))


READERS = ["stats.py", "run_folder.py", "models/loading.py", "evaluation/compare.py"]
READERS += sorted(f"report/{path.name}" for path in (PACKAGE / "report").glob("*.py"))


@pytest.mark.parametrize("name", READERS)
def test_what_reads_a_run_imports_no_trainer(name):
    trainers = ("trl_recipes.ppo", "trl_recipes.grpo")
    assert not [m for m in imports(PACKAGE / name) if m.startswith(trainers)]


def test_importing_the_package_loads_neither_torch_nor_trl():
    code = "import sys, trl_recipes; print({'torch', 'trl', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_public_name_can_be_had_and_has_a_docstring():
    import trl_recipes

    for name in trl_recipes.__all__:
        assert getattr(trl_recipes, name).__doc__, name


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_a_recipe_is_a_short_story(path):
    text = path.read_text()
    assert len(text.splitlines()) < 100
    assert "def main(" in text
    blocks = [line.strip() for line in text.splitlines() if line.startswith("    # ")]
    order = ["# Models", "# Prompts", "# Reward", "# Trainer", "# Results"]
    known = [block for block in blocks if block in order]
    assert known == sorted(known, key=order.index)
