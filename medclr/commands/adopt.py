"""`medclr adopt`: from weights of elsewhere to an encoder bundle like any other."""

import hashlib
from pathlib import Path

from torch import Tensor, nn

from medclr import __version__
from medclr.commands.finetune import home_of
from medclr.commands.prepare import stocked
from medclr.commands.pretrain import axis_order
from medclr.config import ADOPTED, AdoptConfig
from medclr.data.identity import Seen
from medclr.data.spec import DataSpec, load_spec
from medclr.errors import BundleError, UsageError
from medclr.models.bundle import save_bundle
from medclr.models.encoder import Architecture, build_encoder
from medclr.models.named import Named, variants
from medclr.models.weights import fit_weights, read_weights
from medclr.reporting.console import say
from medclr.reporting.run import Run, next_command, read_paths
from medclr.training.encode import Encoder, load_encoder


def adopt(config: AdoptConfig) -> Encoder:
    """Make an encoder bundle of weights that another library, or somebody else, has trained.

    Returns:
        The encoder, as `medclr.load_encoder` gives it.

    Raises:
        BundleError: the weights are not all there, or are those of another network.
    """
    # All that can be wrong is found before there is a run folder.
    tensors = read_weights(config.weights)
    with config.weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    home = home_of(config.like) if config.like else None
    spec = _spec(config, home)
    assert spec.patch
    plain = Architecture.named(config.network, spec.spatial_dims, 1, spec.patch)
    say(f"{plain.title}: {plain.feature_dim} features of {' × '.join(map(str, spec.patch))} voxels")
    architecture, encoder, changes = _fitted(config, plain, tensors)
    run = Run.open("adopt", config, config.out)
    say(f"run folder: {run.folder}")
    if run.complete:
        say(f"{run.folder} is complete already; use another --out to adopt again")
        return load_encoder(run.folder)
    for change in changes:
        say(change)
    say(
        f"all {len(encoder.body.state_dict())} weights match; it is given grey values less {architecture.mean:g}, "
        f"divided by {architecture.std:g}"
    )
    on = f"“{config.trained_on}”, it is said" if config.trained_on else "data that nobody named"
    unrecorded = f"{config.title} (weights from elsewhere, trained on {on})"
    details = {
        "spec": spec.to_dict(),
        "axis_order": axis_order(spec),
        "method": ADOPTED,
        "hyperparameters": {
            "name": config.title,
            "trained_on": config.trained_on,
            "weights": digest,
            "changes": changes,
        },
        "code_version": __version__,
        "manifest_hash": None,
        "holdout": {"splits": [], "volumes": 0, "patients": 0},
        "seen": Seen("", frozenset(), frozenset(), 0, unrecorded).to_dict(),
    }
    if home and stocked(home):
        # Where the commands that follow find volumes, as if they were those of this run.
        paths = read_paths(home)
        store = paths.get("store") or home.parent / "store"
        run.found(volumes=home, store=store, data=paths.get("data"), key_file=paths.get("key_file"))
    save_bundle(run.folder / "encoder", encoder, nn.Sequential(), architecture, details)
    run.finish({"network": architecture.network, "weights": digest, "changes": changes})
    say(f"wrote {run.folder}: encoder/")
    say("no record says which patients and images these weights were trained on; every result will say so")
    say(f"next: {next_command('efficiency', config, (), labels='LABELS.csv', encoder=_beside(config, run))}")
    return load_encoder(run.folder)


def _spec(config: AdoptConfig, home: Path | None) -> DataSpec:
    """How its volumes are prepared; home: of those that --like names, if it is a run."""
    if config.spec is not None:
        spec = load_spec(config.spec)
        if spec.patch is None or (spec.sizing == "spacing" and spec.spacing_mm is None):
            lacking = "patch" if spec.patch is None else "spacing_mm"
            raise UsageError(
                f"--spec {config.spec}: leaves its {lacking} to the data; give it one in a file of your own, or name a "
                "run that has chosen it with --like"
            )
        return spec
    assert config.like
    assert home
    if not config.like.is_dir():
        raise UsageError(f"--like {config.like}: no such folder; name a run of pretrain or prepare, or a bundle")
    kept = stocked(home)
    return load_encoder(config.like).spec if kept is None else kept[1]


def _fitted(
    config: AdoptConfig, plain: Architecture, tensors: dict[str, Tensor]
) -> tuple[Architecture, Named, list[str]]:
    """The first of the networks that the name may stand for which the weights fit."""
    faults = []
    for network in variants(config.network):
        architecture = Architecture.named(network, plain.spatial_dims, plain.channels, plain.patch)
        encoder = build_encoder(architecture)
        assert isinstance(encoder, Named)
        try:
            changes = fit_weights(encoder, tensors)
        except BundleError as error:
            faults.append(error)
            continue
        mean, std = encoder.greys()
        encoder.mean = mean if config.mean is None else config.mean
        encoder.std = std if config.std is None else config.std
        greys = (encoder.mean, encoder.std)
        return Architecture.named(network, plain.spatial_dims, plain.channels, plain.patch, *greys), encoder, changes
    size = " × ".join(map(str, plain.patch))
    raise BundleError(
        f"--weights {config.weights}: {faults[0]}; these are not the weights of {config.network} for {size} voxels: "
        "name theirs with --network, or a spec of their patch"
    ) from faults[0]


def _beside(config: AdoptConfig, run: Run) -> list[Path]:
    """The encoders of a curve: that which it was adopted like, if it is one, and this one."""
    like = [config.like] if config.like and (config.like / "encoder").is_dir() else []
    return [*like, run.folder]
