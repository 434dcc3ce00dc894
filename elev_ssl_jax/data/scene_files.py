"""Which files a scene is made of, by name or from a table of many."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from elev_ssl_jax.data.scene import check_name
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.files import check_regular, state, told
from elev_ssl_jax.storage import is_remote_raster, local_path


class SceneFiles(NamedTuple):
    """The files of one scene."""

    name: str
    images: Mapping[str, tuple[Path, ...]]  # by sensor
    elevation: Path | None
    labels: Path | None
    quantity: Path | None = None

    def paths(self) -> list[Path]:
        """All of them."""
        paths = [*sum(self.images.values(), ()), *self[2:]]
        return [path for path in paths if path is not None]

    def states(self) -> list[tuple[int, int]]:
        """Of the files, what tells them from others of their names."""
        return [state(path) for path in self.paths()]

    def absolute(self) -> "SceneFiles":
        """With paths that hold wherever a process was started."""
        images = {n: tuple(path.absolute() for path in paths) for n, paths in self.images.items()}
        return SceneFiles(self.name, images, *(path and path.absolute() for path in self[2:]))


_GROUND = SceneFiles._fields[2:]


def read_scenes(path: Path, *, all_there: bool = True) -> list[SceneFiles]:
    """The scenes of a table: a row for each, with `name`, sensors, and what is known of the ground.

    That are `elevation`, `labels` and `quantity`, which may be empty, or not be there. Every other
    column is a sensor, whose files are parted by semicolons. Paths are relative to the table.

    Args:
      path: Of the table.
      all_there: Whether all files must be there.

    Raises:
      InputError: The table is missing or malformed, a name is there twice, or a file is missing.
    """
    check_regular(path)
    with told(path, "name a CSV file"):
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if "name" not in table:
        raise InputError(f"{path} has no column name")
    names = [c for c in table.columns if c not in ("name", *_GROUND)]
    if not names or table.empty:
        raise InputError(f"{path} has no {'scenes' if names else 'column with images'}")
    for i, name in enumerate(names):
        check_name(name, dict.fromkeys(names[:i]))
    scenes: list[SceneFiles] = []
    for row in table.to_dict("records"):
        name = row["name"].strip()
        if not re.fullmatch(r"[\w-]+", name):
            raise InputError(f"{path}: scene {name!r}: a name has letters, digits, _ and -")
        if name in (scene.name for scene in scenes):
            raise InputError(f"{path}: scene {name} is there twice")
        listed = {
            column: tuple(_listed(path, part.strip()) for part in row[column].split(";"))
            for column in (*names, *_GROUND)
            if row.get(column, "").strip()
        }
        for column in names:
            if column not in listed:
                raise InputError(f"{path}: scene {name} has no {column}")
        for column, paths in listed.items():
            for file in paths:
                if all_there and not file.is_file():
                    raise InputError(f"{path}: scene {name}: {column} {file} not found")
        for column in _GROUND:
            if len(listed.get(column, ())) > 1:
                raise InputError(f"{path}: scene {name}: {column} is one file")
        scenes.append(
            SceneFiles(
                name,
                {column: listed[column] for column in names},
                *(listed.get(column, (None,))[0] for column in _GROUND),
            )
        )
    return scenes


def _listed(table, name):
    if is_remote_raster(Path(name)):
        raise InputError(
            f"{table} names {name}: rasters in buckets are read where a command names them, and "
            "not because a file does; mount the bucket, or give this scene by --image"
        )
    return table.parent / local_path(name)
