"""What `medclr pretrain --encoder` takes from the encoder that it goes on from, and what it records of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from medclr.commands.finetune import encoder_seen
from medclr.data.spec import DataSpec
from medclr.errors import UsageError
from medclr.reporting.console import counted
from medclr.training.encode import Encoder

# What an encoder's weights are for: how large, how fine and how bright the things are that it sees.
FIXED = ("spatial_dims", "slices", "normalisation", "window", "clip", "sizing", "spacing_mm", "patch")
_OPEN = ("window", "clip", "spacing_mm", "patch")  # of these, what a spec may leave to the encoder's


def spec_of(path: Path | None, asked: DataSpec | None, encoder: Encoder) -> DataSpec:
    """How volumes are prepared for an encoder: by its own spec, or by one that agrees with it in all that is FIXED.

    Of its own, the files, the label table and the licence are those of the data that it has seen, and are left out.

    Args:
        path: of the spec that was asked for; asked: what it holds; None for the encoder's own.
        encoder: with its spec.

    Raises:
        UsageError: the two do not agree.
    """
    own = encoder.spec
    if asked is None:
        return replace(own, files="", table=None, licence="", citation="")
    for name in FIXED:
        wanted, has = getattr(asked, name), getattr(own, name)
        if wanted != has and not (wanted is None and name in _OPEN):
            raise UsageError(
                f"--spec {path}: its {name} is {_told(wanted)}, and that of --encoder {_told(has)}; leave out --spec, "
                "or give one that agrees"
            )
    return replace(asked, **{name: getattr(own, name) for name in FIXED})


def record_of(encoder: Encoder) -> dict[str, Any]:
    """What a new bundle says of the encoder that it went on from, and of what that went on from."""
    details, spec = encoder.bundle.details, encoder.spec
    return {
        "fingerprint": encoder.bundle.digest[:16],
        **{name: details[name] for name in ("method", "hyperparameters", "code_version", "manifest_hash")},
        "data": {name: getattr(spec, name) for name in ("name", "licence", "citation")},
        **({"start": details["start"]} if "start" in details else {}),
    }


def doubts(encoder: Encoder, fingerprint: str, held: pd.DataFrame) -> list[str]:
    """Warnings where nobody can be tested on volumes that are held out, since the encoder had seen their patients; or
    where that is not known.

    Args:
        encoder: that is gone on from.
        fingerprint: of the key that made the pseudonyms of `held`, manifest rows.
    """
    seen = encoder_seen(encoder)
    n_seen = int((seen.holds(fingerprint, held) == "yes").sum()) if len(held) else 0
    if n_seen:
        return [
            f"--encoder had seen {n_seen:,} of the {counted(len(held), 'volume')} held out, or other volumes of their "
            "patients: finetune will refuse to be tested on them. Start from one that they were held out from, too"
        ]
    if seen.unrecorded:
        return [f"no record says which patients {seen.unrecorded} have seen; every result will say so"]
    if seen.fingerprint != fingerprint:
        return [
            "--encoder was made under another key, so which patients it has seen is not checkable, and every result "
            "will say so; with --key-file and the key of its run it is"
        ]
    return []


def _told(value: Any) -> str:
    if isinstance(value, tuple):
        return " x ".join(f"{v:g}" for v in value)
    return "open" if value is None else str(value) or "none"
