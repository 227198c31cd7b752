"""Losses as plain functions of tensors."""

from medclr.losses.gather import gathered
from medclr.losses.info_nce import moco_chance_level, moco_loss
from medclr.losses.nt_xent import chance_level, nt_xent

__all__ = ["chance_level", "gathered", "moco_chance_level", "moco_loss", "nt_xent"]
