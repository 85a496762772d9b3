# %% [markdown]
# # Carvana: shards to one submission
# Joins what the submit kernels predicted, labels too if they made some, checks it, and draws some masks. Needs no GPU.

# %% The shards
data = session.find_data()
shards = session.find_all("shard-*-of-*.csv.gz")
if not shards:
    session.fail(f"{session.input}: no shard-1-of-....csv.gz: attach the submit kernels' outputs")

# %% One file, checked
output, overlays = session.working / "submission.csv.gz", session.working / "overlays.jpg"
options = ["--input", data]
cars = ["--cars", session.code / "cars.txt"] if SETTINGS["cars"] else []
labels, soft = session.find_all("labels-*-of-*.csv.gz"), session.find_all("soft-*-of-*.zip")
for parts, name in ((shards, output.name), (labels, "labels.csv.gz"), (soft, "soft.zip")):
    join = ["submission.py", "merge", *parts, "--output", session.working / name, *options, *cars]
    if parts and session.run_script(*join) != 0:
        session.fail(f"{name}: the shards cannot be joined; kernel.log says why")
if session.run_script("draw.py", "overlays", output, "--output", overlays, *options) == 0:
    session.show(overlays)

# %% Summary
session.end(finished=True)
