"""What people's cameras and programs leave in a folder: each kind is read right, or named with its remedy."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageCms

from carvana.data.own_photos import MAKER, find_photos, maker_of, read_photo, write_png
from carvana.errors import InputError

RED_BLUE = np.repeat(np.array([[[200, 40, 30], [20, 40, 190]]], np.uint8), 8, 0).repeat(8, 1)  # left and right
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


KINDS = {
    "jpeg.jfif": (Image.fromarray(RED_BLUE), {"format": "JPEG", "quality": 95, "subsampling": 0}),
    "no_ending": (Image.fromarray(RED_BLUE), {"format": "PNG"}),
    "cmyk.jpg": (Image.fromarray(RED_BLUE).convert("CMYK"), {"quality": 95}),
    "palette.gif": (Image.fromarray(RED_BLUE).quantize(2), {}),
    "turned.jpg": (Image.fromarray(np.rot90(RED_BLUE)), {"exif": turned(6), "quality": 95, "subsampling": 0}),
    "turned.png": (Image.fromarray(RED_BLUE[:, ::-1]), {"exif": turned(2)}),
    "turned.tif": (Image.fromarray(RED_BLUE[:, ::-1]), {"exif": turned(2)}),
    "photo.avif": (Image.fromarray(RED_BLUE), {"quality": 95, "subsampling": "4:4:4"}),
    "photo.heic": (Image.fromarray(RED_BLUE), {"quality": 95, "chroma": 444}),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_gives_the_same_picture(name, tmp_path):
    picture, options = KINDS[name]
    if name.endswith("heic"):
        pytest.importorskip("pillow_heif").register_heif_opener()
    picture.save(tmp_path / name, **options)
    (path,) = find_photos(tmp_path, tmp_path / "cut")
    image, alpha, profile = read_photo(path)
    assert (image.shape, image.dtype, alpha, profile) == (RED_BLUE.shape, np.uint8, None, None)
    assert np.abs(image.astype(int) - RED_BLUE).mean() < 6


@pytest.mark.parametrize("stored", [np.uint16([[0, 256 * 100, 65535]]), np.uint8([[0, 100, 255]])])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_greys_of_8_and_16_bits_are_alike(stored, suffix, tmp_path):
    Image.fromarray(stored).save(tmp_path / f"grey.{suffix}")
    assert read_photo(tmp_path / f"grey.{suffix}").image.tolist() == [[[0] * 3, [100] * 3, [255] * 3]]


def test_greys_of_12_bits_in_a_tiff_are_as_bright(tmp_path):
    """Two pixels in three bytes, 0 and 4095, then 1616 and 0; Pillow cannot write them."""
    pixels, tags = bytes.fromhex("000fff 650000"), {256: 4, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 279: 6}
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    (tmp_path / "x.tif").write_bytes(b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory)
    assert read_photo(tmp_path / "x.tif").image[0, :, 0].tolist() == [0, 255, 101, 0]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_hidden_colours_are_seen_as_white(mode, tmp_path):
    alpha = np.where(np.arange(16) < 8, 255, 0).astype(np.uint8) * np.ones((8, 1), np.uint8)
    picture = Image.fromarray(np.dstack([RED_BLUE, alpha])).convert(mode)
    picture.save(tmp_path / "hidden.png")
    photo = read_photo(tmp_path / "hidden.png")
    assert (photo.alpha == alpha).all()
    assert (photo.over_white()[:, 8:] == 255).all()
    assert (photo.over_white()[:, :8] < 255).any()


def test_a_profile_is_kept_if_it_is_of_rgb(tmp_path):
    broken = b"x" * 16 + b"GRAY" + b"x" * 200
    for name, profile, kept in (("rgb.jpg", SRGB, SRGB), ("grey.jpg", broken, None), ("none.jpg", None, None)):
        Image.fromarray(RED_BLUE).save(tmp_path / name, icc_profile=profile)
        assert read_photo(tmp_path / name).profile == kept
    write_png(tmp_path / "cut.png", RED_BLUE, MAKER, SRGB)
    assert read_photo(tmp_path / "cut.png").profile == SRGB


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")
    packed = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_what_cannot_be_read_is_named_with_reason_and_remedy(tmp_path):
    cut = BytesIO()
    Image.fromarray(RED_BLUE.repeat(20, 0)).save(cut, "JPEG")
    for name, content, words in [
        ("huge.png", png_header(60000, 60000), r"60000 x 60000 pixels, too many; make it smaller"),
        ("stripe.png", png_header(200_000, 1), r"200000 x 1 pixels, too many"),
        ("raw.NEF", b"II*\0", "raw file; export it as JPEG"),
        ("phone.heic", b"\0\0\0\x18ftypheic" + bytes(70), "; (pip install pillow-heif, or )?.*save it as JPEG"),
        ("photo.avif", b"\0\0\0\x18ftypavif" + bytes(70), "; save it as JPEG or PNG"),
        ("half.jpg", cut.getvalue()[:-200], "unreadable .*; copy it again"),
        ("text.jpg", b"no picture", "not a picture"),
        ("empty.png", b"", "not a picture"),
    ]:
        (tmp_path / name).write_bytes(content)
        assert list(find_photos(tmp_path, tmp_path)) == [tmp_path / name]
        with pytest.raises(InputError, match=rf"{name}: .*{words}"):
            read_photo(tmp_path / name)
        (tmp_path / name).unlink()


def test_photos_are_found_and_nothing_else(tmp_path):
    for name in ("a.jpg", "b.PNG", "._a.jpg", ".a_mask.png.7.tmp"):
        Image.fromarray(RED_BLUE).save(tmp_path / name, "PNG")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder.jpg").mkdir()
    write_png(tmp_path / "a_mask.png", RED_BLUE, f"{MAKER}: as before")
    for name in ("A.CR2", "b.dng", "raw.nef"):  # as cameras write pairs, and a raw file alone
        (tmp_path / name).write_bytes(b"II*\0")
    assert [path.name for path in find_photos(tmp_path, tmp_path)] == ["a.jpg", "b.PNG", "raw.nef"]
    assert maker_of(tmp_path / "a_mask.png") == f"{MAKER}: as before"
    assert maker_of(tmp_path / "a.jpg") is maker_of(tmp_path / "no.png") is None


@pytest.mark.parametrize(("names", "words"), [
    (["a.jpg", "a.png"], "several pictures of one name, a.jpg, a.png"),
    (["A.jpg", "a.png"], "several pictures of one name"),
    (["a.jpg", "a_mask.png"], "a_mask.png: a photo that a mask would replace"),
    ([], "holds no picture"),
])  # fmt: skip
def test_folders_that_are_refused(names, words, tmp_path):
    for name in names:
        Image.fromarray(RED_BLUE).save(tmp_path / name)
    with pytest.raises(InputError, match=words):
        find_photos(tmp_path, tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        find_photos(tmp_path / "no", tmp_path)
