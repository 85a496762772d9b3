"""Configuration: every setting, typed, bounded, and strict about names."""

import difflib
from types import UnionType
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from carvana.errors import InputError
from carvana.geometry import Fit, Size
from carvana.losses import Settings, check_losses

Pixels = Annotated[int, Field(ge=8, le=8192)]
Fraction = Annotated[float, Field(ge=0, le=1)]
STAGED = {"data", "loss", "optim", "train"}  # what a stage may change
FIXED = {"average", "average_of", "init_from", "precision", "seed"}  # in train: of the whole run


class Group(BaseModel):
    """Settings that belong together: frozen, and an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(Group):
    size: tuple[Pixels, Pixels] = Field((512, 768), description="network size, height and width")
    fit: Literal["resize", "pad"] = Field("resize", description="resize photos, or mirror their borders")
    boxes_from: str | None = Field(None, description="experiment whose networks find the car: only its box is seen")
    box_margin: float = Field(0.1, ge=0, le=1, description="added to the box, as a share of it")
    crop: tuple[Pixels, Pixels] | None = Field(None, description="train on random windows; whole photos if none")
    augmentation: str = Field("light", description="name of a set in carvana/augmentations.py")
    cache_gib: float = Field(4, ge=0, description="disk (/tmp) for photos and masks decoded to network size; 0 is none")
    num_workers: int = Field(2, ge=0, le=64, description="loader processes")

    @field_validator("crop")
    @classmethod
    def _inside(cls, crop: Size | None, info: ValidationInfo) -> Size | None:
        size = info.data.get("size")
        if crop and size and (crop[0] > size[0] or crop[1] > size[1]):
            raise ValueError(f"larger than data.size, {size[0]}x{size[1]}")
        return crop

    @field_validator("boxes_from")
    @classmethod
    def _resized(cls, boxes_from: str | None, info: ValidationInfo) -> str | None:
        if boxes_from and info.data.get("fit") == "pad":
            raise ValueError("boxes have any size: they need data.fit=resize")
        return boxes_from

    @property
    def geometry(self) -> Fit:
        return Fit(self.size, self.fit, self.boxes_from, self.box_margin)


class ModelConfig(Group):
    """An architecture refuses settings that it does not use."""

    architecture: str = Field("unet", description="name of a class in carvana/models")
    encoder: str = Field("tf_efficientnet_lite0", description="any timm encoder with features_only")
    pretrained: bool = Field(True, description="ImageNet weights for the encoder")
    weights: str | None = Field(None, description="file, folder, or package:NAME; none is timm's hub")
    frozen_parts: int = Field(
        0, ge=0, description="first parts of the encoder (stem, norm, blocks or stages) that stay as pretrained"
    )
    decoder_channels: tuple[PositiveInt, ...] = Field(
        (256, 128, 64, 32, 16), min_length=1, description="unet, unetplusplus: a width for each halving, deepest first"
    )
    decoder_stride: Literal[1, 2, 4] = Field(1, description="stride of the logits before upsampling")
    logit_upsampling: Literal["bilinear", "pixel_shuffle"] = Field(
        "bilinear", description="from decoder_stride to 1, interpolated or predicted pixel by pixel"
    )
    upsampling: Literal["nearest", "bilinear", "transposed"] | None = Field(
        None, description="in the decoder; none is nearest in U-Nets, bilinear in vanilla_unet, transposed in linknet"
    )
    stem_channels: int = Field(0, ge=0, le=256, description="width of a skip at full resolution; 0 is none")
    attention_gates: bool = Field(False, description="skips weighted by the coarser level (U-Nets)")
    scse: bool = Field(False, description="decoder channels and places weighted (U-Nets)")
    dropout: Fraction = Field(0, le=0.9, description="share of channels dropped before the head")
    deep_supervision: bool = Field(False, description="the loss also sees logits of coarser levels")
    grad_checkpointing: bool = Field(False, description="less memory, a third more time: activations computed twice")
    base_width: PositiveInt = Field(64, description="vanilla_unet: width of the first level")
    border: int = Field(16, ge=0, le=512, description="vanilla_unet: pixels of mirrored context on each side")


class OptimConfig(Group):
    lr: PositiveFloat = Field(1e-3, le=1, description="peak rate of AdamW")
    schedule: Literal["run", "stage"] = Field("run", description="one warm-up and cosine for all stages, or each")
    encoder_lr_factor: Fraction = Field(0.5, description="rate of the pretrained encoder over lr")
    layer_decay: Fraction = Field(1.0, gt=0, description="rate of each part of the encoder over the next one's")
    frozen_encoder_epochs: int = Field(0, ge=0, description="first epochs without training the encoder")
    frozen_norm: bool = Field(False, description="the encoder's BatchNorm keeps its ImageNet statistics")
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
    hard_targets: bool = Field(False, description="masks cut at half coverage: for comparison, it costs Dice")
    compile: bool = Field(False, description="torch.compile: minutes to start, then faster steps on a GPU")
    replay: Fraction = Field(0, description="share of the photos, the last epoch's hardest, that are seen once more")
    average: Literal["none", "last", "best"] = Field("none", description="epochs whose weights are averaged at the end")
    average_of: int = Field(3, ge=2, le=20, description="number of epochs averaged")
    init_from: str | None = Field(None, description="run, or its path, whose weights of this fold are taken")
    seed: int = Field(0, ge=0)


class Config(Group):
    """Everything that decides a run but the photos, the folds and the machine."""

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$", description="experiment; its runs lie in runs/<name>/")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    loss: dict[str, Settings] = Field(
        {"bce": 1.0, "soft_dice": 1.0},
        min_length=1,
        description="name: weight, or name: {weight, parameters}, of functions in carvana/losses.py",
    )
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    earlier_stages: tuple[dict[str, Any], ...] = Field(
        (), description="trained before, one after the other; each holds what it changes in data, loss, optim, train"
    )

    @field_validator("loss", mode="before")
    @classmethod
    def _known_losses(cls, loss: object) -> object:
        return check_losses(loss) if isinstance(loss, dict) else loss

    @model_validator(mode="after")
    def _valid_stages(self) -> "Config":
        for number, stage in enumerate(self.earlier_stages):
            train = stage.get("train")
            if not isinstance(train, dict) or "epochs" not in train:
                raise ValueError(f"earlier_stages: number {number} has no train.epochs of its own")
            if fixed := sorted(set(stage) - STAGED) + sorted(set(train) & FIXED):
                raise ValueError(
                    f"earlier_stages: number {number} cannot change {', '.join(fixed)}: they are of the whole run"
                )
        try:
            _ = self.stages
        except ValidationError as error:
            raise ValueError("; ".join(f"earlier_stages: {_explain(fault)}" for fault in error.errors())) from None
        return self

    @property
    def stages(self) -> tuple["Config", ...]:
        """The configuration of each stage; the last one is that of the settings themselves."""
        settings = self.model_dump(mode="json") | {"earlier_stages": ()}
        earlier = (Config.model_validate(_merged(settings, stage)) for stage in self.earlier_stages)
        return *earlier, self

    @property
    def epochs(self) -> int:
        """Of all stages."""
        return sum(stage.train.epochs for stage in self.stages)

    def stage_of(self, epoch: int) -> tuple["Config", int]:
        """The stage in which epoch 0..epochs-1 lies, and the number of the epoch in it; the last one's end after it."""
        for stage in self.stages:
            if epoch < stage.train.epochs or stage is self:
                return stage, epoch
            epoch -= stage.train.epochs


def _merged(settings: dict, changes: dict) -> dict:
    """Changes within groups leave the rest of a group as it is; a loss is replaced as a whole."""
    merged = dict(settings)
    for key, value in changes.items():
        group = isinstance(value, dict) and key != "loss"
        merged[key] = settings[key] | value if group else value
    return merged


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


def _explain(fault: dict) -> str:
    """One line for one pydantic fault."""
    message = fault["msg"].removeprefix("Value error, ")
    if not fault["loc"]:
        return message
    *groups, leaf = (str(part) for part in fault["loc"])
    key = ".".join([*groups, leaf])
    if fault["type"] != "extra_forbidden":
        return f"{key} = {fault['input']!r}: {message}"
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
