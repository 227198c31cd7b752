"""`medclr embed`: the features of an encoder, one row a volume."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medclr.commands.apply import Volumes, forget_parts, in_parts, new_volumes, traced
from medclr.commands.finetune import home_of, pretrained_volumes
from medclr.commands.prepare import check_stock
from medclr.commands.scan import check_inputs, check_skipped
from medclr.config import EmbedConfig
from medclr.errors import UsageError
from medclr.reporting.console import counted, say
from medclr.reporting.run import Run, read_paths
from medclr.training.encode import Encoder, embed_rows, load_encoder, training_device


def embed(config: EmbedConfig) -> Path:
    """Scan and prepare a folder as an encoder asks, or take the volumes of its own run, and write their features.

    Returns:
        The path of embeddings.parquet: volume_id, patient_key, and f0, f1, … in float32; one row group for some
        hundred volumes, so that neither writing nor reading needs all of them at once.
    """
    if config.data is not None:
        check_inputs(config)
    source = config.encoder or Run.newest("pretrain")
    if source is None:
        raise UsageError(
            "no complete pretrain run under runs/; run `medclr pretrain --data DIR`, or name one with --encoder"
        )
    encoder = load_encoder(source)
    network = encoder.bundle.middle(config.projector_layer).to(training_device(config.device))
    run = Run.open("embed", config, config.out)
    say(f"run folder: {run.folder}")
    path = run.folder / "embeddings.parquet"
    run.pin({"encoder": encoder.bundle.digest})
    if run.complete:
        say(f"{run.folder} is complete already; use another --out to embed again")
        return path
    found = "" if config.encoder else ", the newest complete pretrain run"
    say(f"encoder: {source}{found}; all {len(network.state_dict())} weights match")
    volumes = _volumes(config, run, encoder, source)

    def outputs(rows: pd.DataFrame, workers: int) -> NDArray[np.float32]:
        return embed_rows(network, rows, volumes.store, volumes.spec, workers)

    def frames() -> Iterator[pd.DataFrame]:
        for rows, features in in_parts(run, volumes, outputs, "embedding"):
            named = pd.DataFrame(features, columns=[f"f{at}" for at in range(features.shape[1])])
            yield pd.concat([rows[["volume_id", "patient_key"]], named], axis=1)

    run.write_frames(path.name, frames())
    run.write_frame("private/volumes.csv", traced(volumes))
    counts = {"volumes": len(volumes.rows), "skipped_files": len(volumes.skipped)}
    run.finish({**counts, "encoder": encoder.bundle.digest[:16], "projector_layer": config.projector_layer})
    forget_parts(run)
    say(f"wrote {run.folder}: {path.name} with {counted(len(volumes.rows), 'volume')}; private/volumes.csv leads back")
    check_skipped(config, volumes.rows, volumes.skipped)
    return path


def _volumes(config: EmbedConfig, run: Run, encoder: Encoder, source: Path) -> Volumes:
    paths = read_paths(source)
    if config.data is not None:
        key_file = config.key_file or paths.get("key_file")
        return new_volumes(config, run, encoder.spec, config.store, key_file, "encoder")
    spec, store, rows = pretrained_volumes(config.store, encoder.spec, source, paths)
    check_stock(rows, spec, store, paths.get("data"))
    return Volumes(rows, spec, store, [], home_of(source) / "private" / "keys.csv")
