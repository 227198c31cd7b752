"""Every domain of several left out in turn: what was found of each, as one set of tables with one correction."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from medclr.evaluation.adaptation import SOURCE_ONLY, TARGET_TRAINED, Adaptation
from medclr.metrics import holm

_TABLES = ("points", "differences", "regained", "choices")


@dataclass(frozen=True, eq=False)
class LeaveOneOut:
    """What was found. A domain that could not be judged has a `reason` in each of its rows, and no number.

    `points`, `differences`, `regained` and `choices` are those of `Adaptation` for each domain, which the column
    `domain` names. Only `p_holm` is another: Holm's correction is over all domains and methods together.

    `domains`: a row for each, with its `oracle` and its `reason`.
    """

    points: pd.DataFrame
    differences: pd.DataFrame
    regained: pd.DataFrame
    choices: pd.DataFrame
    domains: pd.DataFrame

    def frame(self) -> pd.DataFrame:
        return self.points


def left_out_in_turn(found: Mapping[str, Adaptation | str], methods: Sequence[str]) -> LeaveOneOut:
    """Tables of all domains, in their order.

    Args:
        found: by domain, what was found where it was the target, or the reason why nothing was; one is judged at least.
        methods: that were run.
    """
    judged = {domain: one for domain, one in found.items() if isinstance(one, Adaptation)}
    reasons = {domain: one for domain, one in found.items() if isinstance(one, str)}
    tables = {name: _stacked({domain: getattr(one, name) for domain, one in judged.items()}) for name in _TABLES}
    lacking = {
        "points": methods,
        "differences": [name for name in methods if name != SOURCE_ONLY],
        "regained": [name for name in methods if name not in (SOURCE_ONLY, TARGET_TRAINED)],
    }
    for name, of in lacking.items():
        rows = [
            {"domain": domain, "method": method, "reason": reason}
            for domain, reason in reasons.items()
            for method in of
        ]
        tables[name] = _in_order(tables[name], rows, list(found))
    differences = tables["differences"]
    tested = differences["reason"] == ""
    differences["p_holm"] = math.nan
    differences.loc[tested, "p_holm"] = holm(differences.loc[tested, "p"].to_numpy(float))
    domains = [
        {"domain": domain, "oracle": one.oracle, "reason": ""}
        if isinstance(one, Adaptation)
        else {"domain": domain, "oracle": "", "reason": one}
        for domain, one in found.items()
    ]
    return LeaveOneOut(**tables, domains=pd.DataFrame(domains))


def _stacked(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    first = next(iter(tables.values()))
    parts = [table.assign(domain=domain) for domain, table in tables.items() if len(table)]
    columns = ["domain", *first.columns]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def _in_order(table: pd.DataFrame, rows: Sequence[Mapping[str, str]], domains: Sequence[str]) -> pd.DataFrame:
    """With these rows, of which nothing else is known, sorted by domain."""
    missing = pd.DataFrame(rows, columns=["domain", "method", "reason"]).reindex(columns=table.columns)
    kinds = {name: kind for name, kind in table.dtypes.items() if pd.api.types.is_float_dtype(kind)}
    whole = pd.concat([table, missing.astype(kinds)], ignore_index=True) if rows else table
    place = np.argsort([domains.index(domain) for domain in whole["domain"]], kind="stable")
    return whole.iloc[place].reset_index(drop=True)
