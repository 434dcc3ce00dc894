"""Cases of what this program wrote itself, damaged since: data, chips, runs, experiments, maps."""

from collections.abc import Iterator
from pathlib import Path

from tests.campaign import spoiled, world
from tests.campaign.trial import FINE, REFUSED, Case

_EITHER = (FINE, REFUSED)
VERSION = "data/chips/segmentation/1.0.0"
FEATURES = (
    world.FEATURES,
    "pre",
    "--out",
    "f.npz",
    "--dir",
    "data",
    "--name",
    "chips/segmentation",
)
FEATURES = (*FEATURES, "--train", "labeled", "--val", "labeled", "--test", "test")
RESUME = (*world.PRETRAIN, "--workdir=pre", "--config.epochs=2")
MADE = (r"f\.npz",)


def _at(path, way):
    return lambda place: way(place / path)


def cases(made: Path) -> Iterator[Case]:
    """All of them; `made` is the world, whose files they name."""
    yield from _data(made)
    yield from _chips(made)
    if (made / "pre").exists():
        yield from _runs(made)
        yield from _experiments(made)
    yield from _maps()


def _data(made):
    kind, needs = "damaged data", ("data", "pre")
    for split in ("labeled", "test"):
        record = f"{VERSION}/chips-{split}.array_record-00000-of-00001"
        for name, way in (spoiled.BINARY | spoiled.FLIPS).items():
            codes = _EITHER if "flipped" in name else (REFUSED,)
            yield Case(kind, f"{split} {name}", FEATURES, needs, _at(record, way), codes, may=MADE)
    record = f"{VERSION}/chips-unlabeled.array_record-00000-of-00001"
    for name, way in spoiled.BINARY.items():
        yield Case(
            kind,
            f"pre-training, unlabeled {name}",
            (*world.PRETRAIN, "--workdir=new"),
            ("data",),
            _at(record, way),
        )
    for file in ("dataset_info.json", "features.json", "metadata.json"):
        ways = {
            **{n: w for n, w in spoiled.SWAPS.items()},
            **dict(spoiled.of_json(made / VERSION / file, most=14)),
        }
        for name, way in ways.items():
            yield Case(
                kind,
                f"{file} {name}",
                FEATURES,
                needs,
                _at(f"{VERSION}/{file}", way),
                _EITHER,
                may=MADE,
            )


def _chips(made):
    kind, needs = "damaged chips", ("chips",)
    words = (*world.BUILD, "--data-dir", "new", "--workers", "1")
    part = "chips/image/00000"
    for file in ("image.npy", "elevation.npy", "mask.npy", "places.npy", "counts.npy"):
        for name, way in spoiled.BINARY.items():
            yield Case(kind, f"{file} {name}", words, needs, _at(f"{part}/{file}", way))
    for file in ("chips/chips.json", "chips/image/scene.json", f"{part}/part.json"):
        for name, way in spoiled.of_json(made / file, most=12):
            yield Case(
                kind,
                f"{file} {name}",
                words,
                needs,
                _at(file, way),
                _EITHER,
                may=(r"new.*",),
            )


def _runs(made):
    kind = "damaged runs"
    readers = {
        "predict": ((*world.MAP[:-1], "out.tif"), ("fine", "image.tif"), "fine"),
        "convert": (
            (world.CONVERT, "--from", "pre", "--to", "flax", "--out", "o.safetensors"),
            ("pre",),
            "pre",
        ),
    }
    may = (r"out\.(tif|png)", r"o\.safetensors(\.md)?")
    for command, (words, needs, run) in readers.items():
        files = sorted(
            path.relative_to(made)
            for path in (made / run / "checkpoints").rglob("*")
            if path.is_file()
        )
        for i, file in enumerate(files):
            ways = {**spoiled.CUTS, "gone": spoiled.SWAPS["gone"]}
            ways |= {n: spoiled.SWAPS[n] for n in [*spoiled.SWAPS][i % 6 :: 6]}
            ways |= dict([*spoiled.FLIPS.items()][i % 4 : i % 4 + 1])
            for name, way in ways.items():
                yield Case(
                    kind,
                    f"{command}, {file} {name}",
                    words,
                    needs,
                    _at(file, way),
                    _EITHER,
                    may=may,
                )
        metadata = next(f for f in files if f.name == "_METADATA")
        about = next(f for f in files if f.name == "_CHECKPOINT_METADATA")
        for file, most in ((metadata, 10), (about, 60)):
            for name, way in spoiled.of_json(made / file, most=most):
                yield Case(
                    kind,
                    f"{command}, {file.name} {name}",
                    words,
                    needs,
                    _at(file, way),
                    _EITHER,
                    may=may,
                )
        for what in ("checkpoints", "checkpoints/*", "."):
            for name in ("a pipe", "text", "zeros"):

                def spoil(place, run=run, what=what, name=name):
                    path = next((place / run).glob(what)) if what != "." else place / run
                    spoiled.SWAPS["gone"](path)
                    path.touch()
                    spoiled.SWAPS[name](path)

                yield Case(kind, f"{command}, {what} is {name}", words, needs, spoil)
    for name, way in {
        **spoiled.BINARY,
        **dict(spoiled.of_json(made / "pre/config.json", most=12)),
    }.items():
        yield Case(
            kind,
            f"goes on, config.json {name}",
            RESUME,
            ("pre", "data"),
            _at("pre/config.json", way),
            _EITHER,
            may=(r"pre/.*",),
            always=(r"pre/\.lock",),
        )


def _experiments(made):
    kind, needs = "reports", ("exp",)
    words = (world.REPORT, "exp")
    may = (r"exp/(report|confusion|curves|differences|panel|results|splits).*",)
    cell = "exp/cells/random-8-0-0-0"
    for file in (f"{cell}.json", "exp/config.json", "exp/splits.json"):
        for name, way in {
            **spoiled.BINARY,
            **dict(spoiled.of_json(made / file, most=20)),
        }.items():
            yield Case(
                kind,
                f"{Path(file).name} {name}",
                words,
                needs,
                _at(file, way),
                _EITHER,
                may=may,
                always=may,
            )
    for file in (f"{cell}.npz", f"{cell}.npy", "exp/panel.npz"):
        for name, way in spoiled.BINARY.items():
            yield Case(
                kind,
                f"{Path(file).name} {name}",
                words,
                needs,
                _at(file, way),
                _EITHER,
                may=may,
                always=may,
            )
    yield Case(kind, "no folder", (world.REPORT, "nowhere"))
    yield Case(kind, "a pre-training", (world.REPORT, "pre"), ("pre",))


def _maps():
    kind = "damaged maps"
    for command, words, needs in (
        ("area", (world.AREA, "--run", "fine", "--map", "map.tif"), ("fine", "map.tif")),
        ("polygons", (world.POLYGONS, "--map", "map.tif", "--out", "p.gpkg"), ("map.tif",)),
    ):
        for name, way in spoiled.BINARY.items():
            yield Case(
                kind,
                f"{command} {name}",
                words,
                needs,
                _at("map.tif", way),
                _EITHER if "cut" in name else (REFUSED,),
                may=(r"p\.gpkg",),
            )
    for name, way in spoiled.BINARY.items():
        yield Case(
            kind,
            f"judged.npz {name}",
            (world.AREA, "--run", "fine", "--map", "map.tif"),
            ("fine", "map.tif"),
            _at("fine/judged.npz", way),
            _EITHER,
        )
