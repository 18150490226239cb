"""tune_mm: hyperparameter search for balanced multimodal learning (DGL, CGGM and what they compare
with).
"""

__version__ = "0.1.0"
