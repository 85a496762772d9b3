import json

import pytest
from conftest import run_script

from carvana.errors import InputError
from carvana.journal import COLUMNS, HEADER, add_row, describe, note_submission, read_journal, record_score
from carvana.shards import Manifest, manifest_path, write_manifest

CV = "CV (95 % of cars drawn anew)"
OOF = {"dice": 0.99409, "interval": [0.993, 0.995], "photos": 128, "tta": ["identity"], "threshold": 0.5}


@pytest.fixture
def journal(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("\n".join(["# Submissions", "", *HEADER, "", "What else there is to say | here."]) + "\n")
    return path


def manifest(**changes) -> Manifest:
    facts = {
        "shard": "1/1", "first": 0, "photos": 2, "sample": "", "sample_photos": 2, "size": (4, 6),
        "checkpoints": {"one": {"0": "a", "1": "b"}}, "weights": {"one": 1.0}, "views": ["identity"], "mean": "probs",
        "threshold": 0.5, "postprocess": {}, "batch_size": 4, "block_size": 4, "device": "cpu", "backend": "torch",
        "commit": "0123456789abcdef", "versions": {},
    }  # fmt: skip
    return Manifest(**facts | changes)


def evaluated(runs, name: str, **changes) -> None:
    (runs / name).mkdir(parents=True)
    facts = OOF | {"checkpoints": {"0": "a", "1": "b"}} | changes
    (runs / name / "oof.json").write_text(json.dumps(facts))


def test_rows_come_below_one_another_and_the_text_around_them_stays(journal):
    assert read_journal(journal) == []
    rows = [{column: f"{column} {number}" for column in COLUMNS} for number in range(3)]
    for row in rows:
        add_row(journal, row)
    assert read_journal(journal) == rows
    lines = journal.read_text().splitlines()
    assert (lines[0], lines[-1], len(lines)) == ("# Submissions", "What else there is to say | here.", 9)


def test_a_cell_may_hold_a_bar(journal):
    add_row(journal, {"file": "a.csv", "command": "train | tee log"})
    assert read_journal(journal)[0]["command"] == "train | tee log"


def test_a_file_made_anew_replaces_its_row_until_that_has_a_score(journal):
    for threshold in ("0.5", "0.6"):
        add_row(journal, {"file": "a.csv", "threshold": threshold})
    add_row(journal, {"file": "b.csv"})
    record_score(journal, "a.csv", public=0.99712, private=None)
    add_row(journal, {"file": "a.csv", "threshold": "0.7"})
    rows = read_journal(journal)
    told = [(row["file"], row["threshold"], row["public LB"]) for row in rows]
    assert told == [("a.csv", "0.6", "0.99712"), ("b.csv", "", ""), ("a.csv", "0.7", "")]


def test_scores_are_noted_by_the_script(journal):
    add_row(journal, {"file": "a.csv"})
    run_script("record_score.py", "a.csv", "--public", "0.9971", "--journal", journal)
    run_script("record_score.py", "a.csv", "--private", "0.996843", "--journal", journal)
    (row,) = read_journal(journal)
    assert (row["public LB"], row["private LB"]) == ("0.9971", "0.996843")
    refused = run_script("record_score.py", "b.csv", "--public", "0.9", "--journal", journal, check=False)
    assert (refused.returncode, "no row for b.csv" in refused.stderr) == (2, True)


def test_the_cv_is_that_of_the_checkpoints_and_says_other_views(journal, tmp_path):
    evaluated(tmp_path / "runs", "one")
    row = describe(tmp_path / "a.csv", manifest(), tmp_path / "runs", "make_submission.py one")
    assert row[CV] == "0.99409 (0.99300 to 0.99500) of 128 photos"
    assert (row["experiments"], row["folds"], row["commit"]) == ("one", "0 1", "0123456789ab")
    mirrored = describe(tmp_path / "a.csv", manifest(views=["identity", "hflip"]), tmp_path / "runs", "")
    assert mirrored[CV].endswith("of 128 photos with identity")
    others = manifest(checkpoints={"one": {"0": "x"}})
    assert describe(tmp_path / "a.csv", others, tmp_path / "runs", "")[CV] == ""


def test_the_cv_of_an_ensemble_is_that_of_its_choice(tmp_path):
    weights = {"one": 0.75, "two": 0.25}
    both = manifest(weights=weights, checkpoints={"one": {"0": "a"}, "two": {"0": "c"}, "one's boxes": {"0": "d"}})
    runs = tmp_path / "runs"
    runs.mkdir()
    chosen = OOF | {"experiments": weights, "views": ["identity"]}
    (runs / "ensemble.json").write_text(json.dumps(chosen))
    row = describe(tmp_path / "a.csv", both, runs, "")
    assert (row["experiments"], row["folds"]) == ("0.75 one + 0.25 two", "0")
    assert row[CV].startswith("0.99409 ")
    (runs / "ensemble.json").write_text(json.dumps(chosen | {"threshold": 0.4}))
    assert describe(tmp_path / "a.csv", both, runs, "")[CV] == ""


def test_only_a_file_beside_the_table_is_noted(journal, tmp_path):
    for file in (tmp_path / "a.csv", tmp_path / "elsewhere" / "a.csv"):
        file.parent.mkdir(exist_ok=True)
        write_manifest(manifest_path(file), manifest())
        note_submission(file, tmp_path / "runs", "make_submission.py one")
    assert [row["command"] for row in read_journal(journal)] == ["`make_submission.py one`"]


def test_a_table_of_other_columns_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("| file | score |\n|---|---|\n")
    with pytest.raises(InputError, match=r"README\.md: its table must begin with"):
        read_journal(tmp_path / "README.md")
