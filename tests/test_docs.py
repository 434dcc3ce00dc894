"""What the documentation shows, as a reader would do it."""

from pathlib import Path

import jax
import nbformat
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

ROOT = Path(__file__).parents[1]


def test_the_notebook_goes_from_arrays_to_a_map_without_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
    monkeypatch.delenv("XLA_FLAGS")  # which a reader has not
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "docs" / "from_arrays.ipynb", as_version=4)
    absent = "tensorflow", "tensorflow_datasets", "array_record", "grain"
    first = f"import sys\nsys.modules.update(dict.fromkeys({absent}))"
    last = "scores['accuracy'], float(np.mean(mapped == classes)), mapped.shape == classes.shape"
    notebook.cells = [new_code_cell(first), *notebook.cells, new_code_cell(last)]
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    drawn = [o for cell in notebook.cells for o in cell.get("outputs", ()) if "data" in o]
    assert sum("image/png" in o["data"] for o in drawn) == 2  # the reader's own figures
    accuracy, right, whole = eval(notebook.cells[-1].outputs[0]["data"]["text/plain"])
    assert accuracy > 0.4
    assert right > 0.3
    assert whole
    assert (tmp_path / "runs" / "notebook" / "map.tif").exists()
