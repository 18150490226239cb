"""Tracking with MLflow: where runs are kept (`Store`), one buffered writer on the driver
(`Writer`), and their tags.

The only package that imports mlflow; it imports neither ray nor torch.
"""

from tune_mm.track import (
    quiet as quiet,  # first: it sets defaults that mlflow reads while it is imported
)
from tune_mm.track.run import RunHandle
from tune_mm.track.store import Store
from tune_mm.track.writer import Writer

__all__ = ["RunHandle", "Store", "Writer"]
