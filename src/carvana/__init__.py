"""Carvana Image Masking: cut the car out of a studio photo. The nouns; the scripts beside are the verbs.

Two settings of other libraries are made here, before any of them is imported, unless the user has made them.
"""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no call to PyPI
# On a CPU a thread of PyTorch that waits for the others spins 300,000 times before it sleeps, and keeps its core from
# the threads that load photos: prediction had 0.89 of the bare networks' photos per second with that, 0.92 with this.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
