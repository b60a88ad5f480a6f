"""The notebooks of colab/: valid, without outputs, and every cell but the installation runs, on tiny settings."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "colab").glob("*.ipynb"))
TINY = {
    "quickstart": {"WORKDIR": "run", "STEPS": 6},
    "train_your_own": {"WORKDIR": "run", "STEPS": 6, "BATCH_SIZE": 4, "VOCAB_SIZE": 300, "LAYERS": 1}
    | {"TEXT": "python:stdlib?max_megabytes=0.3"},
}
# Runs the cells of argv[1] as a kernel would, one namespace for all; what only a notebook has is stood in for. The
# quickstart as users get it is a section of .ci/run; here its network and its text are small ones.
KERNEL = """
import json, sys, types
from slmjax.recipes import quickstart
as_users_get_it = quickstart.get_config
def small():
    config = as_users_get_it()
    config.data.sources.python = {"path": "python:stdlib?max_megabytes=0.3"}
    config.data.tokenizer, config.model.vocab_size, config.model.num_layers = "train:300", 300, 1
    config.training.batch_size = 4
    return config
quickstart.get_config = small
import matplotlib
matplotlib.use("agg")
display = types.ModuleType("IPython.display")
display.Image = lambda path, **_: open(path, "rb").read(4) == b"\\x89PNG" or sys.exit(f"{path} is no picture")
sys.modules["IPython.display"] = display
sys.modules["IPython"] = types.SimpleNamespace(version_info=(9, 0), get_ipython=lambda: None, display=display)
namespace = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1]))["cells"]:
    tags = cell["metadata"].get("tags", [])
    if cell["cell_type"] == "code" and "install" not in tags:
        exec(compile("".join(cell["source"]), cell["id"], "exec"), namespace)
    if "parameters" in tags:
        assert json.loads(sys.argv[2]).keys() <= namespace.keys()
        namespace |= json.loads(sys.argv[2])
"""


def code_cells(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def test_there_are_notebooks_and_each_has_its_settings():
    assert {path.stem for path in NOTEBOOKS} == TINY.keys()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_valid_and_bare(path):
    notebook = json.loads(path.read_text())
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["language"]) == (4, "python")
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids) and all(cell["cell_type"] in ("code", "markdown") for cell in notebook["cells"])
    tags = [tag for cell in notebook["cells"] for tag in cell["metadata"].get("tags", [])]
    assert sorted(tags) == ["install", "parameters"]
    for cell in code_cells(path):
        assert cell["outputs"] == [] and cell["execution_count"] is None
        if "install" in cell["metadata"].get("tags", []):
            lines = "".join(cell["source"]).splitlines()
            assert lines[-1] == '%pip install -q "{PACKAGE}"'
            for repository, package in (("", "slmjax[tpu]"), ("https://a/b", "slmjax[tpu] @ git+https://a/b")):
                names = {"EXTRA": "[tpu]", "REPOSITORY": repository}
                exec(lines[-2], names)
                assert names["PACKAGE"] == package
        else:
            compile("".join(cell["source"]), cell["id"], "exec")  # no magic outside of the installation


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_cell_runs(path, tmp_path):
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    env = {**os.environ, "XLA_FLAGS": flags.strip()}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(path.parents[1]), env.get("PYTHONPATH")]))
    command = [sys.executable, "-c", KERNEL, str(path), json.dumps(TINY[path.stem])]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "loss.png").is_file() and (tmp_path / "run" / "model" / "config.json").is_file()
