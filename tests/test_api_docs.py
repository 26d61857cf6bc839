"""Every public name is documented: what it is, its parameters, its errors; examples are true."""

import ast
import doctest
import importlib
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "trl_recipes"
MODULES = sorted(PACKAGE.rglob("*.py"))
SECTIONS = ("Args", "Returns", "Raises", "Yields", "Attributes")
# Python's own protocol, and what cannot happen
UNTOLD = {"AttributeError", "AssertionError"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


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
    found = ((path, name, check(path, node)) for path, name, node in ALL if isinstance(node, kind))
    return [f"{path.relative_to(PACKAGE)}::{name}: {fault}" for path, name, fault in found if fault]


def doc(node):
    return ast.get_docstring(node) or ""


def sections(docstring):
    """The sections of a Google-style docstring, with the names (or lines) that stand in each.

    >>> sections("S.\n\nArgs:\n    a: one\n        two\n    *b: three\n\nReturns:\n    It.\n")
    {'Args': ['a', 'b'], 'Returns': ['It.']}
    """
    found, current = {}, None
    for line in docstring.splitlines():
        heading = re.fullmatch(rf"({'|'.join(SECTIONS)}):", line)
        if heading:
            current = found.setdefault(heading[1], [])
        elif line and not line.startswith(" "):
            current = None
        elif current is not None and re.match(r" {4}\S", line):
            name = re.match(r" {4}\*{0,2}(\w+)(?: \(.*?\))?:", line)
            current.append(name[1] if name else line.strip())
    return found


def decorators(node):
    return {ast.unparse(d).split("(")[0].split(".")[-1] for d in node.decorator_list}


def parameters(node):
    """Names of a function's parameters, or of those of a class's own constructor, if it has one."""
    if isinstance(node, ast.ClassDef):
        made = (n for n in node.body if isinstance(n, FUNCTIONS) and n.name == "__init__")
        node = next(made, None)
        if node is None:
            return None
    args = node.args
    several = [a for a in (args.vararg, args.kwarg) if a is not None]
    names = [a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs, *several)]
    return [name for name in names if name not in ("self", "cls")]


def is_callback(node):
    """Whether transformers says what a method is given."""
    return node.name.startswith("on_") and "control" in parameters(node)


def test_the_names_are_found():
    assert len(MODULES) > 100
    assert len(ALL) > 500


def test_every_module_says_what_it_is_for():
    told = {path: doc(ast.parse(path.read_text())).split("\n\n")[0] for path in MODULES}
    assert [path for path, words in told.items() if len(words) < 10] == []


def test_every_name_says_what_it_is_in_a_sentence():
    def check(path, node):
        sentence = doc(node).split("\n\n")[0]
        return None if re.match(r"\S.{8,}[.:?]$", sentence, re.DOTALL) else repr(sentence)

    assert faults(check) == []


def test_the_parameters_that_are_documented_are_those_that_there_are():
    def check(path, node):
        told, has = sections(doc(node)).get("Args", []), parameters(node)
        if has is None or decorators(node) & {"property", "overload"}:
            has = []
        elif not isinstance(node, ast.ClassDef) and is_callback(node):
            return None
        return None if sorted(told) == sorted(has) else f"tells {told}, has {has}"

    assert faults(check) == []


def test_what_a_function_gives_is_told():
    """Several values need a section of their own; a tensor needs its shape, here or there."""

    def check(path, node):
        gives = "None" if node.returns is None else ast.unparse(node.returns).strip("'")
        if gives.startswith("tuple") and "property" not in decorators(node):
            return None if {"Returns", "Yields"} & set(sections(doc(node))) else gives
        if re.fullmatch(r"(torch\.)?Tensor|np\.ndarray", gives):
            shape = r"\([\w., +*-]*\)|[Ss]calar|[Oo]ne number|[Ss]ame tensor"
            return None if re.search(shape, doc(node)) else "no shape"
        return None

    assert faults(check, FUNCTIONS) == []


def test_the_errors_that_a_function_raises_are_told():
    """Those in its own lines; what its helpers raise is for the eye."""

    def check(path, node):
        raised = (part.exc for part in ast.walk(node) if isinstance(part, ast.Raise) and part.exc)
        calls = (exc.func if isinstance(exc, ast.Call) else exc for exc in raised)
        names = {ast.unparse(call).split(".")[-1] for call in calls}
        names = {name for name in names if name[0].isupper()} - UNTOLD
        return names - set(sections(doc(node)).get("Raises", []))

    assert faults(check, FUNCTIONS) == []


def test_every_field_of_a_record_has_a_word():
    """Settings have their help text, other fields an entry under Attributes or a comment."""

    def check(path, node):
        bases = map(ast.unparse, node.bases)
        if "dataclass" not in decorators(node) and "NamedTuple" not in bases:
            return None
        lines, told = path.read_text().splitlines(), sections(doc(node)).get("Attributes", [])
        fields = {f.target.id: f for f in node.body if isinstance(f, ast.AnnAssign)}
        made = {name: ast.unparse(f.value) if f.value else "" for name, f in fields.items()}
        return [
            name
            for name, field in fields.items()
            if name not in told and "  # " not in lines[field.lineno - 1] and name[0] != "_"
            if "'help'" not in made[name] and not made[name].startswith("_field(")
        ]

    assert faults(check, ast.ClassDef) == []


# Where a short example says more


EXAMPLES = [path for path in MODULES if ">>> " in path.read_text()]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_examples_are_true(path):
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    module = importlib.import_module(name.removesuffix(".__init__"))
    outcome = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_sections_are_read_as_they_are_written():
    assert doctest.run_docstring_examples(sections, {"sections": sections}) is None
    assert sections("S.\n\nArgs:\n    *a: b\n    c (of d): e\n\nMore: no.") == {"Args": ["a", "c"]}
