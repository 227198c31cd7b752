"""Contrastive pre-training on unlabelled medical scans, and how many labels it saves.

The public names are loaded when first used (PEP 562), so that importing medclr costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medclr.commands.adapt import adapt
    from medclr.commands.adopt import adopt
    from medclr.commands.distill import distill
    from medclr.commands.efficiency import efficiency
    from medclr.commands.embed import embed
    from medclr.commands.finetune import finetune
    from medclr.commands.leakage import leakage
    from medclr.commands.predict import predict
    from medclr.commands.prepare import prepare
    from medclr.commands.pretrain import pretrain
    from medclr.commands.preview import preview
    from medclr.commands.scan import scan
    from medclr.commands.shift import shift
    from medclr.config import (
        AdaptConfig,
        AdoptConfig,
        DistillConfig,
        EfficiencyConfig,
        EmbedConfig,
        FinetuneConfig,
        LeakageConfig,
        PredictConfig,
        PrepareConfig,
        PretrainConfig,
        PreviewConfig,
        ScanConfig,
        ShiftConfig,
    )
    from medclr.data.phantoms import write_phantoms
    from medclr.errors import MedclrError
    from medclr.models.classifier import load_classifier
    from medclr.training.encode import load_encoder

__version__ = "0.1.0"

_HOME = {
    "AdaptConfig": "medclr.config",
    "AdoptConfig": "medclr.config",
    "DistillConfig": "medclr.config",
    "EfficiencyConfig": "medclr.config",
    "EmbedConfig": "medclr.config",
    "FinetuneConfig": "medclr.config",
    "LeakageConfig": "medclr.config",
    "MedclrError": "medclr.errors",
    "PredictConfig": "medclr.config",
    "PrepareConfig": "medclr.config",
    "PretrainConfig": "medclr.config",
    "PreviewConfig": "medclr.config",
    "ScanConfig": "medclr.config",
    "ShiftConfig": "medclr.config",
    "adapt": "medclr.commands.adapt",
    "adopt": "medclr.commands.adopt",
    "distill": "medclr.commands.distill",
    "efficiency": "medclr.commands.efficiency",
    "embed": "medclr.commands.embed",
    "finetune": "medclr.commands.finetune",
    "leakage": "medclr.commands.leakage",
    "load_classifier": "medclr.models.classifier",
    "load_encoder": "medclr.training.encode",
    "predict": "medclr.commands.predict",
    "prepare": "medclr.commands.prepare",
    "pretrain": "medclr.commands.pretrain",
    "preview": "medclr.commands.preview",
    "scan": "medclr.commands.scan",
    "shift": "medclr.commands.shift",
    "write_phantoms": "medclr.data.phantoms",
}

__all__ = [
    "AdaptConfig",
    "AdoptConfig",
    "DistillConfig",
    "EfficiencyConfig",
    "EmbedConfig",
    "FinetuneConfig",
    "LeakageConfig",
    "MedclrError",
    "PredictConfig",
    "PrepareConfig",
    "PretrainConfig",
    "PreviewConfig",
    "ScanConfig",
    "ShiftConfig",
    "__version__",
    "adapt",
    "adopt",
    "distill",
    "efficiency",
    "embed",
    "finetune",
    "leakage",
    "load_classifier",
    "load_encoder",
    "predict",
    "prepare",
    "pretrain",
    "preview",
    "scan",
    "shift",
    "write_phantoms",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'medclr' has no attribute {name!r}")
    value: object = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
