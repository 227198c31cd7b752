"""A random crop from the store, beside a memcpy of the same bytes.

    python benchmarks/store_crop.py

A volume of 256³ int16 (as CT is kept), crops of 96³ at random places, cached. The limit is to copy the crop's bytes,
1.7 MiB, from one array to another, both contiguous and in memory. medclr's time holds opening the entry, its header,
the strided copy and the conversion to float32, which is twice the bytes; that conversion alone, of a crop that lies
contiguous in memory, is shown beside it, and so is what NumPy's memory map of an .npy file takes to give int16. The
target is 1.7 times the memcpy.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

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
    target, as_float = np.empty_like(source), np.empty(source.shape, np.float32)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        store.write(KEY, volume, {})
        np.save(Path(folder) / "a.npy", volume[0])

        def mapped(at: tuple[int, ...]) -> Any:
            x, y, z = at
            return np.array(np.load(Path(folder) / "a.npy", mmap_mode="r")[x : x + CROP, y : y + CROP, z : z + CROP])

        ways: dict[str, Callable[[tuple[int, ...]], Any]] = {
            "memcpy of the bytes": lambda at: np.copyto(target, source),
            "conversion to float32": lambda at: np.copyto(as_float, source),
            "NumPy's map, int16": mapped,
            "medclr's store, float32": lambda at: store.read(KEY, at, (CROP,) * 3, 0.0),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(ROUNDS + 10):  # the first ten warm up
            at = tuple(int(start) for start in rng.integers(0, SIDE - CROP, 3))
            for way, run in ways.items():
                started = time.perf_counter()
                run(at)
                if number >= 10:
                    seconds[way].append(time.perf_counter() - started)
        x, y, z = at
        np.testing.assert_array_equal(
            store.read(KEY, at, (CROP,) * 3, 0.0)[0], volume[0, x : x + CROP, y : y + CROP, z : z + CROP]
        )
    ratios = {}
    for way, times in seconds.items():
        own = sorted(one / other for one, other in zip(times, seconds["memcpy of the bytes"], strict=True))
        ratios[way] = median(own)
        spread = f"{own[len(own) // 4]:.2f} to {own[3 * len(own) // 4]:.2f}"
        print(f"  {way:24} {median(times) * 1e3:6.2f} ms  {ratios[way]:5.2f} x the memcpy (middle half {spread})")
    ratio = ratios["medclr's store, float32"]
    print(f"  {'kept  ' if ratio <= TARGET else 'MISSED'}: {ratio:.2f} times the memcpy (target: {TARGET})")


if __name__ == "__main__":
    main()
