"""The stages' names, in order, and the data sets that each makes."""

from __future__ import annotations

STAGES = ("index", "propose", "extract", "finetune", "embed", "train-svm", "train-bbox", "detect", "evaluate")
"""Every stage, in order; ``run_stages`` of them a run goes through."""

REDUCE_STAGES = STAGES[3:]
"""Those that read whole datasets."""

WHOLE_IMAGE_STAGES = ("pretrain", "classify")
"""Commands of their own, whose datasets no other stage reads."""

FEATURE_STORES = ("maps", "windows", "features")
"""Ways to store features: vectors, or conv maps with the windows on them."""

DATASETS_OF = {
    "index": ("images", "objects"),
    "propose": ("proposals",),
    "extract": ("truth_features", *FEATURE_STORES),
    "finetune": ("training_windows", "training_curve", "head"),
    "embed": ("truth_embeddings", "embeddings"),
    "train-svm": ("svms",),
    "train-bbox": ("regressors",),
    "detect": ("detections",),
    "evaluate": ("metrics",),
}
"""What each stage makes, its result last; of features either vectors, or maps and windows."""
