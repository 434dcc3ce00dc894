"""A model over many scenes: what is done stays done, and one that fails stops no other."""

import json
import operator
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from tqdm import tqdm

from elev_ssl_jax import files
from elev_ssl_jax.data.rasters import open_raster
from elev_ssl_jax.data.scene_files import SceneFiles
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.inference.maps import tags_of
from elev_ssl_jax.inference.model import Model
from elev_ssl_jax.inference.scenes import NOTHING, Counts, bar_of, files_of, map_scene

# Of the folders that `map_scene`'s outputs go to: what its files are called behind a scene's name.
_SUFFIXES = {
    **dict.fromkeys(("out", "probabilities", "confidence"), ".tif"),
    "features": ".parquet",
    "vector": ".gpkg",
}


def map_scenes(
    model: Model,
    scenes: Sequence[SceneFiles],
    folders: Mapping[str, Path],
    *,
    shard: tuple[int, int] | None = None,
    overwrite: bool = False,
    progress: bool = True,
    **options: Any,
) -> Counts:
    """Maps scenes one after another; called again, only those that are missing.

    Args:
      model: From `load`.
      scenes: Of each the sensors and the elevation that the model sees; it may have others.
      folders: Where each of the outputs of `map_scene` goes, by its name there: a file for each
        scene, of its name. They are made if need be.
      shard: (i, n) maps every n-th scene alone, from the i-th, which counts from 1.
      overwrite: Whether all scenes are mapped again.
      progress: Whether to show a bar of all pixels.
      **options: Of `map_scene`, for all scenes.

    Raises:
      InputError: Some scenes failed, which have been named, or the folders can't be.
    """
    if not folders:
        raise InputError(NOTHING)
    inputs = {path.resolve() for scene in scenes for path in scene.paths()}
    if shard is not None:
        scenes = scenes[shard[0] - 1 :: shard[1]]
    done, todo = 0, []
    for scene in scenes:
        paths = {n: folder / f"{scene.name}{_SUFFIXES[n]}" for n, folder in folders.items()}
        if len(set(paths.values())) < len(paths):
            raise InputError("outputs of one kind would be written twice; name a folder for each")
        for path in paths.values():
            if path.resolve() in inputs:
                raise InputError(f"{path} is a file of the table; name another folder")
        record = _Record(scene, model, paths, options)
        if not overwrite and record.is_done():
            done += 1
        else:
            todo.append(record)
    for folder in folders.values():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder} is no folder, and can't be made: {error}") from error
    print(f"{len(scenes)} scenes, {done} of them done already")
    failed, sums = 0, Counts(0, 0, 0.0)
    with bar_of(sum(_pixels(record.scene) for record in todo), disable=not progress) as bar:
        for record in todo:
            try:
                counts = record.map_scene(overwrite=overwrite, progress=bar)
            except InputError as error:
                failed += 1
                tqdm.write(f"failed: scene {record.scene.name}: {error}", file=sys.stderr)
            else:
                sums = Counts(*map(operator.add, sums, counts))
    if failed:
        raise InputError(
            f"{failed} of {len(scenes)} scenes failed, see above; the same command tries them again"
        )
    return sums


def _state(path):
    """What tells a raster from others; one that is missing is told when it is mapped."""
    with suppress(OSError):
        return str(path.absolute()), files.state(path)
    return str(path)


class _Record:
    """What is to be made of a scene, and a hidden file beside it that says how far that has come.

    It tells what this command has made, or begun, from all else that lies there.
    """

    def __init__(self, scene: SceneFiles, model: Model, paths: Mapping[str, Path], options: Any):
        self.scene, self._model = scene, model
        seen = {n: files for n, files in scene.images.items() if n in model.inputs.names}
        self._images = seen or scene.images
        self._options = {**paths, **options}
        self._outputs = files_of(paths, None)
        first = next(iter(paths.values()))
        self._path = first.with_name(f".{scene.name}.of-table")
        shaping = {n: value for n, value in options.items() if n not in ("workers", "batch_size")}
        rasters = [path for paths in self._images.values() for path in paths]
        if scene.elevation is not None and model.inputs.with_elevation:
            rasters.append(scene.elevation)
        made = {"run": tags_of(model), "images": [*self._images], "options": shaping}
        made |= {"outputs": sorted(paths), "seen": [*map(_state, rasters)]}
        self._digest = sha256(json.dumps(made, sort_keys=True, default=str).encode()).hexdigest()

    def is_done(self) -> bool:
        """Whether all files are there as this command makes them."""
        return self._said() == f"made {self._digest}" and all(p.exists() for p in self._outputs)

    def map_scene(self, *, overwrite: bool, progress: tqdm) -> Counts:
        """Makes them.

        Raises:
          InputError: As `scenes.map_scene`.
        """
        elevation = self.scene.elevation if self._model.inputs.with_elevation else None
        if self._model.inputs.with_elevation and elevation is None:
            raise InputError(f"{self._model.run} sees elevation, and the table names none")
        # A command that was killed while files got their names has left some.
        own = self._said().endswith(self._digest)
        its: dict[str, Any] = {"elevation": elevation, "progress": progress, **self._options}
        its["overwrite"] = overwrite or own
        begins = not any(path.exists() for path in self._outputs)
        if begins:
            files.write_text(self._path, f"begun {self._digest}")
        try:
            counts = map_scene(self._model, self._images, **its)
        except InputError:
            if begins:
                self._path.unlink()
            raise
        files.write_text(self._path, f"made {self._digest}")
        return counts

    def _said(self) -> str:
        try:
            return self._path.read_text()
        except OSError:
            return ""


def _pixels(scene: SceneFiles) -> int:
    """How many a scene has, or none if that can't be told."""
    try:
        with ExitStack() as stack:
            height, width = open_raster(next(iter(scene.images.values()))[0], stack).shape
    except InputError:
        return 0
    return height * width
