"""What README and docs print is there: recipes, flags, statistics, links, make targets."""

import re
from pathlib import Path

import pytest
from launching import run_here

from trl_recipes.rewards.loading import KINDS
from trl_recipes.stats import stat_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(path.read_text() for path in PAGES)


def commands():
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", TEXT, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if "recipes/" in line]


def test_every_recipe_is_in_the_readme_which_is_for_someone_who_has_two_minutes():
    assert len(README.splitlines()) <= 220
    for path in (ROOT / "recipes").glob("*.py"):
        assert f"recipes/{path.name}" in README, path.name


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.py")), ids=lambda p: p.name)
def test_the_flags_of_all_printed_commands_exist(path, capsys):
    words = [line.split(path.name)[1] for line in commands() if f"recipes/{path.name}" in line]
    used = set(re.findall(r"--(\w+)", " ".join(words)))
    with pytest.raises(SystemExit, match=r"^0$"):
        run_here(path.name, "--help_all")
    known = capsys.readouterr().out
    assert [flag for flag in used if f"--{flag}" not in known] == []


def test_the_rewards_of_all_printed_commands_exist():
    given = " ".join(re.findall(r"--(?:reward_funcs|metrics) ([^-\n]*)", "\n".join(commands())))
    kinds = {word for word in given.split() if not re.search("[:/]", word)}
    assert len(kinds) >= 2
    assert kinds <= KINDS.keys()


def test_the_table_of_statistics_is_the_one_in_the_code():
    assert stat_table().strip() in (ROOT / "docs" / "statistics.md").read_text()


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_every_link_leads_somewhere(path):
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", path.read_text()):
        file, _, name = target.partition("#")
        place = (path.parent / file).resolve() if file else path
        assert place.exists(), target
        headings = re.findall(r"(?m)^#+ (.*)", place.read_text()) if name else []
        # as the sites that show a page name them
        names = [re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings]
        assert name in [*names, ""], target


def test_make_targets_that_are_named_exist():
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"`make ([\w-]+)`", TEXT))
    assert len(named) >= 4
    assert named <= set(re.findall(r"(?m)^([\w-]+):", makefile))


def test_files_of_ours_that_are_named_are_there():
    files = set(re.findall(r"(?<!\w)recipes/[\w/]+\.(?:py|yaml|png)", TEXT))
    files |= set(re.findall(r"`((?:trl_recipes|recipes|tests|docs)/[\w/]+(?:\.\w+|/))`", TEXT))
    assert len(files) >= 40
    assert [name for name in files if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("what", ["reward", "recipe", "algorithm"])
def test_contributing_tells_how_to_add_what_people_add(what):
    (part,) = re.findall(rf"## Adding an? {what}\n(.*?)(?=\n## |\Z)", CONTRIBUTING, re.DOTALL)
    assert len(re.findall(r"^\d\. ", part, re.MULTILINE)) >= 4
