"""Configuration: typed, bounded, and strict about names. An experiment is a YAML delta over these defaults."""

import difflib
from pathlib import Path
from types import UnionType
from typing import Annotated, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
)

from carvana.errors import InputError
from carvana.geometry import Fit
from carvana.losses import LOSSES

Pixels = Annotated[int, Field(ge=8, le=8192)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Group(BaseModel):
    """Settings that belong together: frozen, and an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(Group):
    size: tuple[Pixels, Pixels] = Field((512, 768), description="network size, height and width")
    fit: Literal["resize", "pad"] = Field("resize", description="resize photos, or mirror their borders")
    augmentation: str = Field("light", description="name of a set in carvana/augmentations.py")
    num_workers: int = Field(2, ge=0, le=64, description="loader processes")

    @property
    def geometry(self) -> Fit:
        return Fit(self.size, self.fit)


class ModelConfig(Group):
    architecture: str = Field("unet", description="name of a class in carvana/models")
    encoder: str = Field("tf_efficientnet_lite0", description="unet: any timm encoder with features_only")
    pretrained: bool = Field(True, description="unet: ImageNet weights for the encoder")
    weights: str | None = Field(None, description="unet: file, folder, or package:NAME; none is timm's hub")
    decoder_channels: tuple[PositiveInt, ...] = Field(
        (256, 128, 64, 32, 16), min_length=1, description="unet: width of each level, deepest first"
    )
    decoder_stride: Literal[1, 2, 4] = Field(1, description="unet: stride of the logits before upsampling")
    upsampling: Literal["bilinear", "transposed"] = Field("bilinear", description="vanilla_unet")
    base_width: PositiveInt = Field(64, description="vanilla_unet: width of the first level")
    border: int = Field(16, ge=0, le=512, description="vanilla_unet: pixels of mirrored context on each side")


class OptimConfig(Group):
    lr: PositiveFloat = Field(1e-3, le=1, description="peak rate of AdamW")
    encoder_lr_factor: Fraction = Field(0.5, description="rate of the pretrained encoder over lr")
    weight_decay: Fraction = Field(1e-2, description="of weights; norms and biases have none")
    warmup: Fraction = Field(0.1, description="share of the steps in which the rate rises; a cosine follows")
    clip: PositiveFloat = Field(1.0, description="largest norm of the gradient")
    ema_decay: float = Field(0.995, ge=0, lt=1, description="of the averaged weights, the ones that are kept")
    scale_lr: Literal["none", "sqrt", "linear"] = Field("none", description="rate against number of processes")


class TrainConfig(Group):
    epochs: PositiveInt = 10
    batch_size: PositiveInt = Field(8, description="photos of one step of one process")
    micro_batch: PositiveInt | None = Field(None, description="photos of one forward pass; none is batch_size")
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field("auto", description="auto: the fastest native one")
    seed: int = Field(0, ge=0)


class Config(Group):
    """Everything that decides a run but the photos, the folds and the machine."""

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$", description="experiment; its runs lie in runs/<name>/")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    loss: dict[str, PositiveFloat] = Field({"bce": 1.0, "soft_dice": 1.0}, min_length=1)
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()

    @field_validator("loss")
    @classmethod
    def _known_losses(cls, loss: dict[str, float]) -> dict[str, float]:
        if unknown := sorted(set(loss) - set(LOSSES)):
            raise ValueError(f"no loss is named {', '.join(unknown)}; choose from {', '.join(LOSSES)}")
        return loss


def load_experiment(experiment: str, folder: Path, overrides: list[str] = (), name: str | None = None) -> Config:
    """Reads `<folder>/<experiment>.yaml` (or a path to a YAML file) and applies `group.key=value` overrides.

    Raises InputError, one line a fault, naming key, value and what is allowed.
    """
    path = Path(experiment) if experiment.endswith((".yaml", ".yml")) else folder / f"{experiment}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise InputError(f"{path}: no such experiment; choose from {known}, or give a path to a .yaml file")
    settings = _parse(path.read_text(), str(path)) or {}
    if not isinstance(settings, dict):
        raise InputError(f"{path}: must hold `group:` and `key: value` lines")
    for override in overrides:
        _override(settings, override)
    if "name" in settings:
        raise InputError(f"{path}: name: it is the file's own, or --name; take it out")
    return parse_config(settings | {"name": name or path.stem}, str(path))


def parse_config(settings: dict, source: str) -> Config:
    """Validates plain settings; `source` names them in errors."""
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        raise InputError("\n".join(f"{source}: {_explain(fault)}" for fault in error.errors())) from None


def differences(one: dict, other: dict) -> list[str]:
    """`group.key: value -> value` for each setting in which two nested dictionaries differ."""
    before, after = _flatten(one), _flatten(other)
    keys = sorted(before.keys() | after.keys())
    return [f"{k}: {before.get(k)!s:.40} -> {after.get(k)!s:.40}" for k in keys if before.get(k) != after.get(k)]


def _parse(text: str, source: str):
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
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


def _explain(fault: dict) -> str:
    """One line for one pydantic fault."""
    *groups, leaf = (str(part) for part in fault["loc"])
    key = ".".join([*groups, leaf])
    if fault["type"] != "extra_forbidden":
        return f"{key} = {fault['input']!r}: {fault['msg']}"
    group: type | UnionType | None = Config
    for part in groups:
        group = group.model_fields[part].annotation
    allowed = list(group.model_fields)
    close = difflib.get_close_matches(leaf, allowed, n=1)
    hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(allowed)}"
    return f"{key}: no such setting; {hint}"


def _flatten(settings: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in settings.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
