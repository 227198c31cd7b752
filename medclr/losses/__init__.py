"""Losses as plain functions of tensors."""

from medclr.losses.alignment import coral_loss, mmd, reversal_strength, reverse_gradient
from medclr.losses.classification import class_weights, label_loss
from medclr.losses.distillation import distillation_loss
from medclr.losses.gather import gathered
from medclr.losses.info_nce import moco_chance_level, moco_loss
from medclr.losses.nt_xent import chance_level, nt_xent

__all__ = [
    "chance_level",
    "class_weights",
    "coral_loss",
    "distillation_loss",
    "gathered",
    "label_loss",
    "mmd",
    "moco_chance_level",
    "moco_loss",
    "nt_xent",
    "reversal_strength",
    "reverse_gradient",
]
