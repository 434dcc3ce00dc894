import ast
import importlib.metadata
import re
import shutil
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import yaml

import elev_ssl_jax
from tests import commands

ROOT = Path(__file__).parents[1]
SHIPPED = ("pyproject.toml", "README.md", "LICENSE", "elev_ssl_jax", "configs", "data")


def test_an_installation_has_every_package():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent for path in (ROOT / "elev_ssl_jax").rglob("*.py")}
    here = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    ours = {name for name in listed if name.startswith("elev_ssl_jax")}
    assert ours == here | {"elev_ssl_jax.configs"}
    for folder in folders:  # says what it is for
        assert (folder / "__init__.py").read_text().startswith('"""')


def test_what_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(r for e in ("beam", "cloud", "onnx") for r in extras[e])]
    names = {re.match(r"[\w.-]+", one)[0].lower().replace("-", "_") for one in asked}
    names.add("libtpu")  # of jax[tpu]
    of_modules = importlib.metadata.packages_distributions()
    of_modules.setdefault("libtpu", ["libtpu"])
    ours = {"elev_ssl_jax", *(path.name for path in (ROOT / "data").iterdir())}
    for path in (*ROOT.glob("elev_ssl_jax/**/*.py"), *ROOT.glob("data/*/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                found = [node.module]
            for module in {name.split(".")[0] for name in found} - ours - sys.stdlib_module_names:
                given = {name.lower().replace("-", "_") for name in of_modules[module]}
                assert given & names, f"{path.relative_to(ROOT)}: {module}"


def test_a_wheel_works_outside_a_checkout(tmp_path):
    source, fresh, away = tmp_path / "source", tmp_path / "fresh", tmp_path / "away"
    for name in SHIPPED:  # a copy: setuptools leaves a folder where it builds
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    _run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path / "dist", source)
    (wheel,) = (tmp_path / "dist").iterdir()
    assert wheel.name.startswith(f"elev_ssl_jax-{elev_ssl_jax.__version__}-")
    venv.create(fresh, symlinks=True)
    python = fresh / "bin" / "python"
    _run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", wheel)
    # Its dependencies are those of these tests, where this package is no more than a reference.
    own = sysconfig.get_path("purelib", vars={"base": str(fresh), "platbase": str(fresh)})
    (Path(own) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))

    away.mkdir()
    words = ("-m", "elev_ssl_jax.main", "--config=simclr_elev:demo", "--workdir=run")
    # Started and compiled as a user's.
    done = commands.run(*words, *commands.TINY_DEMO, python=python, cwd=away, XLA_FLAGS="")
    assert (done.returncode, commands.beside_bars(done.stderr)) == (0, [])
    assert (away / "run" / "results.json").exists()
    where = "import elev_ssl_jax, tfds_chips, tfds_nwrc; print(elev_ssl_jax.__file__)"
    assert _run(python, "-c", where, cwd=away).startswith(str(fresh))


def _run(python, *words, cwd=None):
    done = commands.run(*words, python=python, cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_version_and_pythons_are_said_alike_everywhere():
    version = elev_ssl_jax.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert re.search(r"^## \[(\d.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)[1] == version
    assert f"elev_ssl_jax-{version}-py3" in (ROOT / "docs" / "install.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "checks.yml").read_text())["jobs"]
    pythons = jobs["checks"]["strategy"]["matrix"]["python"]
    low, high = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", project["requires-python"]).groups()
    assert pythons == [f"3.{minor}" for minor in range(int(low), int(high))]
    for path in (*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml"):
        assert yaml.safe_load(path.read_text()), path
