"""DFC2020, pairs of Sentinel-1 and Sentinel-2 with land cover, as a TensorFlow dataset."""

from tfds_dfc2020.builder import Dfc2020

__all__ = ["Dfc2020"]
