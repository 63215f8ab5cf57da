"""What the rules of this code say about files, where a machine can tell."""

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("kernels", "engine", "server")
VAGUE = {"utils", "util", "common", "helpers", "misc", "base", "manager"}


def sources() -> list[Path]:
    return sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def test_every_module_says_what_it_is():
    silent = [
        str(path.relative_to(ROOT))
        for path in sources()
        if path.name != "__init__.py" and not ast.get_docstring(ast.parse(path.read_text("utf-8")))
    ]
    assert silent == []


def test_files_are_named_for_what_is_in_them():
    assert [str(path) for path in sources() if path.stem.strip("_") in VAGUE] == []


def test_every_package_has_an_init():
    """The build ships packages: a folder without `__init__.py` would be missing when installed."""
    folders = {path.parent for path in sources()}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_what_python_does_not_import_is_declared_as_package_data():

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    patterns = declared["tool"]["setuptools"]["package-data"]["*"]
    shipped = {pattern.removeprefix("*") for pattern in patterns}
    found = {
        path.suffix
        for layer in LAYERS
        for path in (ROOT / layer).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert found - {".py"} <= shipped
