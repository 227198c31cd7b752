"""`medclr preview`: what the model will see, and how each augmentation changes it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from medclr.commands.prepare import fitted
from medclr.commands.scan import READING, check_inputs, check_skipped, refuse_faults, survey
from medclr.config import PreviewConfig
from medclr.data.candidate import Skipped
from medclr.data.discover import check_folder
from medclr.data.loader import Blocks
from medclr.data.manifest import kinds, read_skipped
from medclr.data.prepare import prepare, processes
from medclr.data.spec import DataSpec, choose_spec, load_spec
from medclr.data.store import Store
from medclr.data.thumbnail import fair_sample
from medclr.errors import DataError
from medclr.reporting.console import counted, progress, say
from medclr.reporting.preview_page import Change, Section, Seen, preview_page
from medclr.reporting.run import Run, hardware, next_command, read_paths, read_record, versions, writing
from medclr.training.encode import images
from medclr.transforms.augmentation import Params
from medclr.transforms.presets import Views, build_views, check_without, step_names
from medclr.transforms.spatial import ResizedCrop

EXAMPLES = {2: 2, 3: 1}  # volumes that augmentations are shown on, by spatial dimensions; of 3D there are three slices
_TABLES = ("manifest.parquet", "skipped.csv", "keys.csv")  # of a scan


def preview(config: PreviewConfig) -> Path:
    """Write contact sheets of some volumes of a folder, of each kind that is in it, as one page.

    Only these volumes are prepared, and nothing of them is kept but the page.

    Returns:
        The page.
    """
    check_inputs(config)
    check_folder(config.data)
    check_without(config.without)
    run = Run.open("preview", config, config.out)
    say(f"run folder: {run.folder}")
    manifest, skipped = _scanned(config, run) or survey(config, run)
    specs, alien = _specs(config, manifest)
    sections = [_section(config, run, spec, manifest) for spec in specs]
    if not any(section.seen for section in sections):
        reasons = [why.reason for section in sections for _, why in section.failed]
        raise DataError(
            f"--data {config.data}: none of {counted(len(reasons), 'volume')} that were chosen could be decoded "
            f"({', '.join(sorted(set(reasons)))}); try more --volumes"
        )
    path = _write(config, run, sections, alien)
    run.finish({section.spec.name: {"volumes": section.volumes, "shown": len(section.seen)} for section in sections})
    say(f"wrote {path}")
    for section in sections:
        name = section.spec.name if len(sections) > 1 else config.spec
        say(f"next: {next_command('pretrain', config, (*READING, 'crop_scale', 'without'), spec=name)}")
    check_skipped(config, manifest, skipped)
    return path


def _scanned(config: PreviewConfig, run: Run) -> tuple[pd.DataFrame, list[Skipped]] | None:
    """The tables of the last scan of the folder among the runs beside this one, copied into its own `private/`."""
    for folder in Run.completed("scan", run.folder.parent):
        read = yaml.safe_load((folder / "config.yaml").read_text())
        same = all(read.get(name) == getattr(config, name) for name in ("burned_in", "tilt", "uneven"))
        there = all((folder / "private" / name).is_file() for name in _TABLES)
        if same and there and read_paths(folder).get("data") == Path(os.path.abspath(config.data)):
            when = read_record(folder)["finished"][:16].replace("T", " ")
            say(f"scan: that of {folder}, {when} UTC; run `medclr scan` again where the folder has changed since")
            for name in _TABLES:
                run.write_bytes(f"private/{name}", (folder / "private" / name).read_bytes())
            skipped = read_skipped(run.private / "skipped.csv")
            refuse_faults(config, run, skipped)
            return pd.read_parquet(run.private / "manifest.parquet"), skipped
    return None


def _write(config: PreviewConfig, run: Run, sections: Sequence[Section], alien: Mapping[str, int]) -> Path:
    """Write the page, and take away the one that an earlier preview wrote to the other place."""
    html = preview_page(
        sections,
        alien,
        {
            "command_line": run.command_line,
            "versions": versions(),
            "hardware": hardware(),
            "shared": config.share_images,
            "burned_in": config.burned_in,
        },
    )
    names = ["private/preview.html", "preview.html"]
    path = run.write_text(names.pop(config.share_images), html)
    (run.folder / names[0]).unlink(missing_ok=True)
    return path


def _specs(config: PreviewConfig, manifest: pd.DataFrame) -> tuple[list[DataSpec], dict[str, int]]:
    """The spec that was asked for, or what `prepare` would choose for each kind; and the kinds that nothing is for."""
    if config.spec:
        return [load_spec(config.spec)], {}
    specs: dict[str, DataSpec] = {}
    alien = {}
    for kind, rows in manifest.groupby(pd.Series(kinds(manifest), manifest.index)):
        try:
            spec = choose_spec(rows)
        except DataError:
            alien[str(kind)] = len(rows)
        else:
            specs[spec.name] = spec
    if not specs:
        choose_spec(manifest)  # its error says what there is
    return sorted(specs.values(), key=lambda spec: -int(spec.accepts(manifest).sum())), alien


def _section(config: PreviewConfig, run: Run, spec: DataSpec, manifest: pd.DataFrame) -> Section:
    rows, spec = fitted(config, manifest, spec)
    sample = fair_sample(rows, config.volumes)
    views = _views(config, spec, _steps(config, spec))
    with (
        writing(run.folder),
        TemporaryDirectory(dir=run.private) as folder,
        progress("preparing volumes") as show,
        processes(config.workers, len(sample), least=1) as pool,
    ):
        store = Store(Path(folder))
        prepared, unreadable = prepare(sample, config.data, spec, store, pool, show)
        seen = _seen(prepared, store, spec, views, config.seed) if len(prepared) else []
    refuse_faults(config, run, unreadable)
    reasons = {(why.item, why.part): why for why in unreadable}
    found = [(row, reasons.get((row.source[0], int(row.member)))) for row in _tuples(sample)]
    failed = [(row, why) for row, why in found if why]
    # A volume that shows nothing is no example, unless there is no other.
    examples = sorted(seen, key=lambda one: -float(one.source.std()))[: EXAMPLES[spec.spatial_dims]]
    failures = f", {counted(len(failed), 'volume')} could not be decoded" if failed else ""
    say(f"spec {spec.name}: {len(seen):,} of {counted(len(rows), 'volume')} shown{failures}")
    for flat in (one for one in seen if not np.ptp(one.source)):
        say(f"warning: volume {flat.row.volume_id} has one grey value everywhere; there is nothing to learn from it")
    changes = _changes(config, spec, examples)
    return Section(spec, sorted(set(kinds(rows))), len(rows), views, seen, failed, examples, changes)


def _seen(prepared: pd.DataFrame, store: Store, spec: DataSpec, views: Views, seed: int) -> list[Seen]:
    """What pre-training makes of each volume in its first epoch, were there no others."""
    rows = _tuples(prepared)
    if spec.slices:  # of each volume the middle one of those that are kept
        prepared = prepared.assign(slice=[int(kept[len(kept) // 2]) for kept in prepared["slices"]])
    items = [(0, row) for row in range(len(prepared))]
    centre = Blocks(prepared, store, spec).__getitems__(items)
    sources = images(centre["blocks"], centre["low"], centre["high"])
    pairs = Blocks(prepared, store, spec, views, 2, seed).__getitems__(items)
    blocks, low, high = (pairs[name].flatten(0, 1) for name in ("blocks", "low", "high"))
    drawn = {name: value.flatten(0, 1) for name, value in pairs["params"].items()}
    pictures = views.apply(blocks, drawn, low, high)
    return [
        Seen(
            row,
            centre["blocks"][i, 0].numpy(),
            _array(sources[i]),
            [_array(pictures[2 * i + view]) for view in range(2)],
            [{name: value[2 * i + view].numpy() for name, value in drawn.items()} for view in range(2)],
            float(centre["low"][i, 0]),
            float(centre["high"][i, 0]),
        )
        for i, row in enumerate(rows)
    ]


def _changes(config: PreviewConfig, spec: DataSpec, examples: Sequence[Seen]) -> list[Change]:
    """Each augmentation of the spec's preset with all others off."""
    changes = []
    for name in _steps(config, spec) if examples else ():
        alone = _views(config, spec, [name])
        ends = _ends(alone)
        shown = [_applied(alone, params, examples) for params in ends]
        changes.append(Change(name, _share(name, alone), alone, ends, list(zip(*shown, strict=True))))
    return changes


def _steps(config: PreviewConfig, spec: DataSpec) -> list[str]:
    """The augmentations of the spec's preset that are not left out."""
    return [name for name in step_names(spec.preset, spec.laterality) if name not in config.without]


def _views(config: PreviewConfig, spec: DataSpec, steps: Sequence[str]) -> Views:
    """Those that pre-training would draw, with these augmentations alone."""
    others = [name for name in step_names(spec.preset, spec.laterality) if name not in steps]
    smallest, largest = config.crop_scale
    return build_views(spec.preset, spec.spatial_dims, spec.laterality, (smallest, largest), others)


def _ends(views: Views) -> tuple[Params, Params]:
    """All steps at their weakest, and all at their strongest."""
    extremes = {step: transform.extremes() for step, transform in views.steps.items()}
    weakest, strongest = (
        {f"{step}.{name}": value for step, pair in extremes.items() for name, value in pair[end].items()}
        for end in range(2)
    )
    return weakest, strongest


def _applied(views: Views, params: Params, examples: Sequence[Seen]) -> list[NDArray[np.float32]]:
    """Views of the examples, all with the same parameters."""
    batch = torch.from_numpy(np.stack([seen.block for seen in examples]))
    low, high = (torch.tensor([getattr(seen, name) for seen in examples]) for name in ("low", "high"))
    many = {name: torch.from_numpy(np.stack([value] * len(batch))) for name, value in params.items()}
    return [_array(image) for image in views.apply(batch, many, low, high)]


def _share(name: str, views: Views) -> float:
    """Of the views that one augmentation changes."""
    crop = views.steps["crop"]
    assert isinstance(crop, ResizedCrop)
    own = {"crop": 1.0, "rotation": crop.turned, "flip": 0.5}  # of a flip, half is in its drawing
    return own[name] if name in own else views.steps[name].probability


def _tuples(rows: pd.DataFrame) -> list[Any]:
    return list(rows.itertuples(index=False))


def _array(image: Tensor) -> NDArray[np.float32]:
    """(C, *spatial) to its first channel."""
    return np.asarray(image[0].numpy())
