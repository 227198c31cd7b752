import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from medclr.data.labels import LabelTable, Task
from medclr.data.loader import Blocks
from medclr.errors import DataError, MedclrError
from medclr.metrics import alignment, auroc, knn_scores, rankme, similarities, uniformity
from medclr.training import health
from medclr.training.encode import embed_rows
from medclr.training.health import check_views, health_check, site_probe, symptoms
from medclr.training.probe import FIXED_STRENGTH, fit_linear
from medclr.training.simclr import SimCLR
from medclr.transforms.presets import Views, build_views

SPLIT = ["train"] * 20 + ["val"] * 10 + ["test"] * 10
VIEWS = build_views("xray", 2)
BINARY = Task("binary", ("y",), ("0", "1"))
SPREAD = {"alignment", "uniformity", "positive_similarity", "negative_similarity", "rankme"}


class At(SimCLR):
    """A module that says after which epoch it is."""

    epoch = 0

    @property
    def current_epoch(self):
        return self.epoch


def made(network, projector=None):
    settings = {"temperature": 1, "lr": 1, "weight_decay": 0, "warmup_steps": 0, "total_steps": 1}
    return At(network, projector or nn.Identity(), VIEWS, **settings).eval()


@pytest.fixture
def module():
    torch.manual_seed(0)
    return made(nn.Sequential(nn.Flatten(), nn.Linear(144, 8)), nn.Linear(8, 6))


class Constant(nn.Module):
    """An encoder that says the same of every image."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, images):
        return self.weight.expand(len(images), 8)


def table(rows, y, split, task=BINARY):
    return LabelTable(rows.assign(split=split), y, task, pd.DataFrame(), "series_uid", "table", ())


@pytest.fixture
def check(material):
    """The check of the first `n` images, as `health_check` gives it."""

    def build(n=30, labels=None, rows=None, spec=material.spec, epochs=10, every=1, seed=0):
        rows = (material.rows if rows is None else rows)[:n].reset_index(drop=True)
        blocks = Blocks(rows, material.store, spec, VIEWS, 2, seed)
        return health_check(blocks, rows, labels, material.store, spec, epochs=epochs, every=every, seed=seed)

    return build


def test_what_is_measured(material, module, check):
    rows = material.rows
    measured = check(labels=table(rows, material.y, SPLIT))(module)
    blocks = Blocks(rows[:30], material.store, material.spec, VIEWS, 2, 0)
    batch = blocks.__getitems__([(health.EPOCH, row) for row in range(30)])
    features = []
    with torch.no_grad():
        for view in (0, 1):
            params = {name: value[:, view] for name, value in batch["params"].items()}
            images = VIEWS.apply(batch["blocks"][:, view], params, batch["low"][:, view], batch["high"][:, view])
            features.append(module.encoder(images))
        z1, z2 = (module.projector(one).numpy() for one in features)
    positive, negative = similarities(z1, z2, np.arange(30))
    z, y = embed_rows(module.encoder, rows, material.store, material.spec), material.y[:, 0]
    scaled = (z - z[:20].mean(0)) / z[:20].std(0).max()
    direct = LogisticRegression(C=FIXED_STRENGTH, class_weight="balanced").fit(scaled[:20], y[:20])
    assert measured == pytest.approx(
        {
            "alignment": alignment(z1, z2),
            "uniformity": uniformity(z1),
            "positive_similarity": positive,
            "negative_similarity": negative,
            "rankme": rankme(features[0].numpy()),
            "knn_auroc": auroc(y[20:30], knn_scores(z[:20], y[:20], z[20:30])),
            "linear_auroc": auroc(y[20:30], direct.decision_function(scaled[20:30])),
        },
        rel=1e-4,
    )
    assert min(measured["knn_auroc"], measured["linear_auroc"]) > 0.9
    assert 0.01 < measured["alignment"] < 1.9


def test_the_views_are_always_the_same_and_batches_do_not_matter(check, module, monkeypatch):
    whole = check()
    first = whole(module)
    module.epoch = 1
    assert whole(module) == first
    monkeypatch.setattr(health, "AT_ONCE", 4 * 12**2)  # four images at a time
    assert check()(module) == pytest.approx(first, rel=1e-4)
    assert check(seed=1)(module)["alignment"] != first["alignment"]


def test_views_of_one_patient_are_no_negatives(material, module, check):
    together = check(rows=material.rows.assign(patient_key=["one"] * 15 + ["two"] * 25))(module)
    apart = check()(module)
    assert together["negative_similarity"] != pytest.approx(apart["negative_similarity"], rel=1e-4)
    assert together["positive_similarity"] == apart["positive_similarity"]
    assert math.isnan(check(rows=material.rows.assign(patient_key="one"))(module)["negative_similarity"])


def test_the_test_split_is_never_read(material, module, check):
    gone = [f"{number:032x}" if split != "test" else "f" * 32 for number, split in enumerate(SPLIT)]
    rows = material.rows.assign(store_key=gone)
    assert set(check(20, table(rows, material.y, SPLIT))(module)) == {*SPREAD, "knn_auroc", "linear_auroc"}


def test_test_labels_do_not_matter(material, module, check):
    flipped = np.where(np.array(SPLIT)[:, None] == "test", 1 - material.y, material.y)
    one, other = (check(20, table(material.rows, y, SPLIT))(module) for y in (material.y, flipped))
    assert one == other


def test_without_labels_or_with_a_single_class_there_are_no_probes(material, module, check):
    assert set(check()(module)) == SPREAD
    for split in (["train"] * 40, ["train" if y else "val" for y in material.y]):
        assert set(check(40, table(material.rows, material.y, split))(module)) == SPREAD


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_probes_of_several_outputs_are_their_mean(material, module, check, kind):
    rng = np.random.default_rng(0)
    y = np.eye(3)[np.where(material.y[:, 0] == 1, 1, rng.permutation(40) % 2 * 2)]
    if kind == "multilabel":
        y[[1, 22]] = np.nan
    task = Task(kind, ("a",) if kind == "multiclass" else ("a", "b", "c"), ("x", "y", "z"))
    measured = check(20, table(material.rows, y, SPLIT, task))(module)
    z = embed_rows(module.encoder, material.rows, material.store, material.spec)
    head = fit_linear(z[:20], y[:20], np.arange(20).astype(str).astype(object), 0, FIXED_STRENGTH, kind == "multiclass")
    known = ~np.isnan(y[20:30, 0])
    for name, scores in (("linear", head.scores(z[20:30])), ("knn", knn_scores(z[:20], y[:20], z[20:30]))):
        expected = np.mean([auroc(y[20:30, c][known], scores[known, c]) for c in range(3)])
        assert measured[f"{name}_auroc"] == pytest.approx(expected)


def test_collapse_by_closed_form(check):
    measured = check()(made(Constant()))
    assert measured == pytest.approx(
        {"alignment": 0, "uniformity": 0, "positive_similarity": 1, "negative_similarity": 1, "rankme": 1}, abs=0.01
    )
    assert "collapse" in symptoms([{"loss": 1, "chance": 5, "lr": 0, **measured}], final=True)


def test_features_that_are_not_finite_are_a_line(check):
    collapsed = made(Constant())
    collapsed.encoder.weight.data[3] = math.inf
    with pytest.raises(MedclrError, match="not finite; lower --lr"):
        check()(collapsed)


def due(check, module, epochs):
    found = []
    for module.epoch in range(epochs):
        found += [module.epoch] * bool(check(module))
    return found


def test_which_epochs_have_a_check(material, module, check):
    assert due(check(epochs=7, every=3), module, 7) == [0, 3, 6]
    assert due(check(epochs=6, every=3), module, 6) == [0, 3, 5]
    assert due(check(epochs=3, every=1), module, 3) == [0, 1, 2]
    # Two views of each in training cost three passes each; a check has one pass of each: 1/3, at most 1/10.
    assert due(check(epochs=9, every=None), module, 9) == [0, 4, 8]
    # With labels, twenty and ten passes more beside sixty.
    assert due(check(epochs=11, every=None, labels=table(material.rows, material.y, SPLIT)), module, 11) == [0, 5, 10]


def test_of_large_sets_a_sample_is_looked_at(material, module, monkeypatch):
    asked = []

    class Recorded(Blocks):
        def __getitems__(self, items):
            asked.extend(row for _, row in items)
            return super().__getitems__(items)

    rows = pd.concat([material.rows] * 30, ignore_index=True)
    blocks = Recorded(rows, material.store, material.spec, VIEWS, 2, 0)
    settings = {"epochs": 2, "every": None}
    for seed in (3, 3, 4):
        health_check(blocks, rows, None, material.store, material.spec, **settings, seed=seed)(module)
    one, two, other = (asked[start : start + 1000] for start in (0, 1000, 2000))
    assert len(asked) == 3000
    assert sorted(set(one)) == one
    assert one == two != other


@pytest.fixture
def sites():
    """Features (120, 4) of sixty patients, of which the first column alone may tell the sites."""
    rng = np.random.default_rng(0)
    patients = np.array([f"p{number // 2}" for number in range(120)], dtype=object)
    names = np.array(["site A", "site B", "site C"], dtype=object)[np.arange(120) // 2 % 3]
    return rng.normal(size=(120, 4)), names, patients


def test_the_site_probe_finds_what_is_there(sites):
    features, names, patients = sites
    assert site_probe(features, names, patients, 0) == pytest.approx(0.5, abs=0.1)
    told = features.copy()
    told[:, 0] += 9 * (names == "site A")
    told[:, 1] += 9 * (names == "site B")
    assert site_probe(told, names, patients, 0) == pytest.approx(1)
    two = names != "site C"
    assert site_probe(told[two], names[two], patients[two], 0) == pytest.approx(1)


def test_the_site_probe_does_not_know_patients_again(sites):
    """Where each patient is a cluster of its own, only folds that tear patients apart would tell their sites."""
    _, names, patients = sites
    rng = np.random.default_rng(1)
    features = np.repeat(rng.normal(size=(60, 40)), 2, axis=0) + 1e-3 * rng.normal(size=(120, 40))
    assert site_probe(features, names, patients, 0) < 0.65


def test_the_first_domain_with_two_values_of_enough_patients_is_probed(material, module, check):
    spec = replace(material.spec, domains=("model", "site", "manufacturer"))
    y = material.y[:, 0]
    rows = material.rows.assign(
        site=["site A"] * 36 + ["site B"] * 4, manufacturer=np.where(y, "", "X"), model=np.where(y, "M", "N")
    )
    measured = check(40, rows=rows, spec=spec)(module)
    assert set(measured) == {*SPREAD, "model_auroc"}
    assert measured["model_auroc"] > 0.9
    rows["manufacturer"] = ["X"] * 20 + ["Y"] * 18 + ["Z"] * 2
    measured = check(40, rows=rows, spec=spec)(module)
    assert set(measured) == {*SPREAD, "manufacturer_auroc"}
    assert measured["manufacturer_auroc"] == pytest.approx(0.5, abs=0.3)
    rows["patient_key"] = [f"p{number // 5}" for number in range(40)]  # four patients a value
    assert set(check(40, rows=rows, spec=spec)(module)) == SPREAD


class Still(Views):
    """Both views of a volume are drawn alike."""

    def draw(self, rng):
        return super().draw(np.random.default_rng(0))


def test_views_are_looked_at_before_training(material):
    rows, store, spec = material.rows, material.store, material.spec
    assert check_views(Blocks(rows, store, spec, VIEWS), VIEWS, spec, 0) == []
    still = Still(VIEWS.steps)
    with pytest.raises(DataError, match="the two views of 32 of 32 volumes looked at are the same"):
        check_views(Blocks(rows, store, spec, still), still, spec, 0)
    window = replace(spec, normalisation="window", window=(3000.0, 4000.0))
    with pytest.raises(DataError, match=r"32 of 32 .* single grey value .*test.* from 3000 to 4000. Choose another"):
        check_views(Blocks(rows, store, window, VIEWS), VIEWS, window, 0)
    few = rows[:10].assign(low=[9e3] * 3 + [60.0] * 7, high=[1e4] * 3 + [200.0] * 7)
    (warning,) = check_views(Blocks(few, store, spec, VIEWS), VIEWS, spec, 0)
    assert warning.startswith("3 of 10 volumes looked at show a single grey value")


def history(*losses, lr=None, **measures):
    lr = lr or [1.0] * len(losses)
    return [{"loss": loss, "chance": 5.0, "lr": rate, **measures} for loss, rate in zip(losses, lr, strict=True)]


def test_a_loss_at_chance_is_told_from_the_third_epoch_on_and_after_the_warm_up():
    assert symptoms(history(5, 5)) == {}
    assert set(symptoms(history(5, 5, 5))) == {"chance"}
    assert "after 3 epochs the loss 5.000 is at its chance level 5.000" in symptoms(history(5, 5, 5))["chance"]
    assert symptoms(history(5, 5, 5, 5, lr=[1, 2, 3, 4])) == {}
    assert set(symptoms(history(5, 5, 5, 5, 5, lr=[1, 2, 3, 4, 3.9]))) == {"chance"}
    assert symptoms(history(5, 5, 4.8)) == {}
    assert set(symptoms(history(5), final=True)) == {"chance"}


def test_collapse_is_told_by_the_last_check():
    sound, flat = {"rankme": 9.0, "uniformity": -2.0}, {"rankme": 1.5, "uniformity": -2.0}
    assert symptoms(history(4, 4, 4, **sound)) == {}
    assert set(symptoms(history(4, 4, 4, **flat))) == {"collapse"}
    assert set(symptoms(history(4, 4, 4, **sound | {"uniformity": -0.01}))) == {"collapse"}
    # Epochs without a check, as a resumed run reads them and as they come.
    blank = history(4, rankme=math.nan) + history(4)
    assert set(symptoms(history(4, 4, 4, **flat) + blank)) == {"collapse"}
    assert symptoms(history(4, 4, 4, **flat) + history(4, **sound) + blank) == {}
    # What the first epochs looked like says nothing.
    assert symptoms(history(4, 4, **flat) + blank) == {}
    assert symptoms(history(4, 4, 4, lr=[1, 2, 3], **flat) + history(4, lr=[2])) == {}
    assert set(symptoms(history(4, 4, **flat), final=True)) == {"collapse"}
    assert symptoms(history(4, 4, 4)) == {}
    assert set(symptoms(history(5, 5, 5, **flat))) == {"chance", "collapse"}
