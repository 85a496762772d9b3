"""Photos and masks decode to the contract's arrays, and every fault in the files is named."""

import pickle
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from carvana.decoding import decode_image, decode_mask, read_size
from carvana.errors import InputError
from carvana.geometry import Fit
from carvana.images import angle_of, car_of, open_test, open_train, read_cars

SIZE = (40, 60)  # height, width
CAR = np.zeros(SIZE, bool)
CAR[10:30, 15:50] = True
NOISE = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)


def photo(pixels=NOISE, suffix="jpeg", **options) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, suffix, **options)
    return file.getvalue()


def mask(pixels=CAR, suffix="gif", palette=(0, 0, 0, 255, 255, 255)) -> bytes:
    image = Image.fromarray(pixels.astype(np.uint8)).convert("P")
    image.putdata(pixels.astype(np.uint8).ravel())
    image.putpalette(palette)
    file = BytesIO()
    image.save(file, suffix)
    return file.getvalue()


def write_data(root: Path, cars=("a", "b"), angles=(1, 2)) -> Path:
    for part in ("train", "train_masks"):
        (root / part).mkdir()
    for image_id in (f"{car}_{angle:02}" for car in cars for angle in angles):
        (root / "train" / f"{image_id}.jpg").write_bytes(photo())
        (root / "train_masks" / f"{image_id}_mask.gif").write_bytes(mask())
    return root


def zipped(root: Path, part: str, add: Callable[[zipfile.ZipFile], None] = lambda file: None) -> None:
    """Turns the folder of a part into Kaggle's zip of it."""
    with zipfile.ZipFile(root / f"{part}.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for path in (root / part).iterdir():
            file.write(path, f"{part}/{path.name}")
            path.unlink()
        add(file)
    (root / part).rmdir()


def faults_of(photos) -> list[str]:
    with pytest.raises(InputError) as caught:
        photos.check()
    return str(caught.value).split("\n")


def test_car_and_angle():
    assert car_of("00087a6bd4dc_07") == "00087a6bd4dc"
    assert car_of("drawn_car_07") == "drawn_car"
    assert angle_of("00087a6bd4dc_07") == 7
    for wrong in ("00087a6bd4dc", "a_1", "a_00", "a_17", "a_01.jpg", "_01", ""):
        with pytest.raises(InputError, match=r"not of the form <car>_<angle>"):
            car_of(wrong)


def test_a_photo_is_rgb_height_width():
    red = np.zeros((*SIZE, 3), np.uint8)
    red[..., 0] = 200
    for data in (photo(red, "png"), photo(red), photo(np.dstack([red, red[..., :1]]), "png")):
        image = decode_image(data, "x")
        assert image.shape == (*SIZE, 3)
        assert image.dtype == np.uint8
        assert image[20, 20] == pytest.approx([200, 0, 0], abs=2)
    assert (decode_image(photo(NOISE, "png"), "x") == NOISE).all()


def test_a_photo_is_not_turned_by_its_exif():
    turned = Image.Exif()
    turned[0x0112] = 6
    assert decode_image(photo(exif=turned), "x").shape == (*SIZE, 3)


@pytest.mark.parametrize(
    ("at_least", "size"),
    [((20, 30), (20, 30)), ((1, 1), (20, 30)), ((21, 30), SIZE), ((20, 31), SIZE), ((400, 600), SIZE), (None, SIZE)],
)
def test_a_jpeg_is_halved_but_never_below_what_is_needed(at_least, size):
    data = photo(quality=100)
    image = decode_image(data, "x", at_least)
    assert image.shape == (*size, 3)
    assert decode_image(photo(suffix="png"), "x", at_least).shape == (*SIZE, 3)
    assert read_size(data, "x") == SIZE


def test_a_halved_photo_is_the_same_photo():
    red_left = np.zeros((*SIZE, 3), np.uint8)
    red_left[:, :30] = (200, 40, 0)
    turned = Image.Exif()
    turned[0x0112] = 6
    halved = decode_image(photo(red_left, quality=100, exif=turned), "x", (10, 10)).astype(int)
    assert np.abs(halved - red_left[::2, ::2])[:, np.r_[:12, 18:30]].max() < 6


def test_an_odd_side_is_not_halved():
    """Half of it would be rounded up: the photo would be moved against its mask."""
    assert decode_image(photo(NOISE[:, :59]), "x", (10, 10)).shape == (40, 59, 3)
    assert decode_image(photo(NOISE[:39]), "x", (10, 10)).shape == (39, 60, 3)


@pytest.mark.parametrize("at_least", [(10, 10), (1000, 1000)])
def test_faults_are_named_when_a_photo_may_be_halved(at_least):
    for data in (photo()[:-500], b"no photo", photo()[:20] + photo()[-2:]):
        with pytest.raises(InputError, match=r"^input/x\.jpg: .*download it again$"):
            decode_image(data, "input/x.jpg", at_least)


@pytest.mark.parametrize("suffix", ["jpeg", "png"])
@pytest.mark.parametrize("kept", [0, 5, 0.3, 0.8, 0.99])
def test_a_cut_photo_is_refused_by_name(suffix, kept):
    pixels = np.tile(NOISE, (4, 4, 1))
    data = photo(pixels, suffix)
    with pytest.raises(InputError, match=r"^input/x\.jpg: .*download it again$"):
        decode_image(data[: int(kept * len(data)) if kept < 1 else kept], "input/x.jpg")


MASKS = {
    "GIF of 0 and 1": mask(),
    "GIF with the palette the other way round": mask(~CAR, palette=(255, 255, 255, 0, 0, 0)),
    "GIF with black twice": mask(np.where(CAR, 2, 0), palette=(0, 0, 0, 0, 0, 0, 0, 0, 1)),
    "GIF of grey": photo(CAR.astype(np.uint8) * 255, "gif"),
    "PNG of 0 and 1": photo(CAR.astype(np.uint8), "png"),
    "PNG of 0 and 255": photo(CAR.astype(np.uint8) * 255, "png"),
    "PNG, one bit": photo(CAR, "png"),
    "PNG, 16 bits": photo(CAR.astype(np.uint16) * 256, "png"),
    "PNG with palette": mask(suffix="png"),
    "PNG, RGB": photo(np.dstack([0 * CAR, 0 * CAR, CAR]).astype(np.uint8), "png"),
    "PNG, RGBA": photo(np.dstack([CAR, CAR, CAR, 0 * CAR + 255]).astype(np.uint8), "png"),
    "PNG, grey and alpha": photo(np.dstack([CAR, 0 * CAR + 255]).astype(np.uint8), "png"),
}


@pytest.mark.parametrize("kind", MASKS)
def test_any_colour_but_black_is_car(kind):
    decoded = decode_mask(MASKS[kind], kind)
    assert decoded.dtype == bool
    assert decoded.shape == SIZE
    assert (decoded == CAR).all()


def test_the_test_masks_are_stored_as_carvanas_are():
    with Image.open(BytesIO(mask())) as image:
        assert image.mode == "P"
        assert set(np.unique(np.asarray(image))) == {0, 1}


@pytest.mark.parametrize("kind", ["GIF of 0 and 1", "PNG of 0 and 255"])
@pytest.mark.parametrize("kept", [0, 5, 0.5, 0.8])
def test_a_cut_mask_is_refused_by_name(kind, kept):
    data = MASKS[kind]
    with pytest.raises(InputError, match=r"^input/x_mask\.gif: .*download it again$"):
        decode_mask(data[: int(kept * len(data)) if kept < 1 else kept], "input/x_mask.gif")


def test_a_jpeg_is_no_mask():
    with pytest.raises(InputError, match="x: not a GIF or PNG file"):
        decode_mask(photo(), "x")


def test_read_cars(tmp_path):
    path = tmp_path / "cars.txt"
    path.write_bytes(b"\xef\xbb\xbf# two cars\r\n\r\nb  # the red one\r\na\r\nb\r\n")
    assert read_cars(path) == ["b", "a"]
    path.write_text("# none\n\n")
    with pytest.raises(InputError, match=r"cars\.txt: lists no car"):
        read_cars(path)
    with pytest.raises(InputError, match=r"absent\.txt: cannot be read"):
        read_cars(tmp_path / "absent.txt")


@pytest.mark.parametrize("as_zip", [False, True])
def test_photos(tmp_path, as_zip):
    write_data(tmp_path)
    if as_zip:
        zipped(tmp_path, "train")
        zipped(tmp_path, "train_masks")
    photos = open_train(tmp_path)
    assert photos.image_ids == ["a_01", "a_02", "b_01", "b_02"]
    assert photos.cars == ["a", "b"]
    assert photos.name("a_01") == "a_01.jpg"
    assert photos.image("a_01").shape == (*SIZE, 3)
    assert (photos.mask("a_01") == CAR).all()
    assert photos.check() is None
    assert pickle.loads(pickle.dumps(photos)).image_ids == photos.image_ids


def test_fitted_photos_report_the_photos_own_size(tmp_path):
    photos = open_train(write_data(tmp_path))
    whole, half = photos.image("a_01"), decode_image(photo(), "x", (20, 30))
    for fits, pixels in (
        ([Fit((10, 15)), Fit((20, 30))], (half, half)),
        ([Fit((10, 15)), Fit((21, 30))], (half, whole)),
        ([Fit((40, 64), "pad"), Fit((10, 15))], (whole, half)),
        ([Fit((80, 120))], (whole,)),
    ):
        images, size = photos.fitted("a_01", fits)
        assert size == SIZE
        assert all(np.array_equal(i, fit.image(p)) for i, fit, p in zip(images, fits, pixels, strict=True))
    with pytest.raises(InputError, match=r"train/c_01\.jpg: no such photo"):
        photos.fitted("c_01", [Fit((10, 15))])


def test_select(tmp_path):
    cars_file = tmp_path / "cars.txt"
    cars_file.write_text("b\n")
    photos = open_train(write_data(tmp_path, cars="abcdefgh"), cars_file)
    assert photos.image_ids == ["b_01", "b_02"]
    with pytest.raises(InputError, match=r"train: no photo of x, y; check"):
        photos.select(["b", "y", "x"])
    with pytest.raises(InputError, match=r"no photo of a, c, d, e, f and 2 more"):
        photos.select("abcdefgh")
    (tmp_path / "train_masks" / "a_01_mask.gif").unlink()
    (tmp_path / "train" / "c_01.jpg").write_bytes(b"")
    assert photos.select("b").check() is None  # what is wrong with other cars does not matter


def test_photos_of_other_kinds(tmp_path):
    write_data(tmp_path, cars="a")
    (tmp_path / "train" / "b_01.png").write_bytes(photo(suffix="png"))
    (tmp_path / "train" / "c_01.jpeg").write_bytes(photo())
    for car in "bc":
        (tmp_path / "train_masks" / f"{car}_01_mask.png").write_bytes(mask(suffix="png"))
    photos = open_train(tmp_path)
    assert [photos.name(image_id) for image_id in photos.image_ids[2:]] == ["b_01.png", "c_01.jpeg"]
    assert (photos.mask("b_01") == CAR).all()
    assert photos.check() is None


def test_what_is_not_there_is_named(tmp_path):
    photos = open_train(write_data(tmp_path))
    with pytest.raises(InputError, match=r"train/c_01\.jpg: no such photo"):
        photos.image("c_01")
    (tmp_path / "train_masks" / "a_01_mask.gif").unlink()
    with pytest.raises(InputError, match=r"train_masks/a_01_mask\.gif: missing"):
        open_train(tmp_path).mask("a_01")
    with pytest.raises(InputError, match=r"opened without masks"):
        open_test(tmp_path, "train").mask("a_01")


def test_a_part_without_photos_is_refused(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "readme.txt").write_text("")
    with pytest.raises(InputError, match=r"test: no photo named <car>_<angle>\.jpg"):
        open_test(tmp_path)


def test_check_lists_all_faults_together(tmp_path):
    write_data(tmp_path, "abcdef", angles=[1])
    train, masks = tmp_path / "train", tmp_path / "train_masks"
    (masks / "a_01_mask.gif").unlink()
    (masks / "b_01_mask.gif").write_bytes(mask(CAR.T))
    (masks / "c_01_mask.gif").write_bytes(mask()[:60])
    (train / "d_01.jpg").write_bytes(photo()[:-500])
    (train / "e_01.jpg").write_bytes(b"no photo")
    (train / "more").mkdir()
    (train / "more" / "f_01.jpg").write_bytes(photo())
    (train / "f_01.png").write_bytes(photo(suffix="png"))
    (train / "IMG1234.jpg").write_bytes(photo())
    (masks / "g_01_mask.gif").write_bytes(mask())
    (masks / "a_02.gif").write_bytes(mask())
    faults = faults_of(open_train(tmp_path))
    expected = [
        "train/IMG1234.jpg: not named <car>_<angle>.jpg",
        "train/f_01.jpg: there is another file for f_01",
        "train_masks/a_02.gif: not named <car>_<angle>_mask.gif",
        "train_masks/g_01_mask.gif: mask without a photo",
        "train_masks/a_01_mask.gif: missing, the mask of a_01.jpg",
        "train_masks/b_01_mask.gif: (height, width) is (60, 40), its photo's is (40, 60)",
        "train_masks/c_01_mask.gif: unreadable (image file is truncated",
        "train/d_01.jpg: truncated; download it again",
        "train/e_01.jpg: not a JPEG or PNG file; download it again",
    ]
    assert len(faults) == len(expected)
    for fault, words in zip(faults, expected, strict=True):
        assert fault.startswith(f"{tmp_path}/{words}")


def test_check_names_faults_inside_a_zip(tmp_path):
    train = write_data(tmp_path) / "train"
    (train / "a_01.jpg").write_bytes(photo()[:-500])
    with pytest.warns(UserWarning, match="Duplicate"):
        zipped(tmp_path, "train", lambda file: file.writestr("train/b_01.jpg", photo()))
    faults = faults_of(open_train(tmp_path))
    assert len(faults) == 2
    assert faults[0].startswith(f"{tmp_path}/train.zip/train/b_01.jpg: there is another file")
    assert faults[1].startswith(f"{tmp_path}/train.zip/train/a_01.jpg: truncated")


def test_check_sees_a_photo_whose_end_was_never_written(tmp_path):
    train = write_data(tmp_path) / "train"
    data = photo(np.tile(NOISE, (4, 4, 1)))
    (train / "a_01.jpg").write_bytes(data[: len(data) // 2] + bytes(len(data) // 2))
    assert faults_of(open_test(tmp_path, "train")) == [f"{train}/a_01.jpg: truncated; download it again"]


def test_check_without_masks_looks_for_none(tmp_path):
    write_data(tmp_path)
    assert open_test(tmp_path, "train").check() is None


def test_check_lists_fifty_faults_and_counts_the_rest(tmp_path):
    write_data(tmp_path, cars="abcd", angles=range(1, 17))
    for path in (tmp_path / "train").glob("[bcd]*"):
        path.write_bytes(b"")
    assert len(faults_of(open_train(tmp_path))) == 48
    for index in range(5):
        (tmp_path / "train_masks" / f"odd{index}.gif").write_bytes(b"")
    faults = faults_of(open_train(tmp_path))
    assert len(faults) == 51
    assert faults[-1] == "... and 3 more"


def test_the_real_photos_have_no_faults(carvana_data):
    photos = open_train(carvana_data)
    photos.select(photos.cars[:10]).check()
    assert photos.image(photos.image_ids[0]).shape == (1280, 1918, 3)
