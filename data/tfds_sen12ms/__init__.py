"""SEN12MS, pairs of Sentinel-1 and Sentinel-2, as a TensorFlow dataset."""

from tfds_sen12ms.builder import Sen12ms

__all__ = ["Sen12ms"]
