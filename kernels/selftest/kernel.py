# %% [markdown]
# # Carvana: what this machine does in a second
# Runs the tests that need a GPU, then a few steps of every experiment. Leaves `selftest.json`, by which
# `launch.py plan` computes hours.

# %% The tests
import os

import pytest

os.environ["PYTHONPATH"] = str(session.code / "src")  # for scripts outside of it
tests = [session.code / "tests" / "gpu", "-p", "no:cacheprovider"]
if session.run_script(Path(pytest.__file__).with_name("__main__.py"), *tests, label="pytest") != 0:
    session.fault("not all tests in tests/gpu have passed; kernel.log says why")

# %% The rates, with the competition's photos
data, report = session.find_data(), session.working / "selftest.json"
options = ["--minutes", SETTINGS["minutes"], "--input", data, "--output", report]
if session.run_script("../benchmarks/selftest.py", *options, label="benchmark") != 0:
    session.fault("benchmarks/selftest.py failed; kernel.log says why")

# %% Summary
session.end(finished=True)
