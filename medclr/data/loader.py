"""Blocks from the store for the network, and the one factory of loaders."""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from medclr.data.pairs import Pairs, Partners, overlapping_start
from medclr.data.spec import DataSpec
from medclr.data.store import Store
from medclr.errors import DataError

Batch = dict[str, Any]
_MOST_VOXELS = 2**25  # of a batch that is only looked at: a wide first layer makes gigabytes of them


class Draws(Protocol):
    """A transform, as far as data need to know it: it draws the parameters of one view."""

    def draw(self, rng: np.random.Generator) -> dict[str, Any]: ...


def view_rng(seed: int, epoch: int, item: int, view: int) -> np.random.Generator:
    """The random numbers of one view of one item: a pure function, whichever worker asks, in whatever order.

    Counter-based (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): nothing is shared
    between workers that could repeat, and a resumed run draws what the first would have drawn.
    """
    return np.random.Generator(np.random.Philox(key=(seed << 32) + view, counter=[0, 0, epoch, item]))


class Blocks(Dataset[Batch]):
    """Fixed-size blocks of stored volumes, a batch at a time.

    Items are asked for as (epoch, row), which is all that their randomness depends on. With `views` None, an item
    is the one block at the centre of the volume, or at the `start` that its row names. Under a spec with slices a row
    is a slice. See `parts_of`.

    A batch holds blocks, (B, V, C, *patch) in the store's data type, with low and high, (B, V), the grey values that
    become 0 and 1; params, a dict of (B, V, ...); row, (B,), of the first view; and patient and domain, (B,), equal
    where the patient or the domain is.

    Args:
        rows: prepared volumes, or slices of them.
        store, spec: where and how to read them.
        views: whose parameters are drawn.
        n_views: of each row.
        seed: of all draws.
        pairs: where the views after the first come from: the row itself, its `Partners`, or, for "overlap", a block
            of the row that overlaps the first.
        overlap: the least share of a block that these have in common.
        domains: (n,) integers of the rows; None where all are of one.
    """

    def __init__(
        self,
        rows: pd.DataFrame,
        store: Store,
        spec: DataSpec,
        views: Draws | None = None,
        n_views: int = 2,
        seed: int = 0,
        pairs: Pairs = "instance",
        overlap: float = 0.5,
        domains: NDArray[np.int64] | None = None,
    ) -> None:
        assert spec.patch is not None
        self.store, self.patch, self.views, self.seed = store, spec.patch, views, seed
        self.n_views = n_views if views else 1
        self.keys = rows["store_key"].to_numpy(str)
        self.slices = rows["slice"].to_numpy() if spec.slices else None
        self.starts = rows["start"].to_list() if "start" in rows else None
        self.shapes = np.array([shape[-spec.spatial_dims :] for shape in rows["store_shape"]])
        self.low, self.high = grey_range(rows, spec)
        self.outside = outside(rows, spec)
        self.patients = torch.from_numpy(pd.factorize(rows["patient_key"])[0])
        self.domains = torch.zeros(len(rows), dtype=torch.int64) if domains is None else torch.from_numpy(domains)
        self.partners = Partners(rows, pairs) if self.n_views > 1 and pairs not in ("instance", "overlap") else None
        self.overlap = overlap if pairs == "overlap" else None

    def __len__(self) -> int:
        return len(self.keys)

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> Batch:
        rows = np.array([row for _, row in items])
        blocks: list[NDArray[Any]] = []
        params = []
        shown: list[int] = []
        for epoch, row in items:
            starts: list[tuple[int, ...]] = []
            for view in range(self.n_views):
                rng = view_rng(self.seed, epoch, row, view)
                source = self.partners.draw(row, rng) if self.partners and view else row
                if view and self.overlap is not None:
                    start = overlapping_start(starts[0], self._room(row), self.patch, self.overlap, rng)
                else:
                    start = self._start(source, rng if self.views else None)
                params.append(self.views.draw(rng) if self.views else {})
                # Both views of a small image are of the same block.
                same = view > 0 and (source, start) == (shown[-1], starts[-1])
                blocks.append(blocks[-1] if same else self._read(source, start))
                shown.append(source)
                starts.append(start)
        stacked = np.stack(blocks)
        self._check_finite(stacked, self.keys[shown])
        return {
            "blocks": self._by_view(stacked),
            "low": self._by_view(self.low[shown]),
            "high": self._by_view(self.high[shown]),
            "params": {name: self._by_view(np.stack([p[name] for p in params])) for name in params[0]},
            "row": torch.from_numpy(rows),
            "patient": self.patients[rows],
            "domain": self.domains[rows],
        }

    def _check_finite(self, blocks: NDArray[Any], keys: NDArray[np.str_]) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            # A sum is quicker than a look at each voxel, and not finite where one of them is not.
            if blocks.dtype.kind != "f" or np.isfinite(blocks.sum()):
                return
        for block, key in zip(blocks, keys, strict=True):
            if not np.isfinite(block).all():
                raise DataError(
                    f"store {self.store.root}: entry {key[:8]}… has values that are not finite; run `medclr prepare` "
                    "on the data again"
                )

    def _by_view(self, values: NDArray[Any]) -> Tensor:
        """(B * V, ...) to (B, V, ...)."""
        return torch.from_numpy(values.reshape(-1, self.n_views, *values.shape[1:]))

    def _room(self, row: int) -> tuple[int, ...]:
        """By how many voxels a volume is longer than the patch, per axis; negative where it is shorter."""
        return tuple(int(n) - p for n, p in zip(self.shapes[row], self.patch, strict=True))

    def _start(self, row: int, rng: np.random.Generator | None) -> tuple[int, ...]:
        """First voxel of a block: at random where the volume is longer than the patch, else as told, else centred."""
        if self.starts is not None and not rng:
            return tuple(self.starts[row])
        return tuple(int(rng.integers(room + 1)) if rng and room > 0 else room // 2 for room in self._room(row))

    def _read(self, row: int, start: tuple[int, ...]) -> NDArray[Any]:
        if self.slices is None:
            return self.store.read(self.keys[row], start, self.patch, fill=self.outside[row])
        place = (int(self.slices[row]), *start)
        return self.store.read(self.keys[row], place, (1, *self.patch), fill=self.outside[row])[:, 0]


class Steps(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, row) for a number of steps, from any step on: each epoch another order, drawn from the seed.

    Only whole batches are given, so that every step of SimCLR sees the same number of negatives. Of several processes,
    each gets its share of every batch.

    With `domains`, each batch and each share of it holds as many rows of every domain. An epoch is as many steps as
    without; each domain goes through passes of its own, which may begin and end anywhere in it. Rows of a small domain
    come more than once in an epoch: what stands for it is then the number of the pass, so that each time has views of
    its own.

    Args:
        n_rows: to choose from, at least as many as processes.
        batch_size: of all processes together; no more than there are rows. With domains it is a multiple of their
            number times that of the processes, and none has fewer rows than its share of a batch.
        seed: of the orders.
        rank: of this process; world: how many there are.
        domains: (n_rows,) integers; None for batches that do not look at them.
    """

    def __init__(
        self,
        n_rows: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        domains: NDArray[np.int64] | None = None,
    ) -> None:
        self.n_rows, self.seed, self.rank, self.world = n_rows, seed, rank, world
        self.batch_size = min(batch_size, n_rows) // world * world
        self.members = None if domains is None else [np.flatnonzero(domains == one) for one in np.unique(domains)]
        self.epoch, self.start = 0, 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Called by whoever runs the epochs, before each; `start` steps of it were taken before an interruption."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """Steps of a whole epoch."""
        return self.n_rows // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        share = self.batch_size // self.world
        mine = slice(self.rank * share, (self.rank + 1) * share)
        if self.members is not None:
            passes = [(-1, np.empty(0, np.intp))] * len(self.members)
            for step in range(self.start, len(self)):
                yield self._balanced(self.members, passes, self.epoch * len(self) + step)[mine]
            return
        order = self._order(self.epoch, 0, self.n_rows)
        for step in range(self.start, len(self)):
            rows = order[step * self.batch_size :][mine]
            yield [(self.epoch, int(row)) for row in rows]

    def _balanced(
        self, members: Sequence[NDArray[np.intp]], passes: list[tuple[int, NDArray[np.intp]]], step: int
    ) -> list[tuple[int, int]]:
        """The batch of a step, counted from the first of the run: a row of each domain in turn.

        In turn, so that neither a process nor a micro-batch has rows of one domain alone, by which batch norm would
        take each for itself. `passes` keeps the number and order of the pass that each domain is in.
        """
        each = self.batch_size // len(members)
        parts = []
        for domain, rows in enumerate(members):
            # Whole steps only, so that no row is twice in a batch; which are left over, each pass draws anew.
            number, begin = divmod(step, len(rows) // each)
            if passes[domain][0] != number:
                passes[domain] = number, rows[self._order(number, domain, len(rows))]
            parts.append([(number, int(row)) for row in passes[domain][1][begin * each :][:each]])
        return [item for turn in zip(*parts, strict=True) for item in turn]

    def _order(self, number: int, domain: int, n: int) -> NDArray[np.intp]:
        # View numbers are small: the largest 32-bit one is free for the order of a pass.
        return view_rng(self.seed, number, domain, 2**32 - 1).permutation(n)


def train_loader(
    blocks: Blocks, batch_size: int, workers: int, seed: int, rank: int = 0, world: int = 1, balance: bool = False
) -> "DataLoader[Batch]":
    """A loader whose batches and views depend on nothing but the seed and the epoch that its Steps was last told.

    balance: whether each batch holds as many rows of every domain of the blocks.
    """
    domains = blocks.domains.numpy() if balance else None
    return _loader(blocks, Steps(len(blocks), batch_size, seed, rank, world, domains), workers)


def eval_loader(blocks: Blocks, workers: int, batch_size: int | None = None) -> "DataLoader[Batch]":
    """A loader over all rows, once, in order; `batch_size` of them at a time, or as many as memory has room for."""
    batch_size = batch_size or most_at_once(blocks.patch)
    items = [(0, row) for row in range(len(blocks))]
    batches = [items[i : i + batch_size] for i in range(0, len(items), batch_size)]
    return _loader(blocks, batches, workers)


def most_at_once(patch: Sequence[int]) -> int:
    """Blocks of this size in a batch for which memory has room, where it is only looked at."""
    return max(1, min(256, _MOST_VOXELS // int(np.prod(patch))))


def default_workers(spec: DataSpec, cores: int) -> int:
    """Loader processes: none where a block is read in less time than a process takes to hand it over."""
    assert spec.patch is not None
    return 0 if np.prod(spec.patch) <= 64**2 or cores < 4 else min(cores - 2, 12)


def grey_range(rows: pd.DataFrame, spec: DataSpec) -> tuple[Any, Any]:
    """The grey values of each volume that become 0 and 1, float32 (n,) each, by the spec's normalisation."""
    if spec.normalisation == "window":
        assert spec.window is not None
        low, high = (np.full(len(rows), edge) for edge in spec.window)
    elif spec.normalisation == "percentile":
        low, high = rows["low"].to_numpy(), rows["high"].to_numpy()
    else:
        mean, std = rows["mean"].to_numpy(), rows["std"].to_numpy()
        low, high = mean - 3 * std, mean + 3 * std
    # A volume of one grey value has no range; any will do, since it shows nothing.
    return low.astype(np.float32), np.where(high > low, high, low + 1).astype(np.float32)


def outside(rows: pd.DataFrame, spec: DataSpec) -> Any:
    """What lies around each volume where it is shorter than the patch, float32 (n,): the grey value of its darkest."""
    # Three deviations below the mean of an MR image is far darker than its air.
    return rows["low"].to_numpy(np.float32) if spec.normalisation == "zscore" else grey_range(rows, spec)[0]


def _loader(blocks: Blocks, batches: Any, workers: int) -> "DataLoader[Batch]":
    return DataLoader(
        blocks,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_as_it_is,  # type: ignore[arg-type]  # torch expects items; __getitems__ gives a batch
        worker_init_fn=_quiet if workers else None,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # else each pass would take a number from torch's own, and a resumed run one more
        pin_memory=torch.cuda.is_available(),
    )


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _quiet(worker: int) -> None:
    """Leave signals to the main process, which ends its workers.

    SLURM and systemd send them to all processes of a job. A worker that died of one would break the step that the
    main process is about to save, so SIGTERM is obeyed where it comes from that one alone.
    """
    for signum in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "sigwaitinfo"):  # not on a Mac
        # Blocked here, so that it goes to whoever waits for it; a handler would not learn who sent it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)  # torch takes anything else for a failure
