"""The house as docs/architecture.md draws it: which module may import which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from trl_recipes import PPOConfig, PPOTrainer, language_model, load_run

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "trl_recipes"
MODULES = sorted(PACKAGE.rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").glob("*.py"))


def imports(path):
    """Every module that a file imports, anywhere in it, and the dotted name that it takes."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parent.parts
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, node.module])
            yield from ((base, f"{base}.{alias.name}") for alias in node.names)


def test_nothing_needs_trl_experimental():
    assert len(MODULES) > 20
    assert len(RECIPES) >= 6
    names = {path: [name for _, name in imports(path)] for path in MODULES + RECIPES}
    found = [path for path in names if any("trl.experimental" in name for name in names[path])]
    assert found == [PACKAGE / "benchmark" / "trl_baseline.py"]


def test_the_mathematics_imports_torch_and_nothing_of_ours():
    found = {name.split(".")[0] for _, name in imports(PACKAGE / "ppo" / "objective.py")}
    assert found <= {"torch", "collections", "typing"}


MODULE_NAMES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in MODULES
}


def modules(path):
    """The modules of ours that a file imports; of a package it may take a module, or a name."""
    for module, name in imports(path):
        if module in MODULE_NAMES:
            yield name if name in MODULE_NAMES else module


# The package's own names are lazy: nothing is imported for them.
ARROWS = {
    name: set(modules(path)) - {name, "trl_recipes"}
    for name, path in MODULE_NAMES.items()
    if name != "trl_recipes"
}
# From the ground up. core gathers names for scripts, from above.
ROOMS = ["ground", "embedded", "models", "data", "rewards", "ppo", "grpo", "training", "report"]
ROOMS += ["evaluation", "benchmark", "core"]


def room(module):
    parts = module.split(".")
    alone = len(parts) == 2 and MODULE_NAMES[module].name != "__init__.py"
    return "core" if parts[1] == "core" else "ground" if alone else parts[1]


def test_no_module_imports_itself_by_way_of_others():
    rest = dict(ARROWS)
    while leaves := [name for name, targets in rest.items() if not targets & set(rest)]:
        for name in leaves:
            del rest[name]
    assert not rest, f"each of these is in a circle of imports, or imports one: {sorted(rest)}"


def test_arrows_run_downwards():
    arrows = [(module, target) for module, targets in ARROWS.items() for target in targets]
    assert [a for a in arrows if ROOMS.index(room(a[0])) < ROOMS.index(room(a[1]))] == []


def test_report_reads_a_run_and_no_model_and_a_comparison_no_trainer():
    found = {room(t) for name, targets in ARROWS.items() if room(name) == "report" for t in targets}
    assert found <= {"ground", "report"}
    assert not {room(t) for t in ARROWS["trl_recipes.evaluation.compare"]} & {"ppo", "grpo"}


def test_the_trainer_of_ppo_reads_without_many_other_files():
    assert len(ARROWS["trl_recipes.ppo.trainer"]) <= 15
    assert len((PACKAGE / "ppo" / "trainer.py").read_text().splitlines()) <= 600


def test_one_round_of_ppo_is_followed_in_ten_files():
    model, tokenizer = load_run(language_model())
    prompts = [{"prompt": text} for text in ("The film", "A plot of", "This", "I liked")]
    args = PPOConfig(batch_size=4, max_steps=2, response_length=4, report_to="none")
    trainer, entered = PPOTrainer(args, model, None, tokenizer, prompts, reward_funcs=vowels), set()

    def note(frame, event, _):
        path = Path(frame.f_code.co_filename)
        if event == "call" and PACKAGE in path.parents and trainer.state.global_step == 1:
            entered.add(path.relative_to(PACKAGE))

    sys.setprofile(note)
    try:
        trainer.train()
    finally:
        sys.setprofile(None)
    # what is known by its name: settings, and the ground, which holds no algorithm
    followed = {str(p) for p in entered if len(p.parts) > 1} - {"ppo/config.py"}
    assert "ppo/objective.py" in followed
    assert len(followed) <= 10, sorted(followed)


def vowels(completions, **columns):
    return [sum(map(text.count, "aeiou")) / 10 for text in completions]


def test_importing_the_package_loads_neither_torch_nor_trl_and_drawing_no_pyplot():
    code = "import sys, trl_recipes; print({'torch', 'trl', 'datasets'} & set(sys.modules))\n"
    code += "import trl_recipes.report; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\nFalse\n"


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_a_recipe_is_a_short_story(path):
    text = path.read_text()
    assert len(text.splitlines()) < 100
    assert "def main(" in text
    blocks = [line.strip() for line in text.splitlines() if line.startswith("    # ")]
    order = ["# Models", "# Prompts", "# Reward", "# Trainer", "# Results"]
    known = [block for block in blocks if block in order]
    assert known == sorted(known, key=order.index)
