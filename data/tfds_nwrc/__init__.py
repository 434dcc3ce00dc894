"""The NWRC data, and any folder in its layout, as a TensorFlow dataset."""

from tfds_nwrc.builder import Nwrc, build

__all__ = ["Nwrc", "build"]
