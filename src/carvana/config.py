"""Configuration: every setting, typed, bounded, and strict about names."""

import difflib
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, get_args

import pydantic
from pydantic import BaseModel, Field, ValidationError, field_validator, model_serializer, model_validator

from carvana.errors import InputError

Pixels = Annotated[int, Field(ge=8, le=8192)]
Count = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
STAGED = {"data", "loss", "optim", "train"}  # what a stage may change
FIXED = {  # of the whole run
    "compile", "ema_decay", "encoder_lr_factor", "init_from", "layer_decay", "memory_format", "optimizer",
    "photos", "precision", "pseudo", "pseudo_input", "pseudo_least", "seed", "soft", "weight_decay",
}  # fmt: skip


class Group(BaseModel, frozen=True, extra="forbid"):
    """Settings that belong together: frozen, and an unknown name is an error."""


class DataConfig(Group):
    photos: Literal["normal", "hq"] = Field("normal", description="normal: train and test; hq: train_hq and test_hq")
    size: tuple[Pixels, Pixels] = Field((512, 768), description="network size, height and width")
    fit: Literal["resize", "pad"] = Field("resize", description="resize photos, or mirror their borders")
    crop: tuple[Pixels, Pixels] | None = Field(None, description="train on random windows; whole photos if none")
    augmentation: str = Field("light", description="name of a set in carvana/data/augmentations.py")
    cache_gib: float = Field(4, ge=0, description="disk (/tmp) for photos and masks decoded to network size; 0 is none")
    num_workers: int = Field(2, ge=0, le=64, description="loader processes")
    pseudo: str | None = Field(None, description="labels or soft masks, by make_submission.py, to train on as well")
    pseudo_input: str | None = Field(None, description="where their photos are, in test; none is --input")
    pseudo_least: Fraction = Field(0.99, description="expected Dice and agreement; photos below are left out")
    pseudo_share: float = Field(1.0, ge=0, le=1000, description="pseudo-labelled photos an epoch for each with a mask")
    soft: tuple[str, ...] = Field((), description="out-of-fold probabilities of evaluate.py --soft; a mean of several")
    soft_share: Fraction = Field(0.5, description="their weight in the target; the true mask has the rest")

    @field_validator("crop")
    @classmethod
    def _inside(cls, crop: tuple[int, int] | None, info: pydantic.ValidationInfo) -> tuple[int, int] | None:
        size = info.data.get("size")
        if crop and size and (crop[0] > size[0] or crop[1] > size[1]):
            raise ValueError(f"larger than data.size, {size[0]}x{size[1]}")
        return crop

    @property
    def train_size(self) -> tuple[int, int]:
        """Of what is trained on: windows or whole photos."""
        return self.crop or self.size


class ModelConfig(Group):
    """An architecture refuses settings that it does not use."""

    architecture: str = Field("unet", description="name of a class in carvana/models")
    encoder: str = Field("tf_efficientnet_lite0", description="any timm encoder with features_only")
    pretrained: bool = Field(True, description="ImageNet weights for the encoder")
    weights: str | None = Field(None, description="file, folder, or package:NAME; none is timm's hub")
    frozen_parts: int = Field(0, ge=0, description="first parts (stem, norm, blocks, stages) that stay as pretrained")
    frozen_depthwise: bool = Field(False, description="depthwise convolutions stay so, too: on a CPU they are slow")
    decoder_channels: tuple[Count, ...] = Field((256, 128, 64, 32, 16), min_length=1, description="deepest level first")
    decoder_stride: Literal[1, 2, 4] = Field(1, description="stride of the logits before upsampling")
    logit_upsampling: Literal["bilinear", "pixel_shuffle"] = Field("bilinear", description="from decoder_stride to 1")
    # None is nearest in U-Nets, bilinear in vanilla_unet, transposed in linknet.
    upsampling: Literal["nearest", "bilinear", "transposed"] | None = Field(None, description="in the decoder")
    stem_channels: int = Field(0, ge=0, le=256, description="width of a skip at full resolution; 0 is none")
    attention_gates: bool = Field(False, description="skips weighted by the coarser level (U-Nets)")
    scse: bool = Field(False, description="decoder channels and places weighted (U-Nets)")
    dropout: Fraction = Field(0, le=0.9, description="share of channels dropped before the head")
    deep_supervision: bool = Field(False, description="the loss also sees logits of coarser levels")
    grad_checkpointing: bool = Field(False, description="less memory, a third more time: activations computed twice")
    base_width: Count = Field(64, description="vanilla_unet: width of the first level")
    border: int = Field(16, ge=0, le=512, description="vanilla_unet: pixels of mirrored context on each side")


class Term(Group):
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)


class BorderTerm(Term):
    ring: int = Field(15, ge=1, le=255, description="pixels on each side of the contour that weigh more")
    emphasis: float = Field(3.0, ge=1, le=100, description="what they weigh; other pixels weigh 1")


class FocalTerm(Term):
    gamma: float = Field(2.0, ge=0, le=10, description="power of the error that weights a pixel")
    alpha: float = Field(0.5, gt=0, lt=1, description="weight of car pixels; others weigh 1 - alpha")


class TverskyTerm(Term):
    alpha: float = Field(0.3, gt=0, le=10, description="weight of surplus car")
    beta: float = Field(0.7, gt=0, le=10, description="weight of missed car")


class BoundaryTerm(Term):
    width: int = Field(16, ge=1, le=255, description="pixels from the contour at which an error costs most")


class LossConfig(Group):
    """Terms of the loss, added up: functions of training/losses.py. `bce: 2` is short for `bce: {weight: 2}`."""

    bce: Term | None = None
    soft_dice: Term | None = None
    bce_log_dice: Term | None = None
    border_bce_dice: BorderTerm | None = None
    focal: FocalTerm | None = None
    tversky: TverskyTerm | None = None
    lovasz_hinge: Term | None = None
    boundary: BoundaryTerm | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _weight_alone(cls, term: object) -> object:
        return {"weight": term} if isinstance(term, int | float) and not isinstance(term, bool) else term

    @model_validator(mode="after")
    def _not_empty(self) -> "LossConfig":
        if not self.terms:
            raise ValueError(f"name at least one term: {', '.join(LossConfig.model_fields)}")
        return self

    @model_serializer
    def _named_terms(self) -> dict[str, dict]:
        return {name: term.model_dump() for name, term in self.terms.items()}

    @property
    def terms(self) -> dict[str, Term]:
        return {name: term for name, term in self if term is not None}


class OptimConfig(Group):
    optimizer: Literal["muon", "adamw"] = Field("adamw", description="muon: of convolutions outside the encoder")
    lr: float = Field(1e-3, gt=0, le=1, description="peak rate")
    encoder_lr_factor: Fraction = Field(0.5, description="rate of the pretrained encoder over lr")
    layer_decay: Fraction = Field(1.0, gt=0, description="rate of each part of the encoder over the next one's")
    weight_decay: Fraction = Field(1e-2, description="of weights; norms and biases have none")
    warmup: Fraction = Field(0.1, description="share of the steps in which the rate rises; a cosine follows")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    ema_decay: float = Field(0.995, ge=0, lt=1, description="of the averaged weights, the ones that are kept")


class TrainConfig(Group):
    epochs: Count = 10
    batch_size: Count = Field(8, description="photos of one step of one process")
    micro_batch: Count | None = Field(None, description="photos of one forward pass; none is batch_size")
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field("auto", description="auto: half where it is native")
    memory_format: Literal["auto", "channels_last", "contiguous"] = Field("auto", description="auto: the faster one")
    compile: bool = Field(False, description="torch.compile: minutes to start, then faster steps on a GPU")
    validate_every: Count = Field(1, description="validate each n-th held-out photo after each epoch")
    init_from: str | None = Field(None, description="run in --runs, or its path, whose weights of this fold are taken")
    seed: int = Field(0, ge=0, lt=2**31)

    @property
    def at_once(self) -> int:
        """Photos of one forward pass."""
        return self.micro_batch or self.batch_size


class Config(Group):
    """Everything that decides a run but the photos, the folds and the machine."""

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$", description="experiment; its runs lie in runs/<name>/")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig(bce=Term(), soft_dice=Term())
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    earlier_stages: tuple[dict[str, Any], ...] = Field((), description="each changes data, loss, optim or train")

    @model_validator(mode="after")
    def _valid_stages(self) -> "Config":
        for number, stage in enumerate(self.earlier_stages):
            train, place = stage.get("train"), f"earlier_stages: number {number}"
            if not isinstance(train, dict) or "epochs" not in train:
                raise ValueError(f"{place} has no train.epochs of its own")
            named = {key for name in STAGED if isinstance(group := stage.get(name), dict) for key in group}
            if fixed := sorted(set(stage) - STAGED) + sorted(named & FIXED):
                raise ValueError(f"{place} cannot change {', '.join(fixed)}: they are of the whole run")
        try:
            _ = self._earlier
        except ValidationError as error:
            raise ValueError("; ".join(f"earlier_stages: {_explain(fault)}" for fault in error.errors())) from None
        return self

    @property
    def stages(self) -> tuple["Config", ...]:
        """The configuration of each stage; the last one is that of the settings themselves."""
        return *self._earlier, self

    @cached_property
    def _earlier(self) -> tuple["Config", ...]:
        """Without the last: pydantic compares what is cached, and would never end at a reference to itself."""
        settings = self.model_dump(mode="json") | {"earlier_stages": ()}
        return tuple(Config.model_validate(_merged(settings, stage)) for stage in self.earlier_stages)

    @property
    def epochs(self) -> int:
        """Of all stages."""
        return sum(stage.train.epochs for stage in self.stages)

    def stage_of(self, epoch: int) -> tuple["Config", int]:
        """The stage of epoch 0..epochs-1 and the epoch's number in it; the epoch after the last is the last stage's."""
        for stage in self.stages:
            if epoch < stage.train.epochs or stage is self:
                return stage, epoch
            epoch -= stage.train.epochs

    def with_epochs(self, epochs: Sequence[int]) -> "Config":
        """The same with these numbers of epochs, a stage each, the last one's last; a stage of none is left out."""
        *earlier, last = epochs
        pairs = zip(self.earlier_stages, earlier, strict=True)
        stages = [stage | {"train": stage["train"] | {"epochs": number}} for stage, number in pairs if number]
        return self.changed(train={"epochs": last}, earlier_stages=stages)

    def changed(self, **changes: object) -> "Config":
        """The same with other settings, `train={"epochs": 1}`, validated; what a group does not name stays."""
        return Config.model_validate(_merged(self.model_dump(mode="json"), changes))


def _merged(settings: dict, changes: dict) -> dict:
    """Changes within groups leave the rest of a group as it is; a loss is replaced as a whole."""
    merged = dict(settings)
    for key, value in changes.items():
        merged[key] = settings[key] | value if isinstance(value, dict) and key != "loss" else value
    return merged


def parse_config(settings: dict, source: str) -> Config:
    """Validates plain settings; `source` names them in errors."""
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        raise InputError("\n".join(f"{source}: {_explain(fault)}" for fault in error.errors())) from None


def differences(before: dict, after: dict) -> list[str]:
    """`group.key: value -> value` for each setting in which two nested dictionaries differ."""
    before, after = _flatten(before), _flatten(after)
    keys = sorted(before.keys() | after.keys())
    return [f"{k}: {_change(before.get(k), after.get(k))}" for k in keys if before.get(k) != after.get(k)]


def _change(before: object, after: object) -> str:
    """Both, cut to 40 characters; of lists that are alike so far, what only one of them holds."""
    if f"{before!s:.40}" == f"{after!s:.40}" and isinstance(before, list) and isinstance(after, list):
        before, after = ([item for item in a if item not in b] for a, b in ((before, after), (after, before)))
    return f"{before!s:.40} -> {after!s:.40}"


def _explain(fault: dict) -> str:
    """One line for one pydantic fault."""
    message = fault["msg"].removeprefix("Value error, ")
    if not fault["loc"]:
        return message
    *groups, leaf = map(str, fault["loc"])
    key = ".".join([*groups, leaf])
    if fault["type"] != "extra_forbidden":
        return f"{key} = {fault['input']!r}: {message}"
    group = Config
    for part in groups:
        annotation = group.model_fields[part].annotation
        group = next(iter(get_args(annotation)), annotation)  # of `Group | None` the first
    close = difflib.get_close_matches(leaf, group.model_fields, n=1)
    hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(group.model_fields)}"
    return f"{key}: no such setting; {hint}"


def _flatten(settings: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in settings.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
