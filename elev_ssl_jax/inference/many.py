"""A model over many scenes: what is done stays done, and one that fails stops no other."""

import operator
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm import tqdm

from elev_ssl_jax.data.rasters import open_raster
from elev_ssl_jax.data.scene_files import SceneFiles
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.inference.maps import tags_of
from elev_ssl_jax.inference.model import Model
from elev_ssl_jax.inference.scenes import Counts, bar_of, map_scene

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
    if shard is not None:
        scenes = scenes[shard[0] - 1 :: shard[1]]
    outputs: list[dict[str, Any]] = [  # paths by name
        {name: folder / f"{scene.name}{_SUFFIXES[name]}" for name, folder in folders.items()}
        for scene in scenes
    ]
    for paths in outputs[:1]:
        if len({path.resolve() for path in paths.values()}) < len(paths):
            raise InputError("outputs of one kind would be written twice; name a folder for each")
    for folder in folders.values():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder} is no folder, and can't be made: {error}") from error
    todo = [
        (scene, paths)
        for scene, paths in zip(scenes, outputs, strict=True)
        if overwrite or not _is_done(paths, model, options)
    ]
    print(f"{len(scenes)} scenes, {len(scenes) - len(todo)} of them done already")
    failed, done = 0, Counts(0, 0, 0.0)
    total = sum(_pixels(scene) for scene, _ in todo)
    with bar_of(total, disable=not progress) as bar:
        for scene, paths in todo:
            seen = {n: files for n, files in scene.images.items() if n in model.inputs.names}
            elevation = scene.elevation if model.inputs.with_elevation else None
            its: dict[str, Any] = {"elevation": elevation, "overwrite": overwrite, "progress": bar}
            try:
                counts = map_scene(model, seen or scene.images, **its, **paths, **options)
            except InputError as error:
                failed += 1
                tqdm.write(f"failed: scene {scene.name}: {error}", file=sys.stderr)
            else:
                done = Counts(*map(operator.add, done, counts))
    if failed:
        raise InputError(
            f"{failed} of {len(scenes)} scenes failed, see above; the same command tries them again"
        )
    return done


def _is_done(paths: Mapping[str, Path], model: Model, options: Mapping[str, Any]) -> bool:
    """Whether all outputs of a scene are there, and of this model.

    Files of others are in the way, which `map_scene` says.
    """
    if not all(path.exists() for path in paths.values()):
        return False
    given = {n: str(options[n]) for n in ("window", "overlap") if options.get(n) is not None}
    wanted = {name: tag for name, tag in tags_of(model).items() if name != "without"} | given
    for path in paths.values():
        if path.suffix == ".tif":
            try:
                with ExitStack() as stack:
                    tags = open_raster(path, stack).tags()
            except InputError:
                return False
            if any(tags.get(name) != tag for name, tag in wanted.items()):
                return False
    return True


def _pixels(scene: SceneFiles) -> int:
    """How many a scene has, or none if that can't be told."""
    try:
        with ExitStack() as stack:
            height, width = open_raster(next(iter(scene.images.values()))[0], stack).shape
    except InputError:
        return 0
    return height * width
