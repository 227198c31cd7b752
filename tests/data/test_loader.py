import multiprocessing
import subprocess
import types
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from medclr.data.loader import (
    Blocks,
    Steps,
    default_workers,
    eval_loader,
    grey_range,
    outside,
    train_loader,
    view_rng,
)
from medclr.data.prepare import statistics
from medclr.data.spec import DataSpec
from medclr.data.store import Store
from medclr.errors import DataError

# torch says so where a machine has fewer cores than the two workers that these tests need.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

SPEC = DataSpec("s", ("DX",), 2, "percentile", "fit", 224, "xray", patch=(8, 8))


class Dice:
    """A transform that draws three numbers."""

    def draw(self, rng):
        return {"dice": rng.random(3, dtype=np.float32), "one": np.array(rng.random(), np.float32)}


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """Twelve images of 8 to 11 by 6 to 9 pixels, of four patients."""
    store = Store(tmp_path_factory.mktemp("store"))
    rows = []
    for item in range(12):
        array = np.random.default_rng(item).normal(item, 1, (1, 8 + item % 4, 6 + item % 4)).astype(np.float32)
        store.write(f"{item:032x}", array, {})
        rows.append(
            {"store_key": f"{item:032x}", "store_shape": list(array.shape[1:]), "patient_key": f"p{item % 4}"}
            | statistics(array)
        )
    return pd.DataFrame(rows), store


def batches(stock, workers, epoch, seed=0, batch_size=4):
    loader = train_loader(Blocks(*stock, SPEC, Dice(), 2, seed), batch_size, workers, seed)
    loader.batch_sampler.set_epoch(epoch)
    return list(loader)


def draws(found):
    """What every (item, view) of some batches drew."""
    return {
        (int(row), view): (tuple(batch["params"]["dice"][i, view].tolist()), float(batch["params"]["one"][i, view]))
        for batch in found
        for i, row in enumerate(batch["row"])
        for view in range(2)
    }


def test_randomness_is_distinct_per_item_and_view_and_the_same_for_any_workers(stock):
    alone, shared = draws(batches(stock, 0, 3)), draws(batches(stock, 2, 3))
    assert len(alone) == 24
    assert len(set(alone.values())) == 24
    assert shared == alone


def test_randomness_differs_between_epochs_and_seeds(stock):
    found = [draws(batches(stock, 0, epoch, seed)) for epoch, seed in ((0, 0), (1, 0), (2, 0), (0, 1), (1, 1))]
    values = [value for one in found for value in one.values()]
    assert len(set(values)) == len(values) == 120


def test_workers_go_on_with_new_randomness_in_the_next_epoch(stock):
    loader = train_loader(Blocks(*stock, SPEC, Dice(), 2, 0), 4, 2, 0)
    for epoch in range(3):
        loader.batch_sampler.set_epoch(epoch)
        assert draws(loader) == draws(batches(stock, 0, epoch))


def test_view_rng_is_a_pure_function_without_collisions():
    streams = {
        tuple(view_rng(seed, epoch, item, view).random(2))
        for seed in (0, 1, 2**32)
        for epoch in range(3)
        for item in range(5)
        for view in (0, 1, 2**32 - 1)
    }
    assert len(streams) == 3 * 3 * 5 * 3
    assert view_rng(1, 2, 3, 4).random() == view_rng(1, 2, 3, 4).random()


def test_an_epoch_is_a_permutation_in_whole_batches():
    steps = Steps(11, 4, seed=5)
    orders = []
    for epoch in range(3):
        steps.set_epoch(epoch)
        found = list(steps)
        assert len(found) == len(steps) == 2
        assert [len(batch) for batch in found] == [4, 4]
        items = [item for batch in found for item in batch]
        assert {item[0] for item in items} == {epoch}
        rows = [row for _, row in items]
        assert len(set(rows)) == 8
        orders.append(tuple(rows))
        assert list(steps) == found
    assert len(set(orders)) == 3
    assert list(Steps(11, 4, seed=6)) != list(Steps(11, 4, seed=5))


def test_an_epoch_goes_on_after_the_steps_that_were_taken():
    steps = Steps(11, 2, seed=5)
    steps.set_epoch(3)
    whole = list(steps)
    for start in range(6):
        steps.set_epoch(3, start)
        assert list(steps) == whole[start:]
        assert len(steps) == 5
    steps.set_epoch(4)
    assert len(list(steps)) == 5


DOMAINS = np.array([0] * 20 + [2] * 7 + [1] * 3)[np.random.default_rng(0).permutation(30)]


def epochs(steps, n):
    found = []
    for epoch in range(n):
        steps.set_epoch(epoch)
        found.append(list(steps))
    return found


def test_balanced_batches_hold_as_many_of_each_domain():
    steps = Steps(30, 9, seed=5, domains=DOMAINS)
    found = epochs(steps, 20)
    batches = [batch for epoch in found for batch in epoch]
    assert {len(epoch) for epoch in found} == {len(steps)} == {3}
    for batch in batches:
        # In turn, so that every micro-batch has all of them.
        assert [DOMAINS[row] for _, row in batch] == [0, 1, 2] * 3
        assert len({row for _, row in batch}) == 9
    # What stands for a view comes once.
    items = [item for batch in batches for item in batch]
    assert len(set(items)) == len(items) == 20 * 27
    # Of each domain all come equally often, but for what is left over of a pass.
    counts = np.bincount([row for _, row in items], minlength=30)
    for domain, size in ((0, 20), (1, 3), (2, 7)):
        of = counts[domain == DOMAINS]
        assert of.sum() == 180
        assert of.min() > 0.75 * 180 / size
        assert of.max() < 1.25 * 180 / size
    assert (counts[DOMAINS == 1] == 60).all()
    assert len({tuple(row for _, row in epoch[0]) for epoch in found}) == 20
    assert epochs(Steps(30, 9, seed=5, domains=DOMAINS), 20) == found
    assert epochs(Steps(30, 9, seed=6, domains=DOMAINS), 20) != found


def test_a_balanced_epoch_goes_on_after_the_steps_that_were_taken():
    steps = Steps(30, 9, seed=5, domains=DOMAINS)
    whole = epochs(steps, 5)
    for epoch in range(5):
        for start in range(4):
            steps.set_epoch(epoch, start)
            assert list(steps) == whole[epoch][start:]


def test_processes_share_every_balanced_batch():
    alone = epochs(Steps(30, 9, 5, domains=DOMAINS), 4)
    shares = [epochs(Steps(30, 9, 5, rank, 3, DOMAINS), 4) for rank in range(3)]
    for epoch in range(4):
        for number, batch in enumerate(alone[epoch]):
            parts = [share[epoch][number] for share in shares]
            assert [item for part in parts for item in part] == batch
            assert {tuple(DOMAINS[row] for _, row in part) for part in parts} == {(0, 1, 2)}


def test_blocks_say_the_domain_of_their_rows(stock):
    domains = np.arange(12) % 2
    loader = train_loader(Blocks(*stock, SPEC, Dice(), 2, 0, domains=domains), 4, 0, 0, balance=True)
    for batch in loader:
        assert batch["domain"].tolist() == [0, 1, 0, 1] == [row % 2 for row in batch["row"]]
    for batch in train_loader(Blocks(*stock, SPEC, Dice(), 2, 0), 4, 0, 0, balance=False):
        assert batch["domain"].tolist() == [0] * 4


def test_a_row_that_comes_twice_in_an_epoch_has_other_views(stock):
    domains = np.array([1] + [0] * 11)
    found = list(train_loader(Blocks(*stock, SPEC, Dice(), 2, 0, domains=domains), 2, 0, 0, balance=True))
    alone = [batch["params"]["dice"][1] for batch in found]
    assert [batch["row"][1] for batch in found] == [0] * 6
    assert len({tuple(params.flatten().tolist()) for params in alone}) == 6


def test_a_pass_takes_no_random_number(stock):
    """Or a run that begins an epoch twice would not be the run that does not."""
    before = torch.get_rng_state()
    for workers in (0, 2):
        batches(stock, workers, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_loader_processes_outlive_the_signals_of_their_group_and_obey_their_parent(stock):
    """The signals come from another process, as from a scheduler."""
    loader = train_loader(Blocks(*stock, SPEC, Dice(), 2, 0), 4, 2, 0)
    found = iter(loader)
    next(found), next(found)  # one from each: both are at work
    children = multiprocessing.active_children()
    assert len(children) == 2
    for name in ("INT", "TERM", "USR1"):
        subprocess.run(["kill", f"-{name}", *(str(child.pid) for child in children)], check=True)
    for child in children:
        child.join(0.3)
    assert all(child.is_alive() for child in children)
    assert len(list(found)) == 1
    children[0].terminate()
    children[0].join(10)
    assert children[0].exitcode == 0


def test_an_error_in_a_loader_process_is_its_message_alone(stock):
    rows, store = stock
    broken = Blocks(rows.assign(store_key="f" * 32, store_shape=[[8, 6]] * 12), store, SPEC, Dice())
    for workers in (0, 1):
        loader = train_loader(broken, 4, workers, 0)
        with pytest.raises(DataError) as raised:
            list(loader)
        told = "entry ffffffff… is missing or damaged; run `medclr prepare` on the data again"
        assert str(raised.value) == f"store {store.root}: {told}"
        del loader, raised  # with its processes, which would hold up the end of this one


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_in_the_store_is_named(stock, value):
    rows, store = stock
    array = np.full((1, 8, 6), 1e38, np.float32)  # whose sum is not finite either
    store.write("e" * 32, array, {})
    sound = rows.assign(store_key="e" * 32, store_shape=[[8, 6]] * 12)
    assert len(list(train_loader(Blocks(sound, store, SPEC, Dice()), 4, 0, 0))) == 3
    array[0, 3, 3:5] = value, -value
    store.write("e" * 32, array, {})
    with pytest.raises(DataError, match="entry eeeeeeee… has values that are not finite; run `medclr prepare`"):
        list(train_loader(Blocks(sound, store, SPEC, Dice()), 4, 0, 0))


def test_a_batch_is_at_most_all_rows():
    assert [len(batch) for batch in Steps(3, 64, 0)] == [3]


@pytest.mark.parametrize(("n_rows", "batch_size", "same_as"), [(23, 6, 6), (23, 64, 21), (20, 64, 18)])
def test_processes_share_every_batch(n_rows, batch_size, same_as):
    """In the order of the ranks, the shares are the batch that one would have had; fewer rows are shared evenly."""
    shares = [Steps(n_rows, batch_size, 5, rank, 3) for rank in range(3)]
    alone = Steps(n_rows, same_as, 5)
    for steps in (*shares, alone):
        steps.set_epoch(2, start=1 if batch_size < n_rows else 0)
    assert {len(steps) for steps in shares} == {len(alone)}
    found = [[item for part in parts for item in part] for parts in zip(*shares, strict=True)]
    assert found == list(alone)
    assert found
    assert {len(part) for steps in shares for part in steps} == {same_as // 3}


def test_a_batch_holds_what_it_says(stock):
    rows, store = stock
    (batch,) = batches(stock, 0, 0, batch_size=12)
    assert batch["blocks"].shape == (12, 2, 1, 8, 8)
    assert batch["blocks"].dtype == batch["low"].dtype == batch["params"]["dice"].dtype == torch.float32
    assert batch["low"].shape == batch["high"].shape == batch["params"]["one"].shape == (12, 2)
    assert sorted(batch["row"].tolist()) == list(range(12))
    for i, row in enumerate(batch["row"].tolist()):
        assert batch["low"][i, 0] == batch["low"][i, 1] == np.float32(rows["low"][row])
        whole = np.pad(
            store.read(rows["store_key"][row], (0, 0), tuple(rows["store_shape"][row]), 0)[0],
            9,
            constant_values=np.float32(rows["low"][row]),
        )
        windows = np.lib.stride_tricks.sliding_window_view(whole, (8, 8)).reshape(-1, 8, 8)
        for view in range(2):
            assert (windows == batch["blocks"][i, view, 0].numpy()).all(axis=(1, 2)).any()
    same = batch["patient"][:, None] == batch["patient"]
    assert torch.equal(same, batch["row"][:, None] % 4 == batch["row"] % 4)


def test_blocks_start_anywhere_in_a_longer_volume(tmp_path):
    store = Store(tmp_path)
    store.write("a" * 32, np.arange(11 * 10, dtype=np.float32).reshape(1, 11, 10), {})
    row = {"store_key": "a" * 32, "store_shape": [11, 10], "patient_key": "p", "low": 0.0, "high": 1.0}
    blocks = Blocks(pd.DataFrame([row]), store, SPEC, Dice(), 2, 0)
    batch = blocks.__getitems__([(epoch, 0) for epoch in range(200)])
    firsts = set(batch["blocks"][:, :, 0, 0, 0].flatten().tolist())
    assert firsts == {10.0 * x + y for x in range(4) for y in range(3)}


def test_evaluation_is_every_row_once_in_order_from_the_centre(stock):
    rows, store = stock
    for workers in (0, 1):
        found = list(eval_loader(Blocks(rows, store, SPEC), workers, batch_size=5))
        assert torch.cat([batch["row"] for batch in found]).tolist() == list(range(12))
        blocks = torch.cat([batch["blocks"] for batch in found])
        assert blocks.shape == (12, 1, 1, 8, 8)
        for i, shape in enumerate(rows["store_shape"]):
            start = tuple((n - 8) // 2 for n in shape)
            np.testing.assert_array_equal(
                blocks[i, 0], store.read(rows["store_key"][i], start, (8, 8), np.float32(rows["low"][i]))
            )


def test_grey_ranges():
    rows = pd.DataFrame({"mean": [10.0, 5], "std": [2.0, 0], "low": [1.0, 3], "high": [9.0, 3]})
    ranges = {
        name: np.array(grey_range(rows, replace(SPEC, normalisation=name, window=(-100, 300)))).T.tolist()
        for name in ("window", "zscore", "percentile")
    }
    assert ranges == {
        "window": [[-100, 300], [-100, 300]],
        "zscore": [[4, 16], [5, 6]],
        "percentile": [[1, 9], [3, 4]],
    }


def test_a_short_volume_lies_in_the_grey_of_its_own_background():
    rows = pd.DataFrame({"mean": [100.0], "std": [40.0], "low": [1.0], "high": [250.0]})
    found = {
        name: outside(rows, replace(SPEC, normalisation=name, window=(-1000, 400))).tolist()
        for name in ("window", "zscore", "percentile")
    }
    assert found == {"window": [-1000], "zscore": [1], "percentile": [1]}


def test_default_workers():
    assert default_workers(SPEC, 64) == 0
    large = replace(SPEC, patch=(96, 96, 96))
    assert [default_workers(large, cores) for cores in (2, 4, 64)] == [0, 2, 12]


@pytest.mark.parametrize(("patch", "expected"), [((28, 28), 256), ((64, 64, 64), 128), ((400, 400, 400), 1)])
def test_a_batch_to_look_at_has_bounded_voxels(patch, expected):
    class Many(types.SimpleNamespace):
        def __len__(self):
            return 300

    batches = eval_loader(Many(patch=patch), 0).batch_sampler
    assert next(len(batch) for batch in batches) == expected
    assert sum(len(batch) for batch in batches) == 300
    assert next(len(batch) for batch in eval_loader(Many(patch=patch), 0, 7).batch_sampler) == 7
