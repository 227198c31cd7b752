"""`medclr adapt --target COLUMN`: each domain is left out in turn, and learned from all others."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medclr.config import AdaptConfig
from medclr.data.labels import LabelTable
from medclr.errors import DataError
from medclr.evaluation.adaptation import Adaptation
from medclr.evaluation.cells import LEAST_PATIENTS, unjudged
from medclr.evaluation.leave_one_out import LeaveOneOut, left_out_in_turn
from medclr.evaluation.subgroups import MOST_GROUPS
from medclr.reporting.console import counted, say
from medclr.reporting.figures import left_out_figure
from medclr.reporting.leave_one_out_page import left_out_findings, left_out_page
from medclr.reporting.numbers import listed
from medclr.reporting.run import Run

_LEFT_OUT = ("source", "target", "n_both", "n_copies")  # of a context of one target


def each_left_out(
    config: AdaptConfig,
    run: Run,
    table: LabelTable,
    values: NDArray[np.object_],
    methods: Sequence[str],
    context: Mapping[str, Any],
    adapted: Callable[[AdaptConfig, Run], Adaptation],
) -> LeaveOneOut:
    """Run `medclr adapt` once for each domain, in a folder of its own below the run folder, and report all of them.

    Args:
        table: labels of all volumes; values: (n,) the domain of each, "" where it is unknown.
        methods: that are run.
        context: of the page of a run whose source and target are all volumes.
        adapted: a run of one target by its settings, in its folder.

    Raises:
        DataError: there are not two domains, or more than can be compared, or fewer than two can be judged.
    """
    column = config.column
    names = sorted(set(values) - {""})
    _check_number(column, names)
    reasons = {name: _reason(table, values, name) for name in names}
    judged = [name for name in names if not reasons[name]]
    if len(judged) < 2:
        lacking = "; ".join(f"{name} holds {reason}" for name, reason in reasons.items() if reason)
        raise DataError(
            f"--target {column}: {len(judged)} of its {len(names)} domains can be judged, where it takes two: "
            f"{lacking}; label more, so that {LEAST_PATIENTS} patients of either class of {table.task.name} are in each"
        )
    folders = dict(zip(names, _folders(column, names), strict=True))
    found: dict[str, Adaptation | str] = dict(reasons)
    for place, name in enumerate(judged):
        say(f"{column} {name}, {place + 1} of {len(judged)}")
        own = replace(config, target=f"{column}={name}", out=run.folder / folders[name])
        within = Run.open("adapt", own, own.out)
        within.pin(json.loads((run.folder / "inputs.json").read_text()))
        found[name] = adapted(own, within)
    result = left_out_in_turn(found, methods)
    shown = f", through {config.corruption} {config.strength}" if config.corruption else ""
    _write(run, result, _context(column, table, values, names, folders, judged, context, shown))
    return result


def _check_number(column: str, names: Sequence[str]) -> None:
    if len(names) < 2:
        there = f"all are {names[0]}" if names else "all are unknown"
        raise DataError(
            f"--target {column}: {there}, so that none can be left out; name another column, or an archive with "
            "--target-data"
        )
    if len(names) > MOST_GROUPS:
        raise DataError(
            f"--target {column}: {len(names)} values are too many to leave out in turn (more than {MOST_GROUPS}); name "
            f"one with --target {column}=VALUE, or a column of domains"
        )


def _reason(table: LabelTable, values: NDArray[np.object_], name: str) -> str:
    """Why a domain cannot be the target: it cannot be judged, or the others have nothing to learn from."""
    patients = table.rows["patient_key"].to_numpy()
    for of, whose in ((values == name, ""), ((values != name) & (values != ""), " in the other domains")):
        reasons = unjudged(table.y[of], patients[of])
        if all(reasons):
            return f"{reasons[0]}{whose}"
    return ""


def _folders(column: str, names: Sequence[str]) -> list[str]:
    """A name for the folder of each domain, of letters and digits alone."""
    found: list[str] = []
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9]+", "-", f"{column} {name}").strip("-")
        while plain in found:  # of another name that differs in other characters alone
            plain += "-2"
        found.append(plain)
    return found


def _context(
    column: str,
    table: LabelTable,
    values: NDArray[np.object_],
    names: Sequence[str],
    folders: Mapping[str, str],
    judged: Sequence[str],
    context: Mapping[str, Any],
    shown: str,
) -> dict[str, Any]:
    shared = {name: value for name, value in context.items() if name not in _LEFT_OUT}
    return shared | {
        "title": f"Leave one domain out: {table.task.name} by {column}{shown}",
        "column": column,
        "domains": {
            name: _counts(table, values == name)
            | {
                "others": _shares(table, (values != name) & (values != "")),
                "report": f"{folders[name]}/report.html" if name in judged else None,
            }
            for name in names
        },
        "n_unknown": int((values == "").sum()),
        "n_several": _in_several(table.rows["patient_key"], values),
    }


def _counts(table: LabelTable, of: NDArray[np.bool_]) -> dict[str, Any]:
    return {"n": int(of.sum()), "n_patients": table.rows["patient_key"][of].nunique(), "shares": _shares(table, of)}


def _shares(table: LabelTable, of: NDArray[np.bool_]) -> dict[str, float]:
    known = [column[~np.isnan(column)] for column in table.y[of].T]
    return {name: float(y.mean()) for name, y in zip(table.task.outputs, known, strict=True) if len(y)}


def _in_several(patients: pd.Series, values: NDArray[np.object_]) -> int:
    """How many patients have volumes in more than one domain."""
    known = values != ""
    return int((pd.Series(values[known]).groupby(patients[known].to_numpy()).nunique() > 1).sum())


def _write(run: Run, found: LeaveOneOut, context: Mapping[str, Any]) -> None:
    tables = {"adapt": found.points}
    tables |= {name: getattr(found, name) for name in ("differences", "regained", "choices", "domains")}
    for name, table in tables.items():
        run.write_frame(f"{name}.csv", table)
    left_out_figure(found.points, context["title"], [run.folder / f"adapt.{kind}" for kind in ("png", "svg", "pdf")])
    answers = left_out_findings(found, context)
    run.write_text("report.html", left_out_page(found, context))
    report = {
        "findings": [answer._asdict() for answer in answers],
        **{name: table.to_dict("records") for name, table in tables.items()},
        "context": context,
    }
    run.write_json("report.json", report)
    run.finish({"findings": [answer.short for answer in answers]})
    say(f"{context['column']}, {listed(list(context['domains']))}, each left out in turn:")
    for answer in answers:
        say(answer.line)
    reports = counted(int((found.domains["reason"] == "").sum()), "domain")
    say(f"wrote {run.folder}: report.html, report.json, adapt.png, .svg and .pdf, a .csv of each table; and {reports}")
    say(f"next: open {run.folder / 'report.html'} in a browser")
