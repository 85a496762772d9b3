# %% [markdown]
# # Carvana: training folds
# Each fold on a GPU of its own, as many at once as there are, or one after the other on all of them (`together`), with
# `labels` also on the test photos, by the labels that an attached session has made; a network of all cars then learns
# from the out-of-fold soft masks that are attached, too.
# Leaves `runs/`, out-of-fold tables and soft masks, and pictures of the worst photos. A session that ran out of time is
# continued by another one that has its output attached.

# %% Data, encoder weights, labels, and what an earlier session left
import json
import os

data = session.find_data()
experiment, folds = SETTINGS["experiment"], SETTINGS["folds"]
runs = session.working / "runs"
names = {fold: "none" if fold == "none" else f"fold{fold}" for fold in folds}  # none: trained on all cars
soft = session.find_soft() if SETTINGS["labels"] and folds == ["none"] else []
teachers = [file.parent for file in soft]  # whose network of all cars, if there is one, is not this one
for (_, name), folder in session.find_folds([experiment], teachers).items():
    if name in names.values():
        copy_folder(folder, runs / experiment / name)
        print(f"{name} continues from {folder}")
options = ["--input", data, "--runs", runs]
options += ["--cars", session.code / "cars.txt"] if SETTINGS["cars"] else []
processes = (session.gpus or 2) if SETTINGS["together"] or len(folds) > 1 else 1
caches = 1 if SETTINGS["together"] else processes  # of which the memory is to hold the files
settings = ["--set", f"data.cache_gib={0.6 * session.memory_gib / caches:.1f}"]
settings += ["--set", f"data.num_workers={os.cpu_count() // processes}"]
settings += [part for override in SETTINGS["overrides"] for part in ("--set", override)]
if SETTINGS["encoder"]:
    weights = "null" if SETTINGS["internet"] else session.find_weights(SETTINGS["encoder"])
    settings += ["--set", f"model.weights={weights}"]
if SETTINGS["labels"]:
    settings += ["--set", f"data.pseudo={session.find_labels()}"]
if soft:
    settings += ["--set", f"data.soft=[{','.join(map(str, soft))}]"]

# %% Training
progress = lambda: [how_far(runs / experiment / name) for name in names.values()]
before = progress()
train = [experiment, *options, *settings, "--resume"]
train += ["--budget", SETTINGS["budget"]] if SETTINGS["budget"] else []
statuses = []
if SETTINGS["together"] and session.gpus > 1:
    for fold in folds:  # torchrun ends with 1 whatever its processes say; end.json is theirs
        end = runs / experiment / names[fold] / "end.json"
        end.unlink(missing_ok=True)
        turn = [*train, "--fold", fold, "--hours", session.hours_left]
        status = session.run_script("train.py", *turn, processes=session.gpus)
        stopped = end.exists() and not json.loads(end.read_text())["finished"]
        statuses.append(STOPPED if stopped else status)
else:
    slots = session.gpus or 2
    for first in range(0, len(folds), slots):  # --hours is what is left when a fold's turn comes
        turn = folds[first : first + slots]
        jobs = {f"fold {fold}": [*train, "--fold", fold, "--hours", session.hours_left] for fold in turn}
        statuses += session.run_side_by_side("train.py", jobs)

# %% Out-of-fold Dice and the worst photos, once no fold needs more hours
for fold, status in zip(folds, statuses, strict=True):
    if status not in (0, STOPPED):
        session.fault(f"fold {fold}: train.py ended with status {status}; kernel.log says why")
if STOPPED in statuses and progress() == before:
    advice = "give more --hours or a smaller data.size, and another --name"
    session.fault(f"not one epoch fits into {SETTINGS['hours']} hours: {advice}")
validated = [status for fold, status in zip(folds, statuses, strict=True) if fold != "none"]
if 0 in validated and STOPPED not in statuses:
    views, worst = ["--tta", SETTINGS["tta"]], session.working / "worst.jpg"
    if session.run_script("evaluate.py", experiment, *options, *views, "--soft") != 0:
        session.fault("evaluate.py failed; kernel.log says why")
    elif session.run_script("draw.py", "worst", experiment, *options, "--output", worst) == 0:
        session.show(worst)

# %% Summary
session.status["folds"] = dict(zip(map(str, folds), statuses, strict=True))
session.end(finished=set(statuses) == {0})
