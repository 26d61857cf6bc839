"""Every public name says what a reader needs: a sentence, shapes of tensors, true examples."""

import ast
import doctest
import importlib
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "trl_recipes"
MODULES = sorted(PACKAGE.rglob("*.py"))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
# Python's own protocol, what cannot happen, and the one error for whatever a user can fix
UNTOLD = {"AttributeError", "AssertionError", "RecipeError"}


def public_names(path):
    """Every public class, function and method of a module, with the name it goes by."""
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, (ast.ClassDef, *FUNCTIONS)) or node.name.startswith("_"):
            continue
        yield node.name, node
        for method in node.body if isinstance(node, ast.ClassDef) else []:
            if isinstance(method, FUNCTIONS) and re.match(r"[^_]|__call__", method.name):
                yield f"{node.name}.{method.name}", method


ALL = [(path, name, node) for path in MODULES for name, node in public_names(path)]


def faults(check, kind=(ast.ClassDef, *FUNCTIONS)):
    """The public names of a kind for which a check finds something, and what it finds."""
    found = ((path, name, check(node)) for path, name, node in ALL if isinstance(node, kind))
    return [f"{path.relative_to(PACKAGE)}::{name}: {fault}" for path, name, fault in found if fault]


def doc(node):
    return ast.get_docstring(node) or ""


def test_every_module_says_what_it_is_for():
    assert len(MODULES) > 50
    told = {path: doc(ast.parse(path.read_text())).split("\n\n")[0] for path in MODULES}
    assert [path for path, words in told.items() if len(words) < 10] == []


def test_every_name_says_what_it_is_in_a_sentence():
    def check(node):
        if isinstance(node, FUNCTIONS) and node.name.startswith("on_"):
            return None  # transformers says when it calls a callback
        sentence = doc(node).split("\n\n")[0]
        return None if re.match(r"\S.{8,}[.:?]$", sentence, re.DOTALL) else repr(sentence)

    assert len(ALL) > 200
    assert faults(check) == []


def test_a_tensor_that_is_returned_has_its_shape():
    def check(node):
        gives = "None" if node.returns is None else ast.unparse(node.returns).strip("'")
        shape = r"\([\w., +*-]*\)|[Ss]calar|[Oo]ne number|[Ss]ame (shape|tensor)"
        returns_tensor = re.fullmatch(r"(torch\.)?Tensor|np\.ndarray", gives)
        return returns_tensor and not re.search(shape, doc(node)) and "no shape"

    assert faults(check, FUNCTIONS) == []


def test_the_errors_that_a_function_raises_are_named():
    def check(node):
        raised = (part.exc for part in ast.walk(node) if isinstance(part, ast.Raise) and part.exc)
        calls = (exc.func if isinstance(exc, ast.Call) else exc for exc in raised)
        names = {ast.unparse(call).split(".")[-1] for call in calls}
        names = {name for name in names if name[0].isupper()} - UNTOLD
        return [name for name in names if name not in doc(node)]

    assert faults(check, FUNCTIONS) == []


def test_few_docstrings_are_as_long_as_what_they_describe():
    nodes = (node for path in MODULES for node in ast.walk(ast.parse(path.read_text())))
    functions = [node for node in nodes if isinstance(node, FUNCTIONS) and doc(node)]
    docs = [(node.name, node.body[0], node.end_lineno) for node in functions]
    long = [name for name, d, last in docs if d.end_lineno - d.lineno + 1 >= last - d.end_lineno]
    assert len(long) < 60, sorted(long)


EXAMPLES = [path for path in MODULES if ">>> " in path.read_text()]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_examples_are_true(path):
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    module = importlib.import_module(name.removesuffix(".__init__"))
    outcome = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert outcome.attempted > 0
    assert outcome.failed == 0
