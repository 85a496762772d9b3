"""Imports point downwards: scripts, flow, learning and prediction, model and data, leaves."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "carvana"
ROWS = [
    {
        "archive",
        "charts",
        "command",
        "config",
        "contour",
        "decoding",
        "demo",
        "device",
        "edges",
        "errors",
        "experiment",
        "geometry",
        "log",
        "losses",
        "metrics",
        "page",
        "pictures",
        "postprocess",
        "provenance",
        "rle",
        "threads",
    },
    {"models", "augmentations", "cache", "dataset", "folds", "images"},
    {"backends", "checkpoint", "engine", "ensemble", "footprint", "learner", "optim", "pixels", "state", "tta"},
    {
        "audit",
        "averaging",
        "choice",
        "comparison",
        "cutouts",
        "blocks",
        "dry_run",
        "estimate",
        "faults",
        "findings",
        "inference",
        "inspection",
        "job",
        "journal",
        "onnx_model",
        "oof",
        "panel",
        "report",
        "run",
        "selection",
        "shards",
        "submission",
        "survey",
        "tracking",
        "training",
        "unseen",
        "validation",
        "windows",
    },
]
LEVEL = {module: level for level, row in enumerate(ROWS) for module in row}
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(file: Path) -> set[str]:
    """Top-level modules of the package that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{file}: relative import"
        names |= {module.split(".")[1] for module in modules if module.startswith("carvana.")}
    return names


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_never_point_upwards(file):
    if module_of(file) == "__init__":
        assert imported(file) == set()
        return
    level = LEVEL[module_of(file)]
    above = {name for name in imported(file) if LEVEL[name] > level}
    assert above == set()


def test_every_module_has_its_row():
    assert {module_of(file) for file in FILES} - {"__init__"} == set(LEVEL)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_the_library_knows_neither_kaggle_nor_the_environment(file):
    text = file.read_text()
    for forbidden in ("/kaggle", ".cuda()", *([] if file.name == "command.py" else ["environ"])):
        assert forbidden not in text  # command.py sets two variables for the scripts, and reads none


def test_no_script_is_imported():
    scripts = {file.stem for file in PACKAGE.parent.glob("*.py")}
    for file in [*FILES, *PACKAGE.parent.glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] not in scripts, f"{file} imports a script"
