"""What fine-tuning reports, and the near-duplicates between pre-training and test that it counts."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from medclr.commands import finetune as module
from medclr.config import FinetuneConfig
from medclr.data.identity import Seen, pixel_hash
from medclr.data.labels import LabelTable, Task
from medclr.data.signature import signature
from medclr.errors import DataError
from medclr.evaluation.single import auroc_of


@pytest.fixture
def count(monkeypatch):
    """Pre-training saw 0 to 3 of six images and left 4 and 5 out; what is tested is named by the caller."""
    images = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((6, 64, 64)), (0, 3, 3))

    def rows(arrays, prefix):
        return pd.DataFrame(
            {
                "volume_id": [f"{prefix}{n}" for n in range(len(arrays))],
                "pixel_hash": [pixel_hash(a) for a in arrays],
                "signature": [signature(a[None]) for a in arrays],
            }
        )

    manifest = rows(images, "m")
    # Of two encoders the first saw 0 and 1, the second 1 to 3.
    hashes = manifest["pixel_hash"]
    saw = [Seen("key", frozenset(), frozenset(part), 0).to_dict() for part in (hashes[:2], hashes[1:4])]
    written = {}

    def run(choose, drop=(), kept=True, forget=0):
        tested = rows([*choose(images), images[5]], "t").drop(columns=list(drop))
        table = SimpleNamespace(rows=tested, of=lambda split: np.arange(len(tested)))
        monkeypatch.setattr(module, "stocked", lambda source: (manifest[forget:], None) if kept else None)
        writer = SimpleNamespace(write_frame=lambda name, frame: written.update({name: frame}))
        encoders = [SimpleNamespace(bundle=SimpleNamespace(details={"seen": seen})) for seen in saw]
        return module._nearly_seen(writer, table, [(encoder, None) for encoder in encoders]), written

    return run


def test_changed_copies_of_what_was_seen_are_counted(count):
    n, written = count(lambda images: [images[1] * 2 + 1, images[2, 2:, 1:], images[4] * 2])
    assert n == 2
    pairs = written["private/near_duplicates.csv"]
    assert list(zip(pairs["test"], pairs["seen"], strict=True)) == [("t0", "m1"), ("t1", "m2")]


def test_identical_pixels_are_the_other_check(count):
    assert count(lambda images: [images[1]])[0] == 0


@pytest.mark.parametrize("without", [{"kept": False}, {"drop": ["signature"]}, {"forget": 1}])
def test_without_all_signatures_it_is_not_known(count, without):
    n, written = count(lambda images: [images[1] * 2], **without)
    assert n is None
    assert not written


@pytest.mark.parametrize(
    ("n", "words"),
    [
        (None, "not checkable"),
        (0, "No test image"),
        (1, "1 test image is a near-duplicate"),
        (1200, "1,200 test images are near-duplicates"),
    ],
)
def test_it_is_said(n, words):
    assert words in module.near_sentence(n)


BINARY = Task("binary", ("lesion",), ("no", "yes"))
CLASSES = Task("multiclass", ("finding",), ("a", "b", "c"))
LABELS = Task("multilabel", ("mass", "oedema", "hernia"), ("1", "1", "yes"))


def judged(task, n=60):
    """Labels and scores of what a task asks, two rows of each patient; of a label the last is never seen."""
    rng = np.random.default_rng(0)
    patients = np.repeat([f"p{number}" for number in range(n // 2)], 2).astype(object)
    if task.kind == "multiclass":
        y = np.eye(3)[rng.integers(0, 3, n)]
    else:
        y = rng.integers(0, 2, (n, len(task.outputs))).astype(float)
    if task.kind == "multilabel":
        y[rng.random((n, 3)) < 0.3] = np.nan
        y[:, 2] = np.where(np.isnan(y[:, 2]), np.nan, 0)
    scores = task.scores(rng.normal(size=y.shape) + np.nan_to_num(y))
    return y, scores, patients


@pytest.fixture
def config(tmp_path):
    return FinetuneConfig(labels=tmp_path / "labels.csv", resamples=200, seed=3)


def test_measures_of_two_classes(config):
    y, scores, patients = judged(BINARY)
    found = module.measured(BINARY, y, scores, patients, True, config)
    low, high = auroc_of(y, patients, scores, "binary", 200, 3)[1:3]
    assert found == {
        "auroc": pytest.approx(roc_auc_score(y, scores)),
        "low": pytest.approx(low),
        "high": pytest.approx(high),
        "reason": "",
        "n": 60,
        "n_positive": int(y.sum()),
        "n_negative": int(60 - y.sum()),
        "n_patients": 30,
        "interval_level": "patient",
    }
    none = module.measured(BINARY, 0 * y, scores, patients, False, config)
    assert (none["auroc"], none["low"], none["reason"]) == (None, None, "n/a: no positive")
    assert none["interval_level"] == "image (patients unknown)"


def test_measures_of_several_classes_are_one_against_the_rest(config):
    y, scores, patients = judged(CLASSES)
    found = module.measured(CLASSES, y, scores, patients, True, config)
    assert found["auroc"] == pytest.approx(
        roc_auc_score(y.argmax(1), CLASSES.probabilities(scores), multi_class="ovr", average="macro")
    )
    assert found["low"] < found["auroc"] < found["high"]
    assert (found["n"], found["n_positive"], found["n_negative"]) == (60, None, None)
    assert list(found["by_label"]) == ["a", "b", "c"]
    for column, one in enumerate(found["by_label"].values()):
        assert one["auroc"] == pytest.approx(roc_auc_score(y[:, column], scores[:, column]))
        assert (one["n_positive"], one["n_negative"]) == (y[:, column].sum(), 60 - y[:, column].sum())
        assert one["low"] < one["auroc"] < one["high"]


def test_measures_of_several_labels_are_of_what_is_known(config):
    y, scores, patients = judged(LABELS)
    found = module.measured(LABELS, y, scores, patients, True, config)
    known = ~np.isnan(y)
    each = [roc_auc_score(y[known[:, c], c], scores[known[:, c], c]) for c in range(2)]
    assert found["auroc"] == pytest.approx(np.mean(each))
    assert found["n_positive"] == int((y == 1).any(axis=1).sum())
    assert found["n_positive"] + found["n_negative"] == found["n"] == 60
    assert [one["auroc"] for one in found["by_label"].values()] == [*map(pytest.approx, each), None]
    assert [one["n"] for one in found["by_label"].values()] == known.sum(axis=0).tolist()
    hernia = found["by_label"]["hernia"]
    assert hernia["reason"] == "n/a: no positive"
    y[:, :2] = np.nan
    nothing = module.measured(LABELS, y, scores, patients, True, config)
    assert (nothing["auroc"], nothing["reason"]) == (None, "n/a: no positive")


def test_measures_as_a_table_have_a_row_for_each_label(config):
    y, scores, patients = judged(LABELS)
    measured = module.measured(LABELS, y, scores, patients, True, config)
    table = module._by_split({"splits": {"val": measured, "test": measured}, "outputs": list(LABELS.outputs)})
    assert table[["split", "output"]].to_numpy().tolist() == [
        [split, output] for split in ("val", "test") for output in ("mean", *LABELS.outputs)
    ]
    assert table["auroc"][0] == measured["auroc"]
    assert table["n_positive"][1] == measured["by_label"]["mass"]["n_positive"]
    assert not {"by_label"} & set(table.columns)
    y, scores, patients = judged(BINARY)
    one = module.measured(BINARY, y, scores, patients, True, config)
    assert module._by_split({"splits": {"test": one}, "outputs": ["yes"]})["output"].tolist() == ["yes"]


@pytest.mark.parametrize("task", [BINARY, CLASSES, LABELS], ids=lambda task: task.kind)
def test_predictions_name_what_they_are_of(task):
    y, scores, patients = judged(task, n=4)
    rows = pd.DataFrame({"volume_id": list("wxyz"), "patient_key": patients, "split": "test", "source": "a/path"})
    table = module.predictions(rows.iloc[::-1], task, scores, y)
    names = ("",) if task.kind == "binary" else tuple(f" {output}" for output in task.outputs)
    kept = ["volume_id", "patient_key", "split"]
    assert list(table.columns) == [*kept, *(f"{what}{name}" for name in names for what in ("y", "probability"))]
    assert table["volume_id"].tolist() == list("zyxw")
    np.testing.assert_array_equal(table[[f"y{name}" for name in names]].astype(float), y)
    np.testing.assert_array_equal(table[[f"probability{name}" for name in names]], task.probabilities(scores))
    new = module.predictions(rows.drop(columns="split"), task, scores)
    assert list(new.columns) == ["volume_id", "patient_key", *(f"probability{name}" for name in names)]


@pytest.mark.parametrize(
    ("task", "y", "message"),
    [
        (
            BINARY,
            [[0], [0]],
            r"no positive of 'yes' \(column 'lesion'\); label some, at least one",
        ),
        (BINARY, [[1], [1]], "no negative of 'yes'"),
        (CLASSES, [[1, 0, 0], [0, 1, 0]], r"no positive of 'c' \(column 'finding'\)"),
        (
            LABELS,
            [[1, 0, 1], [0, 1, np.nan]],
            r"no negative of 'hernia' \(columns mass, .*\); .* leave it out",
        ),
        (LABELS, [[1, np.nan, 1], [0, np.nan, 0]], "no positive and no negative of 'oedema'"),
    ],
)
def test_a_split_without_one_of_the_classes(config, task, y, message):
    labels = np.array([*y, *np.eye(len(task.outputs) + 1)[:, :-1]], dtype=float)
    split = ["train"] * len(y) + ["test"] * (len(labels) - len(y))
    table = LabelTable(pd.DataFrame({"split": split}), labels, task, pd.DataFrame(), "series_uid", "table", ())
    with pytest.raises(DataError, match=f"^labels.csv: the train split has .*{message}"):
        module.check_classes(config.labels, table, "train")
    module.check_classes(config.labels, table, "test")


@pytest.mark.parametrize(("kind", "n"), [("multiclass", 0), ("multilabel", 18)])
def test_a_temperature_takes_five_patients_of_each_class_or_of_any_label(kind, n):
    y = np.zeros((18, 3))
    y[np.arange(18), np.repeat([0, 1, 2], (8, 7, 3))] = 1
    rows = pd.DataFrame({"split": "val", "patient_key": [f"p{i}" for i in range(18)]})
    table = LabelTable(rows, y, Task(kind, ("a", "b", "c"), ("a", "b", "c")), pd.DataFrame(), "path", "table", ())
    assert len(module.can_judge(table, "val")) == n


def test_without_labels_everybody_but_val_and_test_may_be_seen():
    rows = [("a", "p", "1"), ("b", "p", "2"), ("c", "q", "3"), ("d", "q", "4"), ("e", "r", "5"), ("f", "s", "3")]
    manifest = pd.DataFrame(rows, columns=["volume_id", "patient_key", "pixel_hash"])
    labelled = manifest.iloc[[0, 2, 4]].assign(split=["train", "test", "val"])
    data = module.Labelled(SimpleNamespace(rows=labelled), manifest, None, None, (), None, (), None, 0)
    # d is another volume of the test patient, f another patient's copy of the test volume.
    assert data.unlabelled["volume_id"].tolist() == ["a", "b"]
