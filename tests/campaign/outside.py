"""Cases of what comes from elsewhere: rasters, tables, polygons, layouts, weights, arrays."""

import json
import os
import struct
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import geopandas
import numpy as np
import rasterio
import torch
from safetensors.torch import save_file
from shapely.geometry import LineString, Polygon, box

from tests.campaign import spoiled, world
from tests.campaign.trial import FINE, REFUSED, Case

_EITHER = (FINE, REFUSED)
SCENE = ("image.tif", "dem.tif", "labels.tif")
CUT = (*world.CUT, "--out", "new", "--workers", "1")
_TENSOR = b'{"conv1.weight":{"dtype":%s}}'
_GOOD = {("--max-nodata", "0"), ("--overlap", "0"), ("--min-area", "0")}
IMPORT = (world.CONVERT, "--to", "run", "--out", "new")


def cases(_: Path) -> Iterator[Case]:
    """All of them."""
    yield from _rasters()
    yield from _odd_rasters()
    yield from _tables()
    yield from _polygons()
    yield from _layout()
    yield from _weights()


def _at(path, way):
    return lambda place: way(place / path)


def _rasters():
    for file in SCENE:
        for name, way in (spoiled.BINARY | spoiled.FLIPS).items():
            lenient = "flipped" in name or "cut" in name
            yield Case(
                "rasters",
                f"chips, {file} {name}",
                CUT,
                SCENE,
                _at(file, way),
                _EITHER if lenient else (REFUSED,),
                may=("new.*",),
            )
    for name, way in (spoiled.BINARY | spoiled.FLIPS).items():
        lenient = "flipped" in name or "cut" in name
        yield Case(
            "rasters",
            f"predict, {name}",
            world.MAP,
            ("fine", "image.tif"),
            _at("image.tif", way),
            _EITHER if lenient else (REFUSED,),
            may=(r"map\.(tif|png)",),
        )


def _image(**changes):
    """Writes image.tif otherwise."""

    def write(place):
        bands = np.full((3, 144, 144), 1000, np.uint16)
        of = {k: changes[k] for k in ("pixel", "crs", "origin", "nodata", "driver") if k in changes}
        world.write(place / "image.tif", changes.get("bands", bands), **of)

    return write


def _declares_terabytes(place):
    world.write(
        place / "image.tif",
        np.zeros((3, 16, 16), np.uint16),
        sparse_ok=True,
        tiled=True,
        blockxsize=256,
        blockysize=256,
    )
    with rasterio.open(
        place / "image.tif",
        "w",
        driver="GTiff",
        width=1_500_000,
        height=1_500_000,
        count=3,
        dtype="uint16",
        crs="EPSG:32618",
        transform=rasterio.transform.from_origin(500000, 800000, 10, 10),
        sparse_ok=True,
        tiled=True,
        BIGTIFF="YES",
    ):
        pass


def _npy(shape, dtype="<u2", descr=None):
    def write(path):
        header = f"{{'descr': {descr or dtype!r}, 'fortran_order': False, 'shape': {shape}, }}"
        text = header.encode() + b" " * (63 - (len(header) + 10) % 64) + b"\n"
        path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + b"\x01" * 64)

    return write


def _odd_rasters():
    kind = "odd rasters"
    bands = np.full((3, 144, 144), 1000.0, np.float32)
    missing, infinite = bands.copy(), bands.copy()
    missing[:], infinite[:, 3] = np.nan, np.inf
    odd = {
        "no coordinate system": _image(crs=None),
        "in degrees": _image(crs="EPSG:4326", pixel=1e-4, origin=(-75, 5)),
        "far from the DEM": _image(origin=(900000, 200000)),
        "a local coordinate system": _image(
            crs='LOCAL_CS["mine",UNIT["metre",1]]',
        ),
        "beyond the pole": _image(crs="EPSG:4326", pixel=1e-4, origin=(-75, 95)),
        "all NaN": _image(bands=missing),
        "a line of infinities": _image(bands=infinite),
        "complex": _image(bands=bands.astype(np.complex64)),
        "smaller than a chip": _image(bands=bands[:, :20, :20]),
        "one pixel": _image(bands=bands[:, :1, :1]),
        "all nodata": _image(nodata=1000),
        "400 bands": _image(bands=np.zeros((400, 40, 40), np.uint8)),
        "terabytes": _declares_terabytes,
        "pixels of no size": _image(pixel=1e-300),
    }
    for name, spoil in odd.items():
        for words, needs, may in (
            (CUT, SCENE, ("new.*",)),
            (world.MAP, ("fine", "image.tif"), (r"map\.(tif|png)",)),
        ):
            codes = _EITHER
            yield Case(kind, f"{words[0]}, {name}", words, needs, spoil, codes, may=may)
    for name in ("", " ", "a\nb", "x" * 5000, "/", ".", "..", "~", "http://a/b.tif", "/vsicurl/x"):
        for words in (
            (*CUT[:2], name, *CUT[3:]),
            (*world.MAP[:4], name, *world.MAP[5:]),
            (*CUT[:4], name, *CUT[5:]),
        ):
            needs = SCENE if words[0] == world.CHIPS else ("fine",)
            at = next(i for i, word in enumerate(words) if word == name)
            yield Case(kind, f"{words[0]} {at}, {name[:20]!r}", words, needs)
        for out in ((*CUT[:-3], name, *CUT[-2:]), (*world.MAP[:-1], name)):
            needs = SCENE if out[0] == world.CHIPS else ("fine", "image.tif")
            codes, may = ((FINE, REFUSED), (r"\s.*", r"a\nb.*", "x.*")) if name else ((2,), ())
            yield Case(kind, f"{out[0]} --out {name[:20]!r}", out, needs, None, codes, may=may)
    numbers = ("0", "-1", "nan", "inf", "1e400", "x", "", "99999999999999999999", "1.5")
    for flag in ("--size", "--stride", "--elevation-size", "--block", "--max-nodata", "--workers"):
        for number in numbers:
            words = [*CUT]
            if flag in words:
                words[words.index(flag) + 1] = number
            else:
                words += [flag, number]
            yield Case(
                "numbers",
                f"chips {flag} {number!r}",
                tuple(words),
                SCENE,
                None,
                _EITHER if (flag, number) in _GOOD else (REFUSED,),
                may=("new.*",),
            )
    for flag in ("--window", "--overlap", "--batch-size", "--workers", "--shard", "--min-area"):
        for number in (*numbers, "1000000"):
            if flag == "--workers" and number == "1000000":
                continue
            yield Case(
                "numbers",
                f"predict {flag} {number!r}",
                (*world.MAP, flag, number),
                ("fine", "image.tif"),
                None,
                _EITHER if (flag, number) in _GOOD or number == "1000000" else (REFUSED,),
                may=(r"map\.(tif|png)",),
            )
    build = (*world.BUILD, "--data-dir", "new")
    for flag in ("--labeled", "--test", "--purity", "--coverage", "--bands", "--workers"):
        for number in numbers:
            words = [*build]
            if flag in words:
                words[words.index(flag) + 1] = number
            else:
                words += [flag, number]
            yield Case(
                "numbers",
                f"prepare {flag} {number!r}",
                tuple(words),
                ("chips",),
                None,
                _EITHER if (flag, number) in {("--bands", "0"), ("--labeled", "0")} else (2,),
                may=("new.*",),
            )


def _tables():
    kind = "tables of scenes"
    words = (*CUT[:1], "--scenes", "s.csv", *CUT[-10:])
    head, row = "name,image,elevation,labels\n", "a,image.tif,dem.tif,labels.tif\n"
    texts = {
        "empty": "",
        "a head alone": head,
        "NUL": head + "a\0,image.tif,dem.tif,labels.tif\n",
        "a field of 200 kB": head + row.replace("image", "x" * 200_000),
        "a name of 200 kB": head + row.replace("a,", "n" * 200_000 + ",", 1),
        "the same name twice": head + row + row,
        "no name": head + row[1:],
        "a name that leaves": head + "../" + row,
        "a name with a slash": head + "b/" + row,
        "an empty image": head + "a,,dem.tif,labels.tif\n",
        "too many fields": head + row.strip() + ",more,more\n",
        "an unknown column": head.replace("labels", "beings") + row,
        "Latin-1": (head + row).replace("a,", "\xe9,", 1).encode("latin-1"),
        "UTF-16": (head + row).encode("utf-16"),
        "no line ends": (head + row).replace("\n", "|"),
        "an open quote": head + '"' + row,
        "a pipe in it": head + row.replace("image.tif", "image.tif;;;"),
        "the network": head + row.replace("dem.tif", "/vsicurl/http://localhost/dem.tif"),
        "a folder": head + row.replace("dem.tif", "."),
        "one that isn't there": head + row.replace("dem.tif", "nowhere.tif"),
        "formulas": head + row.replace("a,", "=1+1,", 1),
        "a column twice": "name,image,image,labels\n" + row,
        "a million rows": head + "".join(f"{i},x,y,z\n" for i in range(1_000_000)),
    }
    for name, text in texts.items():
        content = text if isinstance(text, bytes) else text.encode()
        yield Case(
            kind,
            name,
            words,
            SCENE,
            lambda place, content=content: (place / "s.csv").write_bytes(content),
            _EITHER if name in ("formulas", "an unknown column") else (REFUSED,),
            may=("new.*",),
        )
    for name in spoiled.SWAPS:
        yield Case(
            kind,
            f"the table {name}",
            words,
            SCENE,
            lambda place, name=name: (
                (place / "s.csv").touch(),
                spoiled.SWAPS[name](place / "s.csv"),
            ),
        )


def _frame(geometries, crs="EPSG:32618", **columns):
    columns = columns or {"class": ["a"] * len(geometries)}
    return geopandas.GeoDataFrame(columns, geometry=geometries, crs=crs)


def _polygons():
    kind = "polygons"
    here = box(500200, 798800, 500900, 799800)
    nan = Polygon([(0, 0), (1, np.nan), (2, 2), (0, 0)])
    bow = Polygon([(500200, 798800), (500900, 799800), (500900, 798800), (500200, 799800)])
    frames = {
        "NaN": _frame([nan]),
        "a bow tie": _frame([bow]),
        "none": _frame([None]),
        "empty": _frame([]),
        "far away": _frame([box(0, 0, 1, 1)]),
        "beyond the world": _frame([box(1e300, 1e300, 1e301, 1e301)]),
        "no coordinate system": _frame([here], crs=None),
        "a local one": _frame([here], crs='LOCAL_CS["mine",UNIT["metre",1]]'),
        "points": _frame([here.centroid]),
        "lines": _frame([LineString(here.exterior.coords)]),
        "numbers for classes": _frame([here], **{"class": [1]}),
        "no class": _frame([here], **{"class": [None]}),
        "a class of 100 kB": _frame([here], **{"class": ["x" * 100_000]}),
        "a class of controls": _frame([here], **{"class": ["a\x1b[31m\n"]}),
        "300 classes": _frame([here] * 300, **{"class": [f"c{i}" for i in range(300)]}),
        "another column": _frame([here], kind=["a"]),
    }
    words = (*CUT[:6], "l.gpkg", *CUT[7:], "--label-field", "class")
    for name, frame in frames.items():

        def spoil(place, frame=frame):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                frame.to_file(place / "l.gpkg", driver="GPKG")

        yield Case(kind, name, words, SCENE[:2], spoil, _EITHER, may=("new.*",))
    good = _frame([here])

    def spoiled_by(way):
        def spoil(place):
            good.to_file(place / "l.gpkg", driver="GPKG")
            way(place / "l.gpkg")

        return spoil

    for name, way in (spoiled.BINARY | spoiled.FLIPS).items():
        lenient = "flipped" in name or "cut at 1" in name or "cut at 0.9" in name
        codes = _EITHER if lenient else (REFUSED,)
        yield Case(kind, name, words, SCENE[:2], spoiled_by(way), codes, may=("new.*",))
    for name, text in {
        "no features": {"type": "FeatureCollection", "features": []},
        "no type": {"features": 3},
        "a string for a geometry": {
            "type": "FeatureCollection",
            "features": [{"type": "Feature", "geometry": "x", "properties": {}}],
        },
        "a list": [],
    }.items():
        yield Case(
            kind,
            f"GeoJSON, {name}",
            (*words[:6], "l.geojson", *words[7:]),
            SCENE[:2],
            lambda place, text=text: (place / "l.geojson").write_text(json.dumps(text)),
        )


def _layout():
    kind = "the paper's layout"
    words = (world.PREPARE, "--chips", "raw", "--data-dir", "new", "--labeled", "3", "--test", "3")
    words = (*words, "--workers", "1")
    for name, way in spoiled.BINARY.items():
        yield Case(
            kind,
            f"metadata.csv {name}",
            words,
            ("raw",),
            _at("raw/metadata.csv", way),
            _EITHER if "cut" in name else (REFUSED,),
            may=("new.*",),
        )

    def cell(column, value, row=1):
        def spoil(place):
            path = place / "raw" / "metadata.csv"
            lines = path.read_text().splitlines()
            head = lines[0].split(",")
            import csv

            fields = next(csv.reader([lines[row]]))
            fields[head.index(column)] = value
            with path.open("w", newline="") as file:
                writer = csv.writer(file)
                for i, line in enumerate(lines):
                    writer.writerow(fields if i == row else next(csv.reader([line])))

        return spoil

    values = ("", "\0", "x" * 100_000, "../../x", "/etc/passwd", "nan", "-1", "1e999", "\x1b[31m")
    for column in ("Id", "Image", "Elevation", "Mask", "legal_exclusions"):
        for value in values:
            yield Case(
                kind,
                f"{column} {value[:12]!r}",
                words,
                ("raw",),
                cell(column, value),
                _EITHER,
                may=("new.*",),
            )
    first = {
        "image": lambda place: next((place / "raw").rglob("chip.npy")),
        "elevation": lambda place: next((place / "raw").rglob("elevation.tif")),
        "mask": lambda place: next((place / "raw").rglob("mask.tif")),
    }
    for what, find in first.items():
        for name, way in (spoiled.BINARY | spoiled.FLIPS).items():
            lenient = "flipped" in name or "cut" in name
            yield Case(
                kind,
                f"{what} {name}",
                words,
                ("raw",),
                lambda place, find=find, way=way: way(find(place)),
                _EITHER if lenient else (REFUSED,),
                may=("new.*",),
            )
    arrays = {
        "terabytes": _npy((3, 2_000_000, 2_000_000)),
        "negative sizes": _npy((3, -1, 12)),
        "no dimensions": _npy(()),
        "no rows": _npy((3, 0, 12)),
        "seven dimensions": _npy((1,) * 7),
        "objects": _npy((3, 12, 12), "|O"),
        "texts": _npy((3, 12, 12), "<U4"),
        "complex": _npy((3, 12, 12), "<c16"),
        "code for a type": _npy((3, 12, 12), descr="__import__('os').system('true')"),
        "NaN": lambda path: np.save(path, np.full((3, 12, 12), np.nan)),
        "infinite": lambda path: np.save(path, np.full((3, 12, 12), np.inf)),
        "one band": lambda path: np.save(path, np.ones((1, 12, 12))),
        "a pickle": lambda path: np.save(path, np.array([{}]), allow_pickle=True),
        "a zip": lambda path: np.savez(path.open("wb"), a=np.ones(3)),
    }
    for name, way in arrays.items():
        yield Case(
            kind,
            f"an image of {name}",
            words,
            ("raw",),
            lambda place, way=way: way(first["image"](place)),
            says="chip.npy",
        )


def _weights():
    kind = "weights"
    for file in ("encoder.pth", "encoder.safetensors", "flax.safetensors"):
        words = (*IMPORT, "--from", file)
        for name, way in (spoiled.BINARY | spoiled.FLIPS).items():
            codes = _EITHER if "flipped" in name else (REFUSED,)
            yield Case(
                kind, f"{file} {name}", words, (file,), _at(file, way), codes, may=("new.*",)
            )

    def saved(change, suffix="pth"):
        def spoil(place):
            tensors = world.weights()
            found = change(tensors)
            tensors = tensors if found is None else found
            if suffix == "pth":
                torch.save(tensors, place / "w.pth")
            else:
                save_file(tensors, place / "w.safetensors")

        return spoil

    def put(key, value):
        return lambda tensors: tensors.__setitem__(key, value(tensors.get(key)))

    stem, mean = "conv1.weight", "bn1.running_mean"
    changes = {
        "a list": lambda t: [*t.values()],
        "a number": lambda t: 3,
        "empty": lambda t: {},
        "integer keys": lambda t: dict(enumerate(t.values())),
        "nested": lambda t: {"state_dict": {"model": t}},
        "sparse": put(stem, lambda t: torch.eye(3).to_sparse()),
        "quantised": put(stem, lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)),
        "meta": put(stem, lambda t: torch.empty(t.shape, device="meta")),
        "parameters": lambda t: {k: torch.nn.Parameter(v.float()) for k, v in t.items()},
        "NaN": put(stem, lambda t: t * np.nan),
        "infinite": put(mean, lambda t: t / 0),
        "negative variance": put("bn1.running_var", lambda t: -t),
        "F8": put(stem, lambda t: t.to(torch.float8_e4m3fn)),
        "bfloat16": lambda t: {k: v.to(torch.bfloat16) for k, v in t.items()},
        "complex": put(stem, lambda t: t.to(torch.complex64)),
        "no channels": put(stem, lambda t: t[:, :0]),
        "no outputs": put(stem, lambda t: t[:0]),
        "a stem of 5": put(stem, lambda t: t[..., :5, :5]),
        "transposed": put(stem, lambda t: t.permute(2, 3, 1, 0).contiguous()),
        "a vector": put(stem, lambda t: t.flatten()),
        "a scalar": put(stem, lambda t: t.sum()),
        "a block more": put("layer4.2.conv1.weight", lambda t: torch.ones(32, 32, 3, 3)),
        "a block less": lambda t: {k: v for k, v in t.items() if not k.startswith("layer4.1")},
        "a key of 100 kB": put("x" * 100_000, lambda t: torch.ones(1)),
        "a key of controls": put("\x1b[31m\n", lambda t: torch.ones(1)),
        "None": put(stem, lambda t: None),
        "texts": put(stem, lambda t: "weights"),
    }
    for name, change in changes.items():
        good = name in ("nested", "parameters", "bfloat16", "F8")
        codes = _EITHER if good else (REFUSED,)
        yield Case(
            kind,
            f".pth, {name}",
            (*IMPORT, "--from", "w.pth"),
            (),
            saved(change),
            codes,
            may=("new.*",),
        )
    for bands in ("0 1 2 3", "-1", "99", "0", "1 1 1", " ".join(["0"] * 2000), "99999999999999999"):
        yield Case(
            kind,
            f"--bands {bands[:20]}",
            (*IMPORT, "--from", "encoder.pth", "--bands", *bands.split()),
            ("encoder.pth",),
            None,
            _EITHER if bands in ("0", "1 1 1", " ".join(["0"] * 2000)) else (REFUSED,),
            may=("new.*",),
        )
    for flag, values in {
        "--mean": ("nan", "1 2", "inf inf inf", "1e400"),
        "--std": ("0", "-1", "nan", "1 2"),
        "--value-range": ("1 1", "nan 1", "0 inf", "2 1"),
        "--prefix": ("nothing.", "\x1b", "x" * 10_000),
    }.items():
        for value in values:
            yield Case(
                kind,
                f"{flag} {value[:20]!r}",
                (*IMPORT, "--from", "encoder.pth", flag, *value.split(" ")),
                ("encoder.pth",),
            )

    def bomb(place):
        with zipfile.ZipFile(place / "w.pth", "w", zipfile.ZIP_DEFLATED) as file:
            with file.open("archive/data.pkl", "w", force_zip64=True) as part:
                for _ in range(2000):
                    part.write(bytes(1 << 20))
            file.writestr("archive/version", "3\n")

    yield Case(kind, "a zip bomb", (*IMPORT, "--from", "w.pth"), (), bomb)

    def pickled(place):
        import pickle

        class Evil:
            def __reduce__(self):
                return os.mkdir, ("owned",)

        (place / "w.pth").write_bytes(pickle.dumps({"conv1.weight": Evil()}))

    yield Case(kind, "a pickle with code", (*IMPORT, "--from", "w.pth"), (), pickled)

    def header(text):
        return lambda place: (place / "w.safetensors").write_bytes(
            struct.pack("<Q", len(text)) + text + bytes(64)
        )

    for name, text in {
        "a header of 2^60": b"",
        "no JSON": b"{]",
        "a shape of 2^40": _TENSOR % b'"F32","shape":[1099511627776,9],"data_offsets":[0,64]',
        "offsets turned round": _TENSOR % b'"F32","shape":[16],"data_offsets":[64,0]',
        "an unknown type": _TENSOR % b'"F9","shape":[16],"data_offsets":[0,64]',
        "metadata of numbers": b'{"__metadata__":{"a":1}}',
    }.items():
        spoil = header(text)
        if not text:
            spoil = lambda place: (place / "w.safetensors").write_bytes(struct.pack("<Q", 1 << 60))  # noqa: E731
        yield Case(kind, f"safetensors, {name}", (*IMPORT, "--from", "w.safetensors"), (), spoil)
