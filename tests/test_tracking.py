"""Live curves: what TensorBoard reads back, and that the training takes no notice of it."""

import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from accelerate import tracking as accelerate_tracking
from accelerate.utils import LoggerType
from conftest import SRC, run_script
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import carvana.training as training
import train
from carvana.errors import InputError
from carvana.folds import read_folds
from carvana.images import angle_of, car_of, open_train
from carvana.log import read_records
from carvana.panel import COLUMNS, WIDTH, YELLOW, Panel, choose_photos, mark
from carvana.pictures import BLUE, CAPTION_HEIGHT, RED
from carvana.run import split_fold
from carvana.training import train_fold

TAGS = {
    "rate/encoder", "rate/lr", "train/loss", "train/photos_per_second", "train/skipped_steps", "val/dice",
    "val/worst_dice",
}  # fmt: skip
SETTINGS = """
data: {size: [64, 96], num_workers: 0}
model: {encoder: test_efficientnet, pretrained: false, decoder_channels: [8, 8, 8, 8, 8]}
optim: {lr: 0.01}
train: {epochs: 2, batch_size: 4, precision: fp32}
"""


@pytest.fixture
def split(demo, tmp_path):
    """Builds the demo's fold 0 with a run's folder of another name."""
    photos, folds = open_train(demo / "input"), read_folds(demo / "folds.csv")
    return lambda name="tiny": split_fold(photos, folds, 0, tmp_path, name)


def read_events(fold) -> EventAccumulator:
    return EventAccumulator(str(fold.folder / "tensorboard"), {"scalars": 0, "images": 0}).Reload()


def steps(events: EventAccumulator, tag: str) -> list[int]:
    return [event.step for event in (events.Images(tag) if tag == "val/photos" else events.Scalars(tag))]


def pictures(events: EventAccumulator) -> list[np.ndarray]:
    data = [np.frombuffer(event.encoded_image_string, np.uint8) for event in events.Images("val/photos")]
    return [cv2.imdecode(some, cv2.IMREAD_COLOR_RGB) for some in data]


def last_weights(fold) -> dict:
    """In training and averaged."""
    state = fold.folder / "state" / "epoch-0002"
    averaged = torch.load(state / "custom_checkpoint_0.pkl")
    return load_file(state / "model.safetensors") | {f"averaged {name}": averaged[name] for name in averaged}


def test_curves_have_a_point_an_epoch_and_the_weights_stay_the_same(tiny, split):
    plain, tracked = split("plain"), split("tracked")
    config = tiny(optim={"encoder_lr_factor": 0.25}, data={"augmentation": "light"})
    assert train_fold(config, plain)
    assert train_fold(config, tracked, tracker="tensorboard")
    one, other = last_weights(plain), last_weights(tracked)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not (plain.folder / "tensorboard").exists()

    events, records = read_events(tracked), read_records(tracked.folder / "log.jsonl")
    assert set(events.Tags()["scalars"]) == TAGS
    assert events.Tags()["images"] == ["val/photos"]
    assert all(steps(events, tag) == [1, 2] for tag in (*TAGS, "val/photos"))
    for tag, key in (("train/loss", "loss"), ("val/dice", "dice"), ("val/worst_dice", "worst")):
        found = [event.value for event in events.Scalars(tag)]
        assert found == pytest.approx([record[key] for record in records])
        assert found == pytest.approx([record[key] for record in read_records(plain.folder / "log.jsonl")])
    encoder, rest = events.Scalars("rate/encoder")[0].value, events.Scalars("rate/lr")[0].value
    assert 0 < encoder == pytest.approx(0.25 * rest)
    assert records[0]["train_photos"] == 32
    assert all(event.value > 0 for event in events.Scalars("train/photos_per_second"))

    width, height = 144, 96 + CAPTION_HEIGHT  # photos narrower than WIDTH stay as they are
    for picture in pictures(events):
        assert picture.shape == (2 * height, COLUMNS * width, 3)
        places = picture.reshape(2, height, COLUMNS, width, 3).swapaxes(1, 2).reshape(8, -1, width, 3)
        assert all(place[:-CAPTION_HEIGHT].std() > 10 and place[-CAPTION_HEIGHT:].max() > 200 for place in places)


class Killed(BaseException):
    """Stands for kill -9: nothing may catch it."""


def test_a_resumed_run_continues_its_curves_and_shows_no_epoch_twice(tiny, split, monkeypatch):
    config, fold = tiny(train={"epochs": 3}), split()
    original = training.save_state

    def die_in_epoch_two(accelerator, folder, epoch):
        if epoch == 2:
            raise Killed
        original(accelerator, folder, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(training, "save_state", die_in_epoch_two)
        with pytest.raises(Killed):
            train_fold(config, fold, tracker="tensorboard")
    assert steps(read_events(fold), "val/dice") == [1, 2]
    assert train_fold(config, fold, resume=True, tracker="tensorboard")
    events = read_events(fold)
    assert all(steps(events, tag) == [1, 2, 3] for tag in (*TAGS, "val/photos"))

    files = sorted((fold.folder / "tensorboard").iterdir())
    assert len(files) == 2
    assert train_fold(config, fold, resume=True, tracker="tensorboard")  # nothing left to do
    assert train_fold(config, fold, resume=True)  # without a tracker it is the same run
    assert sorted((fold.folder / "tensorboard").iterdir()) == files
    assert train_fold(config, fold, overwrite=True)
    assert not (fold.folder / "tensorboard").exists()


def test_two_processes_draw_one_panel_and_go_on_to_the_next_fold(demo, tmp_path):
    """The panel's photos are all the first process's here: the other one holds old pictures of them, if any."""
    (tmp_path / "tiny.yaml").write_text(SETTINGS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    script = [SRC / "train.py", tmp_path / "tiny.yaml", "--tracker", "tensorboard", "--runs", tmp_path / "runs"]
    data = ["--input", demo / "input", "--folds", demo / "folds.csv"]
    done = subprocess.run(list(map(str, torchrun + script + data)), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    for number in (0, 1):
        folder = tmp_path / "runs" / "tiny" / f"fold{number}"
        assert len(list((folder / "tensorboard").iterdir())) == 1
        first, second = pictures(read_events(SimpleNamespace(folder=folder)))
        changed = (first != second).any(axis=2).reshape(2, -1, COLUMNS, WIDTH).any(axis=(1, 3))
        assert changed.all()


@pytest.mark.parametrize("cars", [1, 2, 7, 63, 64])
def test_the_panel_shows_other_cars_and_other_angles(cars):
    image_ids = [f"{car:04d}_{angle:02d}" for car in range(cars) for angle in range(1, 17)]
    chosen = choose_photos(image_ids)
    assert chosen == choose_photos(image_ids[::-1])
    assert len(set(chosen)) == 8
    assert len(set(map(car_of, chosen))) == min(cars, 8)
    assert [angle_of(image_id) for image_id in chosen] == [1, 3, 5, 7, 9, 11, 13, 15]
    assert choose_photos(image_ids[:3]) == image_ids[:3]


def test_the_panel_marks_contour_and_errors_and_keeps_only_its_photos(split):
    photos = split().val
    panel, wanted = Panel(photos), choose_photos(photos.image_ids)
    mask = torch.from_numpy(photos.mask(wanted[0]))
    for image_id in photos.image_ids:
        panel.add(image_id, mask, mask, 1.0)
    assert sorted(panel.tiles) == sorted(wanted)
    panel.finish()
    assert not panel.tiles
    assert not any((panel.sheet == color).all(axis=2).any() for color in (RED, BLUE))

    image, mask = np.full((80, 120, 3), 200, np.uint8), np.zeros((80, 120), bool)
    mask[20:60, 30:70] = True
    marked = mark(image, np.roll(mask, 10, axis=1), mask).reshape(-1, 3)
    assert [(marked == color).all(axis=1).sum() for color in (RED, BLUE)] == [400, 400]
    assert 0 < (marked == YELLOW).all(axis=1).sum() < 400


def test_an_unknown_tracker_ends_in_a_line():
    done = run_script("train.py", "demo", "--tracker", "paper", check=False)
    assert (done.returncode, done.stderr) == (2, "error: --tracker paper: choose from none, tensorboard, wandb\n")


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_ends_before_anything_is_read(name, monkeypatch, tmp_path):
    monkeypatch.setattr("carvana.tracking.get_available_trackers", lambda: [])
    with pytest.raises(InputError, match=f"--tracker {name}: the package is not installed; pip install {name}"):
        train.main("demo", input_root=tmp_path / "absent", tracker=name)


def test_weights_and_biases_continues_a_resumed_run(tiny, split, monkeypatch):
    started, logged = [], []
    run = SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda: logged.append("end"))
    config = SimpleNamespace(update=lambda values, **_: started.append(values))
    stub = SimpleNamespace(init=lambda **options: (started.append(options), run)[1], config=config, Image=np.shape)
    monkeypatch.setitem(sys.modules, "wandb", stub)
    monkeypatch.setattr(accelerate_tracking, "_available_trackers", [LoggerType.WANDB])
    fold, settings = split(), tiny()
    with monkeypatch.context() as patch:
        patch.setattr(training, "check_clock", stop_after(1))
        assert not train_fold(settings, fold, tracker="wandb")
    assert train_fold(settings, fold, resume=True, tracker="wandb")

    first, first_config, second, _ = started
    assert first == second
    assert (first["project"], first["name"], first["resume"]) == ("carvana-image-masking", "tiny/fold0", "allow")
    assert first_config["optim"]["lr"] == settings.optim.lr
    scalars = [entry for entry in logged if entry != "end" and "val/dice" in entry[1]]
    assert [step for step, _ in scalars] == [1, 2]
    panels = [entry[1]["val/photos"] for entry in logged if entry != "end" and "val/photos" in entry[1]]
    assert [len(shapes) for shapes in panels] == [1, 1]
    assert logged.count("end") == 2


def stop_after(epochs: int):
    """A clock that runs out before the next epoch after so many."""
    asked = iter(range(100))

    def check(*_):
        if next(asked) == epochs:
            raise training.OutOfTime

    return check
