"""What is done against imbalance. Free of NumPy, so that the command line can list the choices (see sampling.py)."""

from typing import Literal

Sampling = Literal["plain", "balanced_bones", "balanced_bones_labels", "weighted_labels"]
