"""The README names what is there, and nothing else."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
TREE = README.split("## What is where")[1].split("```")[1]


@pytest.mark.parametrize("file", sorted((ROOT / "src").rglob("*.py")) + sorted((ROOT / "src").rglob("*.yaml")), ids=str)
def test_the_tree_names_every_source_file(file):
    assert file.name == "__init__.py" or re.search(rf"(?<!\w){re.escape(file.name)}\b", TREE), (
        f"{file} is not in the tree"
    )


def test_the_tree_names_no_file_that_is_not_there():
    folders = ("benchmarks", "folds", "input", "kernels", "src", "submissions", "tests")
    present = {path.name for folder in folders for path in (ROOT / folder).rglob("*")} | {
        p.name for p in ROOT.iterdir()
    }
    named = set(re.findall(r"[\w.-]+\.(?:py|yaml|csv|txt|md|toml)\b", TREE))
    assert named - present == set()


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target


def test_commands_are_targets_and_scripts():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (demo|test|lint|help|folds|train|evaluate|submission)\b", README):
        assert f"\n{target}:" in makefile
    for script in re.findall(r"src/\w+\.py", README):
        assert (ROOT / script).exists(), script
