"""`medclr demo`: the whole way, from DICOM files to the report, on phantoms that it makes itself."""

import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from medclr.commands.efficiency import efficiency
from medclr.commands.finetune import finetune
from medclr.commands.pretrain import pretrain
from medclr.config import Arm, DemoConfig, EfficiencyConfig, FinetuneConfig, PretrainConfig
from medclr.data.phantoms import write_phantoms
from medclr.reporting.console import say
from medclr.reporting.run import Run, next_command

# Small enough for two cores and five minutes: a third of it pre-training, the rest 15 networks from scratch, tuned.
PATCH_SPEC = "phantom"
PRETRAIN_EPOCHS = 16
FRACTIONS = [0.1, 0.3, 1.0]
ARMS: list[Arm] = ["scratch", "pca", "linear"]
STEPS = 12


def demo(config: DemoConfig) -> Path:
    """Generate phantoms, then run pretrain, finetune and efficiency on them as a user would.

    Each is printed as it would be typed.

    Returns:
        The report.
    """
    started = time.monotonic()
    folder = config.out or Path("runs/demo")
    run = Run.open("demo", config, folder)
    phantoms, key = run.private / "phantoms", run.private / "key"  # their headers name patients, if made-up ones
    data, labels = phantoms / "dicom", phantoms / "labels.csv"
    if not labels.is_file():  # it is written last
        say(f"making phantoms of {config.patients} patients on two scanners")
        write_phantoms(phantoms, config.patients, config.seed)
    encoder, seed = folder / "pretrain", config.seed
    learning = PretrainConfig(
        data=data,
        holdout=labels,
        spec=Path(PATCH_SPEC),
        key_file=key,
        epochs=PRETRAIN_EPOCHS,
        batch_size=24,
        # Phantoms of 20 voxels a side: grey values bent and noisy hide what tells them apart.
        without=["histogram", "noise"],
        lr=0.005,
        out=encoder,
        seed=seed,
    )
    _print("pretrain", learning)
    pretrain(learning)
    labelling = FinetuneConfig(labels=labels, encoder=encoder, out=folder / "finetune", seed=seed)
    _print("finetune", labelling)
    finetune(labelling)
    curve = EfficiencyConfig(
        labels=labels,
        encoder=[encoder],
        out=folder / "efficiency",
        fractions=FRACTIONS,
        arms=ARMS,
        min_steps=STEPS,
        max_steps=STEPS,
        batch_size=16,
        seed=seed,
    )
    _print("efficiency", curve)
    efficiency(curve)
    report = folder / "efficiency" / "report.html"
    run.finish({"report": "efficiency/report.html"})
    say()
    say(f"done in {time.monotonic() - started:.0f} s. The report: {report.resolve()}")
    say("on your own scans:")
    say("  medclr pretrain --data YOUR_DICOM_FOLDER --holdout labels.csv")
    say("  medclr finetune --labels labels.csv")
    say("  medclr efficiency --labels labels.csv")
    return report


def _print(command: str, config: Any) -> None:
    """The command as a user would type it."""
    say()
    say(f"$ {next_command(command, config, [field.name for field in fields(config)])}")
