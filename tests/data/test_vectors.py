import json
import os
from pathlib import Path

import geopandas
import pytest
from shapely.geometry import Point, box

from elev_ssl_jax.data import vectors
from elev_ssl_jax.errors import InputError
from tests.data import hostile

SQUARE = {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]}


@pytest.mark.parametrize("suffix", [".gpkg", ".shp", ".fgb", ".geojson", ".json"])
def test_polygons_come_with_their_coordinate_system(tmp_path, suffix):
    path = tmp_path / f"fields{suffix}"
    shapes = geopandas.GeoDataFrame(geometry=[box(0, 0, 9, 9), box(20, 0, 30, 9)], crs="EPSG:32618")
    shapes.to_file(path, driver="GeoJSON" if suffix == ".json" else None)
    polygons = vectors.read_polygons(path)
    assert polygons.crs.to_epsg() == 32618
    assert sorted(polygons.area) == [81, 90]


@pytest.mark.parametrize(
    "content",
    [
        SQUARE,
        {"type": "Feature", "geometry": SQUARE},
        {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": SQUARE},
                                                   {"type": "Feature", "geometry": None}]},
    ],
)  # fmt: skip
def test_geojson_without_a_crs_is_in_degrees(tmp_path, content):
    (tmp_path / "a.geojson").write_text(json.dumps(content))
    polygons = vectors.read_polygons(tmp_path / "a.geojson")
    assert len(polygons) == 1
    assert polygons.crs.to_epsg() == 4326 or "CRS84" in str(polygons.crs)


@pytest.mark.parametrize("suffix", [".gpkg", ".shp", ".fgb", ".geojson", ".json"])
def test_lists_of_other_files_are_not_followed(tmp_path, suffix):
    (tmp_path / "elsewhere").mkdir()
    secret = tmp_path / "elsewhere" / "secret.geojson"
    secret.write_text(json.dumps(SQUARE))
    path = tmp_path / f"fields{suffix}"
    with hostile.web_server() as (url, asked):
        for source in (secret, f"/vsicurl/{url}/x.geojson", f"{url}/x.geojson"):
            for text in (hostile.ogr_vrt(source), str(source)):
                path.write_text(text)
                with pytest.raises(InputError, match=f"fields{suffix} can't be read as polygons"):
                    vectors.read_polygons(path)
    assert asked == []


def test_the_crs_of_geojson_is_a_name_and_never_a_link(tmp_path):
    path = tmp_path / "a.geojson"
    with hostile.web_server() as (url, asked):
        for crs in (
            {"type": "link", "properties": {"href": f"{url}/crs", "type": "proj4"}},
            {"type": "name", "properties": {"name": f"{url}/crs"}},
            {"type": "name", "properties": {"name": "/etc/hostname"}},
            {"type": "name", "properties": {"name": "EPSG:99999999"}},
            {"type": "name"},
            "EPSG:4326",
        ):
            path.write_text(json.dumps(SQUARE | {"crs": crs}))
            with pytest.raises(InputError, match=r"a.geojson "):
                vectors.read_polygons(path)
    assert asked == []
    for name in ("urn:ogc:def:crs:EPSG::32618", "EPSG:32618", "urn:ogc:def:crs:EPSG:8.5:32618"):
        crs = {"type": "name", "properties": {"name": name}}
        path.write_text(json.dumps(SQUARE | {"crs": crs}))
        assert vectors.read_polygons(path).crs.to_epsg() == 32618


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", '{"type": "Polygon"}', "[" * 100_000,
     '{"type": "FeatureCollection", "features": [1]}',
     '{"type": "Polygon", "coordinates": [[["a", "b"]]]}',
     '{"type": "Polygon", "coordinates": [[[0, 0], [1e999, 0], [1, 1], [0, 0]]]}'],
)  # fmt: skip
def test_malformed_geojson_is_named(tmp_path, text):
    (tmp_path / "a.geojson").write_text(text)
    with pytest.raises(
        InputError, match=r"a.geojson (can't be read as poly|must hold poly|has co)"
    ):
        vectors.read_polygons(tmp_path / "a.geojson")


def test_other_shapes_pipes_and_nothing_are_refused(tmp_path):
    geopandas.GeoDataFrame(geometry=[Point(0, 0)], crs="EPSG:4326").to_file(tmp_path / "p.gpkg")
    with pytest.raises(InputError, match=r"p.gpkg must hold polygons"):
        vectors.read_polygons(tmp_path / "p.gpkg")
    os.mkfifo(tmp_path / "pipe.geojson")
    with pytest.raises(InputError, match=r"pipe.geojson is not a regular file"):
        vectors.read_polygons(tmp_path / "pipe.geojson")
    with pytest.raises(InputError, match=r"no.shp not found"):
        vectors.read_polygons(tmp_path / "no.shp")


@pytest.mark.parametrize("name", ["fields.gpkg", "fields.geojson"])
def test_polygons_in_a_bucket_are_refused(name):
    with pytest.raises(InputError, match=f"^/vsigs/b/{name}: polygons are not read from a bucket"):
        vectors.read_polygons(Path(f"/vsigs/b/{name}"))
