import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from medclr.data.labels import LabelTable
from medclr.metrics import auroc, knn_scores, rankme
from medclr.training import health
from medclr.training.encode import embed_rows
from medclr.training.health import health_check
from medclr.training.simclr import SimCLR


def table(rows, split):
    return LabelTable(rows.assign(split=split), "y", "series_uid", ("0", "1"), "table", ())


@pytest.fixture
def module():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(144, 8))
    return SimCLR(network, nn.Identity(), None, temperature=1, lr=1, weight_decay=0, warmup_steps=0, total_steps=1)


SPLIT = ["train"] * 20 + ["val"] * 10 + ["test"] * 10


def test_what_is_measured(material, module):
    rows = material.rows
    seen = rows[:30].reset_index(drop=True)
    measured = health_check(seen, table(rows, SPLIT), material.store, material.spec, 0)(module)
    z = embed_rows(module.encoder, rows, material.store, material.spec)
    y = rows["y"].to_numpy()
    assert measured == {
        "rankme": pytest.approx(rankme(z[:30]), rel=1e-4),
        "knn_auroc": pytest.approx(auroc(y[20:30], knn_scores(z[:20], y[:20], z[20:30]))),
    }
    assert measured["knn_auroc"] > 0.9


def test_the_test_split_is_never_read(material, module):
    gone = [f"{number:032x}" if split != "test" else "f" * 32 for number, split in enumerate(SPLIT)]
    rows = material.rows.assign(store_key=gone)
    check = health_check(rows[:20], table(rows, SPLIT), material.store, material.spec, 0)
    assert set(check(module)) == {"rankme", "knn_auroc"}


def test_test_labels_do_not_matter(material, module):
    flipped = material.rows.assign(y=np.where(np.array(SPLIT) == "test", 1 - material.rows["y"], material.rows["y"]))
    one, other = (
        health_check(material.rows[:20], table(rows, SPLIT), material.store, material.spec, 0)(module)
        for rows in (material.rows, flipped)
    )
    assert one == other


def test_without_labels_or_with_a_single_class_there_is_no_knn(material, module):
    assert set(health_check(material.rows, None, material.store, material.spec, 0)(module)) == {"rankme"}
    for split in (["train"] * 40, ["train" if y else "val" for y in material.rows["y"]]):
        check = health_check(material.rows, table(material.rows, split), material.store, material.spec, 0)
        assert set(check(module)) == {"rankme"}


def test_collapse_is_a_rank_of_one(material):
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))

        def forward(self, images):
            return self.weight.expand(len(images), 8)

    collapsed = SimCLR(
        Constant(), nn.Identity(), None, temperature=1, lr=1, weight_decay=0, warmup_steps=0, total_steps=1
    )
    measured = health_check(material.rows, None, material.store, material.spec, 0)(collapsed)
    assert measured["rankme"] == pytest.approx(1, abs=0.01)


def test_large_sets_are_sampled_once(monkeypatch):
    monkeypatch.setattr(health, "MOST_ROWS", 5)
    rows = pd.DataFrame({"x": range(50)})
    sample = health._at_most(rows, 3)
    assert len(sample) == 5
    assert sample["x"].is_monotonic_increasing
    assert sample.equals(health._at_most(rows, 3))
    assert not sample.equals(health._at_most(rows, 4))
    assert health._at_most(rows[:5], 0).equals(rows[:5])
