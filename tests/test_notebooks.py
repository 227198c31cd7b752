"""The notebooks are their paired scripts, define nothing, and run from top to bottom."""

import ast
from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
SCRIPTS = sorted(FOLDER.glob("*.py"))
SHOWN = {
    "01_label_efficiency": ("simclr-linear", "against", "svg"),
    "02_domain_shift": ("Borealis", "target-trained", "adapted+target", "svg"),
}


def cells(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_notebook_is_its_script_and_defines_nothing(script):
    notebook = jupytext.read(script.with_suffix(".ipynb"))
    assert cells(notebook) == cells(jupytext.read(script))
    assert not any(cell.get("outputs") for cell in notebook.cells)
    tree = ast.parse(script.read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]


@pytest.mark.filterwarnings("ignore")  # of Jupyter's own event loop and sockets
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_notebook_runs(script, tmp_path):
    notebook = jupytext.read(script)
    NotebookClient(notebook, timeout=400, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    shown = "".join(str(cell.get("outputs", "")) for cell in notebook.cells)
    assert [text for text in SHOWN[script.stem] if text not in shown] == []
