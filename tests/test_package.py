import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_an_installation_has_every_package():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent for path in (ROOT / "elev_ssl_jax").rglob("*.py")}
    here = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert {name for name in listed if name.startswith("elev_ssl_jax")} == here
    assert all((folder / "__init__.py").exists() for folder in folders)
