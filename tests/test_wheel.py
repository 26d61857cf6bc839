"""The wheel holds every file of the package, and works from another folder."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import trl_recipes

ROOT = Path(__file__).parents[1]
DOCS = (ROOT / "docs" / "recipes.md").read_text()
USE = """
import trl_recipes
from trl_recipes import stats
from trl_recipes.embedded.dialogue import write_dialogue
from trl_recipes.embedded.rewrites import rewrites

assert trl_recipes.__file__.startswith({folder!r}), trl_recipes.__file__
assert write_dialogue(100) and rewrites("heldout") and "objective/kl" in stats.stat_table()
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what the wheel of a copy of this project unpacks to."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "trl_recipes", source / "trl_recipes", ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", source / "dist", source]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": ""})
    (wheel,) = (source / "dist").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def test_every_file_of_the_package_is_in_the_wheel(installed):
    def files(root):
        paths = (path for path in (root / "trl_recipes").rglob("*") if path.is_file())
        return {path.relative_to(root) for path in paths if "__pycache__" not in path.parts}

    assert files(installed) == files(ROOT)


def test_the_docs_script_for_the_wheel_alone_runs_in_another_folder(installed, tmp_path):
    (part,) = re.findall(r"## Without the repository\n.*?```python\n(.*?)```", DOCS, re.DOTALL)
    script = part.replace("batch_size=64, max_steps=100", "batch_size=8, max_steps=1")
    assert script != part
    program = USE.format(folder=str(installed)) + script
    environment = os.environ | {"PYTHONPATH": str(installed)}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "runs" / "first" / "report.html").stat().st_size > 10_000


def test_every_public_name_can_be_had_has_a_docstring_and_is_known_to_a_type_checker():
    stub = (ROOT / "trl_recipes" / "__init__.pyi").read_text()
    assert all(getattr(trl_recipes, name).__doc__ for name in trl_recipes.__all__)
    assert sorted(re.findall(r" (\w+) as \1", stub)) == sorted(trl_recipes.__all__)
