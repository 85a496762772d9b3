"""The table of submissions in `submissions/README.md`: what was made, by what, and what the leaderboard said."""

import json
from pathlib import Path

from carvana.errors import InputError
from carvana.log import replacing
from carvana.shards import Manifest, manifest_path, read_manifest

COLUMNS = (
    "file", "experiments", "folds", "views", "threshold", "CV (95 % of cars drawn anew)", "public LB", "private LB",
    "commit", "command",
)  # fmt: skip
HEADER = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]

Row = dict[str, str]


def read_journal(path: Path) -> list[Row]:
    """The rows of the table, oldest first; none if there is no such file. InputError if it holds no such table."""
    if not path.exists():
        return []
    return [row for _, row in _rows(path, path.read_text().splitlines())]


def note_submission(file: Path, runs: Path, command: str) -> None:
    """Adds the row of a file that lies beside a table of submissions; elsewhere nothing is noted."""
    table = file.parent / "README.md"
    if table.exists() and HEADER[0] in table.read_text():
        add_row(table, describe(file, read_manifest(manifest_path(file)), runs, command))


def describe(file: Path, manifest: Manifest, runs: Path, command: str) -> Row:
    """The row of a submission, without scores; its CV from what was evaluated or chosen with these checkpoints."""
    trained = {name: digests for name, digests in manifest.checkpoints.items() if name in manifest.weights}
    weights = manifest.weights
    names = [f"{weight:.2f} {name}" if len(weights) > 1 else name for name, weight in weights.items()]
    return {
        "file": file.name,
        "experiments": " + ".join(names),
        "folds": "; ".join(dict.fromkeys(" ".join(digests) for digests in trained.values())),
        "views": " + ".join(manifest.views),
        "threshold": f"{manifest.threshold:g}",
        "CV (95 % of cars drawn anew)": _ensemble_dice(manifest, runs) or _single_dices(trained, manifest, runs),
        "commit": manifest.commit[:12],
        "command": f"`{command}`",
    }


def _ensemble_dice(manifest: Manifest, runs: Path) -> str | None:
    """Of runs/ensemble.json, if it is what the submission was made with."""
    found = _read_json(runs / "ensemble.json")
    same = {"experiments": manifest.weights, "views": manifest.views, "threshold": manifest.threshold}
    return _dice_text(found) if found and all(found[key] == value for key, value in same.items()) else None


def _single_dices(trained: dict[str, dict[str, str]], manifest: Manifest, runs: Path) -> str:
    """Of each experiment's oof.json, where that is of these checkpoints; the views are said if they are others."""
    told = []
    for name, digests in trained.items():
        oof = _read_json(runs / name / "oof.json")
        if oof and oof["checkpoints"] == digests:
            views = "" if oof["tta"] == manifest.views else f" with {' + '.join(oof['tta'])}"
            told.append(f"{name} {_dice_text(oof)}{views}" if len(trained) > 1 else _dice_text(oof) + views)
    return "; ".join(told)


def _dice_text(found: dict) -> str:
    low, high = found["interval"]
    return f"{found['dice']:.5f} ({low:.5f} to {high:.5f}) of {found['photos']} photos"


def _read_json(path: Path) -> dict | None:
    return json.loads(path.read_text()) if path.exists() else None


def add_row(path: Path, row: Row) -> None:
    """Appends a row, once; a file written anew replaces its last row as long as that has no score."""
    lines = path.read_text().splitlines()
    rows = _rows(path, lines)
    line = "| " + " | ".join(row.get(column, "").replace("|", "\\|") for column in COLUMNS) + " |"
    same = [number for number, there in rows if there["file"] == row["file"]]
    if same and not any(dict(rows)[same[-1]][board] for board in ("public LB", "private LB")):
        lines[same[-1]] = line
    else:
        lines.insert(max([number for number, _ in rows], default=_header(path, lines) + 1) + 1, line)
    _write(path, lines)


def record_score(path: Path, file: str, public: float | None, private: float | None) -> Row:
    """Notes the leaderboard's scores in the last row of `file` and returns it. InputError if there is no row."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [(number, row) for number, row in _rows(path, lines) if row["file"] == file]
    if not rows:
        raise InputError(f"{path}: no row for {file}; src/make_submission.py writes one")
    number, row = rows[-1]
    scores = {"public LB": public, "private LB": private}
    row |= {board: f"{score:.6f}".rstrip("0") for board, score in scores.items() if score is not None}
    lines[number] = "| " + " | ".join(row[column].replace("|", "\\|") for column in COLUMNS) + " |"
    _write(path, lines)
    return row


def _header(path: Path, lines: list[str]) -> int:
    if HEADER[0] not in lines:
        raise InputError(f"{path}: its table must begin with {HEADER[0]}")
    return lines.index(HEADER[0])


def _rows(path: Path, lines: list[str]) -> list[tuple[int, Row]]:
    """Line number and cells of each row."""
    rows = []
    for number, line in enumerate(lines[_header(path, lines) + 2 :], _header(path, lines) + 2):
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.replace("\\|", "\0").strip()[1:].removesuffix("|").split("|")]
        if len(cells) != len(COLUMNS):
            raise InputError(f"{path}, line {number + 1}: {len(cells)} cells, the table has {len(COLUMNS)} columns")
        rows.append((number, {name: cell.replace("\0", "|") for name, cell in zip(COLUMNS, cells, strict=True)}))
    return rows


def _write(path: Path, lines: list[str]) -> None:
    with replacing(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
