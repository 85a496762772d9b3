"""The house: its floors, and what lies outside of them."""

import ast
from pathlib import Path

from conftest import SRC

FLOORS = ["ground", "data", "models", "prediction", "evaluation", "training", "submission", "pages"]
LIBRARY = SRC / "carvana"


def floor_of(module: str) -> int:
    """The floor of a module such as `carvana.data.rle`; the ground's lie in no folder."""
    folder = module.split(".")[1] if (LIBRARY / module.split(".")[1]).is_dir() else "ground"
    return FLOORS.index(folder)


def imports_of(path: Path) -> set[str]:
    """All modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def modules() -> dict[str, Path]:
    """Every module of the library by its dotted name."""
    return {
        ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): path
        for path in LIBRARY.rglob("*.py")
    }


def test_imports_never_point_upward():
    for module, path in modules().items():
        for name in imports_of(path):
            if name.startswith("carvana.") and module != "carvana":
                assert floor_of(name) <= floor_of(module), f"{module} imports {name}"


def test_no_module_imports_a_script_or_the_drawn_cars():
    outside = {path.stem for path in SRC.glob("*.py")} | {"demo"}
    for module, path in modules().items():
        assert not {name.split(".")[0] for name in imports_of(path)} & outside, module


def test_imports_go_in_no_circle():
    graph = {module: imports_of(path) & modules().keys() for module, path in modules().items()}
    packages = {module for module, path in modules().items() if path.name == "__init__.py"}
    while graph:  # modules that import none of those left are taken away, until none is left
        free = {module for module, names in graph.items() if not (names - packages - {module}) & graph.keys()}
        assert free, f"a circle among {sorted(graph)}"
        graph = {module: names for module, names in graph.items() if module not in free}


def test_few_files_lie_outside_a_room():
    assert len(list(LIBRARY.glob("*.py"))) <= 9
    assert len(list(SRC.glob("*.py"))) <= 10
    assert {path.name for path in LIBRARY.iterdir() if path.is_dir()} - {"__pycache__"} == set(FLOORS[1:])


def test_each_room_says_what_it_is_for():
    for floor in FLOORS[1:]:
        assert ast.get_docstring(ast.parse((LIBRARY / floor / "__init__.py").read_text())), floor


def test_tests_mirror_the_folders():
    folders = {path.name for path in Path(__file__).parent.glob("[a-z]*") if path.is_dir()}
    assert folders <= {*FLOORS[1:], "ground", "demo", "kernels", "benchmarks", "gpu"}


def test_the_library_knows_neither_kaggle_nor_the_environment():
    """command.py sets two variables for the scripts, and reads none."""
    for path in modules().values():
        forbidden = {"/kaggle", ".cuda()"} | (set() if path.name == "command.py" else {"environ"})
        assert not [word for word in forbidden if word in path.read_text()], path
