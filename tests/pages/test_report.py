"""The report of an evaluated experiment, in a real browser."""

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from browser import NEEDS_BROWSER, browser
from conftest import TINY, run_script

from carvana.config import parse_config
from carvana.data.folds import folds_digest, read_folds
from carvana.data.images import Photos, angle_of, car_of, open_test, open_train
from carvana.data.labels import Label, read_labels, write_labels
from carvana.data.loader import Loading
from carvana.data.rle import rle_encode
from carvana.device import Device
from carvana.errors import InputError
from carvana.evaluation.metrics import errors_beyond
from carvana.evaluation.oof import Oof, Unseen
from carvana.evaluation.summary import write_oof
from carvana.log import write_records
from carvana.models import build_model
from carvana.models.checkpoint import save_checkpoint
from carvana.pages.labelled import draw_label, read_labelled
from carvana.pages.pictures import BLUE, RED
from carvana.pages.report import read_choice
from carvana.pages.studios import find_studios
from carvana.pages.survey import BANDS, survey
from carvana.prediction.ensemble import Choice, write_ensemble

DATA = re.compile('(?<=id="data">).*?(?=</script>)', re.DOTALL)  # of a page, as JSON


def oof_of(photos: Photos, fold_of: pd.Series, shift: int) -> Oof:
    """What a network leaves that sees every car some pixels further to the right, and more so in each angle."""
    rows, curves, masks = [], [], []
    for image_id in photos.image_ids:
        mask, car = photos.mask(image_id), car_of(image_id)
        predicted = np.roll(mask, shift + angle_of(image_id) // 8, axis=1)
        row = {"image_id": image_id, "car": car, "angle": angle_of(image_id), "fold": fold_of.get(car)}
        rows.append(row | errors_beyond(predicted, mask))
        curves.append(np.full(99, (mask & predicted).sum() / mask.sum()))
        masks.append(rle_encode(predicted))
    return Oof(pd.DataFrame(rows), np.stack(curves), masks)


@pytest.fixture(scope="module")
def runs(demo, tmp_path_factory) -> Path:
    """Two experiments, `near` and `far`, as train.py and evaluate.py leave them."""
    root = tmp_path_factory.mktemp("runs")
    folds, photos = read_folds(demo / "folds.csv"), open_train(demo / "input")
    for name, shift, lr in (("near", 1, 1e-3), ("far", 3, 2e-3)):
        config = parse_config(TINY | {"name": name, "optim": {"lr": lr}}, name)
        paths = [root / name / f"fold{fold}" / "best.safetensors" for fold in (0, 1)]
        for fold, path in enumerate(paths):
            save_checkpoint(path, build_model(config.model), config, fold, 1, 0.5, folds_digest(folds), [])
            write_records(path.with_name("log.jsonl"), [{"epoch": e, "loss": 1 / e, "dice": e / 3} for e in (1, 2)])
        if name == "near":
            shutil.copytree(paths[0].parent, root / name / "none")
        checkpoints = {fold: {name: path} for fold, path in enumerate(paths)}
        unseen = Unseen(checkpoints, photos, folds, Device(torch.device("cpu")), Loading())
        write_oof(root / name, oof_of(photos, folds.set_index("car")["fold"], shift), unseen, ["identity", "hflip"])
    return root


@pytest.fixture(scope="module")
def labels(demo, tmp_path_factory) -> Path:
    """Of the 16 test photos, less sure from one to the next; on the first one the networks do not agree."""
    disputed, path = np.zeros((96, 144), bool), tmp_path_factory.mktemp("labels") / "labels.csv.gz"
    disputed[40:50, 60:70] = True
    photos, box = open_test(demo / "input"), rle_encode(cv2.dilate(disputed.view(np.uint8), np.ones((9, 9))) > 0)
    write_labels(path, (
        Label(photos.name(image_id), box, 1 - place / 1000, 0.999, "" if place else rle_encode(disputed))
        for place, image_id in enumerate(photos.image_ids)
    ))  # fmt: skip
    return path


@pytest.fixture(scope="module")
def report(demo, runs, labels) -> Path:
    submitted = [({"near": 1}, 0.98765, 0.98764), ({"near": 0.5, "far": 0.5}, 0.9, None), ({"near": 1}, 0.98765, None)]
    keys = ("experiments", "public", "private")
    write_records(runs / "log.jsonl", [dict(zip(keys, values, strict=True)) for values in submitted])
    options = ["--input", demo / "input", "--runs", runs, "--journal", runs / "log.jsonl", "--worst", 8, "--sample", 4]
    run_script("report.py", "near", "far", *options, "--labels", labels)
    return runs / "near" / "report.html"


@pytest.fixture(scope="module")
def open_page():
    """Opens a report and waits until its script has filled it."""
    with browser() as open_any:

        def open_it(path: Path, *options):
            page = open_any(path, *options)
            page.wait_for_selector("#table tbody tr")
            return page

        yield open_it


def test_wrong_pixels_are_counted_by_kind_distance_and_angle(demo):
    photos = open_train(demo / "input")
    oof = oof_of(photos.select(photos.cars[:1]), pd.Series(), 2)
    overview = survey(photos, Oof(oof.table[:1], oof.curves[:1], oof.masks[:1]))
    (row,), mask = overview.table.itertuples(), photos.mask(oof.table["image_id"][0])
    predicted = np.roll(mask, 2, axis=1)
    assert (row.extra, row.missed) == ((predicted & ~mask).sum(), (mask & ~predicted).sum())
    assert row.area == pytest.approx(mask.mean())
    assert row.red == pytest.approx(photos.image(row.image_id)[mask][:, 0].mean())
    assert overview.bands.sum() == overview.bands[: BANDS.index(2) + 1].sum() == row.extra + row.missed


def test_the_page_needs_nothing_from_elsewhere_compares_experiments_and_shows_the_worst_photos(report):
    text, summary = report.read_text(), json.loads((report.parent / "oof.json").read_text())
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)|@import|url\((?!#)""", text)
    rows = [re.sub(r"<[^>]*>|\s+", " ", row) for row in re.findall(r"<tr><th scope=\"row\">.*?</tr>", text, re.DOTALL)]
    near, far = (next(row for row in rows if row.split()[0] == name) for name in ("near", "far"))
    assert near.split()[1] == f"{summary['dice']:.5f}"
    assert re.findall(r"<p>\S+/(\w+)/none: trained on all cars, so it has no out-of-fold score", text) == ["near"]
    assert re.search(r"0\.98765, 0\.98765 +0\.98764 *$", near)
    assert re.search(r"-0\.0\d+ \(-0\.0\d+ to -0\.0\d+\), 0 cars gain and 4 lose \(sign test p = 0\.125\): worse", far)
    assert "optim.lr: 0.001 -&gt; 0.002" in text
    data = json.loads(DATA.search(text)[0])
    places, shown = np.argsort(data["columns"]["dice"], kind="stable"), [picture["row"] for picture in data["pictures"]]
    assert shown == places[[*range(8), 8, 26, 45, 63]].tolist()  # the worst, and evenly the others


def test_dice_by_studio_and_how_sure_labels_are(demo, report, runs):
    text, table, photos = report.read_text(), pd.read_csv(runs / "near" / "oof.csv"), open_test(demo / "input")
    studios = find_studios([open_train(demo / "input"), photos])
    dice = table.groupby(table["car"].map(studios), observed=True)["dice"].agg(["size", "mean"])
    cars = [f"{row.Index}, {row.size // 16} cars: {row.mean:.5f}" for row in dice.itertuples(name="Row")]
    assert f'aria-label="Dice by studio: {"; ".join(cars)}"' in text
    section, studio = text[text.index("<h2>Labels") : text.index("<h2>Training")], studios[photos.cars[0]]
    section = re.sub(r"(<[^>]*>|\s)+", " ", section)
    assert (
        "16 photos of 1 cars, labelled by networks. Expected Dice 0.99250, agreement 0.99900; 5 are unsure" in section
    )
    assert " 16 1 1 1 0.98500 0.99900 studio " in section  # the last angle
    assert f" {studio} 1 16 5 0.99250 0.99900 " in section
    shown = re.findall(rf"_(\d\d)\.jpg, {studio}: expected Dice (\S+), agreement 0\.99900", section)
    assert shown == [(f"{place + 1:02d}", f"{1 - place / 1000:.5f}") for place in range(15, 7, -1)]
    run_script("report.py", "far", "--input", demo / "input", "--runs", runs, "--worst", 1, "--sample", 0)
    assert "<h2>Labels" not in (runs / "far" / "report.html").read_text()


def test_a_label_is_drawn_with_what_is_disputed_beside_it(demo, labels, tmp_path):
    photos, (disputed, agreed) = open_test(demo / "input"), list(read_labels(labels))[:2]
    labelled = read_labelled(labels, photos, 1)
    assert (labelled.least_sure[0].expected_dice, labelled.table["unsure"].sum()) == (0.985, 5)
    picture = draw_label(labelled, disputed)
    assert picture.shape == (320, 480 + 2 * 320, 3)
    plain, marked = picture[:, 480:800].reshape(-1, 3), picture[:, 800:].reshape(-1, 3)
    assert [(side == RED).all(axis=1).sum() for side in (plain, marked)] == [0, 100]
    assert (marked == BLUE).all(axis=1).any()
    assert draw_label(labelled, agreed).shape == (320, 480, 3)
    for label, words in ((disputed._replace(rle_mask="13825 1"), "past the last pixel"), (None, "holds no label")):
        write_labels(path := tmp_path / "x.csv", [label] if label else [])
        with pytest.raises(InputError, match=words):
            draw_label(read_labelled(path, photos, 1), label)


def test_the_worst_photos_are_drawn_with_their_errors(demo, runs):
    result = run_script("draw.py", "worst", "near", "--runs", runs, "--input", demo / "input", "--count", 3)
    assert result.stdout == f"{runs / 'near' / 'worst.jpg'}: the 3 worst of 64 photos\n"
    assert cv2.imread(str(runs / "near" / "worst.jpg")).shape == (3 * (320 + 24), 480 + 2 * 320, 3)


def test_an_ensemble_whose_networks_are_others_now_is_not_shown(runs, tmp_path, capsys):
    assert read_choice(tmp_path) is None
    choice, paths = Choice(experiments={"near": 1.0}), {0: {"near": runs / "near" / "fold0" / "best.safetensors"}}
    write_ensemble(tmp_path / "ensemble.json", choice, paths, {"dice": 0.9})
    assert read_choice(tmp_path) is None
    assert "note: not shown: " in capsys.readouterr().err
    shutil.copytree(runs / "near", tmp_path / "near")
    assert read_choice(tmp_path) == choice


def test_an_experiment_without_evaluation_and_photos_that_are_gone_are_named(demo, runs, labels, tmp_path):
    shutil.copytree(runs / "near", tmp_path / "bare")
    (tmp_path / "bare" / "oof_masks.csv.gz").unlink()
    for part, name in (("train", "other_01.jpg"), ("train_masks", "other_01_mask.gif")):
        (tmp_path / part).mkdir()
        shutil.copy(next((demo / "input" / part).iterdir()), tmp_path / part / name)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "test").symlink_to(tmp_path / "train")
    for command, root, words in [
        ("report.py bare", tmp_path, r"oof_masks\.csv\.gz.*run src/evaluate\.py bare first"),
        ("report.py near", runs, r"oof\.csv: \w+_01 is not among the photos"),
        (f"report.py near --labels {labels} --labels-input {tmp_path / 'other'}", runs, r"other/test: lacks \w+_01, "),
        ("draw.py worst near", runs, "none of its photos is in"),
    ]:
        options = ["--input", tmp_path, "--runs", root, "--output", tmp_path / "page.html"]
        result = run_script(*command.split(), *options, check=False)
        assert (result.returncode, bool(re.search(words, result.stderr))) == (2, True), result.stderr
    assert not (tmp_path / "page.html").exists()


@NEEDS_BROWSER
@pytest.mark.parametrize(("width", "scheme", "paper"), [(1280, "light", [255, 255, 255]), (390, "dark", [15, 19, 24])])
def test_it_fits_a_laptop_and_a_phone_and_is_known_to_screen_readers(open_page, report, width, scheme, paper):
    page = open_page(report, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)") == paper
    labels = page.evaluate("[...document.querySelectorAll('svg')].map((svg) => svg.getAttribute('aria-label'))")
    texts = page.evaluate("[...document.images].map((image) => image.alt)")
    assert (len(labels), len(texts)) == (10, 12 + 1 + 8)  # the charts; the photos, the studio, the least sure labels
    assert all(labels + texts)


@NEEDS_BROWSER
def test_5120_photos_are_filtered_and_sorted(open_page, report, tmp_path):
    data = json.loads(DATA.search(report.read_text())[0])
    columns = data["columns"] = {name: 80 * values for name, values in data["columns"].items()}
    (tmp_path / "large.html").write_text(DATA.sub(lambda _: json.dumps(data), report.read_text()))
    page = open_page(tmp_path / "large.html")
    dice, status = page.locator("#table tbody tr td:nth-child(4)"), page.get_by_role("status")
    worst = dice.all_inner_texts()
    assert (len(worst), worst) == (100, sorted(worst))
    page.locator("th[data-key=dice] button").press("Enter")
    page.wait_for_selector("th[data-key=dice][aria-sort=descending]")
    assert dice.first.inner_text() == f"{max(columns['dice']):.5f}"
    page.locator("#angle").select_option("3")
    status.get_by_text("100 of 320 photos").wait_for()
    page.locator("#more").press("Enter")
    page.locator("#table tbody tr:nth-child(200)").wait_for()
    page.locator("#fold").select_option("1")
    status.get_by_text("100 of 160 photos").wait_for()
    page.locator("#car").fill("no such car")
    status.get_by_text("0 of 0 photos, 0 with a picture").wait_for()


COUNT_RED = """(() => { const c = document.querySelector('canvas'); let red = 0;
    const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
    for (let i = 0; i < d.length; i += 4) red += d[i] === 255 && d[i + 1] === 30 && d[i + 2] === 30;
    return [c.width, c.height, red]; })()"""


@NEEDS_BROWSER
def test_a_photo_is_looked_at_by_keyboard(open_page, report):
    page = open_page(report)
    page.locator(".tile").first.focus()
    page.keyboard.press("Enter")
    canvas = page.wait_for_selector("canvas[data-drawn$='errors whole']")
    first = canvas.get_attribute("data-drawn").split()[0]
    extra = page.locator("#table tbody tr").first.locator("td").nth(4).inner_text()
    assert page.evaluate(COUNT_RED) == [144, 96, int(extra)]
    keys = {"2": "photo whole", "3": "truth whole", "4": "prediction whole", "z": "prediction worst"}
    for key, drawn in keys.items():
        page.keyboard.press(key)
        page.wait_for_selector(f"canvas[data-drawn='{first} {drawn}']")
    assert "worst place" in canvas.get_attribute("aria-label")
    page.keyboard.press("ArrowRight")
    page.wait_for_function(f"!document.querySelector('canvas').dataset.drawn.startsWith('{first}')")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector(f"canvas[data-drawn^='{first}']").click()
    page.wait_for_selector("canvas[data-drawn$='prediction whole']").click()
    assert canvas.get_attribute("class") == "full"
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
