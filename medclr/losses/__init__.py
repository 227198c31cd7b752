"""Losses as plain functions of tensors."""

from medclr.losses.nt_xent import chance_level, nt_xent

__all__ = ["chance_level", "nt_xent"]
