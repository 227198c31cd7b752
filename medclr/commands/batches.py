"""Which domains the batches of `medclr pretrain` are made of, and told apart by."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medclr.config import PretrainConfig
from medclr.data.manifest import DOMAINS, domain_names
from medclr.errors import UsageError
from medclr.reporting.console import counted, say

MOST_NAMED = 8  # domains, in one line


def domains_of(config: PretrainConfig, units: pd.DataFrame, world: int) -> NDArray[np.int64] | None:
    """The domain of each row, numbered; says how many volumes each has. None where domains do not matter.

    Raises:
        UsageError: there is only one, or batches of that size cannot hold equal numbers of each.
    """
    if config.domains is None:
        return None
    counts = pd.Series(domain_names(units, config.domains)).value_counts()
    asked = f"--domains {config.domains}"
    if len(counts) < 2:
        several = {name: len(set(domain_names(units, name))) for name in DOMAINS}
        told = [f"{name} ({n})" for name, n in several.items() if n > 1]
        what = "no volume says its own" if counts.index[0] == "unknown" else f"all are of {counts.index[0]}"
        fix = f"there are several by {', '.join(told)}" if told else "no column of the manifest tells several apart"
        raise UsageError(f"{asked}: {what}, and it takes two; {fix}")
    each = ""
    if config.balance:
        step, size = len(counts) * world, config.batch_size
        if size % step:
            below = size // step * step
            raise UsageError(
                f"--balance: a batch of {size} cannot hold equal numbers of {len(counts)} domains by {config.domains}"
                + (f" on {world} processes" if world > 1 else "")
                + f"; give --batch-size {f'{below} or ' if below else ''}{below + step}"
            )
        share, most = size // len(counts), int(counts.min()) // world * world
        if share > most:
            fix = f"give --batch-size {most * len(counts)} or less, or " if most else ""
            raise UsageError(
                f"--balance: {counts.index[-1]} has {counts.min():,} of the {share} that a batch of {size} is to hold "
                f"of each domain by {config.domains}; {fix}leave out such volumes, or --balance"
            )
        each = f"; {share} of each in every batch"
    named = ", ".join(f"{name} {n:,}" for name, n in counts.head(MOST_NAMED).items())
    say(f"domains by {config.domains}: {named}{', …' if len(counts) > MOST_NAMED else ''}{each}")
    return coded(config, units)


def coded(config: PretrainConfig, units: pd.DataFrame) -> NDArray[np.int64] | None:
    """The domain of each row, numbered, as every process of a run numbers it; None where domains do not matter."""
    if config.domains is None:
        return None
    codes: NDArray[np.int64] = pd.factorize(domain_names(units, config.domains), sort=True)[0].astype(np.int64)
    return codes


def lonely(config: PretrainConfig, units: pd.DataFrame) -> list[str]:
    """A warning where, with negatives within domains, there are domains that hold none."""
    if config.domains is None or config.negatives != "within":
        return []
    alone = units["patient_key"].groupby(domain_names(units, config.domains)).nunique() == 1
    if not alone.any():
        return []
    return [
        f"--negatives within: {counted(int(alone.sum()), 'domain')} by {config.domains} with a single patient, whose "
        "volumes are told apart from nothing"
    ]
