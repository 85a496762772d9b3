# %% Settings, and the commit of the code that is packed below
SETTINGS = ...
COMMIT = ...

# %% The packed code: src/, folds/folds.csv and kernels/runtime.py, made by kernels/packing.py
import base64
import io
import sys
import tempfile
import zipfile
from pathlib import Path

PACKED = ...
code = Path(tempfile.mkdtemp(prefix="carvana-")) / "code"
zipfile.ZipFile(io.BytesIO(base64.b85decode(PACKED))).extractall(code)
sys.path.insert(0, str(code / "kernels"))

from runtime import STOPPED, Session, copy_folder, how_far

session = Session(SETTINGS, code, COMMIT)
session.check_gpus()
session.check_sources()
