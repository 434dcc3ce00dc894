"""Files of a prediction: rasters, tables, polygons and a picture, all of them or none."""

import itertools
import json
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import rasterio
import rasterio.shutil
import shapely
from rasterio.windows import Window

from elev_ssl_jax import files, pictures, sensors
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.inference import polygons
from elev_ssl_jax.inference.model import Model

UNKNOWN = 255
LOOK = 1200  # pixels along the longer side of the picture
_TILE = 512


class Ground(NamedTuple):
    """What a map covers."""

    crs: rasterio.CRS
    transform: rasterio.Affine
    height: int
    width: int


class MapFiles:
    """The files under way. They lie in a hidden folder until `finish`, which gives them names.

    Left by an error, nothing remains, and an error of writing is told as an `InputError`.

    Attributes:
      bands: Of the predictions that `write_map` takes: classes, or 1 for a quantity.
    """

    def __init__(
        self,
        model: Model,
        ground: Ground,
        *,
        out: Path | None,
        probabilities: Path | None,
        features: Path | None,
        confidence: Path | None = None,
        vector: Path | None = None,
        min_area: float = 0.0,
    ):
        """Of a model over some ground; the paths are as of `map_scene`."""
        self.model, self.ground, self.min_area = model, ground, min_area
        self.bands = model.num_classes or 1
        paths = {"map": out, "probabilities": probabilities, "features": features}
        paths |= {"confidence": confidence, "vector": vector}
        self.paths = {name: path for name, path in paths.items() if path is not None}
        self.rasters: dict[str, Any] = {}
        # Rows that don't make up whole tiles yet, and where they begin.
        self.pending: dict[tuple[str, int], tuple[int, list[np.ndarray]]] = {}
        self.table: pq.ParquetWriter | None = None

    def __enter__(self):
        with ExitStack() as stack:
            stack.push(self._tell)
            # On the disk of the finished files, so that a name is all that is missing in the end.
            first = next(iter(self.paths.values()))
            self.folder = stack.enter_context(files.scratch_folder(first))
            stack.callback(self._close)
            if "map" in self.paths and self.model.tells is not None:
                self._create("map", "float32", [pictures.with_unit(*self.model.tells)])
                self.rasters["map"].units = self.model.tells[1:]
            elif "map" in self.paths:
                self._create("map", "uint8", ["class"])
                colors = pictures.class_colors(self.bands)
                table = {i: tuple(round(255 * c) for c in color) for i, color in enumerate(colors)}
                self.rasters["map"].write_colormap(1, table)
                tags = {f"class_{i}": name for i, name in enumerate(self.model.classes)}
                self.rasters["map"].update_tags(1, **tags)
            if "probabilities" in self.paths:
                names = [f"probability of {name}" for name in self.model.classes]
                self._create("probabilities", "float32", names)
            if "confidence" in self.paths:
                self._create("confidence", "uint8", ["confidence (%)"])
            if "features" in self.paths:
                self._create_table()
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *error):
        return self.stack.__exit__(*error)

    def _tell(self, kind, error, _):
        """Errors of writing as an `InputError`; reading has errors of its own."""
        # Of what GDAL raises in the middle of things not all is a RasterioError.
        of_gdal = kind is not None and kind.__module__.startswith(("rasterio.", "pyogrio."))
        if of_gdal or isinstance(error, OSError | pa.ArrowException):
            paths = ", ".join(map(str, self.paths.values()))
            reason = str(error).splitlines()[0] if str(error) else kind.__name__
            raise InputError(
                f"{paths}: can't be written ({reason}); look at the disk's space"
            ) from error

    def _close(self):
        with suppress(rasterio.errors.RasterioError, OSError, pa.ArrowException):
            for raster in self.rasters.values():
                raster.close()
            if self.table is not None:
                self.table.close()

    def _create(self, name, dtype, descriptions):
        raster = rasterio.open(
            self.folder / name,
            "w",
            driver="GTiff",
            height=self.ground.height,
            width=self.ground.width,
            count=len(descriptions),
            dtype=dtype,
            nodata=UNKNOWN if dtype == "uint8" else np.nan,
            crs=self.ground.crs,
            transform=self.ground.transform,
            tiled=True,
            blockxsize=_TILE,
            blockysize=_TILE,
            compress="deflate",
            predictor=1 if dtype == "uint8" else 3,
            zlevel=1,
            bigtiff="if_safer",
        )
        raster.update_tags(commit=self.model.commit, **tags_of(self.model))
        raster.descriptions = descriptions
        self.rasters[name] = raster

    def _create_table(self):
        # GeoParquet 1.1, geoparquet.org: a Parquet file of WKB with these metadata.
        crs = json.loads(pyproj.CRS.from_user_input(self.ground.crs).to_json())
        geometry = {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": crs}
        geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": geometry}}
        chips = {n: np.zeros((1, *s), np.float32) for n, s in self.model.shapes.items()}
        channels = jax.eval_shape(self.model.feature_function(), chips).shape[1]
        self.schema = pa.schema(
            [
                ("geometry", pa.binary()),
                ("valid", pa.float32()),
                ("features", pa.list_(pa.float32(), channels)),
            ],
            metadata={"geo": json.dumps(geo), "run": self.model.run.resolve().name},
        )
        self.table = pq.ParquetWriter(self.folder / "features", self.schema)

    @property
    def takes_sums(self) -> bool:
        """Whether `write_map` needs predictions as they are, rather than classes alone."""
        of_each = {"probabilities", "confidence"} & self.paths.keys()
        return bool(of_each) or self.model.num_classes is None

    def write_map(self, top: int, left: int, values: np.ndarray, valid: np.ndarray) -> None:
        """Takes in the pixels from (top, left) on, which come from top to bottom for each left.

        Args:
          top: Row.
          left: Column.
          values: Classes uint8 [H, W], or, if `takes_sums`, predictions float32 [H, W, bands].
          valid: bool [H, W], where there are any.
        """
        if "map" in self.rasters:
            if self.model.num_classes is None:
                shown = np.where(valid, values[..., 0], np.float32(np.nan))
            else:
                classes = values.argmax(axis=-1) if self.takes_sums else values
                shown = np.where(valid, classes, UNKNOWN).astype(np.uint8)
            self._put("map", top, left, shown[None])
        if "probabilities" in self.rasters:
            known = np.where(valid[..., None], values, np.float32(np.nan))
            self._put("probabilities", top, left, np.moveaxis(known, -1, 0))
        if "confidence" in self.rasters:
            percent = np.rint(100 * np.clip(values.max(axis=-1), 0, 1))
            shown = np.where(valid, percent, UNKNOWN).astype(np.uint8)
            self._put("confidence", top, left, shown[None])

    def _put(self, name, top, left, rows):
        """Writes rows [bands, H, W] when they make up whole tiles, each of which is written once.

        Of a tile that is written in parts every part would remain in the file, compressed.
        """
        first, parts = self.pending.setdefault((name, left), (top, []))
        parts.append(rows)
        after = top + rows.shape[1]
        ready = after if after == self.ground.height else after // _TILE * _TILE
        if ready <= first:
            return
        whole = np.concatenate(parts, axis=1)
        window = Window(left, first, whole.shape[2], ready - first)
        self.rasters[name].write(whole[:, : ready - first], window=window)
        self.pending[name, left] = ready, [whole[:, ready - first :]]

    def write_features(
        self, top: int, lefts: np.ndarray, size: int, valid: np.ndarray, features: np.ndarray
    ) -> None:
        """Windows [N] of `size` from row `top`: valid shares [N] and features [N, F]."""
        assert self.table is not None
        columns = lefts[:, None] + np.array([0, size, size, 0])
        rows = np.broadcast_to(top + np.array([0, 0, size, size]), columns.shape)
        outlines = shapely.polygons(np.stack(self.ground.transform @ (columns, rows), axis=-1))
        flat = pa.array(features.astype(np.float32).ravel())
        fields = [
            pa.array(shapely.to_wkb(outlines), pa.binary()),
            pa.array(valid.astype(np.float32)),
            pa.FixedSizeListArray.from_arrays(flat, features.shape[1]),
        ]
        self.table.write_table(pa.table(fields, schema=self.schema))

    def finish(self, look: tuple[dict[str, np.ndarray], np.ndarray] | None) -> None:
        """Makes the rasters cloud-optimised, draws the map, and gives all files their names.

        Args:
          look: The scene as small as it is drawn: each sensor's bands [C, h, w], and where they
            are valid [h, w]. None draws none.
        """
        done = {}
        for name, raster in self.rasters.items():
            raster.close()
            whole = raster.dtypes[0] == "uint8"
            rasterio.shutil.copy(
                self.folder / name,
                self.folder / f"{name}.cog",
                driver="COG",
                compress="deflate",
                predictor="no" if whole else "yes",
                overview_resampling="mode" if whole and name == "map" else "average",
                bigtiff="if_safer",
                num_threads="all_cpus",
            )
            (self.folder / name).unlink()
            done[f"{name}.cog"] = self.paths[name]
        if self.table is not None:
            self.table.close()
            done["features"] = self.paths["features"]
        if "map" in self.rasters and look is not None:
            self._draw(*look)
            done["look.png"] = self.paths["map"].with_suffix(".png")
        if "vector" in self.paths:
            with rasterio.open(self.folder / "map.cog") as source:
                names = self.model.classes
                polygons.write(self.folder / "vector.gpkg", source, names, self.min_area)
            done["vector.gpkg"] = self.paths["vector"]
        with ExitStack() as all_together:  # those on other disks are copied there first
            for name, path in done.items():
                there = all_together.enter_context(files.new_file(path))
                shutil.move(self.folder / name, there)

    def _draw(self, pixels, valid):
        with rasterio.open(self.folder / "map.cog") as source:
            shown = source.read(1, out_shape=valid.shape)
        bands = np.moveaxis(np.concatenate(list(pixels.values())), 0, -1).astype(np.float32)
        low, high = np.moveaxis(np.array(self.model.ranges_given, np.float32), -1, 0)
        fields = sensors.of_inputs(self.model.config, self.model.given, self.model.shapes)
        rgb = fields.get("rgb", tuple(self.model.config.data.rgb))
        image = (bands - low) / (high - low)
        pictures.draw_map(
            self.folder / "look.png",
            pictures.displayable(image, rgb, valid),
            np.ma.masked_array(shown, ~valid),
            self.model.classes,
            self.model.tells,
        )


def check_classes(path: Path, source: rasterio.DatasetReader) -> tuple[str, ...]:
    """The names of the classes of a map that `MapFiles` wrote.

    Raises:
      InputError: It is none.
    """
    named = source.tags(1)
    names = (named.get(f"class_{i}") for i in range(UNKNOWN))
    classes = tuple(itertools.takewhile(lambda name: name is not None, names))
    told = source.descriptions[0]
    if "run" in source.tags() and told and not classes and source.count == 1:
        raise InputError(f"{path} is a map of {told}, and not of classes")
    if told != "class" or "run" not in source.tags() or not classes:
        raise InputError(
            f"{path} is no map of classes that predict has made (of a map in parts, name these: "
            "joined they say no more what made them)"
        )
    return classes


def tags_of(model: Model) -> dict[str, str]:
    """What a raster says of the model that made it."""
    return {
        "run": model.run.resolve().name,
        "step": str(model.step),
        "checksum": model.checksum,
        "without": " ".join(model.absent),
    }
