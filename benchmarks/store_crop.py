"""A random crop from the store, beside a memcpy of the same bytes.

    python benchmarks/store_crop.py

A volume of 256³ int16 (as CT is kept), crops of 96³ at random places, cached. The limit is to copy the crop's bytes,
1.7 MiB, from one array to another, both contiguous and in memory. medclr's time holds finding the entry and its header,
and the strided copy into a batch, int16 as it is stored; the conversion to float32 is the training device's. Beside it
is what NumPy takes to open a memory map of an .npy file and to copy the same crop. The target is 1.7 times the memcpy.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from medclr.data.store import Store

SIDE, CROP, ROUNDS = 256, 96, 200
TARGET = 1.7
KEY = "ab" * 16


def main() -> None:
    """Print medians, and ratios to the memcpy of the same round."""
    rng = np.random.default_rng(0)
    volume = rng.integers(-1024, 3000, (1, SIDE, SIDE, SIDE), dtype=np.int16)
    source = rng.integers(-1024, 3000, (CROP, CROP, CROP), dtype=np.int16)
    target = np.empty_like(source)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        store.write(KEY, volume, {})
        np.save(Path(folder) / "a.npy", volume[0])

        def mapped(at: tuple[int, ...]) -> None:
            x, y, z = at
            opened = np.load(Path(folder) / "a.npy", mmap_mode="r")
            np.copyto(target, opened[x : x + CROP, y : y + CROP, z : z + CROP])

        ways: dict[str, Callable[[tuple[int, ...]], None]] = {
            "memcpy of the bytes": lambda at: np.copyto(target, source),
            "NumPy's map": mapped,
            "medclr's store": lambda at: np.copyto(target, store.read(KEY, at, (CROP,) * 3, 0.0)[0]),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(ROUNDS + 10):  # the first ten warm up
            at = tuple(int(start) for start in rng.integers(0, SIDE - CROP, 3))
            for way, run in ways.items():
                started = time.perf_counter()
                run(at)
                if number >= 10:
                    seconds[way].append(time.perf_counter() - started)
        x, y, z = at  # what the last of them copied
        np.testing.assert_array_equal(target, volume[0, x : x + CROP, y : y + CROP, z : z + CROP])
    ratios = {}
    for way, times in seconds.items():
        own = sorted(one / other for one, other in zip(times, seconds["memcpy of the bytes"], strict=True))
        ratios[way] = median(own)
        spread = f"{own[len(own) // 4]:.2f} to {own[3 * len(own) // 4]:.2f}"
        print(f"  {way:24} {median(times) * 1e3:6.2f} ms  {ratios[way]:5.2f} x the memcpy (middle half {spread})")
    ratio = ratios["medclr's store"]
    print(f"  {'kept  ' if ratio <= TARGET else 'MISSED'}: {ratio:.2f} times the memcpy (target: {TARGET})")


if __name__ == "__main__":
    main()
