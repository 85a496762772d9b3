"""The report of an evaluated experiment, in a real browser: Debian's Chromium, without a network."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, run_script

from carvana.checkpoint import load_checkpoint, save_checkpoint
from carvana.config import parse_config
from carvana.folds import folds_digest, read_folds
from carvana.images import angle_of, car_of, open_train
from carvana.journal import HEADER
from carvana.log import write_records
from carvana.metrics import dice_curve
from carvana.models import build_model
from carvana.oof import Found, write_oof
from carvana.report import choose
from carvana.rle import rle_encode
from carvana.survey import BANDS, pixels_from_contour, survey

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEEDS_BROWSER = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt install chromium")
VIEWS = ["identity", "hflip"]


def find(photos, fold_of, moved: int) -> Found:
    """What a network would have left that sees every car some pixels further to the right, and more so each angle."""
    rows, curves, masks = [], [], []
    for image_id in photos.image_ids:
        mask = photos.mask(image_id)
        predicted = np.roll(mask, moved + angle_of(image_id) // 8, axis=1)
        car = car_of(image_id)
        rows.append((image_id, car, angle_of(image_id), fold_of[car]))
        curves.append(dice_curve(torch.from_numpy(0.98 * predicted), torch.from_numpy(mask)).numpy())
        masks.append(rle_encode(predicted))
    return Found(pd.DataFrame(rows, columns=["image_id", "car", "angle", "fold"]), np.stack(curves), masks)


@pytest.fixture(scope="module")
def runs(demo, tmp_path_factory) -> Path:
    """Two experiments, `near` and `far`, as train.py and evaluate.py leave them."""
    root = tmp_path_factory.mktemp("runs")
    folds, photos = read_folds(demo / "folds.csv"), open_train(demo / "input")
    fold_of = dict(zip(folds["car"], folds["fold"], strict=True))
    for name, moved, lr in (("near", 1, 1e-3), ("far", 3, 2e-3)):
        config = parse_config(TINY | {"name": name, "optim": {"lr": lr}}, name)
        paths = [root / name / f"fold{fold}" / "best.safetensors" for fold in (0, 1)]
        for fold, path in enumerate(paths):
            save_checkpoint(path, build_model(config.model), config, fold, 1, 0.5, folds_digest(folds))
            records = [{"epoch": epoch, "loss": 1 / epoch, "dice": 1 - 0.1 / epoch} for epoch in (1, 2)]
            write_records(path.with_name("log.jsonl"), records)
        found = find(photos, fold_of, moved)
        write_oof(root / name, found, [load_checkpoint(path) for path in paths], folds, VIEWS)
    return root


@pytest.fixture(scope="module")
def report(demo, runs) -> Path:
    journal = runs / "journal.md"
    row = ["near.csv", "near", "0 1", "identity + hflip", "0.5", "", "0.98765", "0.98764", "c0ffee", ""]
    journal.write_text("\n".join([*HEADER, "| " + " | ".join(row) + " |"]) + "\n")
    options = ["--input", demo / "input", "--runs", runs, "--journal", journal, "--worst", 8, "--sample", 4]
    run_script("report.py", "near", "far", *options)
    return runs / "near" / "report.html"


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def open_page(browser, path: Path, width: int = 1280, scheme: str = "light"):
    """The page from disk with the network off, and what its console complains of, a list that grows."""
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_selector("#table tbody tr")
    return page, complaints


def test_wrong_pixels_are_told_by_kind_distance_and_angle(demo):
    photos = open_train(demo / "input")
    table = pd.DataFrame([(photos.image_ids[0], "a", 1, 0)], columns=["image_id", "car", "angle", "fold"])
    mask = photos.mask(photos.image_ids[0])
    predicted = np.roll(mask, 2, axis=1)
    seen = survey(photos, Found(table, np.ones((1, 99)), [rle_encode(predicted)]))
    (row,) = seen.table.itertuples()
    assert (row.extra, row.missed) == ((predicted & ~mask).sum(), (mask & ~predicted).sum())
    assert row.area == pytest.approx(mask.mean())
    assert photos.image(photos.image_ids[0])[mask][:, 0].mean() == pytest.approx(row.red)
    assert seen.bands.sum() == row.extra + row.missed
    assert seen.bands[BANDS.index(2) + 1 :].sum() == 0  # moved by two pixels, none is further away
    assert list(seen.maps) == [1]


def test_distance_is_one_beside_the_contour():
    mask = np.zeros((9, 12), bool)
    mask[:, 6:] = True
    assert pixels_from_contour(mask)[4].tolist() == pytest.approx([6, 5, 4, 3, 2, 1, 1, 2, 3, 4, 5, 6], rel=0.02)


def test_the_worst_are_chosen_and_an_even_sample_of_the_others():
    table = pd.DataFrame({"image_id": [f"p{n}" for n in range(10)], "dice": np.linspace(1, 0.1, 10)})
    assert choose(table, worst=3, sample=3) == ["p9", "p8", "p7", "p6", "p3", "p0"]
    assert len(choose(table, worst=20, sample=5)) == 10


def test_the_page_needs_nothing_from_elsewhere(report):
    text = report.read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", text)
    assert not re.findall(r"@import|url\((?!#)", text)
    told = json.loads((report.parent / "oof.json").read_text())
    for expected in (f"{told['dice']:.5f}", "0.98765", "0.98764", "optim.lr: 0.001 -&gt; 0.002", ": worse"):
        assert expected in text


def test_the_script_says_which_experiment_is_better(runs):
    told = run_script("compare.py", "near", "far", "--runs", runs).stdout.splitlines()
    assert told[-1] == "far against near: worse"
    assert "on 64 photos of 4 cars: -0.0" in told[2]
    assert "0 cars gain, 4 lose; sign test p = 0.125" in told[4]


def test_an_experiment_without_evaluation_and_photos_that_are_gone_are_named(demo, runs, tmp_path):
    shutil.copytree(runs / "near", tmp_path / "near")
    (tmp_path / "near" / "oof_masks.csv.gz").unlink()
    options = ["--runs", tmp_path, "--output", tmp_path / "page.html"]
    refused = run_script("report.py", "near", "--input", demo / "input", *options, check=False)
    assert refused.returncode == 2
    assert "oof_masks.csv.gz" in refused.stderr
    assert "run src/evaluate.py near first" in refused.stderr
    other = tmp_path / "input"
    for part in ("train", "train_masks"):
        shutil.copytree(demo / "input" / part, other / part)
    for file in other.rglob("*_16*"):
        os.remove(file)
    refused = run_script("report.py", "near", "--input", other, "--runs", runs, *options[2:], check=False)
    assert "is not among the photos" in refused.stderr
    assert not (tmp_path / "page.html").exists()


@NEEDS_BROWSER
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_it_is_read_without_a_complaint_on_a_laptop_and_a_phone(browser, report, tmp_path, width, scheme):
    page, complaints = open_page(browser, report, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    assert page.evaluate("[...document.images].every((image) => image.alt)")
    assert page.evaluate("[...document.querySelectorAll('svg')].every((svg) => svg.getAttribute('aria-label'))")
    picture = page.screenshot(path=tmp_path / "page.png")
    assert len(picture) > 10_000
    assert complaints == []


@NEEDS_BROWSER
def test_photos_are_filtered_and_sorted(browser, report):
    page, complaints = open_page(browser, report)
    rows = page.locator("#table tbody tr")
    assert rows.count() == 64
    dice = [float(text) for text in page.locator("#table tbody tr td:nth-child(4)").all_inner_texts()]
    assert dice == sorted(dice)
    page.get_by_role("button", name="Dice", exact=True).click()
    assert page.locator("th[data-key=dice]").get_attribute("aria-sort") == "descending"
    assert float(rows.first.locator("td").nth(3).inner_text()) == max(dice)
    page.locator("#angle").select_option("3")
    assert rows.count() == 4
    page.locator("#fold").select_option("1")
    assert rows.count() == 2
    page.locator("#car").fill("no such car")
    assert rows.count() == 0
    assert page.get_by_role("status").inner_text() == "0 of 0 photos, 0 with a picture"
    assert complaints == []


@NEEDS_BROWSER
def test_a_photo_is_looked_at_by_keyboard(browser, demo, report):
    page, complaints = open_page(browser, report)
    page.locator(".tile").first.focus()
    page.keyboard.press("Enter")

    def drawn(ending: str):
        page.wait_for_selector(f"canvas[data-drawn$='{ending}']")
        return page.locator("canvas")

    first = drawn("errors whole").get_attribute("data-drawn").split()[0]
    mask = open_train(demo / "input").mask(first)
    shown = "(() => { const c = document.querySelector('canvas'); return [c.width, c.height]; })()"
    assert page.evaluate(shown) == [mask.shape[1], mask.shape[0]]
    red = """(() => { const c = document.querySelector('canvas'); let red = 0;
        const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        for (let i = 0; i < d.length; i += 4) red += d[i] === 255 && d[i + 1] === 30 && d[i + 2] === 30;
        return red; })()"""
    extra = page.locator("#table tbody tr").first.locator("td").nth(4).inner_text()
    assert page.evaluate(red) == int(extra)
    for key, layer in (("2", "photo"), ("3", "truth"), ("4", "prediction"), ("1", "errors")):
        page.keyboard.press(key)
        drawn(f"{layer} whole")
    page.keyboard.press("z")
    drawn("errors worst")
    assert "worst place" in page.locator("canvas").get_attribute("aria-label")
    page.keyboard.press("ArrowRight")
    page.wait_for_function(f"!document.querySelector('canvas').dataset.drawn.startsWith('{first}')")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector(f"canvas[data-drawn^='{first}']")
    page.locator("canvas").click()
    drawn("errors whole").click()
    assert page.locator("canvas").get_attribute("class") == "full"
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    assert complaints == []


@NEEDS_BROWSER
def test_5088_photos_are_filtered_without_a_pause(browser, report, tmp_path):
    head, start, rest = report.read_text().partition('<script type="application/json" id="data">')
    text, end, tail = rest.partition("</script>")
    data = json.loads(text)
    copies = np.arange(5088) % len(data["columns"]["car"])
    columns = {name: [values[place] for place in copies] for name, values in data["columns"].items()}
    columns["car"] = [f"{place // 16:012x}" for place in range(5088)]
    large = tmp_path / "large.html"
    large.write_text(head + start + json.dumps(data | {"columns": columns}) + end + tail)
    page, complaints = open_page(browser, large)
    timed = """(() => { const angle = document.getElementById('angle'); const started = performance.now();
        angle.value = '7'; angle.dispatchEvent(new Event('input')); document.body.offsetHeight;
        return performance.now() - started; })()"""
    assert page.evaluate(timed) < 100  # milliseconds
    assert page.locator("#count").inner_text().startswith("100 of 318 photos")
    page.locator("#more").click()
    assert page.locator("#table tbody tr").count() == 200
    assert complaints == []
