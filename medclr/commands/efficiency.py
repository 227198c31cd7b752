"""`medclr efficiency`: the label-efficiency curve, its intervals and its report."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medclr.commands.finetune import Labelled, find_encoder, gather, sources
from medclr.commands.prepare import check_stock
from medclr.config import METHODS, EfficiencyConfig
from medclr.data.phantoms import SCANNERS
from medclr.errors import DataError
from medclr.evaluation.efficiency import Arm, Cell, Curve, label_efficiency
from medclr.reporting.console import counted, progress, say
from medclr.reporting.figures import efficiency_figure
from medclr.reporting.html import efficiency_page
from medclr.reporting.run import Run, hardware, versions
from medclr.training.classify import FEWEST_PATIENTS, FIXED_STRENGTH, fit_full, fit_linear, fit_pca
from medclr.training.encode import embed_rows, pixel_rows, training_device

MOST_PCA_ROWS = 5000  # unlabelled volumes behind the components of the baseline


def efficiency(config: EfficiencyConfig) -> Curve:
    """Run every arm on nested draws of the labelled training patients, and report what the labels were worth.

    Returns:
        The curve: `.frame()` is the table of curve.csv.
    """
    run = Run.open("efficiency", config, config.out)
    say(f"run folder: {run.folder}")
    data = gather(config, run, find_encoder(config, run))
    table, rows = data.table, data.table.rows
    train, test = table.of("train"), table.of("test")
    y, patients = rows["y"].to_numpy(), rows["patient_key"].to_numpy()
    for split, at in (("train", train), ("test", test)):
        if len(set(y[at])) < 2:
            raise DataError(
                f"{config.labels.name}: the {split} split has {counted(len(at), 'labelled volume')} and not both "
                f"classes of {table.column!r} ({' and '.join(table.classes)}); a curve needs both"
            )
    cells = len(config.arms) * len(set(config.fractions)) * config.draws
    say(f"{len(config.arms)} arms x {len(set(config.fractions))} fractions x {config.draws} draws = {cells} cells")
    done = _done(run)
    with progress("cells") as show:

        def on_cell(cell: Cell) -> None:
            run.write_json(f"cells/{cell.id.replace('|', '_')}.json", cell.to_dict())
            done[cell.id] = cell
            result = f"AUROC {cell.auroc:.3f}" if not cell.reason else f"n/a, because {cell.reason}"
            say(f"{cell.arm} at {cell.fraction:g}, draw {cell.draw + 1}: {result} ({cell.seconds:.0f} s)")
            show(len(done), cells)

        curve = label_efficiency(
            y[train],
            patients[train],
            y[test],
            patients[test],
            _arms(config, data),
            config.fractions,
            config.draws,
            config.resamples,
            config.seed,
            dict(done),
            on_cell,
        )
    _write(config, run, data, curve)
    return curve


def _arms(config: EfficiencyConfig, data: Labelled) -> Mapping[str, Arm]:
    """Each arm as a function from training rows and a seed to the scores of the test rows."""
    train_rows, test_rows = (
        data.table.rows.iloc[data.table.of(split)].reset_index(drop=True) for split in ("train", "test")
    )
    y, patients = train_rows["y"].to_numpy(), train_rows["patient_key"].to_numpy()

    def on_features(of_train: NDArray[Any], of_test: NDArray[Any]) -> Arm:
        def arm(drawn: NDArray[np.intp], seed: int) -> NDArray[np.float64]:
            return fit_linear(of_train[drawn], y[drawn], patients[drawn], seed).scores(of_test)

        return arm

    def whole_network(init: str, of_train: NDArray[Any] | None = None) -> Arm:
        """`of_train`: features of the training rows, for a linear probe to start from."""

        def arm(drawn: NDArray[np.intp], seed: int) -> NDArray[np.float64]:
            network, width = data.network(init, seed)
            labelled = train_rows.iloc[drawn].reset_index(drop=True)
            head = None if of_train is None else fit_linear(of_train[drawn], y[drawn], patients[drawn], seed)
            classifier = fit_full(network, width, labelled, data.store, data.spec, data.views, config, seed, head)
            return embed_rows(classifier, test_rows, data.store, data.spec).astype(np.float64)

        return arm

    @cache
    def features() -> list[NDArray[Any]]:
        network = data.network("encoder", config.seed)[0].to(training_device(config.device))
        return [embed_rows(network, rows, data.store, data.spec) for rows in (train_rows, test_rows)]

    arms: dict[str, Arm] = {}
    for name in config.arms:
        if name == "pca":
            unlabelled = _unlabelled(data)
            check_stock(unlabelled, data.spec, data.store, data.scans)
            components = fit_pca(pixel_rows(unlabelled, data.store, data.spec))
            pixels = (pixel_rows(part, data.store, data.spec) for part in (train_rows, test_rows))
            arms[name] = on_features(*map(components, pixels))
        elif name == "simclr-linear":
            arms[name] = on_features(*features())
        elif name == "simclr-lp-ft":
            arms[name] = whole_network("encoder", features()[0])
        else:
            arms[name] = whole_network("scratch" if name == "scratch" else "encoder")
    return arms


def _unlabelled(data: Labelled) -> Any:
    """Volumes that any arm may see without a label: all but those of val and test patients."""
    rows = data.table.rows
    held = set(rows["patient_key"][rows["split"] != "train"])
    free = data.manifest[~data.manifest["patient_key"].isin(held)]
    if len(free) <= MOST_PCA_ROWS:
        return free
    return free.iloc[np.sort(np.random.default_rng(0).choice(len(free), MOST_PCA_ROWS, replace=False))]


def _done(run: Run) -> dict[str, Cell]:
    """Cells that an interrupted run of the same folder has finished."""
    cells = (Cell.from_dict(json.loads(path.read_text())) for path in sorted(run.folder.glob("cells/*.json")))
    return {cell.id: cell for cell in cells}


def _write(config: EfficiencyConfig, run: Run, data: Labelled, curve: Curve) -> None:
    run.write_frame("curve.csv", curve.points)
    run.write_frame("differences.csv", curve.differences)
    run.write_frame("metrics.csv", curve.points)
    needed = {arm: str(found) for arm, found in curve.needed.items()}
    title = f"Label efficiency: {data.table.column}"
    efficiency_figure(curve.points, title, [run.folder / "curve.png", run.folder / "curve.svg"])
    context = _context(config, run, data, title)
    run.write_text("report.html", efficiency_page(curve, context))
    report = {
        "verdict": curve.verdict(),
        "points": curve.points.to_dict("records"),
        "differences": curve.differences.to_dict("records"),
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
    say(f"wrote {run.folder}: report.html, report.json, curve.csv, curve.png, curve.svg, differences.csv")
    say(f"next: open {run.folder / 'report.html'} in a browser")


def _context(config: EfficiencyConfig, run: Run, data: Labelled, title: str) -> dict[str, Any]:
    rows = data.table.rows
    known = bool(rows["patient_known"].all())
    details = data.encoder.bundle.details
    learned, method = details["hyperparameters"], METHODS[details["method"]]
    a = data.architecture

    def counts(split: str) -> dict[str, int]:
        part = rows.iloc[data.table.of(split)]
        positive = int(part["y"].sum())
        return {
            "n_patients": int(part["patient_key"].nunique()),
            "n_positive": positive,
            "n_negative": len(part) - positive,
        }

    of_slices = f" of {data.spec.slices} slices, whose mean is the volume's" if data.spec.slices else ""
    steps = f"{config.min_steps} to {config.max_steps} steps"
    layers = counted(config.projector_layer, "hidden layer")
    below = f"Classifiers keep {layers} of its projector below their head. " if config.projector_layer else ""
    methods = [
        f"The encoder is a {a.spatial_dims}D ResNet-{a.depth} of width {a.width} that sees "
        f"{' × '.join(map(str, a.patch))} voxels{of_slices}; {method} trained it for {learned['epochs']} epochs at "
        f"batch size {learned['batch_size']} and temperature {learned['temperature']}, without labels. {below}All "
        "results are conditional on this one encoder.",
        f"Each fraction of the labelled training patients was drawn {counted(config.draws, 'time')}, the smaller draws "
        "within the larger, stratified by whether a patient has any positive; all arms use the same draws. At 100% the "
        "draws are seeds.",
        "Outside a draw no label was used for anything: not for stopping, tuning or the choice of an arm.",
        "Linear arms are logistic regressions on features scaled by one number; their regularisation is chosen by "
        f"five-fold patient-grouped cross-validation inside the draw, or is C = {FIXED_STRENGTH:g} where the draw has "
        f"fewer than {FEWEST_PATIENTS} patients of a class.",
        "scratch, simclr-full and simclr-lp-ft, which starts from the head of simclr-linear, train the whole network "
        f"with AdamW at {config.lr:g} for {config.epochs} epochs, {steps}, at batch size {config.batch_size}; these "
        "settings are fixed, the same for all, and not tuned.",
        "pca is a logistic regression on the principal components of the pixels of all volumes outside the val and "
        "test patients.",
        f"Intervals are from {config.resamples:,} resamples of test {'patients' if known else 'images'} and draws "
        "together, the same for all arms.",
        f"The split is that of the {'label table' if data.table.split_source == 'table' else 'hash of each patient'}.",
        *sources(config, data.encoder),
    ]
    notes = [] if data.near == 0 else [data.near_sentence]
    notes += [] if known else ["Not every file names its patient: intervals are image-level, and may be too narrow."]
    return {
        "title": title,
        "command": "efficiency",
        "command_line": run.command_line,
        "phantoms": bool(rows["manufacturer"].isin({scanner.manufacturer for scanner in SCANNERS}).any()),
        "leakage": data.verdict.sentence,
        "near_duplicates": {"test_images": data.near, "sentence": data.near_sentence},
        "transductive": data.verdict.status == "leak",
        "label": {"column": data.table.column, "negative": data.table.classes[0], "positive": data.table.classes[1]},
        "test": counts("test"),
        "train": counts("train"),
        "methods": methods,
        "versions": versions(),
        "hardware": hardware(),
        "notes": notes,
    }
