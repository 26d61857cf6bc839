"""Every notebook runs top to bottom without a network, and what is kept of it is a whole run."""

import ast
import base64
import importlib.util
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from nbformat import validate
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("notebooks_run", ROOT / "notebooks" / "run.py")
runner = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(runner)

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RUN_SLOWLY = ("02_custom_rewards", "03_grpo_shouting", "04_seq2seq_ppo")
each_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
SECONDS = 180  # longest full run on two cores
SIZE = 600_000  # bytes, so that it opens quickly on the web
DRAWS = re.compile(r"\bplot_\w+\(|plt\.show\(")  # a cell with one of these has a picture
# An absolute path: a slash that follows neither a word nor a tag, then at least two names.
PATH = re.compile(r"(?<![\w./:<])/[\w.-]+/[\w.-]+|\b[A-Z]:\\|site-packages")
ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}")  # of an object in memory, another one in each run
DATE = re.compile(r"\b20\d\d-\d\d-\d\d")

# What tests/conftest.py does in this process, for the kernel's.
NO_NETWORK = """
import socket

def _guarded(connect):
    def guarded(self, address):
        host = address[0] if isinstance(address, tuple) else "local"
        if host not in ("local", "localhost", "127.0.0.1", "::1"):
            raise AssertionError(f"reached for {address}")
        return connect(self, address)
    return guarded

socket.socket.connect = _guarded(socket.socket.connect)
socket.socket.connect_ex = _guarded(socket.socket.connect_ex)
"""


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def is_blank(png):
    """Whether a picture is too small to read, or has next to nothing on it."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("L")
    pixels = np.asarray(image)
    drawn = (pixels != np.bincount(pixels.ravel()).argmax()).mean()
    return image.width < 500 or image.height < 200 or drawn < 0.01


def look_at(notebook):
    """Blank or not, each picture of each cell of code; and all text that a reader may see."""
    pictures, texts = [], [cell.source for cell in notebook.cells]
    for cell in code_cells(notebook):
        data = [output.get("data", {}) for output in cell.outputs]
        pictures.append([is_blank(kinds["image/png"]) for kinds in data if "image/png" in kinds])
        texts += [output.get("text", "") for output in cell.outputs]
        texts += [str(kinds[kind]) for kinds in data for kind in kinds if kind != "image/png"]
    return pictures, "\n".join(texts)


def faults_of_outputs(notebook):
    """What is wrong with the outputs of a run, short or full."""
    pictures, text = look_at(notebook)
    for cell, blank in zip(code_cells(notebook), pictures, strict=True):
        if any(output.output_type == "error" for output in cell.outputs):
            yield f"{cell.id}: an error"
        if DRAWS.search(cell.source) and not blank:
            yield f"{cell.id}: no picture"
        if any(blank):
            yield f"{cell.id}: a blank picture"
    for kind, pattern in (("path", PATH), ("address", ADDRESS), ("date", DATE)):
        if found := pattern.search(text):
            yield f"a {kind}: {found.group()}"


def faults_of_the_kept(notebook):
    """What is wrong with a notebook as it lies in the repository."""
    yield from faults_of_outputs(notebook)
    for cell in code_cells(notebook):  # after two steps a model gives more to warn of
        warned = any(output.get("name") == "stderr" for output in cell.outputs)
        if warned and "alarm" not in cell.metadata.get("tags", []):
            yield f"{cell.id}: a warning or a progress bar"
    counts = [cell.execution_count for cell in code_cells(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        yield "not run top to bottom in one go"
    kept = notebook.metadata.get("trl_recipes", {})
    if kept.get("sources") != runner.sources_digest(notebook):
        yield "changed after its last run"
    # On a busy machine the first is more than on a quiet one, with several threads the second is.
    if not 0 < min(kept.get("seconds", 0), kept.get("processor_seconds", 0)) < SECONDS:
        yield "no full run, or too long a one"
    names = {name for cell in notebook.cells for name in cell.metadata} - {"tags"}
    names |= set(notebook.metadata) | set(notebook.metadata.get("language_info", {}))
    if names != {"kernelspec", "language_info", "trl_recipes", "name"}:
        yield "metadata that differ from machine to machine"
    if sum(map(len, look_at(notebook)[0])) < 2:
        yield "fewer than two pictures"


@each_notebook
def test_what_it_imports_is_there(path):
    nodes = (n for cell in code_cells(runner.read(path)) for n in ast.walk(ast.parse(cell.source)))
    imports = [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert imports
    exec(compile(ast.Module(imports, []), path.name, "exec"), {})


RUNS = [pytest.param(p, marks=[pytest.mark.slow] * (p.stem in RUN_SLOWLY)) for p in PATHS]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_it_runs_top_to_bottom_in_an_empty_folder_without_a_network(path):
    notebook = runner.read(path)
    for cell in code_cells(notebook):
        cell.outputs = []
    runner.make_quick(notebook)
    notebook.cells.insert(0, new_code_cell(NO_NETWORK))
    runner.execute(notebook, cell_seconds=120)
    assert list(faults_of_outputs(notebook)) == []


@each_notebook
def test_what_is_kept_is_a_whole_run_of_these_sources(path):
    notebook = runner.read(path)
    validate(notebook)
    assert list(faults_of_the_kept(notebook)) == []
    assert path.stat().st_size < SIZE
    first = code_cells(notebook)[0].source  # a switch for the hub and one for a short run
    assert re.findall(r"^(\w+) = False  # ", first, re.MULTILINE) == ["HUB", "QUICK"]


@each_notebook
def test_what_it_names_is_there(path):
    cells = runner.read(path).cells
    text = "\n".join(cell.source for cell in cells)
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)#:]+)\)", prose)
    named = re.findall(r"\brecipes/[\w/]+\.(?:py|yaml)", text)
    assert [link for link in links if not (path.parent / link).is_file()] == []
    assert [name for name in named if not (ROOT / name).is_file()] == []
    assert f"notebooks/{path.name}" in (ROOT / "docs" / "recipes.md").read_text()


# The checks themselves: each can fail.


def kept(*cells):
    notebook = new_notebook(cells=list(cells))
    for count, cell in enumerate(code_cells(notebook), 1):
        cell.execution_count = count
    runner.keep(notebook, {"seconds": 70, "processor_seconds": 60})
    return notebook


def drawn(blank=False):
    shades = np.linspace(0, 255, 600 * 300).astype(np.uint8).reshape(300, 600)
    buffer = io.BytesIO()
    Image.fromarray(np.full_like(shades, 255) if blank else shades).save(buffer, format="png")
    data = {"image/png": base64.b64encode(buffer.getvalue()).decode()}
    output = new_output("display_data", data=data)
    return new_code_cell("plot_stats(all_stats)", outputs=[output])


def printed(text, **changes):
    return new_code_cell("1", outputs=[new_output("stream", text=text, **changes)])


def test_a_sound_notebook_has_no_faults_and_a_changed_one_has():
    text = new_markdown_cell("Plain text, a/b, <td>1</td>, https://example.org/a/b and 1/2.")
    notebook = kept(text, drawn(), drawn(), printed("ppo/loss/total"))
    assert list(faults_of_the_kept(notebook)) == []
    notebook.cells[1].execution_count = 7
    notebook.metadata["trl_recipes"].update(seconds=181, processor_seconds=200)
    faults = ["not run top to bottom in one go", "no full run, or too long a one"]
    assert list(faults_of_the_kept(notebook)) == faults
    notebook.cells[1].source += "  # another title"
    faults.insert(1, "changed after its last run")
    assert list(faults_of_the_kept(notebook)) == faults


@pytest.mark.parametrize(
    ("cell", "fault"),
    [
        (new_code_cell("plot_stats(all_stats)"), "no picture"),
        (drawn(blank=True), "a blank picture"),
        (new_code_cell("1", outputs=[new_output("error", ename="E", evalue="")]), "an error"),
        (printed("50%|#####", name="stderr"), "a warning or a progress bar"),
        (printed("saved to /home/me/ppo-good"), "a path: /home/me"),
        (printed(r"saved to C:\ppo-good"), "a path: C:\\"),
        (printed("<function f at 0x7f3a2b>"), "an address"),
        (printed("2024-01-31"), "a date"),
        (new_markdown_cell("see /srv/data/x"), "a path: /srv/data"),
        (new_code_cell("1", metadata={"execution": {}}), "metadata that differ"),
    ],
)
def test_a_fault_is_found(cell, fault):
    found = list(faults_of_the_kept(kept(cell, drawn(), drawn())))
    assert len(found) == 1
    assert fault.removeprefix("an ").removeprefix("a ") in found[0]


def test_the_kernel_is_this_interpreter_and_reaches_no_network(tmp_path, monkeypatch):
    spec = {"argv": ["/bin/false"], "display_name": "another", "language": "python"}
    folder = tmp_path / "kernels" / "python3"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    where = "import os, sys\nsum(range(40_000_000))\nprint(sys.executable, os.listdir())"
    reach = 'try: socket.create_connection(("192.0.2.1", 80), timeout=1)'
    reach += "\nexcept AssertionError as error: print(error)"
    notebook = new_notebook(cells=[new_code_cell(where), new_code_cell(f"{NO_NETWORK}\n{reach}")])
    took = runner.execute(notebook)
    told = [cell.outputs[0].text for cell in notebook.cells]
    assert told == [f"{sys.executable} []\n", "reached for ('192.0.2.1', 80)\n"]
    assert 1 <= took["processor_seconds"] < 60
    assert 1 <= took["seconds"] < 120
