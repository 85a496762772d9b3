# %% [markdown]
# # Carvana: masks of the test photos
# All trained folds of the experiments, or those that `fold` names, mirrored views, one pass, shared by all GPUs. A
# session that ran out of time is continued by another one that has its output attached.

# %% Data and trained folds, from kernels or a dataset
data = session.find_data()
experiments, runs = SETTINGS["experiments"], session.scratch / "runs"
for (experiment, fold), folder in session.find_folds(experiments).items():
    copy_folder(folder, runs / experiment / fold)
    print(f"{experiment}, {fold}: {folder}")
if missing := [name for name in experiments if not (runs / name).exists()]:
    session.fail(f"no trained fold of {', '.join(missing)} in {session.input}; attach the training kernels' outputs")
options = ["--input", data, "--runs", runs]

# %% The threshold: out-of-fold tables of several sessions joined
choice = ["--tta", SETTINGS["tta"]]
choice += ["--fold", SETTINGS["fold"]] if SETTINGS["fold"] else []
if SETTINGS["threshold"] is not None:
    choice += ["--threshold", SETTINGS["threshold"]]
for name in experiments if SETTINGS["threshold"] is None else []:
    if session.run_script("submission.py", "merge-oof", *session.find_oof(name), "--output", runs / name) != 0:
        session.fail(f"{name}: its out-of-fold tables cannot be joined; kernel.log says why")

# %% Prediction, continuing with the blocks of earlier sessions
number, count = SETTINGS["shard"]
part = "" if count == 1 else f"-{number}-of-{count}"
output = session.working / (f"shard{part}.csv.gz" if part else "submission.csv.gz")
for blocks in session.find_blocks(output):
    copy_folder(blocks, session.working / blocks.name)
predict = [*experiments, *options, *choice, "--shard", f"{number}/{count}", "--output", output]
if SETTINGS["labels"] == "hard":
    predict += ["--labels", session.working / f"labels{part}.csv.gz"]
if SETTINGS["labels"] == "soft":
    predict += ["--soft", session.working / f"soft{part}.zip"]
predict += ["--cars", session.code / "cars.txt"] if SETTINGS["cars"] else []
devices = ["--devices", max(session.gpus, 1), "--hours", session.hours_left]
status = session.run_script("make_submission.py", *predict, *devices)
if status not in (0, STOPPED):
    session.fault(f"make_submission.py ended with status {status}; kernel.log says why")

# %% A look at some masks
overlays = session.working / "overlays.jpg"
if status == 0 and session.run_script("draw.py", "overlays", output, "--input", data, "--output", overlays) == 0:
    session.show(overlays)

# %% Summary
session.end(finished=status == 0)
