"""Parts are joined if they are whole, of one prediction, and together the sample; else a line names them."""

import os
import re

import pytest

import merge_submissions
from carvana.errors import InputError
from carvana.provenance import file_digest
from carvana.shards import Manifest, digest_names, manifest_path, write_manifest
from carvana.submission import write_submission

NAMES = [f"car{car}_{angle:02}.jpg" for car in "ab" for angle in range(1, 17)]
ROWS = [(name, "8 4 14 4") for name in NAMES]
COMMON = {
    "sample": digest_names(NAMES), "sample_photos": 32, "size": (4, 6), "checkpoints": {"tiny": {"0": "abc"}},
    "weights": {"tiny": 1.0}, "views": ["identity"], "mean": "probs", "threshold": 0.5,
    "postprocess": {"holes": 0, "parts": 0}, "batch_size": 4, "block_size": 4,
    "device": "cpu, no", "backend": "torch", "commit": "abc", "versions": {},
}  # fmt: skip


@pytest.fixture
def place(tmp_path):
    """A folder with input/sample_submission.csv."""
    write_submission(tmp_path / "input" / "sample_submission.csv", [(name, "1 1") for name in NAMES])
    return tmp_path


def write_part(place, name, first, end, rows=None, **changes):
    path = place / name
    write_submission(path, ROWS[first:end] if rows is None else rows)
    facts = COMMON | {"shard": "1/2", "first": first, "photos": end - first, "digest": file_digest(path)} | changes
    write_manifest(manifest_path(path), Manifest(**facts))
    return path


def merge(place, *parts, **options):
    output = place / "whole.csv"
    merge_submissions.main(list(parts), output, input_root=place / "input", **options)
    return output.read_text()


def refusal(place, *parts, **options) -> str:
    """The one line; nothing is written."""
    before = sorted(os.listdir(place))
    with pytest.raises(InputError) as error:
        merge(place, *parts, **options)
    assert sorted(os.listdir(place)) == before
    assert "\n" not in str(error.value)
    return str(error.value).replace(f"{place}/", "")


def test_parts_of_any_format_in_any_order(place):
    parts = [write_part(place, "c.zip", 20, 32), write_part(place, "a.csv", 0, 8), write_part(place, "b.csv.gz", 8, 20)]
    assert merge(place, *parts) == "img,rle_mask\n" + "".join(f"{name},{rle}\n" for name, rle in ROWS)
    assert sorted(os.listdir(place)) == sorted(
        [
            "a.csv",
            "a.csv.json",
            "b.csv.gz",
            "b.csv.gz.json",
            "c.zip",
            "c.zip.json",
            "input",
            "whole.csv",
            "whole.csv.json",
        ]
    )


def test_a_sample_of_some_cars(place):
    (place / "cars.txt").write_text("carb\n")
    sample = {"sample": digest_names(NAMES[16:]), "sample_photos": 16}
    parts = [
        write_part(place, "a.csv", 0, 8, ROWS[16:24], **sample),
        write_part(place, "b.csv", 8, 16, ROWS[24:], **sample),
    ]
    assert merge(place, *parts, cars=place / "cars.txt").count("\n") == 17
    os.remove(place / "whole.csv")
    assert "a.csv, b.csv: of another sample than" in refusal(place, *parts)


@pytest.mark.parametrize(
    ("bounds", "line"),
    [
        ([(0, 8), (12, 32)], "p0.csv, p1.csv: photos 9 to 12 of 32 are in no part; give the other parts too"),
        ([(4, 32)], "p0.csv: photos 1 to 4 of 32 are in no part; give the other parts too"),
        ([(0, 8), (8, 28)], "p1.csv: photos 29 to 32 of 32 are in no part; give the other parts too"),
        ([(0, 8), (4, 32)], "p0.csv, p1.csv: both hold photo 5 of the sample; give one of them"),
        ([(0, 32), (8, 16)], "p0.csv, p1.csv: both hold photo 9 of the sample; give one of them"),
    ],
)
def test_gaps_and_overlaps(place, bounds, line):
    parts = [write_part(place, f"p{number}.csv", *places) for number, places in enumerate(bounds)]
    assert refusal(place, *parts) == line


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"threshold": 0.4}, "threshold 0.4 instead of 0.5"),
        ({"views": ["identity", "hflip"]}, "views identity,hflip instead of identity"),
        ({"weights": {"tiny": 2.0}}, "weights {'tiny': 2.0} instead of {'tiny': 1.0}"),
        ({"checkpoints": {"tiny": {"0": "xyz"}}}, "other checkpoints"),
        ({"sample": "xyz"}, "another sample"),
        ({"size": (6, 4)}, "size (6, 4) instead of (4, 6)"),
    ],
)
def test_parts_of_different_predictions(place, change, difference):
    parts = write_part(place, "a.csv", 0, 8), write_part(place, "b.csv", 8, 32, **change)
    assert refusal(place, *parts) == f"a.csv, b.csv: the second has {difference}; predict all parts alike"


def test_parts_of_other_machines_and_batches_belong_together(place):
    parts = write_part(place, "a.csv", 0, 8), write_part(place, "b.csv", 8, 32, device="T4", batch_size=8, commit="x")
    merge(place, *parts)


def test_a_part_twice(place):
    part = write_part(place, "a.csv", 0, 32)
    assert refusal(place, part, part) == "a.csv: given twice"


def test_a_cut_or_exchanged_part(place):
    a, b = write_part(place, "a.csv", 0, 8), write_part(place, "b.csv", 8, 32)
    b.write_text(b.read_text()[:-20])
    assert "b.csv: missing, cut or not the file of its manifest" in refusal(place, a, b)
    b.unlink()
    assert "b.csv: missing, cut or not the file of its manifest" in refusal(place, a, b)


def test_a_missing_or_broken_manifest(place):
    a, b = write_part(place, "a.csv", 0, 8), write_part(place, "b.csv", 8, 32)
    manifest_path(b).write_text("{}")
    assert "b.csv.json: not a manifest of this version" in refusal(place, a, b)
    manifest_path(b).unlink()
    assert refusal(place, a, b).startswith("b.csv.json: missing")


def test_the_result_is_checked_against_the_sample(place):
    parts = write_part(place, "a.csv", 0, 8), write_part(place, "b.csv", 8, 32, rows=ROWS[8:31])
    assert re.search(r"whole\.csv: failed its own check", refusal(place, *parts))


def test_the_output_must_name_a_format(place):
    part = write_part(place, "a.csv", 0, 32)
    with pytest.raises(InputError, match="must end in"):
        merge_submissions.main([part], place / "x.txt", input_root=place / "input")
