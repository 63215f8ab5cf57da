"""Imports point one way, kernels <- engine <- server, and torch stays where it belongs."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BELOW = {"kernels": set[str](), "engine": {"kernels"}, "server": {"engine"}}
LAYERS = BELOW.keys()
ENTRY_POINT = Path("server/__main__.py")
# The two ways to an engine process, each with the one file that sets it up.
ENGINE_INSIDES = {
    (ENTRY_POINT, "engine.process"),
    (Path("server/workers/process.py"), "engine.link"),
}
TORCH_FREE = ("server.app", "engine", "engine.scheduler", "engine.memory")


def sources(layer: str) -> Iterator[Path]:
    return (path.relative_to(ROOT) for path in sorted((ROOT / layer).rglob("*.py")))


def imported(tree: ast.AST) -> Iterator[tuple[str, list[str]]]:
    """(module, names) of every import, at whatever depth it stands; no names: the module itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            assert node.module is not None
            yield node.module, [alias.name for alias in node.names]


def exports_of_engine() -> set[str]:
    tree = ast.parse((ROOT / "engine/__init__.py").read_text("utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    raise AssertionError("engine/__init__.py has no __all__")


def upward_imports(layer: str, tree: ast.AST) -> list[str]:
    forbidden = LAYERS - BELOW[layer] - {layer}
    return [module for module, _ in imported(tree) if module.split(".")[0] in forbidden]


def private_engine_imports(path: Path, tree: ast.AST, exports: set[str]) -> list[str]:
    """What a server file takes from the engine besides its exports."""
    found: list[str] = []
    for module, names in imported(tree):
        if module == "engine":
            found += [f"engine.{name}" for name in names if name not in exports]
        elif module.startswith("engine.") and (path, module) not in ENGINE_INSIDES:
            found.append(module)
    return found


def environment_reads(tree: ast.AST) -> list[int]:
    """Lines that read or write the process environment, however `os` is spelled."""
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    lines = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr in names]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            lines += [node.lineno for alias in node.names if alias.name in names]
    return lines


@pytest.mark.parametrize("layer", LAYERS)
def test_no_layer_imports_one_above_or_skips_one(layer: str):
    wrong = {
        str(path): upward
        for path in sources(layer)
        if (upward := upward_imports(layer, ast.parse((ROOT / path).read_text("utf-8"))))
    }
    assert wrong == {}


def test_the_server_uses_only_what_the_engine_exports():
    exports = exports_of_engine()
    wrong = {
        str(path): private
        for path in sources("server")
        if (
            private := private_engine_imports(
                path, ast.parse((ROOT / path).read_text("utf-8")), exports
            )
        )
    }
    assert wrong == {}


def test_the_environment_is_read_in_one_place():
    wrong = {
        str(path): lines
        for layer in LAYERS
        for path in sources(layer)
        if path != ENTRY_POINT
        and (lines := environment_reads(ast.parse((ROOT / path).read_text("utf-8"))))
    }
    assert wrong == {}


def test_the_checks_above_see_what_they_look_for():
    upward = ast.parse("def f():\n    from server.app import x\n    import engine.request")
    assert upward_imports("engine", upward) == ["server.app"]
    assert upward_imports("kernels", upward) == ["server.app", "engine.request"]
    private = ast.parse("from engine import Request, Secret\nfrom engine.process import X")
    assert private_engine_imports(Path("server/app.py"), private, {"Request"}) == [
        "engine.Secret",
        "engine.process",
    ]
    assert private_engine_imports(ENTRY_POINT, private, {"Request"}) == ["engine.Secret"]
    reads = ast.parse("import os as o\no.environ['A']\nfrom os import getenv")
    assert environment_reads(reads) == [2, 3]


@pytest.mark.parametrize("module", TORCH_FREE)
def test_loads_no_torch(module: str):
    heavy = ("torch", "triton", "transformers")
    program = (
        f"import sys, {module}; print([m for m in {heavy!r} if m in sys.modules]); "
        f"assert {module!r} in sys.modules"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stderr
