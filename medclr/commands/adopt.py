"""`medclr adopt`: from weights of elsewhere to an encoder bundle like any other."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from medclr import __version__
from medclr.commands.finetune import encoder_seen, home_of
from medclr.commands.prepare import stocked
from medclr.commands.pretrain import axis_order
from medclr.commands.start import record_of
from medclr.config import ADOPTED, AdoptConfig
from medclr.data.identity import Seen
from medclr.data.spec import SLICE_AXES, DataSpec, load_spec
from medclr.errors import BundleError, UsageError
from medclr.models.bundle import save_bundle
from medclr.models.encoder import Architecture, build_encoder
from medclr.models.named import Named, in_3d, variants
from medclr.models.weights import count, fit_weights, read_weights
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
    start = _encoder(config)
    home = home_of(config.like) if config.like else None
    spec = _spec(config, home)
    assert spec.patch
    encoder: nn.Module
    if start is None:
        tensors, network, greys = read_weights(config.weights), *_network(config)
        with config.weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        plain = Architecture.named(network, spec.spatial_dims, 1, spec.patch)
        _say_size(plain)
        architecture, encoder, changes = _fitted(config, plain, tensors, greys)
        projector = nn.Sequential()
    else:
        digest = None  # its fingerprint is in the record of what it began with
        architecture, encoder, changes = _inflated(config, start, spec)
        _say_size(architecture)
        projector = start.bundle.projector
    run = Run.open("adopt", config, config.out)
    say(f"run folder: {run.folder}")
    if run.complete:
        say(f"{run.folder} is complete already; use another --out to adopt again")
        return load_encoder(run.folder)
    for change in changes:
        say(change)
    say(
        f"all {count(encoder.state_dict())} weights match; it is given grey values less {architecture.mean:g}, "
        f"divided by {architecture.std:g}"
    )
    on = f"“{config.trained_on}”, it is said" if config.trained_on else "data that nobody named"
    unrecorded = f"{config.title} (weights from elsewhere, trained on {on})"
    seen = encoder_seen(start) if start else Seen("", frozenset(), frozenset(), 0, unrecorded)
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
        "seen": seen.to_dict(),
        **({"start": record_of(start)} if start else {}),
    }
    if home and stocked(home):
        # Where the commands that follow find volumes, as if they were those of this run.
        paths = read_paths(home)
        store = paths.get("store") or home.parent / "store"
        run.found(volumes=home, store=store, data=paths.get("data"), key_file=paths.get("key_file"))
    save_bundle(run.folder / "encoder", encoder, projector, architecture, details)
    run.finish({"network": architecture.network, "weights": digest, "changes": changes})
    say(f"wrote {run.folder}: encoder/")
    if seen.unrecorded:
        say("no record says which patients and images these weights were trained on; every result will say so")
    say(f"next: {next_command('efficiency', config, (), labels='LABELS.csv', encoder=_beside(config, run))}")
    return load_encoder(run.folder)


def _encoder(config: AdoptConfig) -> Encoder | None:
    """The encoder that is to be inflated, where --weights is the folder of one and no file."""
    if not config.weights.is_dir():
        if config.network is None:
            raise UsageError(f"--weights {config.weights}: name the network whose weights they are, with --network")
        return None
    if config.inflate is None:
        raise UsageError(
            f"--weights {config.weights}: an encoder goes wherever --encoder is, as it is; give --inflate to make a 3D "
            "one of it, or a file"
        )
    if config.network is not None:
        raise UsageError(f"--network {config.network}: an encoder bundle says what it is; leave it out")
    found = load_encoder(config.weights)
    if found.bundle.architecture.spatial_dims != 2:
        raise BundleError(f"--weights {config.weights}: is 3D already; leave out --inflate, and use it as --encoder")
    if found.spec.slices not in ("", config.inflate):
        raise UsageError(
            f"--inflate {config.inflate}: that encoder saw {found.spec.slices} slices; give --inflate "
            f"{found.spec.slices}"
        )
    return found


def _network(config: AdoptConfig) -> tuple[str, tuple[float, float] | None]:
    """The network to build, and the grey values that its weights expect, where it does not know them itself."""
    assert config.network
    return in_3d(config.network) if config.inflate else (config.network, None)


def _say_size(architecture: Architecture) -> None:
    size = " × ".join(map(str, architecture.patch))
    say(f"{architecture.title}: {architecture.feature_dim} features of {size} voxels")


def _spec(config: AdoptConfig, home: Path | None) -> DataSpec:
    """How its volumes are prepared; home: of those that --like names, if it is a run."""
    spec = _named_spec(config, home)
    if config.inflate and spec.spatial_dims != 3:
        raise UsageError(
            f"--inflate {config.inflate}: makes a 3D encoder, and the spec {spec.name} is for 2D; name one of whole "
            "volumes with --like or --spec"
        )
    return spec


def _named_spec(config: AdoptConfig, home: Path | None) -> DataSpec:
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
    config: AdoptConfig, plain: Architecture, tensors: dict[str, Tensor], greys: tuple[float, float] | None
) -> tuple[Architecture, Named, list[str]]:
    """The first of the networks that the name may stand for which the weights fit."""
    faults = []
    for network in variants(plain.network):
        architecture = replace(plain, network=network)
        encoder = build_encoder(architecture)
        assert isinstance(encoder, Named)
        try:
            changes = _fit(config, encoder, tensors)
        except BundleError as error:
            faults.append(error)
            continue
        # They are those of the network that was named; another that its name stands for knows its own.
        mean, std = greys if greys and network == plain.network else encoder.greys()
        encoder.mean = mean if config.mean is None else config.mean
        encoder.std = std if config.std is None else config.std
        return replace(architecture, mean=encoder.mean, std=encoder.std), encoder, changes
    size = " × ".join(map(str, plain.patch))
    raise BundleError(
        f"--weights {config.weights}: {faults[0]}; these are not the weights of {config.network} for {size} voxels: "
        "name theirs with --network, or a spec of their patch. Names are read as timm or MONAI has them, with any "
        "prefix or with parts by number; torchvision's are as timm's for ResNets, not for ViT, ConvNeXt or EfficientNet"
    ) from faults[0]


def _inflated(config: AdoptConfig, start: Encoder, spec: DataSpec) -> tuple[Architecture, nn.Module, list[str]]:
    """The 3D form of a 2D encoder, for volumes of that spec."""
    assert spec.patch
    own = start.bundle.architecture
    network, weights = own.network, start.bundle.encoder.state_dict()
    if not own.own:
        network, _ = in_3d(network)
    architecture = replace(own, spatial_dims=3, patch=spec.patch, network=network)
    encoder = build_encoder(architecture)
    try:
        return architecture, encoder, _fit(config, encoder, weights)
    except BundleError as error:
        raise BundleError(
            f"--weights {config.weights}: {error}; its stem is that of a patch of {' × '.join(map(str, own.patch))}, "
            "so name a spec of about that patch"
        ) from error


def _fit(config: AdoptConfig, encoder: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    changes = fit_weights(encoder, tensors, SLICE_AXES[config.inflate] if config.inflate else None)
    across = config.inflate and f" the axis across {config.inflate} planes"
    return [change.replace(" an axis", across) if across else change for change in changes]


def _beside(config: AdoptConfig, run: Run) -> list[Path]:
    """The encoders of a curve: that which it was adopted like, if it is one, and this one."""
    like = [config.like] if config.like and (config.like / "encoder").is_dir() else []
    return [*like, run.folder]
