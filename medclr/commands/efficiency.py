"""`medclr efficiency`: the label-efficiency curve, its intervals and its report."""

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from itertools import count, pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from medclr.commands.finetune import Labelled, break_down, check_classes, find_encoders, gather, sources
from medclr.commands.prepare import check_stock
from medclr.config import ADOPTED, METHODS, EfficiencyConfig, LabelsConfig, Tunable
from medclr.data.labels import Task
from medclr.data.loader import Blocks
from medclr.data.phantoms import SCANNERS
from medclr.data.pool import n_cores, worker_pool
from medclr.errors import UsageError
from medclr.evaluation.efficiency import BASELINES, Cell, Curve, Scores, label_efficiency
from medclr.evaluation.examples import most_confident_errors
from medclr.metrics import label_aurocs
from medclr.reporting.console import counted, progress, say
from medclr.reporting.examples_page import Example, Section, examples_page
from medclr.reporting.figures import efficiency_figure
from medclr.reporting.findings import findings
from medclr.reporting.html import efficiency_page
from medclr.reporting.numbers import listed, percent
from medclr.reporting.run import FREE_FIELDS, Run, hardware, versions
from medclr.training.encode import Bags, Encoder, images, pixel_rows
from medclr.training.methods import AUTO, INNER_FOLDS, RATES, UNCHOSEN, Material, Start, fit, trainings
from medclr.training.pooling import BATCH, HIDDEN, LR, STEPS, WEIGHT_DECAY
from medclr.training.probe import COMPONENTS, FEWEST_PATIENTS, FIXED_STRENGTH, FOLDS, NEIGHBOURS, STRENGTHS, fit_pca

MOST_SHIFT = 0.1  # of the share of positives from training to test, before a reader is told
MOST_PCA_ROWS = 5000  # unlabelled volumes behind the components of the baseline
FEW_LABELS = 0.01  # the fraction up to which twice as many draws are made, since there they differ most
_SIMCLR = (
    "SimCLR: Chen T, Kornblith S, Norouzi M, Hinton G. A simple framework for contrastive learning of visual "
    "representations. ICML 2020."
)
_SECOND_OPINION = (
    "As a second opinion, AUROCs and differences also have intervals by DeLong's closed form (Biometrics 1988; "
    "clustered by patient, as by Obuchowski, Biometrics 1997), which takes draws and encoders as given."
)
# Settings of pre-training in which the encoders of one arm may differ.
_OF_A_SEED = {*FREE_FIELDS, "seed", "health_every", "label", "device"}


def efficiency(config: EfficiencyConfig) -> Curve:
    """Run every arm on nested draws of the labelled training patients, and report what the labels were worth.

    Returns:
        The curve: `.frame()` is the table of curve.csv.
    """
    run = Run.open("efficiency", config, config.out)
    say(f"run folder: {run.folder}")
    data = gather(config, run, find_encoders(config, run, config.encoder))
    groups = encoder_groups(data.encoders)
    table = data.table
    train, test = table.of("train"), table.of("test")
    check_classes(config.labels, table, "train")
    if np.isnan(label_aurocs(table.y[test], table.y[test]).mean):
        check_classes(config.labels, table, "test")
    work = _Work(data.material(config, "distill" in config.arms), train, test, _starts(config, run, data, groups))
    arms = {name: [partial(_cell, name, place) for place in range(len(starts))] for name, starts in work.starts.items()}
    n_draws = {f: config.draws * (2 if f <= FEW_LABELS else 1) for f in sorted(set(config.fractions))}
    cells = sum(map(len, arms.values())) * sum(n_draws.values())
    steps = _steps(config, work, n_draws)
    say(
        f"{counted(len(arms), 'arm')}, {counted(len(data.encoders), 'encoder')}, "
        f"{' + '.join(map(str, n_draws.values()))} draws: {counted(cells, 'cell')}"
        + (f", at most {steps:,.0f} training steps in all" if steps else "")
    )
    patients = table.rows["patient_key"].to_numpy()
    subgroups = break_down(data.table).iloc[test].reset_index(drop=True)
    run.write_frame("private/test.csv", _test_rows(data, test).join(subgroups))
    done = finished_cells(run)
    with _processes(config, work) as pool, progress("cells") as show:

        def on_cell(cell: Cell) -> None:
            keep_cell(run, cell, f"{cell.arm} at {cell.fraction:g}", len(arms[cell.arm]))
            done[cell.id] = cell
            show(len(done), cells)

        curve = label_efficiency(
            table.y[train],
            patients[train],
            table.y[test],
            patients[test],
            arms,
            n_draws,
            config.resamples,
            config.seed,
            dict(done),
            on_cell,
            kind=table.task.kind,
            groups=subgroups,
            pool=pool,
            outputs=table.task.outputs,
        )
    _write(config, run, data, groups, curve)
    return curve


@dataclass(frozen=True, eq=False)
class _Work:
    """What every cell is made from, in this process or in one of several.

    material: all labelled volumes; train, test: positions in it; starts: by arm, one for each encoder.
    """

    material: Material
    train: NDArray[np.intp]
    test: NDArray[np.intp]
    starts: Mapping[str, Sequence[Start]]


_work: _Work | None = None  # of this process


def _begin(work: _Work, threads: int) -> None:
    global _work
    _work = work
    if threads:
        torch.set_num_threads(threads)


def _cell(arm: str, encoder: int, drawn: NDArray[np.intp], seed: int) -> Scores:
    assert _work
    material, start = _work.material, _work.starts[arm][encoder]
    tuned = _kind(arm) in _tuned(material.config)
    fitted = fit(_method(arm), material, start, _work.train[drawn], seed, tuned)
    return Scores(fitted.scores(_work.test), fitted.held_out, fitted.choice)


@contextmanager
def _processes(config: EfficiencyConfig, work: _Work) -> Iterator[Executor | None]:
    """Processes with a thread each, which is quicker than threads within a cell; None to compute in this one."""
    gpu = config.device != "cpu" and torch.cuda.is_available()
    jobs = config.jobs or (1 if gpu else n_cores())
    if jobs == 1 or not _steps(config, work, {1.0: 1}):
        # Heads on features that are there take less time than processes do to start.
        _begin(work, 0)
        yield None
        return
    again = "Finished cells are kept: run the same command again to go on, with fewer --jobs"
    with worker_pool(jobs, "computes cells", partial(_begin, work, 1), again) as pool:
        yield pool


def _kind(arm: str) -> str:
    """What --arms calls an arm: without the group of its encoders."""
    return arm if arm in BASELINES else arm.partition("-")[2]


def _method(arm: str) -> str:
    """What an arm does: a baseline is a method with a start of its own."""
    return {"scratch": "full", "pca": "linear"}.get(arm) or _kind(arm)


def _starts(
    config: EfficiencyConfig, run: Run, data: Labelled, groups: Mapping[str, Sequence[Encoder]]
) -> dict[str, list[Start]]:
    """For each arm what it starts from, one for each encoder; features are computed once, here."""
    starts: dict[str, list[Start]] = {}
    methods = [arm for arm in config.arms if arm not in BASELINES]
    counts = data.parts(config) if "attention" in methods else None
    if "scratch" in config.arms:
        starts["scratch"] = [data.start(None, config)]
    if {"pca", "distill"} & set(config.arms):
        check_stock(data.unlabelled, data.spec, data.store, data.scans)
    if "pca" in config.arms:
        components = fit_pca(pixel_rows(_of_pca(data), data.store, data.spec))
        starts["pca"] = [Start(components(pixel_rows(data.table.rows, data.store, data.spec)))]
    for group, encoders in groups.items() if methods else ():
        own = [data.start(encoder, config) for encoder in encoders]
        if methods != ["full"]:
            own = [_with_features(config, run, data, start, counts) for start in own]
        starts |= {f"{group}-{method}": own for method in methods}
    return starts


def _with_features(
    config: EfficiencyConfig, run: Run, data: Labelled, start: Start, counts: NDArray[np.intp] | None
) -> Start:
    """With the features of all labelled volumes, kept in private/ so that a run that goes on need not compute them.

    Where the counts of their crops or slices are given, of each of these.
    """
    network = start.network
    assert network

    def compute() -> NDArray[np.float32]:
        return data.features(start, config) if counts is None else data.bags(start, config).features

    features = kept_features(run, network, data.table.rows, compute)
    if counts is None:
        return replace(start, features=features)
    bags = Bags(features, counts)
    return replace(start, features=bags.mean(), bags=bags)


def kept_features(
    run: Run, network: nn.Module, rows: pd.DataFrame, compute: Callable[[], NDArray[np.float32]], shown: str = ""
) -> NDArray[np.float32]:
    """The features of some volumes by a network: those that this run has computed before, or new ones.

    shown: names what the network is shown in their place, if it is not they themselves.
    """
    keys = [*rows["store_key"], *(str(value.double().sum().item()) for value in network.state_dict().values())]
    keys += [shown] * bool(shown)
    name = f"private/features-{blake2b('|'.join(keys).encode(), digest_size=8).hexdigest()}.npy"
    if (run.folder / name).is_file():
        found: NDArray[np.float32] = np.load(run.folder / name, allow_pickle=False)
        return found
    say(f"features of {counted(len(rows), 'volume')}")
    features, content = compute(), io.BytesIO()
    np.save(content, features, allow_pickle=False)
    run.write_bytes(name, content.getvalue())
    return features


def encoder_groups(encoders: Sequence[Encoder]) -> dict[str, list[Encoder]]:
    """Encoders that differ in their seed alone, by the name of their method or of the weights from elsewhere.

    A second group of the same name is numbered.

    Raises:
        UsageError: what would count as another pre-training is none.
    """
    groups: dict[str, list[Encoder]] = {}
    kinds: dict[str, str] = {}
    for encoder in encoders:
        bundle = encoder.bundle
        kind = json.dumps([*_recipe(bundle.details), repr(bundle.architecture)], sort_keys=True)
        if kind not in kinds:
            adopted = bundle.details["method"] == ADOPTED
            name = bundle.details["hyperparameters"]["name"] if adopted else bundle.details["method"]
            numbered = (name if number == 1 else f"{name}{number}" for number in count(1))
            kinds[kind] = next(free for free in numbered if free not in groups)
        groups.setdefault(kinds[kind], []).append(encoder)
    _refuse_twice(groups)
    return groups


def _recipe(details: Mapping[str, Any]) -> list[Any]:
    """How an encoder was made, and that which it went on from, but for what differs between seeds."""
    learned = {name: value for name, value in details["hyperparameters"].items() if name not in _OF_A_SEED}
    return [details["method"], learned, *(_recipe(details["start"]) if "start" in details else [])]


def _refuse_twice(groups: Mapping[str, Sequence[Encoder]]) -> None:
    """Raise UsageError where what would count as another pre-training is none."""
    for group, encoders in groups.items():
        seeds = [encoder.bundle.details["hyperparameters"].get("seed") for encoder in encoders]
        if len({encoder.bundle.digest for encoder in encoders}) < len(encoders):
            raise UsageError(f"--encoder: one of {group} is given twice; results are means over different ones")
        again = [seed for seed in dict.fromkeys(seeds) if seed is not None and seeds.count(seed) > 1]
        if again:
            raise UsageError(
                f"--encoder: {seeds.count(again[0])} of {group} have the seed {again[0]}; means are over pre-trainings "
                "that differ in it (medclr pretrain --seed)"
            )


def _tuned(config: LabelsConfig) -> list[Tunable]:
    assert isinstance(config, EfficiencyConfig)
    return config.tuned


def _steps(config: EfficiencyConfig, work: _Work, n_draws: Mapping[float, int]) -> float:
    """The most steps of whole networks that all cells take together, known before the first."""
    draws = sum(n_draws.values())
    each = {arm: trainings(_method(arm), _kind(arm) in config.tuned) for arm in work.starts}
    return sum(each[arm] * len(starts) * draws for arm, starts in work.starts.items()) * config.max_steps


def _test_rows(data: Labelled, test: NDArray[np.intp]) -> pd.DataFrame:
    """The test volumes in the order of the scores in cells/, for whoever wants to compute something else from them."""
    rows = data.table.rows.iloc[test].reset_index(drop=True)
    labels = pd.DataFrame(data.table.y[test], columns=[f"y {output}" for output in data.table.task.outputs])
    return rows[["volume_id", "patient_key"]].join(labels)


def _of_pca(data: Labelled) -> pd.DataFrame:
    """The volumes behind the components of the baseline: those without need of a label, or a sample of them."""
    free = data.unlabelled
    if len(free) <= MOST_PCA_ROWS:
        return free
    return free.iloc[np.sort(np.random.default_rng(0).choice(len(free), MOST_PCA_ROWS, replace=False))]


def finished_cells(run: Run) -> dict[str, Cell]:
    """Cells that an interrupted run of the same folder has finished."""
    cells = (Cell.from_dict(json.loads(path.read_text())) for path in sorted(run.folder.glob("cells/*.json")))
    return {cell.id: cell for cell in cells}


def keep_cell(run: Run, cell: Cell, name: str, n_encoders: int) -> None:
    """Write a cell where `finished_cells` will find it, and say under this name what it gave."""
    run.write_json(f"cells/{cell.id.replace('|', '_')}.json", cell.to_dict())
    result = f"AUROC {cell.auroc:.3f}" if not cell.reason else f"n/a, because {cell.reason}"
    encoder = f", encoder {cell.encoder + 1}" if n_encoders > 1 else ""
    say(f"{name}, draw {cell.draw + 1}{encoder}: {result} ({cell.seconds:.0f} s)")


def _write(
    config: EfficiencyConfig, run: Run, data: Labelled, groups: Mapping[str, Sequence[Encoder]], curve: Curve
) -> None:
    tables = {
        "curve": curve.points,
        "cells": _each_cell(curve),
        "differences": curve.differences,
        "metrics": curve.measures,
        "calibration": curve.calibration,
        "subgroups": curve.subgroups,
    }
    for name, table in tables.items():
        run.write_frame(f"{name}.csv", table)
    needed = {arm: str(found) for arm, found in curve.needed.items()}
    title = f"Label efficiency: {data.table.task.name}"
    efficiency_figure(curve.points, title, [run.folder / f"curve.{kind}" for kind in ("png", "svg", "pdf")])
    context = _context(config, run, data, groups, title, curve)
    run.write_text("report.html", efficiency_page(curve, context))
    if config.examples:
        _write_examples(config, run, data, curve, context)
    report = {
        "verdict": curve.verdict(),
        **{name: table.to_dict("records") for name, table in tables.items()},
        "labels_needed": needed,
        "context": context,
    }
    run.write_json("report.json", report)
    run.finish({"verdict": curve.verdict()})
    say(curve.verdict())
    for arm, found in needed.items():
        if arm != "scratch":
            say(f"{arm} to match scratch with all labels: {found}")
    say(data.near_sentence)
    if context["phantoms"]:
        say("These are generated phantoms: the figures show that medclr runs, and say nothing about patients.")
    say(f"wrote {run.folder}: report.html, report.json, curve.png, .svg and .pdf, and a .csv of each table")
    say(f"next: open {run.folder / 'report.html'} in a browser")


def _each_cell(curve: Curve) -> pd.DataFrame:
    """What every cell found and chose, but for its scores."""
    counts = ("n_patients", "n_positive", "n_negative")
    columns = ("arm", "fraction", "draw", "encoder", *counts, "auroc", "choice", "seconds", "reason")
    rows = [{name: getattr(cell, name) for name in columns} for cell in curve.cells]
    return pd.DataFrame(rows).astype({"n_positive": "Int64", "n_negative": "Int64"})


def _write_examples(
    config: EfficiencyConfig, run: Run, data: Labelled, curve: Curve, context: Mapping[str, Any]
) -> None:
    """The worst errors with most labels, by the arm that the report shows first, or else the highest."""
    top = max(config.fractions)
    known = curve.points[(curve.points["fraction"] == top) & (curve.points["reason"] == "")]
    if not len(known):
        say(f"no examples: no arm has a result with {100 * top:g}% of the labels")
        return
    first = findings(curve, context).arm
    arm = first if first in set(known["arm"]) else str(known.sort_values("auroc", kind="stable")["arm"].iloc[-1])
    cells = [cell for cell in curve.cells if cell.arm == arm and cell.fraction == top and cell.scores is not None]
    task, test = data.table.task, data.table.of("test")
    each = np.stack([task.probabilities(cell.scores) for cell in cells if cell.scores is not None])
    y, mean = data.table.y[test], each.mean(axis=0)
    sections = []
    for column, output in enumerate(task.outputs):
        kinds = [
            _examples(data, test[at], each[:, at, column])
            for at in most_confident_errors(y[:, column], mean[:, column], config.examples)
        ]
        sections.append(Section(output if task.kind == "multilabel" else f"{task.name} = {output}", *kinds))
    shown = {"arm": arm, "fraction": top, "n_cells": len(cells), "crops": config.crops}
    html = examples_page(sections, data.spec, {key: context[key] for key in _OF_A_PAGE} | shown)
    say(f"wrote {run.write_text('private/errors.html', html)}: images of patients, not to be passed on")


def _left_out(data: Labelled) -> list[str]:
    """What the label table and the scans hold and no figure rests on, in a sentence, if there is anything."""
    table = data.table
    parts = [
        (len(table.unmatched_keys), "key", "of the label table without a volume"),
        (
            int((~data.manifest["volume_id"].isin(table.rows["volume_id"])).sum()),
            "volume",
            "without a label (pre-training and pca may have seen them)",
        ),
        (
            table.rows.iloc[table.of("val")]["patient_key"].nunique(),
            "labelled patient",
            "of the val split, which no curve uses",
        ),
    ]
    said = [f"{counted(n, noun)} {what}" for n, noun, what in parts if n]
    return [f"Left out: {listed(said)}."] if said else []


_OF_A_PAGE = ("command_line", "versions", "hardware")


def _examples(data: Labelled, at: NDArray[np.intp], probability: NDArray[np.float64]) -> list[Example]:
    """at: positions in the label table; probability: (cells, n) of them."""
    if not len(at):
        return []
    task, rows = data.table.task, data.table.rows.iloc[at]
    if data.spec.slices:  # of each volume the middle one of those that are kept
        rows = rows.assign(slice=[int(kept[len(kept) // 2]) for kept in rows["slices"]])
    batch = Blocks(rows, data.store, data.spec).__getitems__([(0, row) for row in range(len(rows))])
    pictures = images(batch["blocks"], batch["low"], batch["high"])[:, 0].numpy()
    return [
        Example(row, picture, float(p.mean()), float(p.min()), float(p.max()), _truth(task, y))
        for row, picture, p, y in zip(
            rows.itertuples(index=False), pictures, probability.T, data.table.y[at], strict=True
        )
    ]


def _truth(task: Task, y: NDArray[np.float64]) -> str:
    """What a volume is, in words."""
    if task.kind == "binary":
        return task.classes[int(y[0])]
    return listed([name for name, value in zip(task.outputs, y, strict=True) if value == 1]) or "none"


def _context(
    config: EfficiencyConfig,
    run: Run,
    data: Labelled,
    groups: Mapping[str, Sequence[Encoder]],
    title: str,
    curve: Curve,
) -> dict[str, Any]:
    table, rows, task = data.table, data.table.rows, data.table.task
    known, labelled = bool(rows["patient_known"].all()), rows.iloc[table.of("train")]

    def counts(split: str) -> dict[str, int]:
        at = table.of(split)
        positive = int((table.y[at] == 1).any(axis=1).sum())
        return {
            "n_patients": int(rows["patient_key"].iloc[at].nunique()),
            "n_positive": positive,
            "n_negative": len(at) - positive,
        }

    notes = [] if data.near == 0 else [data.near_sentence]
    notes += _left_out(data)
    if known and len(rows) == rows["patient_key"].nunique():
        notes.append(
            "Each patient has one volume: if the keys are of images rather than of people, nobody can see from them "
            "that a person is on both sides of the split."
        )
    notes += [] if known else ["Not every file names its patient: intervals are image-level, and may be too narrow."]
    cited = sources(config, data.encoders[0])
    return {
        "title": title,
        "command": "efficiency",
        "command_line": run.command_line,
        "phantoms": bool(rows["manufacturer"].isin({scanner.manufacturer for scanner in SCANNERS}).any()),
        "leakage": data.leakage,
        "near_duplicates": {"test_images": data.near, "sentence": data.near_sentence},
        "transductive": data.transductive,
        "classes": list(task.classes),
        "task": {"kind": task.kind, "columns": list(task.columns), "outputs": list(task.outputs)},
        "encoders": [
            {
                "group": group,
                "method": METHODS.get(encoder.bundle.details["method"], "weights from elsewhere"),
                "seed": encoder.bundle.details["hyperparameters"].get("seed"),
                "fingerprint": encoder.bundle.digest[:16],
            }
            for group, encoders in groups.items()
            for encoder in encoders
        ],
        "test": counts("test"),
        "train": counts("train"),
        "methods": [*_methods(config, data, groups, known), _SECOND_OPINION, *cited],
        "cite": [
            f"medclr {versions()['medclr']}, label-efficiency report.",
            *([_SIMCLR] if {one.bundle.details["method"] for one in data.encoders} != {ADOPTED} else []),
            *cited,
        ],
        "versions": versions(),
        "hardware": hardware(),
        "notes": notes,
        "caveats": [
            *_caveats(config, sum(map(len, labelled["slices"])) if data.spec.slices else len(labelled), curve),
            *_enlarged(curve.points),
            *_shift(table.y[table.of("train")], table.y[table.of("test")], task),
        ],
    }


def _started(details: Mapping[str, Any]) -> str:
    """What pre-training went on from, where that was no random weights, as sentences."""
    if "start" not in details:
        return ""
    before = details["start"]
    learned = before["hyperparameters"]
    if before["method"] == ADOPTED:
        on = f"“{learned['trained_on']}”, it is said" if learned["trained_on"] else "data that nobody named"
        return f" It began with weights from elsewhere, trained on {on}; whether with labels is not recorded."
    return (
        f" It began with the weights that {METHODS[before['method']]} had trained for {learned['epochs']} epochs on "
        f"other scans, or more of them (spec {before['data']['name']})." + _started(before)
    )


def _caveats(config: EfficiencyConfig, n_train: int, curve: Curve) -> list[str]:
    """What should make a reader doubt a comparison. n_train: labelled volumes, or their slices."""
    said, fastest = [], f"learning rate {config.lr * max(RATES):g}"
    for arm in (arm for arm in config.arms if arm in config.tuned):
        cells = [cell for cell in curve.cells if _kind(cell.arm) == arm and cell.choice and UNCHOSEN not in cell.choice]
        edge = sum(cell.choice == fastest for cell in cells)
        if 2 * edge > len(cells):
            said.append(
                f"{arm} chose the highest {fastest} in {edge} of {len(cells)} cells: a higher --lr may be better."
            )
    whole = [arm for arm in config.arms if _method(arm) in ("full", "lp-ft", "auto")]
    drawn = {f: max(1.0, f * n_train) for f in sorted(set(config.fractions))}
    epochs = {f: config.max_steps * min(config.batch_size, n) / n for f, n in drawn.items()}
    cut = [f"{passed:.1f} with {100 * f:g}%" for f, passed in epochs.items() if passed < config.epochs]
    if whole and cut:
        said.append(
            f"{listed(whole)} stopped at --max-steps {config.max_steps}, after {listed(cut)}, of {config.epochs} "
            "epochs: longer training may raise what they show."
        )
    return said


def _enlarged(points: pd.DataFrame) -> list[str]:
    """Which fractions hold more patients than they say, as a draw has every class; and which hold the same."""
    known = points.drop_duplicates("fraction").dropna(subset="n_patients").sort_values("fraction")
    counts = dict(zip(known["fraction"].astype(float), known["n_patients"].astype(int), strict=True))
    if not counts:
        return []
    said, top = [], max(counts)
    whole = counts[top] / top
    larger = [(f, n) for f, n in counts.items() if n > 1.5 * max(1.0, f * whole)]
    if larger:
        each = [f"{100 * f:g}% has {counted(n, 'patient')} ({n / whole:.1%})" for f, n in larger]
        said.append(f"{listed(each)}: a draw is made large enough to have each class.")
    same = [f"{100 * a:g}% and {100 * b:g}%" for a, b in pairwise(counts) if counts[a] == counts[b]]
    if same:
        said.append(f"{listed(same)} are the same draws; what is said of both is one finding.")
    return said


def _shift(train: NDArray[np.float64], test: NDArray[np.float64], task: Task) -> list[str]:
    """Whether the share of positives differs so much that probabilities cannot be expected to carry over."""
    if task.kind != "binary" or abs(train.mean() - test.mean()) < MOST_SHIFT:
        return []
    learned, judged = percent(train.mean()), percent(test.mean())
    return [
        f"Of the labelled training volumes {learned} are positive, of the test volumes {judged}: "
        "AUROCs do not depend on that, but probabilities, and their calibration, do."
    ]


def _methods(
    config: EfficiencyConfig, data: Labelled, groups: Mapping[str, Sequence[Encoder]], known: bool
) -> list[str]:
    """How the figures came about, a sentence or two on each thing that a reader must know to judge them."""
    task, said = data.table.task, []
    of_slices = f" of {data.spec.slices} slices, whose mean is the volume's" if data.spec.slices else ""
    for group, encoders in groups.items():
        a, details = encoders[0].bundle.architecture, encoders[0].bundle.details
        learned = details["hyperparameters"]
        size = f"{' × '.join(map(str, a.patch))} {'voxels' if a.spatial_dims == 3 else 'pixels'}"
        network = f"{group}: a {a.spatial_dims}D {a.title} that sees {size}{of_slices}; "
        if details["method"] == ADOPTED:
            on = f"on “{learned['trained_on']}”, it is said" if learned["trained_on"] else "on data that nobody named"
            source = f"from elsewhere, trained {on}, and whether with labels is not recorded"
            said.append(
                f"{network}its weights are {'those of another encoder' if 'start' in details else source}."
                + "".join(f" {change[0].upper()}{change[1:]}." for change in learned["changes"])
                + f" It is given grey values less {a.mean:g}, divided by {a.std:g}."
                + _started(details)
            )
            continue
        said.append(
            f"{network}{METHODS[details['method']]} trained it for "
            f"{learned['epochs']} epochs at batch size {learned['batch_size']} and temperature "
            f"{learned['temperature']}, without labels, "
            + (f"with {len(encoders)} seeds, over which results are means." if len(encoders) > 1 else "once.")
            + _started(details)
        )
    if "scratch" in config.arms and len({repr(one.bundle.architecture) for one in data.encoders}) > 1:
        said.append(f"scratch is the {data.architecture.title} of {next(iter(groups))} from random weights.")
    if config.crops > 1:
        said.append(
            f"A {'slice' if data.spec.slices else 'volume'} larger than that is judged by up to {config.crops} crops, "
            "spread evenly, whose mean is the volume's; pca sees the centre alone."
        )
    if config.projector_layer:
        layers = counted(config.projector_layer, "hidden layer")
        said.append(f"Classifiers keep {layers} of its projector below their head.")
    single = [group for group, encoders in groups.items() if len(encoders) == 1]
    if single:
        said.append(f"Results of {' and '.join(single)} are conditional on one encoder.")
    if task.kind != "binary":
        of = "classes, each against the rest" if task.kind == "multiclass" else "labels, where known"
        said.append(f"AUROC is the unweighted mean over {len(task.outputs)} {of}.")
    weighted = ", with weights under which all classes count the same" if config.class_weight == "balanced" else ""
    of_classes = {"binary": "the label if it has", "multiclass": "the classes with", "multilabel": "the labels with"}
    judging = f"{of_classes[task.kind]} {FEWEST_PATIENTS} patients of either kind"
    few = f", and {2 * config.draws} times at {100 * FEW_LABELS:g}% and below"
    said += [
        f"Each fraction of the labelled training patients was drawn {counted(config.draws, 'time')}"
        f"{few if min(config.fractions) <= FEW_LABELS else ''}, the smaller "
        "draws within the larger, stratified by whether a patient has any positive (by the rarest of several classes "
        "or labels); all arms use the same draws. At 100% the draws are seeds.",
        "No label outside a draw was used to train, stop, tune, calibrate or choose a method; which arm is called the "
        "best, and which baseline the better one, is read off the test set.",
    ]
    if {_method(arm) for arm in config.arms} & {"linear", "lp-ft", "attention", "distill", "auto"}:
        said.append(
            "Linear heads (of pca, of linear, and those that others start from or learn from) are logistic "
            f"regressions on features scaled by one number{weighted}; their regularisation, C = "
            f"{listed([f'{strength:g}' for strength in STRENGTHS], 'or')}, is that of the lowest cross-entropy in "
            f"{FOLDS}-fold patient-grouped cross-validation inside the draw, over {judging}, or {FIXED_STRENGTH:g} "
            "where there are none."
        )
    if any(_method(arm) in ("full", "lp-ft", "distill", "auto") for arm in config.arms):
        bounds = f"{config.min_steps} to {config.max_steps} steps"
        to_start = config.decay_to == "start"
        towards = "the weights that they start from" if to_start else "zero"
        said.append(
            f"Whole networks are trained on one augmented view of each volume with AdamW{weighted}, at a peak learning "
            f"rate of {config.lr:g} unless it is tuned, warmed up for an epoch at most and lowered by a cosine, with a "
            f"weight decay of {config.weight_decay:g} towards {towards}"
            + f", {config.layer_decay:g} of the rate from stage to stage" * (config.layer_decay != 1)
            + " (scratch: towards zero, at one rate)" * (to_start or config.layer_decay != 1)
            + f", a dropout of {config.dropout:g}" * (config.dropout > 0)
            + f", for {config.epochs} epochs but {bounds}, at batch size {config.batch_size}, without a stopping rule"
            + ("; lp-ft starts from the head of linear." if {"lp-ft", "auto"} & set(config.arms) else ".")
        )
    if "distill" in config.arms:
        said.append(
            "distill trains the whole network from the encoder to predict what the head of linear does, on "
            f"{counted(len(data.unlabelled), 'volume')} of other patients than those of val and test, without their "
            "labels (SimCLRv2: Chen et al., NeurIPS 2020)."
        )
    tuned = [arm for arm in config.arms if arm in config.tuned]
    if tuned:
        rates = ", ".join(f"{config.lr * rate:g}" for rate in sorted(RATES))
        said.append(
            f"The learning rate of {' and '.join(tuned)} is one of {rates}, chosen inside the draw by "
            f"the AUROC of {INNER_FOLDS}-fold patient-grouped cross-validation with a third of the steps, and "
            f"{config.lr:g} where the draw has fewer than {FEWEST_PATIENTS} patients of either kind; all other "
            "settings are fixed."
        )
    if "auto" in config.arms:
        said.append(f"auto chooses among {', '.join(AUTO)} by such cross-validation.")
    if "attention" in config.arms:
        said.append(
            f"attention weighs crops or slices by gated attention of {HIDDEN} hidden units (Ilse, Tomczak and Welling, "
            f"ICML 2018), trained for {STEPS} steps of {BATCH} volumes at a learning rate of {LR:g} and a weight "
            f"decay of {WEIGHT_DECAY:g} from their mean and the head of linear."
        )
    if "knn" in config.arms:
        said.append(f"knn lets the {NEIGHBOURS} nearest by cosine vote, weighted by exp(cosine / 0.1).")
    if "pca" in config.arms:
        said.append(
            f"pca is linear on the first {COMPONENTS} principal components of the pixels of "
            f"{counted(len(_of_pca(data)), 'volume')} of other patients than those of val and test."
        )
    said += [
        f"Intervals and tests are over test {'patients' if known else 'images'}, draws and encoders together: the "
        f"variance over {config.resamples:,} bootstrap resamples of these (stratified by class, the same for all "
        "arms), of draws and of encoders, added up, with Student's t at Satterthwaite's degrees of freedom. Those of "
        "an AUROC are on the logit scale; p and interval of a difference are of one paired test, "
        "two-sided at a level of 5%. Holm's correction is over arms, baselines and fractions. All is conditional on "
        "this pool of labelled patients.",
        "ECE is over ten bins of equally many volumes. Temperatures are fitted to scores of cross-validation inside "
        "the draw, of whole networks to those of their shorter trainings there.",
        f"The split is that of the {'label table' if data.table.split_source == 'table' else 'hash of each patient'}.",
    ]
    return said
