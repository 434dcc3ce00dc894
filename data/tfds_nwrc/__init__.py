"""The NWRC data, and any folder in their layout, as a TensorFlow dataset."""

from tfds_nwrc.builder import Nwrc, look

__all__ = ["Nwrc", "look"]
