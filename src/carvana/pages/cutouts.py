"""Cars cut out of anyone's photos: alpha, a transparent or composed picture for each, and a page to look at them."""

from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageColor, ImageOps

from carvana.data.own_photos import MAKER, OwnPhoto, convert_colors, maker_of, open_picture, read_photo, write_png
from carvana.errors import InputError, is_out_of_memory
from carvana.log import progress, say
from carvana.pages.page import embed, write_page
from carvana.prediction import matting
from carvana.prediction.ensemble import Choice
from carvana.prediction.predictor import TRAINED_ON, Predictor

PREVIEW = 480  # pixels: the longer side of a picture on the page
Targets = dict[Path, tuple[Path, Path]]
"""The mask and the cut-out of each photo."""


@dataclass(frozen=True)
class Style:
    """How a cut-out looks: `hard` edges, on a `background` that is a colour or a picture's file, else transparent."""

    hard: bool = False
    background: str | None = None
    tiles: bool = False

    def __str__(self) -> str:
        edges = "hard edges" if self.hard else f"edges by {matting.method()}"
        return ", ".join([edges, *["tiles"] * self.tiles, *[f"on {self.background}"] * bool(self.background)])

    def open_background(self) -> OwnPhoto | None:
        """Raises InputError if it is neither a colour nor a picture's file."""
        if self.background is None:
            return None
        try:
            color = ImageColor.getrgb(self.background)[:3]
        except ValueError:
            if not Path(self.background).is_file():
                message = f"--background {self.background}: neither a file nor a colour, such as white or '#20c040'"
                raise InputError(message) from None
            return read_photo(Path(self.background))
        return OwnPhoto(np.full((1, 1, 3), color, np.uint8), None, None)


def write_cutouts(
    predictor: Predictor, choice: Choice, targets: Targets, folder: Path, style: Style, overwrite: bool,
    networks: str = "",
) -> tuple[int, dict[Path, str]]:  # fmt: skip
    """Writes the mask and the cut-out of each photo, and `cutouts.html`; returns how many were kept, and the faults.

    Files made alike, of the same photo and background, by the same `networks`, are kept; with `overwrite` all are made
    anew, and files of others replaced. A photo that cannot be cut is named, and the others are cut.
    """
    background, how = style.open_background(), f"{choice}, {style}"
    wall = background.over_white().tobytes() if background else b""
    alike = sha256(f"{choice!r} {networks}".encode() + wall).digest()
    pictures, faults, kept = [], {}, 0
    for path in progress(targets, "cut out"):
        try:
            maker = f"{MAKER}: {how}, {_digest_with(alike, path)}"
            current = not overwrite and _is_current(targets[path], maker)
            if not current:
                photo, (mask_path, cutout_path) = read_photo(path), targets[path]
                alpha, colors = cut_out(predictor, choice, photo, style, str(path))
                cutout = compose(colors, alpha, photo.profile, background) if background else np.dstack([colors, alpha])
                write_png(mask_path, alpha, maker)
                write_png(cutout_path, cutout, maker, photo.profile)
            pictures.append(_preview(path, *targets[path]))
            kept += current
        except (InputError, MemoryError, RuntimeError, cv2.error) as error:
            faults[path] = _fault(path, error)
            say(f"error: {faults[path]}")
    write_page(folder / "cutouts.html", "cutouts.html", pictures=pictures, faults=list(faults.values()), how=how)
    return kept, faults


def _fault(path: Path, error: Exception) -> str:
    """Raises the error itself if it is not for want of memory."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, MemoryError) or is_out_of_memory(error) or "Insufficient memory" in str(error):
        return f"{path}: does not fit into the memory; make it smaller"
    raise error


def _digest_with(alike: bytes, path: Path) -> str:
    """Eight digits that depend on the photo's bytes too; none if it cannot be read: its reader says why."""
    with suppress(OSError):
        return sha256(alike + path.read_bytes()).hexdigest()[:8]
    return ""


def _is_current(targets: tuple[Path, Path], maker: str) -> bool:
    """Raises InputError if a target is a file that was not made here."""
    for target in targets:
        if target.exists() and not str(maker_of(target)).startswith(MAKER):
            raise InputError(f"{target}: not made here; --overwrite replaces it")
    return all(maker_of(target) == maker for target in targets)


def cut_out(
    predictor: Predictor, choice: Choice, photo: OwnPhoto, style: Style, name: str = "the photo"
) -> tuple[np.ndarray, np.ndarray]:
    """Alpha uint8 (h, w), at most the photo's own, and the car's colours uint8 (h, w, 3), black where that is 0."""
    image = photo.over_white()
    probs = predictor.predict_image(image, style.tiles, name).cpu().numpy()
    mask = choice.postprocess.scaled(probs.size / TRAINED_ON)(probs >= choice.threshold)
    if style.hard:
        alpha, colors = mask.astype(np.uint8) * 255, image.copy()
    else:
        alpha, colors = matting.refine(image, mask, predictor.pixel(mask.shape, style.tiles))
    if photo.alpha is not None:
        colors = np.where(photo.alpha[..., None] < 255, photo.image, colors)
        alpha = np.minimum(alpha, photo.alpha)
    colors[alpha == 0] = 0
    return alpha, colors


def compose(colors: np.ndarray, alpha: np.ndarray, profile: bytes | None, background: OwnPhoto) -> np.ndarray:
    """The car on a background that fills the picture, uint8 (h, w, 3), in the photo's colour profile."""
    room = ImageOps.fit(Image.fromarray(background.over_white()), alpha.shape[::-1])
    if profile != background.profile:
        room = convert_colors(room, background.profile, profile)
    return np.array(Image.composite(Image.fromarray(colors), room, Image.fromarray(alpha)))


def _preview(path: Path, mask: Path, cutout: Path) -> dict:
    """What the page shows of a photo: its name, and the photo, alpha and cut-out as addresses."""
    with open_picture(mask) as alpha, open_picture(cutout) as car:
        pictures = [Image.fromarray(read_photo(path).over_white()), alpha.convert("RGB"), car]
        for picture in pictures:
            picture.thumbnail((PREVIEW, PREVIEW))
        addresses = [embed(np.array(picture)) for picture in pictures]
    return dict(zip(("photo", "alpha", "cutout"), addresses, strict=True)) | {"name": path.name}
