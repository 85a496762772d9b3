"""The pages say what is true of the code: links, commands with their options, experiments, configurations."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from conftest import Result, run_script

from carvana.config import Config

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("[!.]*/*.md")])  # not those of .venv or of pytest's cache
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text() for page in PAGES}


def commands() -> list[tuple[str, str]]:
    """(page, command line) of each script that a page calls, its continued lines joined."""
    called = []
    for page, text in TEXTS.items():
        text = text.replace("\\\n", " ")
        called += [(page, " ".join(quoted.split())) for quoted in re.findall(r"`((?:python|torchrun) [^`]+)`", text)]
        for line in re.findall(r"^(?:\.venv/bin/)?(?:python|torchrun) .*$", text, re.M):
            called.append((page, line.partition(" # ")[0]))
    return sorted(set(called))


def parse(line: str, monkeypatch) -> Result:
    """Has a script read its command line, but for what `--help` at the end of it keeps it from doing."""
    words = shlex.split(line, comments=True)
    place = next(index for index, word in enumerate(words) if word.endswith(".py"))
    script = ROOT / words[place].removeprefix("/tmp/carvana/")
    monkeypatch.syspath_prepend(script.parent)
    return run_script(str(script), *words[place + 1 :], "--help", check=False)


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_are_understood_by_their_scripts(page, line, monkeypatch):
    result = parse(line, monkeypatch)
    assert result.returncode == 0, result.stderr
    assert "Usage" in result.stdout


def test_a_command_with_a_wrong_option_is_not(monkeypatch):
    assert "No such option" in parse("python src/evaluate.py unet_lite0 --ttaa hflip", monkeypatch).stderr


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", TEXTS[page]):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.read_text()), f"{target}#{anchor}"


def anchors(text: str) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_targets_of_make_exist():
    makefile = (ROOT / "Makefile").read_text()
    for text in TEXTS.values():
        for target in re.findall(r"(?:^|`|\d )make ([a-z-]+)", text, re.M):
            assert f"\n{target}:" in makefile, target


def test_every_experiment_is_on_the_page_of_training():
    for experiment in (ROOT / "src" / "experiments").glob("*.yaml"):
        assert f"`{experiment.stem}`" in TEXTS["docs/training.md"], experiment.stem


def test_every_setting_and_loss_is_on_the_page_of_training():
    text = TEXTS["docs/training.md"]
    config = Config(name="x")
    for group in ("data", "model", "optim", "train"):
        hidden = {"pretrained", "decoder_channels", "border", "weight_decay", "warmup", "clip", "epochs", "seed"}
        for name in set(type(getattr(config, group)).model_fields) - hidden:
            assert re.search(rf"`(?:{group}\.)?{name}\b", text), name
    for name in type(config.loss).model_fields:
        assert f"`{name}`" in text, name


@pytest.mark.parametrize("page", TEXTS)
def test_yaml_in_pages_is_a_valid_experiment(page):
    for block in re.findall(r"```yaml\n(.*?)```", TEXTS[page], re.S):
        Config.model_validate(yaml.safe_load(block) | {"name": "x"})


def test_the_readme_is_short():
    assert len(TEXTS["README.md"].split()) <= 1300
