"""Encoders, projectors and the bundles that carry them."""

from medclr.models.bundle import Bundle, check_dims, load_bundle, save_bundle
from medclr.models.encoder import Architecture, build_encoder
from medclr.models.projector import build_projector

__all__ = ["Architecture", "Bundle", "build_encoder", "build_projector", "check_dims", "load_bundle", "save_bundle"]
