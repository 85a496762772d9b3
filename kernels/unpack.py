# %% Settings, and the commit of the code that is packed below
SETTINGS = ...
COMMIT = ...
DIGEST = ...

# %% The packed code: src/, folds/folds.csv and kernels/runtime.py, made by kernels/build.py
import base64
import hashlib
import io
import sys
import tempfile
import zipfile
from pathlib import Path

PACKED = ...
data = base64.b85decode(PACKED)
assert hashlib.sha256(data).hexdigest() == DIGEST, "the packed code was changed: build the kernel anew"
code = Path(tempfile.mkdtemp(prefix="carvana-")) / "code"
zipfile.ZipFile(io.BytesIO(data)).extractall(code)
sys.path.insert(0, str(code / "kernels"))

from runtime import STOPPED, Session, copy_folder, how_far

session = Session(SETTINGS, code, COMMIT, DIGEST)
session.check_gpus()
session.check_sources()
