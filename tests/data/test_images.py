"""Files decode to the contract's arrays, photos and masks are found by image id, and every fault is named."""

import pickle
import shutil
import struct
import zipfile
import zlib
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from carvana.data.decoding import count_colors, decode_image, decode_mask, read_size
from carvana.data.geometry import Fit
from carvana.data.images import Photos, angle_of, car_of, open_test, open_train, read_cars
from carvana.errors import InputError

SIZE = (40, 60)  # height, width
CAR = np.zeros(SIZE, bool)
CAR[10:30, 15:50] = True
ONES = CAR.astype(np.uint8)
NOISE = np.random.default_rng(0).integers(1, 255, (*SIZE, 3), dtype=np.uint8)
TURNED = Image.Exif()
TURNED[0x0112] = 6


def encode(pixels: np.ndarray = NOISE, suffix: str = "jpeg", **options) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, suffix, **options)
    return file.getvalue()


def encode_mask(colors: np.ndarray = CAR, suffix: str = "gif", palette=(0, 0, 0, 255, 255, 255)) -> bytes:
    """A file as Carvana's: its pixels are numbers of colours in the palette."""
    image, file = Image.frombytes("P", colors.shape[::-1], colors.astype(np.uint8).tobytes()), BytesIO()
    image.putpalette(palette)
    image.save(file, suffix)
    return file.getvalue()


@pytest.mark.parametrize("at_least", [(20, 30), (21, 30), (20, 31), None])
def test_a_photo_is_rgb_height_width_and_a_jpeg_halved_but_never_below_what_is_needed(at_least):
    red = np.zeros((*SIZE, 3), np.uint8)
    red[:, :30] = (200, 40, 0)
    for data in (encode(red, quality=100, exif=TURNED), encode(red, "png"), encode(np.dstack([red, ONES]), "png")):
        step = 2 if at_least == (20, 30) and data.startswith(b"\xff\xd8") else 1
        image = decode_image(data, "x", at_least)  # not turned by its EXIF
        assert (image.shape, image.dtype) == ((40 // step, 60 // step, 3), np.uint8)
        away_from_edge = np.r_[: 24 // step, 36 // step : 60 // step]
        assert np.abs(image.astype(int) - red[::step, ::step])[:, away_from_edge].max() < 6
    for odd in (encode(NOISE[:, :59]), encode(NOISE[:39]), encode(NOISE[:39], "png")):  # half would be rounded up
        assert decode_image(odd, "x", at_least).shape[:2] == read_size(odd, "x") == read_size(odd, "x", whole=True)


JPEG, PNG = (encode(np.tile(NOISE, (4, 4, 1)), suffix) for suffix in ("jpeg", "png"))
halve, read_whole = partial(decode_image, at_least=(9, 9)), partial(read_size, whole=True)


@pytest.mark.parametrize("read", [decode_image, halve, read_whole, decode_mask, count_colors])
def test_a_cut_or_broken_file_is_refused_by_name(read):
    files = (encode_mask(), encode(ONES, "png")) if read in (decode_mask, count_colors) else (JPEG, PNG)
    cut = [data[: int(share * len(data))] for data in files for share in (0, 0.001, 0.05, 0.5, 0.8)]
    for data in (*cut, b"no photo", JPEG[:20] + JPEG[-2:]):
        with pytest.raises(InputError, match=r"^input/x\.jpg: .*download it again$"):
            read(data, "input/x.jpg")


SOFT = encode(np.kron(NOISE[:20, :30], np.ones((16, 16, 1), np.uint8)), quality=75)
HALF = len(SOFT) // 2
DAMAGED = {
    "cut, but with an end": SOFT[:HALF] + SOFT[-2:], "a block of zeros": SOFT[:HALF] + bytes(512) + SOFT[HALF + 512 :],
    "an end too early": SOFT[:HALF] + b"\xff\xc9" + SOFT[HALF:], "a block is missing": SOFT[:HALF] + SOFT[HALF + 512 :],
}  # fmt: skip


@pytest.mark.parametrize("read", [decode_image, halve, read_whole])
def test_a_damaged_photo_is_refused_although_it_has_its_end_and_a_grey_is_not(read):
    for data in DAMAGED.values():
        with pytest.raises(InputError, match=r"^x: (damaged|unreadable).*download it again$"):
            read(data, "x")
    for data in (SOFT, encode(np.full((64, 96, 3), 128, np.uint8)), SOFT + SOFT, SOFT + b"\n"):
        read(data, "x")  # phones append a second picture
    for data in (SOFT + b"x" * 2000, PNG + bytes(2000)):
        with pytest.raises(InputError, match=r"^x: 200\d bytes after its end; download it again, or save it anew$"):
            read(data, "x")


def test_a_picture_that_says_to_be_huge_is_refused_before_memory_is_taken():
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    gif = MASK[:6] + struct.pack("<HH", 60_000, 60_000) + MASK[10:]
    for read, data in ((decode_image, png), (read_size, png), (decode_mask, png), (decode_mask, gif)):
        with pytest.raises(InputError, match=r"^x: .*3600000000 pixels"):
            read(data, "x")


MASKS = {  # with the number of colours in use
    "GIF of 0 and 1": (encode_mask(), 2),
    "GIF with the palette the other way round": (encode_mask(~CAR, palette=(255, 255, 255, 0, 0, 0)), 2),
    "GIF with black twice": (encode_mask(np.where(CAR, 2, np.eye(*SIZE)), palette=(0, 0, 0, 0, 0, 0, 0, 0, 1)), 2),
    "GIF of grey": (encode(ONES * 255, "gif"), 2),
    "PNG of 0 and 1": (encode(ONES, "png"), 2),
    "PNG of many greys": (encode(ONES * np.arange(1, 61, dtype=np.uint8), "png"), 36),
    "PNG of many colours": (encode(ONES[..., None] * NOISE, "png"), 256),
    "PNG, one bit": (encode(CAR, "png"), 2),
    "PNG, 16 bits": (encode(CAR.astype(np.uint16) * 256, "png"), 2),
    "PNG with palette": (encode_mask(suffix="png"), 2),
    "PNG, RGB": (encode(np.dstack([0 * ONES, 0 * ONES, ONES]), "png"), 2),
    "PNG, RGBA": (encode(np.dstack([ONES, ONES, ONES, 0 * ONES + 255]), "png"), 2),
    "PNG, grey and alpha": (encode(np.dstack([ONES, 0 * ONES + 255]), "png"), 2),
}


@pytest.mark.parametrize("kind", MASKS)
def test_any_colour_but_black_is_car(kind):
    data, colors = MASKS[kind]
    mask = decode_mask(data, kind)
    assert (mask.dtype, count_colors(data, kind)) == (bool, colors)
    assert np.array_equal(mask, CAR)


PHOTO, MASK = encode(), encode_mask()
FAULTS = {  # by file, in the order of the list
    "train/IMG1234.jpg": (PHOTO, "not named <car>_<angle>.jpg"),
    "train/f_01.jpg": (PHOTO, "f_01.png is of the same image; remove one"),
    "train_masks/a_02.gif": (MASK, "not named <car>_<angle>_mask.gif"),
    "train_masks/g_01_mask.gif": (MASK, "mask without a photo"),
    "train_masks/a_01_mask.gif": (None, "missing, the mask of a_01.jpg"),
    "train_masks/b_01_mask.gif": (encode_mask(CAR.T), "(height, width) is (60, 40), its photo's is (40, 60)"),
    "train_masks/c_01_mask.gif": (MASK[:60], "unreadable (image file is truncated"),
    "train/d_01.jpg": (PHOTO[:-500], "truncated; download it again"),
    "train/e_01.jpg": (b"no photo", "not a JPEG or PNG file; download it again"),
    "train/h_01.jpg": (JPEG[:-9000] + bytes(9000), "truncated; download it again"),  # its end was never written
}


def write_data(root: Path, cars="ab", angles=(1, 2)) -> Path:
    for part in ("train", "train_masks"):
        (root / part).mkdir()
    for image_id in (f"{car}_{angle:02}" for car in cars for angle in angles):
        (root / "train" / f"{image_id}.jpg").write_bytes(PHOTO)
        (root / "train_masks" / f"{image_id}_mask.gif").write_bytes(MASK)
    return root


def zip_parts(root: Path) -> None:
    """Turns the folders into Kaggle's zips of them."""
    for part in ("train", "train_masks"):
        shutil.make_archive(str(root / part), "zip", root, part)
        shutil.rmtree(root / part)


def faults_of(photos: Photos) -> list[str]:
    with pytest.raises(InputError) as caught:
        photos.check()
    return str(caught.value).split("\n")


def test_car_and_angle_and_a_list_of_cars(tmp_path):
    assert [car_of("00087a6bd4dc_07"), car_of("drawn_car_07"), angle_of("b_07")] == ["00087a6bd4dc", "drawn_car", 7]
    for wrong in ("00087a6bd4dc", "a_1", "a_00", "a_17", "a_01.jpg", "_01", ""):
        with pytest.raises(InputError, match=r"not of the form <car>_<angle>"):
            car_of(wrong)
    path = tmp_path / "cars.txt"
    with pytest.raises(InputError, match=r"cars\.txt: cannot be read"):
        read_cars(path)
    path.write_text("# none\n\n")
    with pytest.raises(InputError, match=r"cars\.txt: lists no car"):
        read_cars(path)
    path.write_bytes(b"\xef\xbb\xbf# two cars\r\n\r\nb  # the red one\r\na\r\nb\r\n")
    assert read_cars(path) == ["b", "a"]
    photos = open_train(write_data(tmp_path, cars="abcdefgh"), path)
    assert photos.image_ids == ["a_01", "a_02", "b_01", "b_02"]
    with pytest.raises(InputError, match=r"train: no photo of c, d, e, f, g and 2 more; check"):
        photos.select("abcdefghx")
    (tmp_path / "train_masks" / "a_01_mask.gif").unlink()
    assert photos.select("b").check() is None  # what is wrong with other cars does not matter


@pytest.mark.parametrize("as_zip", [False, True])
def test_photos_in_folders_and_zips_and_of_other_kinds(tmp_path, as_zip):
    (write_data(tmp_path) / "train" / "c_01.png").write_bytes(encode(suffix="png"))
    (tmp_path / "train" / "d_01.jpeg").write_bytes(PHOTO)
    for car in "cd":
        (tmp_path / "train_masks" / f"{car}_01_mask.png").write_bytes(encode_mask(suffix="png"))
    for name in ("train/a_01.jpg", "train_masks/a_01_mask.gif"):
        path = tmp_path / name
        path.rename(path.with_suffix(path.suffix.upper()))
        path.with_name(f"._{path.name}").touch()
    if as_zip:
        zip_parts(tmp_path)
    photos = open_train(tmp_path)
    names = ["a_01.jpg", "a_02.jpg", "b_01.jpg", "b_02.jpg", "c_01.png", "d_01.jpeg"]
    assert ([*map(photos.name, photos.image_ids)], photos.cars, photos.check()) == (names, [*"abcd"], None)
    assert all((photos.mask(image_id) == CAR).all() for image_id in photos.image_ids)
    assert (photos.mask_name("a_01"), photos.mask_colors("a_01")) == ("a_01_mask.GIF", 2)
    assert pickle.loads(pickle.dumps(photos)).image_ids == photos.image_ids


def test_a_photo_at_several_network_sizes_and_what_is_missing(tmp_path):
    photos = open_train(write_data(tmp_path))
    without_masks = Photos(photos.photo_part)
    whole, half = photos.image("a_01"), decode_image(PHOTO, "x", (20, 30))
    pixels = {Fit((10, 15)): half, Fit((20, 30)): half, Fit((21, 30)): whole, Fit((40, 64), "pad"): whole}
    for fits in ([*pixels], [*pixels][::-1], [Fit((10, 15))]):
        images, size = photos.fitted("a_01", fits)
        assert size == SIZE
        assert all(np.array_equal(image, fit.image(pixels[fit])) for image, fit in zip(images, fits, strict=True))
    with pytest.raises(InputError, match=r"train/c_01\.jpg: no such photo"):
        photos.fitted("c_01", [Fit((10, 15))])
    assert without_masks.check() is None
    with pytest.raises(InputError, match=r"opened without masks"):
        without_masks.mask("a_01")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "readme.txt").touch()
    with pytest.raises(InputError, match=r"test: no photo named <car>_<angle>\.jpg"):
        open_test(tmp_path)


def test_photos_of_higher_quality_and_which_are_missing(tmp_path):
    (write_data(tmp_path) / "train_hq").mkdir()
    for image_id in ("a_01", "a_02", "b_01"):
        (tmp_path / "train_hq" / f"{image_id}.jpg").write_bytes(JPEG)
    with pytest.raises(InputError, match=r"train_hq: lacks b_02, which have masks; .*data\.photos$"):
        open_train(tmp_path, quality="hq")
    (tmp_path / "cars.txt").write_text("a")
    assert open_train(tmp_path, tmp_path / "cars.txt", "hq").image("a_01").shape[0] == 4 * SIZE[0]
    assert open_train(tmp_path).image("a_01").shape[0] == open_train(tmp_path, quality="normal").image("a_01").shape[0]
    shutil.rmtree(tmp_path / "train")
    assert open_train(tmp_path).image_ids == ["a_01", "a_02", "b_01"]  # to look at
    for quality, name in (("normal", "train"), (None, "test")):
        with pytest.raises(InputError, match=f"no {name} or {name}.zip"):
            open_train(tmp_path, quality=quality) if quality else open_test(tmp_path)


def test_check_lists_all_faults_together(tmp_path):
    (write_data(tmp_path, "abcdefh", angles=[1]) / "train" / "f_01.png").write_bytes(encode(suffix="png"))
    for path, (data, _) in FAULTS.items():
        (tmp_path / path).write_bytes(data) if data else (tmp_path / path).unlink()
    for line, (path, (_, words)) in zip(faults_of(open_train(tmp_path)), FAULTS.items(), strict=True):
        assert line.startswith(f"{tmp_path}/{path}: {words}")


def test_check_lists_fifty_faults_and_counts_the_rest(tmp_path):
    write_data(tmp_path, cars="abcd", angles=range(1, 17))
    for path in (tmp_path / "train").glob("[bcd]*"):
        path.write_bytes(b"")
    zip_parts(tmp_path)
    with zipfile.ZipFile(tmp_path / "train_masks.zip", "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("train_masks/b_01_mask.gif", MASK)
    lines = faults_of(open_train(tmp_path))
    path = f"{tmp_path}/train_masks.zip/train_masks/b_01_mask.gif"
    assert lines[0] == f"{path}: there is a second file of this name, {path}; remove one"
    assert lines[1].startswith(f"{tmp_path}/train.zip/train/b_01.jpg: ")
    with zipfile.ZipFile(tmp_path / "train_masks.zip", "a") as file:
        [file.writestr(f"odd{number}.gif", MASK) for number in range(4)]
    assert (len(lines), faults_of(open_train(tmp_path))[50:]) == (49, ["... and 3 more"])
