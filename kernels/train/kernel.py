# %% [markdown]
# # Carvana: training folds
# Each fold on a GPU of its own, as many at once as there are, or one after the other on all of them (`together`).
# Leaves `runs/`, out-of-fold tables and pictures of the worst photos. A session that ran out of time is continued by
# another one that has its output attached.

# %% Data, encoder weights, and what an earlier session left
data = session.find_data()
experiment, folds = SETTINGS["experiment"], SETTINGS["folds"]
runs = session.working / "runs"
for (_, fold), run in session.find_folds([experiment]).items():
    if fold in [f"fold{number}" for number in folds]:
        copy_folder(run, runs / experiment / fold)
        print(f"{fold} continues from {run}")
options = ["--input", data, "--runs", runs]
options += ["--cars", session.code / "cars.txt"] if SETTINGS["cars"] else []
settings = [part for override in SETTINGS["overrides"] for part in ("--set", override)]
if SETTINGS["encoder"]:
    weights = "null" if SETTINGS["internet"] else session.find_weights(SETTINGS["encoder"])
    settings += ["--set", f"model.weights={weights}"]

# %% Training
train = [experiment, *options, *settings, "--resume"]
if SETTINGS["together"] and session.gpus > 1:
    statuses = [
        session.run_script("train.py", *train, "--fold", fold, "--hours", session.hours_left, processes=session.gpus)
        for fold in folds
    ]
else:
    statuses, slots = [], session.gpus or 2
    for first in range(0, len(folds), slots):  # --hours is what is left when a fold's turn comes
        some = folds[first : first + slots]
        jobs = {f"fold {fold}": [*train, "--fold", fold, "--hours", session.hours_left] for fold in some}
        statuses += session.run_side_by_side("train.py", jobs)

# %% Out-of-fold Dice and the worst photos of the folds that are whole
finished = [fold for fold, status in zip(folds, statuses, strict=True) if status == 0]
for fold, status in zip(folds, statuses, strict=True):
    if status not in (0, STOPPED):
        session.fault(f"fold {fold}: train.py ended with status {status}; kernel.log says why")
if finished and STOPPED not in statuses:
    views = ["--tta", SETTINGS["tta"]]
    if session.run_script("evaluate.py", experiment, *options, *views) != 0:
        session.fault("evaluate.py failed")
    elif session.run_script("draw_worst.py", experiment, *options, "--output", session.working / "worst.jpg") == 0:
        session.show(session.working / "worst.jpg")

# %% Summary
session.status["folds"] = dict(zip(map(str, folds), statuses, strict=True))
session.end(finished=len(finished) == len(folds))
