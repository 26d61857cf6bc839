"""Run the notebooks top to bottom and keep what they show.

    python notebooks/run.py                          # all of them, and write them back
    python notebooks/run.py 01_ppo_sentiment.ipynb   # one
    python notebooks/run.py --quick                  # a few steps of everything; writes nothing

Each runs in an empty folder, without a network, with the interpreter that runs this script. What is
kept has no dates, no paths and no progress bars, so that it changes only where a figure does.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parent
SWITCH = "QUICK = False"  # stands in the first code cell of each
PACKAGES = ("trl_recipes", "trl", "transformers", "torch")
QUIET = {  # bars and messages that a reader of the kept notebook has no use for
    # of tqdm, where ipywidgets is not installed; and of a loop that has its own loader
    "PYTHONWARNINGS": "ignore:IProgress not found,ignore:No dataset was given",
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


class ThisInterpreter(AsyncKernelManager):
    """A kernel of the interpreter that runs this script, whatever kernels are registered."""

    @property
    def kernel_spec(self) -> KernelSpec:
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="Python 3", language="python")


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def sources_digest(notebook: NotebookNode) -> str:
    """Give a checksum of the code; text and outputs do not count."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:16]


def make_quick(notebook: NotebookNode) -> None:
    """Turn the switch in the first code cell: a few steps of everything."""
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    if first.source.count(SWITCH) != 1:
        raise ValueError(f"the first code cell has no line `{SWITCH}`")
    first.source = first.source.replace(SWITCH, "QUICK = True")


def execute(notebook: NotebookNode, cell_seconds: int = 600) -> dict[str, int]:
    """Run all cells in an empty folder, and put their outputs in.

    Args:
        notebook: gets the outputs.
        cell_seconds: longest time of one cell.

    Returns:
        "seconds" from before the kernel starts until it has ended, and "processor_seconds" of it,
        which tell more where other work keeps the machine busy.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised; says which and why.
    """
    started, before = time.perf_counter(), os.times()
    with tempfile.TemporaryDirectory() as empty, tempfile.TemporaryDirectory() as settings:
        client = NotebookClient(
            notebook,
            timeout=cell_seconds,
            kernel_manager_class=ThisInterpreter,
            record_timing=False,
            coalesce_streams=True,
            shutdown_kernel="immediate",
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
            resources={"metadata": {"path": empty}},
        )
        # IPython's own settings and start-up files belong to the user, not to the notebook
        own = {"HF_HUB_OFFLINE": "1", "IPYTHONDIR": settings}
        client.execute(env={**os.environ, **QUIET, **own})
    after = os.times()
    used = after.children_user + after.children_system
    used -= before.children_user + before.children_system
    return {"seconds": round(time.perf_counter() - started), "processor_seconds": round(used)}


def keep(notebook: NotebookNode, took: dict[str, int]) -> None:
    """Leave in the metadata what is the same on every machine, and what the run was."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "trl_recipes": {
            "sources": sources_digest(notebook),
            **took,
            "versions": {package: version(package) for package in PACKAGES},
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", help="file names; all if left out")
    parser.add_argument("--quick", action="store_true", help="a few steps; writes nothing")
    args = parser.parse_args()
    paths = [FOLDER / Path(name).name for name in args.notebooks]
    for path in paths or sorted(FOLDER.glob("*.ipynb")):
        notebook = read(path)
        if args.quick:
            make_quick(notebook)
        took = execute(notebook)
        print(f"{path.name}: {took['seconds']} s", flush=True)
        if not args.quick:
            keep(notebook, took)
            nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
