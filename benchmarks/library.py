"""Puts src/ on the path: `python benchmarks/<name>.py` finds only its own folder by itself. Imported first."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from carvana.command import set_up

set_up()  # before PyTorch, which reads its settings once
