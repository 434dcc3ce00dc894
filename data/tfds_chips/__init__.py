"""Chips cut from anybody's scenes, as a TensorFlow dataset."""

from tfds_chips.builder import Built, Chips, SceneReader, build

__all__ = ["Built", "Chips", "SceneReader", "build"]
