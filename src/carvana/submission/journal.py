"""The submissions made so far: `log.jsonl`, a JSON line each, and the table of them in the README.md beside it."""

import re
from pathlib import Path

from carvana.errors import InputError
from carvana.log import read_json, read_records, replacing, write_records
from carvana.submission.manifest import Manifest, manifest_path, read_manifest

START, END = "<!-- table of log.jsonl -->", "<!-- end of the table -->"
HEADER = (
    "file, experiments, folds, views, threshold, CV (95 % of cars drawn anew), public LB, private LB, commit, command"
)
CV = ("dice", "interval", "photos", "threshold")  # of oof.json and ensemble.json


def read_journal(path: Path) -> list[dict]:
    """A record for each submission, oldest first; none if there is no such file. InputError for lines of no JSON."""
    return read_records(path, "fetch the file from git again")


def note_submission(file: Path, runs: Path, command: str) -> None:
    """Records a file in the journal of its folder, if there is one, unless its last record says the same."""
    journal = file.with_name("log.jsonl")
    if journal.exists() and not file.with_name("run.json").exists():  # a run's log is no journal
        record_submission(journal, file, runs, command, again=False)


def record_submission(journal: Path, file: Path, runs: Path, command: str, again: bool = True) -> dict:
    """Records a file that has its manifest beside it; made anew, it replaces its last record until that has a score.

    What has a score is recorded a second time only if it is another prediction, or sent `again`.
    """
    record, records = build_record(file, read_manifest(manifest_path(file)), runs, command), read_journal(journal)
    place = _last_place(records, file.name)
    last = {} if place is None else records[place]
    if last and (last["public"], last["private"]) == (None, None):
        records[place] = record
    elif again or last != record | {key: last.get(key) for key in ("public", "private", "command")}:
        records.append(record)
    _write(journal, records)
    return record


def record_score(journal: Path, file: str, public: float | None, private: float | None) -> dict:
    """Notes the leaderboard's scores, where given, in the last record of `file`; InputError if there is none."""
    records = read_journal(journal)
    place = _last_place(records, file)
    if place is None:
        raise InputError(f"{journal}: no submission named {file}; src/make_submission.py records one")
    records[place] |= {board: score for board, score in (("public", public), ("private", private)) if score is not None}
    _write(journal, records)
    return records[place]


def _last_place(records: list[dict], file: str) -> int | None:
    return max((place for place, record in enumerate(records) if record["file"] == file), default=None)


def build_record(file: Path, manifest: Manifest, runs: Path, command: str) -> dict:
    """The record of a submission without scores; its CV is of what was evaluated or chosen with its checkpoints."""
    checkpoints, ensemble = manifest.checkpoints, _read_json(runs / "ensemble.json")
    choice = {"experiments": manifest.weights, "views": manifest.views, "threshold": manifest.threshold}
    if (choice | {"checkpoints": checkpoints, "postprocess": manifest.postprocess}).items() <= ensemble.items():
        oofs = {None: ensemble | {"tta": manifest.views}}  # of all experiments as they are submitted
    else:
        oofs = {name: _read_json(runs / name / "oof.json") for name in checkpoints}
        oofs = {name: oof for name, oof in oofs.items() if oof.get("checkpoints") == checkpoints[name]}
    cv = [{"experiment": name, "views": oof["tta"], **{key: oof[key] for key in CV}} for name, oof in oofs.items()]
    folds = {name: [fold if fold == "none" else int(fold) for fold in digests] for name, digests in checkpoints.items()}
    facts = {"cv": cv, "public": None, "private": None, "commit": manifest.commit, "command": command}
    return {"file": file.name, **choice, "folds": folds, **facts}


def _read_json(path: Path) -> dict:
    return read_json(path, "make it anew, or move it away") if path.exists() else {}


def _write(journal: Path, records: list[dict]) -> None:
    """The records, and their table between the two marks of the README.md beside them, if it has these."""
    write_records(journal, records)
    if (readme := journal.with_name("README.md")).exists():
        table = f"{START}\n\n{render_table(records)}\n{END}"
        text = re.sub(f"{START}.*?{END}", lambda _: table, readme.read_text(), count=1, flags=re.DOTALL)
        with replacing(readme) as temporary:
            temporary.write_text(text)


def render_table(records: list[dict]) -> str:
    """The records as a table in Markdown."""
    rows = [headings := HEADER.split(", "), ["---"] * len(headings)]
    for record in records:
        scores = ["" if record[board] is None else f"{record[board]:.6g}" for board in ("public", "private")]
        folds = dict.fromkeys(" ".join(map(str, folds)) for folds in record["folds"].values())
        cells = [record["file"], experiments_text(record), "; ".join(folds), " + ".join(record["views"])]
        cells += [f"{record['threshold']:g}", cv_text(record), *scores, record["commit"][:12], f"`{record['command']}`"]
        rows.append(cells)
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows)


def experiments_text(record: dict) -> str:
    """The experiments, with their weights if there are several."""
    weights = record["experiments"]
    return " + ".join(f"{weight:.2f} {name}" if len(weights) > 1 else name for name, weight in weights.items())


def cv_text(record: dict) -> str:
    """Out-of-fold Dice, of each experiment if it is not known of their mean; empty if of none."""
    texts = []
    for cv in record["cv"]:
        name = f"{cv['experiment']} " if len(record["experiments"]) > 1 and cv["experiment"] else ""
        views = "" if cv["views"] == record["views"] else f" with {' + '.join(cv['views'])}"
        if len(record["experiments"]) == 1 and cv.get("threshold", record["threshold"]) != record["threshold"]:
            views += f" at threshold {cv['threshold']:g}"
        interval = "{:.5f} to {:.5f}".format(*cv["interval"])
        texts.append(f"{name}{cv['dice']:.5f} ({interval}) of {cv['photos']} photos{views}")
    return "; ".join(texts)
