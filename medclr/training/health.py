"""Is the encoder learning? Measures after an epoch, and warnings before and during training that say what to do."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from medclr.data.labels import LabelTable
from medclr.data.loader import Batch, Blocks
from medclr.data.manifest import DOMAINS
from medclr.data.spec import DataSpec
from medclr.data.store import Store
from medclr.errors import DataError, MedclrError
from medclr.metrics import alignment, auroc, knn_scores, label_aurocs, rankme, similarities, uniformity
from medclr.training.encode import embed_rows, images
from medclr.training.probe import FEWEST_PATIENTS, FIXED_STRENGTH, fit_linear
from medclr.training.simclr import SimCLR
from medclr.transforms.presets import Views

MOST_ROWS = 1000  # of each kind that a check looks at
MOST_DOMAINS = 10  # that the site probe tells apart, the commonest first
SHARE = 0.1  # of the training's passes through the network that the checks may take
EPOCH = 2**32 - 1  # whose views a check sees: no run gets there

EARLIEST = 3  # epochs before a run is judged, and never within its warm-up
AT_CHANCE = 0.97  # share of the chance level above which the loss has not moved
COLLAPSED_RANK = 2.0  # RankMe of the features below which one direction is all there is
COLLAPSED_UNIFORMITY = -0.05  # of the projections above which they are all within about 0.16 of each other

AT_ONCE = 2**23  # voxels of one view: 32 MB in float32
LOOKED_AT = 32  # volumes whose views are looked at before training
SAME = 1e-3  # grey values this close, of a range of 1, are the same

Row = Mapping[str, float]


def health_check(
    blocks: Blocks,
    rows: pd.DataFrame,
    labels: LabelTable | None,
    store: Store,
    spec: DataSpec,
    *,
    epochs: int,
    every: int | None,
    seed: int,
) -> Callable[[SimCLR], dict[str, float]]:
    """A function that measures a module in evaluation mode after an epoch; {} after an epoch that is not due.

    Of a fixed sample of the training volumes, two views of each, drawn as in training but always the same:
    `alignment`, `uniformity` (Wang & Isola 2020), `positive_similarity` and `negative_similarity` of the projections,
    `rankme` of the first views' features (Garrido et al. 2023), and by `site_probe` from those features `site_auroc`,
    or another of the spec's domains by its name, where the sample has at least two with enough patients.

    With labels, `knn_auroc` and `linear_auroc`: labelled val volumes scored by the nearest labelled train volumes,
    and by a linear head on them. The test split is never looked at.

    Args:
        blocks: what pre-training reads.
        rows: the volumes, or slices, behind `blocks`.
        labels: the holdout table joined to the volumes, or None.
        store, spec: where and how to read the labelled ones.
        epochs: of the run; the first and the last are always due.
        every: epochs from one check to the next; None for as few as keep the checks to SHARE of the training.
        seed: of the sample and the folds.
    """
    sample = _at_most(len(rows), seed)
    patients = rows["patient_key"].to_numpy()[sample]
    domain = _domain(rows.iloc[sample], spec)
    train = val = None
    if labels is not None:
        of = [labels.of(split) for split in ("train", "val")]
        (train, y), (val, told) = (
            (labels.rows.iloc[at], labels.y[at]) for at in (p[_at_most(len(p), seed)] for p in of)
        )
        if any(np.isnan(label_aurocs(part, part).mean) for part in (y, told)):
            train = val = None
    if every is None:
        # A training step passes each view forward once and backward for about twice that.
        passes = 2 * len(sample) + (0 if train is None or val is None else len(train) + len(val))
        every = math.ceil(passes / (SHARE * 3 * 2 * len(rows)))

    def measure(module: SimCLR) -> dict[str, float]:
        if module.current_epoch % every and module.current_epoch != epochs - 1:
            return {}
        features, z1, z2 = _embed(module, blocks, sample)
        positive, negative = similarities(z1, z2, patients)
        measured = {
            "alignment": alignment(z1, z2),
            "uniformity": uniformity(z1),
            "positive_similarity": positive,
            "negative_similarity": negative,
            "rankme": rankme(features),
        }
        if domain is not None:
            name, of_rows, known = domain
            measured[f"{name}_auroc"] = site_probe(features[known], of_rows[known], patients[known], seed)
        if labels is not None and train is not None:
            labelled = _finite(embed_rows(module.encoder, pd.concat([train, val]), store, spec))
            first, last = labelled[: len(y)], labelled[len(y) :]
            head = fit_linear(
                first, y, train["patient_key"].to_numpy(), seed, FIXED_STRENGTH, labels.task.kind == "multiclass"
            )
            measured["knn_auroc"] = label_aurocs(told, knn_scores(first, y, last)).mean
            measured["linear_auroc"] = label_aurocs(told, head.scores(last)).mean
        return measured

    return measure


def site_probe(
    features: NDArray[np.floating], sites: NDArray[np.object_], patients: NDArray[np.object_], seed: int
) -> float:
    """How well a linear head reads from features where a volume comes from: AUROC, 0.5 is not at all, 1 is always.

    Each site against the others, in five folds that share no patient; the mean over folds and sites.

    Args:
        features: (n, F).
        sites: (n,) two names or more, each of several patients.
        patients: (n,) keys.
        seed: of the folds.
    """
    names = np.unique(sites)
    folds = list(StratifiedGroupKFold(5, shuffle=True, random_state=seed % 2**32).split(features, sites, patients))
    aurocs = []
    # Of two, either against the other is the same question.
    for name in names if len(names) > 2 else names[:1]:
        y = (sites == name).astype(np.int64)
        for fit, held in folds:
            if 0 < y[fit].sum() < len(fit):  # one patient may have most volumes of a site
                head = fit_linear(features[fit], y[fit, None], patients[fit], seed, FIXED_STRENGTH)
                aurocs.append(auroc(y[held], head.scores(features[held])[:, 0]))
    return float(np.nanmean(aurocs))


def check_views(blocks: Blocks, views: Views, spec: DataSpec, seed: int) -> list[str]:
    """Warnings about what training would see, from the views of a few volumes; seconds, before any training.

    Raises:
        DataError: most of them show nothing, or the same twice, so that nothing can be learned.
    """
    sample = _at_most(len(blocks), seed, LOOKED_AT)
    blank, same = [], []
    for batch in _batches(blocks, sample):
        # Before any augmentation: noise would make something of nothing.
        shown = images(batch["blocks"], batch["low"], batch["high"]).unflatten(0, (-1, 2)).flatten(2)
        blank.append((shown.amax(2) - shown.amin(2) < SAME).all(1))
        pair = torch.stack([_view(views, batch, view, torch.device("cpu")) for view in (0, 1)]).flatten(2)
        same.append((pair[0] - pair[1]).abs().amax(1) < SAME)
    n_blank, n_same = (int(torch.cat(found).sum()) for found in (blank, same))
    grey = f"{n_blank} of {len(sample)} volumes looked at show a single grey value in both views"
    fix = f"does the spec {spec.name} suit them? Its normalisation is {spec.normalisation}" + (
        f", from {spec.window[0]:g} to {spec.window[1]:g}" if spec.normalisation == "window" and spec.window else ""
    )
    if n_blank > len(sample) / 2:
        raise DataError(f"{grey}: nothing can be learned from them; {fix}. Choose another --spec")
    if n_same > len(sample) / 2:
        raise DataError(
            f"the two views of {n_same} of {len(sample)} volumes looked at are the same: nothing can be learned from "
            "them; choose a --spec with another preset, or a larger patch"
        )
    return [f"{grey}; {fix}"] if n_blank else []


def symptoms(rows: Sequence[Row], final: bool = False) -> dict[str, str]:
    """What is wrong with a run after its last epoch so far, and what to do: one line for each kind, or none.

    A run is judged by its epochs from the EARLIEST on that are past its warm-up: before, batch norm's running
    statistics say little of the data, and the encoder looks collapsed that is not.

    Args:
        rows: of all epochs so far; one that was not due for a check has no measures, or NaN.
        final: judge however early it is.
    """
    rates = [row["lr"] for row in rows]
    judged = rows if final else rows[max(EARLIEST - 1, rates.index(max(rates)) + 1) :]
    if not judged:
        return {}
    last = judged[-1]
    found = {}
    epochs = f"{len(rows)} epoch{'' if len(rows) == 1 else 's'}"
    if last["loss"] >= AT_CHANCE * last["chance"]:  # both are 0 where there is nothing to tell from
        found["chance"] = (
            f"after {epochs} the loss {last['loss']:.3f} is at its chance level {last['chance']:.3f}: the encoder has "
            "learned nothing. Try more --epochs, another --lr, or look whether all volumes look alike"
        )
    checked = [row for row in judged if not math.isnan(row.get("rankme", math.nan))]
    if checked and (checked[-1]["rankme"] < COLLAPSED_RANK or checked[-1]["uniformity"] > COLLAPSED_UNIFORMITY):
        found["collapse"] = (
            f"after {epochs} the embedding has collapsed, all volumes look alike to it: RankMe "
            f"{checked[-1]['rankme']:.2f}, uniformity {checked[-1]['uniformity']:.2f}. Try a lower --lr, a larger "
            "--batch-size or more --epochs"
        )
    return found


def _at_most(n: int, seed: int, most: int = MOST_ROWS) -> NDArray[np.intp]:
    """Positions of a sample of n, ascending; always the same."""
    return np.arange(n) if n <= most else np.sort(np.random.default_rng(seed).choice(n, most, replace=False))


def _domain(rows: pd.DataFrame, spec: DataSpec) -> tuple[str, NDArray[np.object_], NDArray[np.bool_]] | None:
    """The first of the spec's domains of which two have enough patients: its column, values, and which rows count."""
    for name in (column for column in DOMAINS if column in spec.domains):
        n_patients = rows[rows[name] != ""].groupby(name)["patient_key"].nunique()
        enough = n_patients[n_patients >= FEWEST_PATIENTS].nlargest(MOST_DOMAINS).index
        if len(enough) > 1:
            return name, rows[name].astype(str).to_numpy(object), rows[name].isin(enough).to_numpy()
    return None


@torch.inference_mode()
def _embed(module: SimCLR, blocks: Blocks, sample: NDArray[np.intp]) -> tuple[NDArray[np.float32], ...]:
    """Features (n, F) of the first views, and projections (n, D) of the first and of the second views."""
    device = next(module.parameters()).device
    found = []
    for batch in _batches(blocks, sample):
        first, second = (module.encoder(_view(module.views, batch, view, device)) for view in (0, 1))
        found.append([values.float().cpu() for values in (first, module.projector(first), module.projector(second))])
    return tuple(_finite(torch.cat(parts).numpy()) for parts in zip(*found, strict=True))


def _batches(blocks: Blocks, sample: NDArray[np.intp]) -> Iterator[Batch]:
    at_once = int(np.clip(AT_ONCE // math.prod(blocks.patch), 1, 256))
    for start in range(0, len(sample), at_once):
        yield blocks.__getitems__([(EPOCH, int(row)) for row in sample[start : start + at_once]])


def _view(views: Views, batch: Batch, view: int, device: torch.device) -> torch.Tensor:
    """Images (B, C, *patch) in [0, 1] of one view of each volume of a batch."""
    params = {name: value[:, view].to(device) for name, value in batch["params"].items()}
    blocks, low, high = (batch[name][:, view].to(device) for name in ("blocks", "low", "high"))
    return views.apply(blocks, params, low, high)


def _finite(features: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(features).all():
        raise MedclrError("the encoder's features are not finite; lower --lr or raise --temperature")
    return features
