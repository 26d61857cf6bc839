"""What the README prints is there: recipes, flags, statistics, files."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from trl_recipes.stats import stat_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def commands():
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", README, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if "recipes/" in line]


def test_every_recipe_is_in_the_readme():
    for path in (ROOT / "recipes").glob("*.py"):
        assert f"recipes/{path.name}" in README, path.name


def test_the_readme_names_no_recipe_that_is_not_there():
    named = set(re.findall(r"recipes/[\w/]+\.(?:py|yaml)", README))
    assert len(named) >= 6
    assert [name for name in named if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.py")), ids=lambda p: p.name)
def test_the_readmes_flags_exist(path):
    used = {
        flag
        for command in commands()
        if f"recipes/{path.name}" in command
        for flag in re.findall(r"--(\w+)", command.split(path.name)[1])
    }
    text = subprocess.run(
        [sys.executable, str(path), "--help_all"], capture_output=True, text=True, check=True
    ).stdout
    assert [flag for flag in used if f"--{flag}" not in text] == []


def test_the_table_of_statistics_is_the_one_in_the_code():
    assert stat_table().strip() in README


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make (\w+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_what_contributing_points_at_is_there():
    files = set(
        re.findall(r"`((?:trl_recipes|recipes|tests)/[\w/]+(?:\.(?:py|yaml)|/))`", CONTRIBUTING)
    )
    assert len(files) >= 25
    assert [name for name in files if not (ROOT / name).exists()] == []
    places = re.findall(r"`(\w+)`\s+(?:in|of|from)\s+`([\w/]+\.py)`", CONTRIBUTING)
    assert len(places) >= 8
    missing = [(name, path) for name, path in places if name not in (ROOT / path).read_text()]
    assert missing == []


def test_contributing_tells_how_to_add_what_people_add():
    for what in ("reward", "recipe", "algorithm"):
        (part,) = re.findall(rf"## Adding an? {what}\n(.*?)(?=\n## |\Z)", CONTRIBUTING, re.DOTALL)
        assert "The smallest one" in part
        assert re.search(r"forgot is told by `tests/", part)
        assert len(re.findall(r"^\d\. ", part, re.MULTILINE)) >= 4
