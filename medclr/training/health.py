"""Is the encoder learning? Online kNN where labels are known, and whether the embedding has collapsed."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from medclr.data.labels import LabelTable
from medclr.data.spec import DataSpec
from medclr.data.store import Store
from medclr.metrics import auroc, knn_scores, rankme
from medclr.training.encode import embed_rows
from medclr.training.simclr import SimCLR

MOST_ROWS = 1000  # of each kind that an epoch's measures look at


def health_check(
    rows: pd.DataFrame, labels: LabelTable | None, store: Store, spec: DataSpec, seed: int
) -> Callable[[SimCLR], dict[str, float]]:
    """A function that measures an encoder after an epoch.

    It gives `rankme` of the features of the training volumes (Garrido et al. 2023, eq. 1: near 1 is collapsed, near
    the feature length is not) and, with labels, `knn_auroc`: each labelled val volume scored by its nearest
    labelled train volumes. The test split is never looked at.

    Args:
        rows: volumes that pre-training sees.
        labels: the holdout table joined to the volumes, or None.
        store, spec: where and how to read them.
        seed: of the sample, where there are more than MOST_ROWS.
    """
    sample = _at_most(rows, seed)
    train = val = None
    if labels is not None:
        train, val = (_at_most(labels.rows.iloc[labels.of(split)], seed) for split in ("train", "val"))
        if not (train["y"].nunique() == 2 and val["y"].nunique() == 2):
            train = val = None

    def measure(module: SimCLR) -> dict[str, float]:
        measured = {"rankme": rankme(embed_rows(module.encoder, sample, store, spec))}
        if train is not None and val is not None:
            features = embed_rows(module.encoder, pd.concat([train, val]), store, spec)
            scores = knn_scores(features[: len(train)], train["y"].to_numpy(), features[len(train) :])
            measured["knn_auroc"] = auroc(val["y"].to_numpy(), scores)
        return measured

    return measure


def _at_most(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    if len(rows) <= MOST_ROWS:
        return rows
    return rows.iloc[np.sort(np.random.default_rng(seed).choice(len(rows), MOST_ROWS, replace=False))]
