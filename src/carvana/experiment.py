"""Experiments: YAML files that hold what differs from the defaults, and `--set key=value` on top of them."""

from pathlib import Path

import yaml

from carvana.config import Config, parse_config
from carvana.errors import InputError


class Loader(yaml.SafeLoader):
    """PyYAML's own takes the last of several values of a key without a word."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise yaml.MarkedYAMLError(problem=f"{twice[0]} is given twice", problem_mark=node.start_mark)
        return node


def load_experiment(experiment: str, folder: Path, overrides: list[str] = (), name: str | None = None) -> Config:
    """Reads `<folder>/<experiment>.yaml` (or a path to a YAML file) and applies `group.key=value` overrides.

    Raises InputError, one line a fault.
    """
    path = Path(experiment) if experiment.endswith((".yaml", ".yml")) else folder / f"{experiment}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise InputError(f"{path}: no such experiment; choose from {known}, or give a path to a .yaml file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8; save it so") from None
    settings = _parse(text, str(path)) or {}
    if not isinstance(settings, dict):
        raise InputError(f"{path}: must hold `group:` and `key: value` lines")
    for override in overrides:
        _override(settings, override)
    if "name" in settings:
        raise InputError(f"{path}: name: it is the file's own, or --name; take it out")
    return parse_config(settings | {"name": name or path.stem}, str(path))


def _parse(text: str, source: str):
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError) as error:  # the latter for 2024-13-45, which is no date
        raise InputError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None


def _override(settings: dict, override: str) -> None:
    key, equals, value = override.partition("=")
    *groups, leaf = key.split(".")
    if not equals or not leaf:
        raise InputError(f"--set {override}: write --set group.key=value, for instance --set optim.lr=3e-4")
    for group in groups:
        settings = settings.setdefault(group, {})
        if not isinstance(settings, dict):
            raise InputError(f"--set {override}: {group} is not a group")
    settings[leaf] = _parse(value, f"--set {override}")
