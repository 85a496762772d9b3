"""What is recorded of submissions: manifests, by which parts are joined to a whole, and the journal with its table."""

import os

import pytest
from conftest import SRC, run_script

from carvana.device import share
from carvana.errors import InputError
from carvana.log import write_json
from carvana.provenance import file_digest
from carvana.submission import journal as journals
from carvana.submission import manifest as manifests
from carvana.submission.csv import write_submission
from carvana.submission.journal import END, START, read_journal, record_score
from carvana.submission.manifest import Manifest, digest_names, manifest_path
from carvana.submission.merge import merge_parts

NAMES = [f"car{car}_{angle:02}.jpg" for car in "ab" for angle in range(1, 17)]
ROWS = [(name, "8 4 14 4") for name in NAMES]
ONE, TWO = {"one": {"0": "a", "1": "b"}}, {"one": {"0": "c"}, "two": {"0": "d"}}  # checkpoints
MANIFEST = {
    "shard": "1/1", "first": 0, "photos": 32, "sample": digest_names(NAMES), "sample_photos": 32, "size": (4, 6),
    "checkpoints": ONE, "weights": {"one": 1.0}, "views": ["identity"], "threshold": 0.5,
    "postprocess": {"holes": 0, "parts": 0}, "batch_size": 4, "block_size": 4, "device": "cpu, no",
    "backend": "torch", "commit": "0123456789abc", "versions": {},
}  # fmt: skip


@pytest.mark.parametrize("count", [1, 2, 7, 25, 99, 120])
def test_shares_are_neighbours_cover_all_once_and_are_alike(count):
    shares = [share(range(99), number, count) for number in range(count)]
    assert [item for items in shares for item in items] == list(range(99))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("wrong", ["0/3", "4/3", "1", "1/0", "a/b", "1/3/5", "-1/3"])
def test_a_shard_is_written_from_one(wrong):
    assert manifests.parse_shard("2/3") == (2, 3)
    with pytest.raises(InputError, match="give i/n"):
        manifests.parse_shard(wrong)


def write_parts(folder, *bounds, rows=ROWS, second=None, **changes) -> list:
    """p0.csv, p1.csv.gz, p2.zip of these rows; the facts of all may be changed, and those of the second."""
    write_submission(folder / "input" / "sample_submission.csv", [(name, "1 1") for name in NAMES])
    parts = [folder / name for name in ("p0.csv", "p1.csv.gz", "p2.zip")][: len(bounds)]
    for part, (first, end), more in zip(parts, bounds, [{}, second or {}, {}], strict=False):
        write_submission(part, rows[first:end])
        facts = {"first": first, "photos": end - first, "digest": file_digest(part)}
        manifests.write_manifest(manifest_path(part), Manifest(**MANIFEST | facts | changes | more))
    return parts


def refusal(parts, output="whole.csv") -> str:
    """The one line; nothing is written."""
    before = sorted(os.listdir(folder := parts[0].parent))
    with pytest.raises(InputError) as error:
        merge_parts(parts, folder / output, folder / "input", None)
    assert sorted(os.listdir(folder)) == before
    return str(error.value).replace(f"{folder}/", "")


def test_parts_are_joined_in_any_order_and_format_from_any_machine_and_of_any_cars(tmp_path):
    whole, other = tmp_path / "whole.csv", {"device": "T4", "batch_size": 8, "commit": "x", "versions": {"torch": "2"}}
    parts = write_parts(tmp_path, (0, 8), (8, 20), (20, 32), second=other)
    assert merge_parts(parts[::-1], whole, tmp_path / "input", None).photos == 32
    assert whole.read_text() == "img,rle_mask\n" + "".join(f"{name},{rle}\n" for name, rle in ROWS)
    assert manifests.read_manifest(manifest_path(whole)) == Manifest(**MANIFEST | {"digest": file_digest(whole)})
    (tmp_path / "cars.txt").write_text("carb\n")
    parts = write_parts(tmp_path, (0, 8), (8, 16), rows=ROWS[16:], sample=digest_names(NAMES[16:]), sample_photos=16)
    assert merge_parts(parts, whole, tmp_path / "input", tmp_path / "cars.txt").photos == 16
    assert "p0.csv, p1.csv.gz: of another sample than" in refusal(parts)


@pytest.mark.parametrize(("bounds", "second", "line"), [
    ([(0, 8), (12, 32)], {}, "p0.csv, p1.csv.gz: photos 9 to 12 of 32 are in no part; give the other parts too"),
    ([(4, 32)], {}, "p0.csv: photos 1 to 4 of 32 are in no part; give the other parts too"),
    ([(0, 8), (8, 28)], {}, "p1.csv.gz: photos 29 to 32 of 32 are in no part; give the other parts too"),
    ([(0, 8), (4, 32)], {}, "p0.csv, p1.csv.gz: both hold photo 5 of the sample; give one of them"),
    ([(0, 32), (8, 16)], {}, "p0.csv, p1.csv.gz: both hold photo 9 of the sample; give one of them"),
    *[([(0, 8), (8, 32)], change, f"p0.csv, p1.csv.gz: the second has {difference}; predict all parts alike")
      for change, difference in [
          ({"threshold": 0.4}, "threshold 0.4 instead of 0.5"), ({"checkpoints": TWO}, "other checkpoints"),
          ({"views": ["identity", "hflip"]}, "views identity,hflip instead of identity"),
          ({"weights": {"one": 2.0}}, "weights {'one': 2.0} instead of {'one': 1.0}"),
          ({"postprocess": {"holes": 9}}, "postprocess {'holes': 9} instead of {'holes': 0, 'parts': 0}"),
          ({"size": (6, 4)}, "size (6, 4) instead of (4, 6)"), ({"sample": "x"}, "another sample")]],
])  # fmt: skip
def test_gaps_overlaps_and_parts_of_different_predictions(tmp_path, bounds, second, line):
    assert refusal(write_parts(tmp_path, *bounds, second=second)) == line


def test_a_part_that_is_cut_or_missing_or_has_no_manifest_and_a_whole_with_a_fault(tmp_path):
    parts = first, second = write_parts(tmp_path, (0, 8), (8, 32))
    assert refusal(parts, "x.txt") == "x.txt: must end in .csv, .csv.gz, .zip"
    assert refusal([first, first, second]) == "p0.csv: given twice"
    for spoil in (lambda: second.write_bytes(second.read_bytes()[:-20]), second.unlink):
        spoil()
        assert "p1.csv.gz: missing, cut or not the file of its manifest" in refusal(parts)
    manifest_path(second).write_text("{}")
    assert "p1.csv.gz.json: not a manifest of this version" in refusal(parts)
    manifest_path(second).unlink()
    assert refusal(parts).startswith("p1.csv.gz.json: missing")
    assert "whole.csv: failed its own check" in refusal(write_parts(tmp_path, (0, 8), (8, 32), rows=ROWS[:31]))


BEFORE, AFTER = f"# Submissions\n\n{START}", f"{END}\n\nWhat else there is to say | here.\n"
OOF = {"dice": 0.99409, "interval": [0.993, 0.995], "photos": 128, "threshold": 0.5}
CV = "0.99409 (0.99300 to 0.99500) of 128 photos"
WEIGHTS = {"one": 0.75, "two": 0.25}


@pytest.fixture
def journal(tmp_path):
    (tmp_path / "README.md").write_text(f"{BEFORE}\n{AFTER}")
    write_json(tmp_path / "runs" / "one" / "oof.json", OOF | {"tta": ["identity"], "checkpoints": ONE["one"]})
    (tmp_path / "log.jsonl").touch()
    return tmp_path / "log.jsonl"


def submit(file, **changes) -> None:
    """A file with its manifest, noted if there is a journal beside it."""
    manifests.write_manifest(manifest_path(file), Manifest(**MANIFEST | changes))
    journals.note_submission(file, file.parent / "runs", "train | tee")


def test_a_file_beside_a_journal_is_a_line_of_it_and_of_the_table_between_its_marks(journal, tmp_path):
    elsewhere = tmp_path / "elsewhere" / "a.csv"
    submit(elsewhere)
    assert [path.name for path in elsewhere.parent.iterdir()] == ["a.csv.json"]
    submit(tmp_path / "a.csv")
    record = {
        "file": "a.csv", "experiments": {"one": 1.0}, "folds": {"one": [0, 1]}, "views": ["identity"],
        "threshold": 0.5, "cv": [OOF | {"experiment": "one", "views": ["identity"]}], "public": None,
        "private": None, "commit": "0123456789abc", "command": "train | tee",
    }  # fmt: skip
    assert read_journal(journal) == [record]
    options = ["--runs", tmp_path / "runs", "--journal", journal, "--command", "launch.py"]
    assert f"{journal}: a.csv, one, CV {CV}," in run_script("submission.py", "record", elsewhere, *options).stdout
    assert read_journal(journal) == [record | {"command": "launch.py"}]
    submit(tmp_path / "b.csv", weights=WEIGHTS, checkpoints=ONE | {"two": {"0": "c"}})
    record_score(journal, "b.csv", public=0.9971, private=0.996843)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith(f"{BEFORE}\n\n| file | experiments | folds | views |")
    assert text.endswith(rf"""
| a.csv | one | 0 1 | identity | 0.5 | {CV} |  |  | 0123456789ab | `launch.py` |
| b.csv | 0.75 one + 0.25 two | 0 1; 0 | identity | 0.5 | one {CV} | 0.9971 | 0.996843 | 0123456789ab | `train \| tee` |

{AFTER}""")
    table = journals.render_table(read_journal(SRC.parent / "submissions" / "log.jsonl"))  # the shipped one
    assert f"{START}\n\n{table}\n{END}" in (SRC.parent / "submissions" / "README.md").read_text()


def test_a_file_made_anew_replaces_its_record_until_that_has_a_score(journal, tmp_path):
    for name, threshold in (("a.csv", 0.5), ("a.csv", 0.6), ("b.csv", 0.5)):
        submit(tmp_path / name, threshold=threshold)
    for option, score, scores in (("--public", 0, "0.0, private not known"), ("--private", 0.99, "0.0, private 0.99")):
        done = run_script("submission.py", "record", "a.csv", "--journal", journal, option, score)
        assert done.stdout.endswith(f"CV {CV} at threshold 0.5, public {scores}\n")
    submit(tmp_path / "a.csv", threshold=0.6)  # the same again is no other submission
    submit(tmp_path / "a.csv", threshold=0.7)
    facts = [(record["file"], record["threshold"], record["private"]) for record in read_journal(journal)]
    assert facts == [("a.csv", 0.6, 0.99), ("b.csv", 0.5, None), ("a.csv", 0.7, None)]
    with pytest.raises(InputError, match=r"no submission named c\.csv"):
        record_score(journal, "c.csv", public=0.9, private=None)
    journal.write_text("| file |\n")
    with pytest.raises(InputError, match="not JSON lines"):
        read_journal(journal)


def test_the_log_of_a_training_is_no_journal(journal):
    journal.write_text(line := '{"epoch": 1}\n')
    journal.with_name("run.json").touch()
    submit(journal.with_name("a.csv"))
    assert journal.read_text() == line


@pytest.mark.parametrize(("changes", "cv"), [
    ({}, CV), ({"views": ["identity", "hflip"]}, f"{CV} with identity"), ({"checkpoints": {"one": {"0": "x"}}}, ""),
    ({"threshold": 0.4}, f"{CV} at threshold 0.5"),
    ({"weights": WEIGHTS, "checkpoints": TWO}, CV),  # as ensemble.json has them
    ({"weights": WEIGHTS, "checkpoints": TWO, "postprocess": {"holes": 9, "parts": 0}}, ""),
    ({"weights": WEIGHTS, "checkpoints": TWO, "threshold": 0.4}, ""),
    ({"weights": WEIGHTS, "checkpoints": ONE}, f"one {CV}"),
])  # fmt: skip
def test_the_cv_is_that_of_the_checkpoints_or_of_the_ensembles_choice(journal, changes, cv):
    ensemble = {"experiments": WEIGHTS, "checkpoints": TWO, "views": ["identity"], "threshold": 0.5}
    ensemble["postprocess"] = {"holes": 0, "parts": 0}
    write_json(journal.with_name("runs") / "ensemble.json", OOF | ensemble)
    submit(journal.with_name("a.csv"), **changes)
    assert journals.cv_text(read_journal(journal)[0]) == cv
