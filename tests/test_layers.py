"""The direction of imports inside dwr_rewrite, and what importing it may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "dwr_rewrite"
# Low to high: a layer imports only from those before it. "__init__" is the package's own file.
LAYERS = [
    *("errors", "spec", "workload", "timing", "nvidia", "recipe", "equivalence", "cost"),
    *("kernels", "lowerings", "tuning", "planner"),
    *("report", "document", "console", "markdown", "plots", "html"),
    *("passes", "nn", "verify_models", "tune", "cli", "__init__"),
]
# They import passes, torch and the like only inside functions.
FACE = ("verify_models", "tune", "cli", "__init__")
LAZY_EDGES = {
    ("cli", "__init__"),
    ("tune", "cli"),
}  # (importer, imported) to allow inside functions
HEAVY = {"torch", "onnx", "onnxruntime", "onnx_graphsurgeon", "triton"}
# Of the layer kernels, what is arithmetic and may be imported by every layer; the rest runs them.
PURE = {"", "bands", "map_tiles", "problem", "tile", "tiles", "weight_tiles"}
SHOWING = {"typer", "rich", "jinja2", "jsonschema", "matplotlib"}


def layer_of(module: str) -> str:
    """Layer of a dotted module; a name that is no layer comes from the package's own file."""
    head = module.split(".")[1:2]
    return head[0] if head and head[0] in LAYERS else "__init__"


def imports(tree: ast.AST, deferred: bool = False) -> Iterator[tuple[str, int, bool]]:
    """Yield (dotted name, line, deferred) of every import, those inside functions included."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, deferred) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            yield from ((f"{source}.{alias.name}", node.lineno, deferred) for alias in node.names)
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            literals = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
            yield from ((str(name), node.lineno, deferred) for name in literals)
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        yield from imports(node, deferred or function or typing)


def violations(module: str, source: str) -> list[str]:
    importer = layer_of(module)
    rank = LAYERS.index(importer)
    found: list[str] = []
    for name, line, deferred in imports(ast.parse(source)):
        if name == f"{PACKAGE}.__version__":  # a constant that is set before anything is imported
            continue
        top = name.split(".")[0]
        lazy_face = importer in FACE and deferred
        if name.startswith("."):
            found.append(f"{module}:{line} relative import")
        elif top in HEAVY and not (may_be_heavy(module) or lazy_face):
            found.append(f"{module}:{line} imports {top}")
        elif top == PACKAGE:
            imported = layer_of(name)
            if importer in FACE and imported == "passes" and not deferred:
                found.append(f"{module}:{line} imports passes outside a function")
            elif runs_kernels(name) and not (may_be_heavy(module) or lazy_face):
                found.append(f"{module}:{line} imports {name}, which loads torch")
            elif importer == imported == "passes" and name.split(".")[2] != sibling(module):
                found.append(f"{module}:{line} imports its sibling {name}")
            elif LAYERS.index(imported) > rank and not (
                deferred and (importer, imported) in LAZY_EDGES
            ):
                found.append(f"{module}:{line} imports {imported}, which lies above {importer}")
    return found


def may_be_heavy(module: str) -> bool:
    return layer_of(module) in ("passes", "nn") or runs_kernels(module)


def runs_kernels(module: str) -> bool:
    return layer_of(module) == "kernels" and sibling(module) not in PURE


def sibling(module: str) -> str:
    return (*module.split("."), "")[2]


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def test_every_file_has_a_layer() -> None:
    found = {(*name.split("."), "__init__")[1] for name, _ in modules()}
    assert found, "no module found: the other tests would prove nothing"
    assert found <= set(LAYERS), "place the new module in LAYERS"


@pytest.mark.parametrize(("module", "path"), [pytest.param(*m, id=m[0]) for m in modules()])
def test_imports_point_downwards(module: str, path: Path) -> None:
    assert violations(module, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source", "reason"),
    [
        ("spec", "from dwr_rewrite.planner import plan", "planner, which lies above spec"),
        ("spec", "from dwr_rewrite import planner", "planner, which lies above spec"),
        ("spec", "import dwr_rewrite.passes.onnx", "passes, which lies above spec"),
        ("spec", "def f():\n    import dwr_rewrite.cost", "spec:2 imports cost"),
        ("report", "from dwr_rewrite import verify_model", "__init__, which lies above report"),
        ("planner", "def f():\n    import torch.nn", "planner:2 imports torch"),
        ("equivalence.check", "import onnxruntime", "equivalence.check:1 imports onnxruntime"),
        ("equivalence", "f = lambda: __import__('torch')", "equivalence:1 imports torch"),
        ("document.digest", "from dwr_rewrite import html", "html, which lies above document"),
        ("markdown", "from dwr_rewrite.plots import svg", "plots, which lies above markdown"),
        ("planner", "import_module('dwr_rewrite.report')", "imports report, which lies above"),
        ("lowerings.dense", "from . import keep", "relative import"),
        ("passes.onnx.emit", "from dwr_rewrite.passes import fx", "imports its sibling"),
        ("passes.onnx.emit", "def f():\n    import dwr_rewrite.passes.fx", "imports its sibling"),
        ("passes", "from dwr_rewrite.passes import fx", "imports its sibling"),
        ("cli", "from dwr_rewrite.passes import onnx", "imports passes outside a function"),
        ("cli", "import onnx", "imports onnx"),
        ("verify_models", "import torch", "imports torch"),
        ("tune", "import torch.distributed", "imports torch"),
        ("tuning", "def f():\n    import dwr_rewrite.tune", "imports tune, which lies above"),
        ("html", "def f():\n    import onnx", "html:2 imports onnx"),
        ("kernels.tiles", "import torch", "kernels.tiles:1 imports torch"),
        ("lowerings.kernel", "import dwr_rewrite.kernels.ops", "which loads torch"),
        ("cli", "from dwr_rewrite import onnx_rewrite", "__init__, which lies above cli"),
    ],
)
def test_a_bad_import_is_found(module: str, source: str, reason: str) -> None:
    assert any(reason in found for found in violations(f"{PACKAGE}.{module}", source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("planner", "from dwr_rewrite.lowerings import dense"),
        ("planner", "from dwr_rewrite.kernels.tile import Tile"),
        ("kernels.ops", "import torch"),
        ("passes.fx.functional", "from dwr_rewrite.kernels import ops"),
        ("lowerings", "from dwr_rewrite.lowerings import dense"),
        ("passes.onnx.emit", "import onnx\nfrom dwr_rewrite.passes.onnx.match import match"),
        ("cli", "def f():\n    import torch\n    from dwr_rewrite.passes import onnx"),
        ("cli", "def f():\n    from dwr_rewrite import onnx_rewrite"),
        ("report", "from dwr_rewrite import __version__"),
        ("html", "from dwr_rewrite.plots import outputs"),
        ("verify_models", "def f():\n    import torch"),
        ("tune", "def f():\n    import torch\n    import dwr_rewrite.passes.onnx"),
    ],
)
def test_a_good_import_passes(module: str, source: str) -> None:
    assert violations(f"{PACKAGE}.{module}", source) == []


def loaded_by(statement: str, among: set[str]) -> set[str]:
    """Packages of `among` that a fresh interpreter has loaded after `statement`."""
    code = f"{statement}\nimport sys\nprint(*set(sys.modules).intersection({sorted(among)}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_package_loads_nothing_heavy() -> None:
    assert loaded_by("import dwr_rewrite", {*HEAVY, *SHOWING}) == set()


def test_the_onnx_pass_loads_neither_torch_nor_onnxruntime() -> None:
    assert loaded_by("import dwr_rewrite.passes.onnx", {"torch", "onnxruntime"}) == set()


def test_a_heavy_import_is_noticed() -> None:
    assert loaded_by("import onnx", HEAVY) == {"onnx"}
