"""Cases of what is asked for: configurations, outputs, disks that are full or not to be written."""

import os
from collections.abc import Iterator
from pathlib import Path

from elev_ssl_jax import config, fields
from tests.campaign import asked, spoiled, world
from tests.campaign.trial import FINE, REFUSED, Case

_EITHER = (FINE, REFUSED)
_NOWHERE = ("--config.data.name=chips/segmentation", "--config.data.dir=nowhere")
_RUN = (*_NOWHERE, "--workdir=new")
CONFIGS = ("simclr_elev", "finetune_segmentation", "table1")
_ODD = {
    "number": ("nan", "inf", "-inf", "-1", "1e400", "x", "", "()", "9223372036854775808", "None"),
    "text": ("", "x", "a\nb", "x" * 3000, "0"),
    "tuple": (
        "()",
        "(1,)",
        "('a',)",
        "((),)",
        "(float('nan'),)",
        "1",
        "x",
        "(1, 2, 3, 4, 5, 6, 7)",
    ),
    "bool": ("maybe", "2", ""),
}
SCENE = ("image.tif", "dem.tif", "labels.tif")
CUT = (*world.CUT, "--out", "new", "--workers", "1")
BUILD = (*world.BUILD, "--data-dir", "new", "--workers", "1")
PRETRAIN = (*world.PRETRAIN, "--workdir=new")
EXPERIMENT = (*world.EXPERIMENT, "--workdir=new")
FEATURES = (world.FEATURES, "pre", "--out", "new.npz", "--train", "labeled", "--test", "test")
EXPORT = (world.CONVERT, "--from", "pre", "--to", "flax", "--out", "new.safetensors")
MAP = (*world.MAP[:-1], "new.tif")
POLYGONS = (world.POLYGONS, "--map", "map.tif", "--out", "new.gpkg")
AREA = (world.AREA, "--run", "fine", "--map", "map.tif", "--out", "new.csv")
WRITERS = {  # words, needs, what is written
    "chips": (CUT, SCENE, "new"),
    "prepare": (BUILD, ("chips",), "new"),
    "pretrain": (PRETRAIN, ("data",), "new"),
    "experiment": (EXPERIMENT, ("data",), "new"),
    "features": (FEATURES, ("pre", "data"), "new.npz"),
    "export": (EXPORT, ("pre",), "new.safetensors"),
    "predict": (MAP, ("fine", "image.tif"), "new.tif"),
    "polygons": (POLYGONS, ("map.tif",), "new.gpkg"),
    "area": (AREA, ("fine", "map.tif"), "new.csv"),
    "report": ((world.REPORT, "exp"), ("exp",), "exp/report.html"),
}


def cases(_: Path) -> Iterator[Case]:
    """All of them."""
    yield from _fields()
    yield from _files()
    yield from _outputs()
    yield from _arrays()


def _kind(value):
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    return "text" if isinstance(value, str) else "tuple"


def _fields():
    known = fields.flatten(config.default())
    for i, (name, value) in enumerate(known.items()):
        kind = _kind(value)
        for j, odd in enumerate(_ODD[kind]):
            file = world.CONFIGS / f"{CONFIGS[(i + j) % 3]}.py"
            words = (world.MAIN, f"--config={file}", *_RUN, f"--config.{name}={odd}")
            last = name.rpartition(".")[2]
            unheard = odd in ("nan", "inf", "-inf", "1e400", "maybe")
            says = last if unheard and kind != "text" else ""
            yield Case("configuration", f"{name}={odd[:20]!r}", words, says=says)


def _files():
    kind = "configuration files"
    head = f"import sys\nsys.path.insert(0, {str(world.CONFIGS)!r})\n"
    texts = {
        "empty": "",
        "no Python": "this is no Python",
        "a name that isn't": "def get_config():\n    return nothing\n",
        "an import that isn't": "import nothing_like_it\n",
        "an error": "def get_config():\n    return 1 / 0\n",
        "no get_config": "config = 3\n",
        "None": "def get_config():\n    return None\n",
        "a dict": "def get_config():\n    return {}\n",
        "half a configuration": (
            "import ml_collections\ndef get_config():\n"
            "    return ml_collections.ConfigDict({'task': 'pretrain', 'epochs': 3})\n"
        ),
        "without end": "def get_config():\n    return get_config()\n",
        "an exit": "import sys\ndef get_config():\n    sys.exit(3)\n",
        "two arguments": "def get_config(a, b):\n    return 3\n",
        "a text in the place of a group": (
            "import simclr_elev\ndef get_config():\n    c = simclr_elev.get_config()\n"
            "    with c.unlocked():\n        c.model = 'resnet'\n    return c\n"
        ),
        "a field more": (
            "import simclr_elev\ndef get_config():\n    c = simclr_elev.get_config()\n"
            "    with c.unlocked():\n        c.tempo = 3\n    return c\n"
        ),
        "several lines": "def get_config():\n    raise ValueError('a\\nb\\n' * 99)\n",
        "NUL": "\0",
        "Latin-1": "# é\n",
    }
    words = (world.MAIN, "--config=c.py", *_RUN)
    for name, text in texts.items():
        content = (head + text).encode("latin-1")
        if name in ("empty", "NUL"):
            content = text.encode()
        yield Case(
            *(kind, name, words, (), lambda place, c=content: (place / "c.py").write_bytes(c)),
            always=("__pycache__(/.*)?",),  # Python's, of what is no error for it
        )
    for name in ("a folder", "a loop of links", "zeros", "NUL and controls"):
        yield Case(
            kind,
            name,
            words,
            (),
            lambda place, name=name: (
                (place / "c.py").touch(),
                spoiled.SWAPS[name](place / "c.py"),
            ),
        )
    simclr = f"--config={world.CONFIGS / 'simclr_elev.py'}"
    for name, more in {
        "no file": ("--config=nowhere.py", "--workdir=new"),
        "no configuration": ("--workdir=new",),
        "an empty one": ("--config=", "--workdir=new"),
        "an empty workdir": (simclr, "--workdir="),
        "no workdir": (simclr,),
        "an unknown variant": (f"{simclr}:nothing", "--workdir=new"),
        "an unknown field": (simclr, "--workdir=new", "--config.epoch=3"),
        "an unknown group": (simclr, "--workdir=new", "--config.a.b=3"),
        "a group": (simclr, "--workdir=new", "--config.model=3"),
        "an unknown flag": (simclr, "--workdir=new", "--nothing"),
        "a word": (simclr, "--workdir=new", "nothing"),
        "--profile=-1": (simclr, "--workdir=new", "--profile=-1"),
        "--process_id alone": (simclr, "--workdir=new", "--process_id=3"),
        "--num_processes=0": (simclr, "--workdir=new", "--num_processes=0"),
        "a coordinator that isn't": (
            *(simclr, "--workdir=new", "--coordinator=nowhere", "--num_processes=2"),
            *("--process_id=1", "--join_timeout=2"),
        ),
        "a workdir in the network": (simclr, "--workdir=http://a/b"),
        "a workdir with NUL": (simclr, "--workdir=a\0b"),
        "a workdir of 5000 letters": (simclr, f"--workdir={'x' * 5000}", *_NOWHERE),
    }.items():
        yield Case(kind, name, (world.MAIN, *more))


def _outputs():
    kind = "outputs"
    for name, (words, needs, out) in WRITERS.items():
        if name == "report":
            continue
        yield Case(
            kind,
            f"{name}: it is a file of mine",
            words,
            needs,
            lambda place, out=out: (place / out).write_text("mine"),
        )
        yield Case(
            kind,
            f"{name}: it is a pipe",
            words,
            needs,
            lambda place, out=out: os.mkfifo(place / out),
        )

        def folder(place, out=out):
            (place / out).mkdir()
            (place / out / "mine").write_text("mine")

        codes, may = _EITHER, (rf"{out}.*",)
        if name in ("pretrain", "experiment"):  # they go on beside it
            continue
        fine = name == "prepare"
        yield Case(
            kind,
            f"{name}: it is a folder of mine",
            words,
            needs,
            folder,
            codes if fine else (REFUSED,),
            may=may if fine else (),
        )
        if name not in ("pretrain", "experiment", "prepare"):
            deep = tuple(f"deep/er/{word}" if word == out else word for word in words)
            codes = _EITHER if name == "chips" else (REFUSED,)
            yield Case(
                kind, f"{name}: its folder isn't there", deep, needs, None, codes, may=("deep.*",)
            )
        below = tuple(
            word.replace(out, f"image.tif/{out}") if word in (out, f"--workdir={out}") else word
            for word in words
        )
        yield Case(kind, f"{name}: below a file", below, (*needs, *({"image.tif"} - {*needs})))
    for flag, other in (
        ("--out", "image.tif"),
        ("--probabilities", "image.tif"),
        ("--confidence", "image.tif"),
        ("--vector", "image.tif"),
        ("--features", "image.tif"),
        ("--out", "./fine/../image.tif"),
        ("--out", "link.tif"),
    ):
        yield Case(
            kind,
            f"predict {flag} {other} is its input",
            (*world.MAP[:5], flag, other, "--overwrite"),
            ("fine", "image.tif"),
            lambda place: (place / "link.tif").symlink_to("image.tif"),
        )
    yield Case(
        kind,
        "a picture of mine beside the map",
        MAP,
        ("fine", "image.tif"),
        lambda place: (place / "new.png").write_text("mine"),
    )
    yield Case(
        kind,
        "the map is its own picture",
        (*world.MAP[:-1], "new.png"),
        ("fine", "image.tif"),
    )
    mine = {
        "chips": (CUT, SCENE, (".new.unfinished", "new.partial")),
        "prepare": (
            BUILD,
            ("chips",),
            ("new/chips/segmentation/.1.0.0.unfinished", "new/chips/segmentation/1.0.0.old"),
        ),
        "predict": (MAP, ("fine", "image.tif"), ("new.tif.partial", ".new.tif.unfinished")),
    }
    for name, (words, needs, theirs) in mine.items():
        for other in theirs:

            def spoil(place, other=other):
                (place / other).mkdir(parents=True)
                (place / other / "mine").write_text("mine")

            may = (r"new(\.(tif|png)|/?(?!.*mine).*)",)
            yield Case(kind, f"{name}: {other} is mine", words, needs, spoil, _EITHER, may=may)
    for name, (words, needs, out) in WRITERS.items():
        closed = out.rpartition("/")[0]
        yield Case(
            "closed folders",
            name,
            words,
            needs,
            lambda place, closed=closed: (place / closed).chmod(0o555),
            humble=True,
        )
        for need in needs:
            yield Case(
                "closed folders",
                f"{name}, {need} can't be read",
                words,
                needs,
                lambda place, need=need: (place / need).chmod(0),
                humble=True,
            )
        for largest in (100, 2000, 20_000):
            may = (r"new.*", r"\.new.*", r"exp/.*")
            yield Case(
                "full disks",
                f"{name}, {largest} bytes",
                words,
                needs,
                None,
                _EITHER,
                may=may,
                always=may,
                largest=largest,
            )


def _arrays():
    for what in asked.ARRAYS:
        for run, method in (("pre", "features"), ("fine", "predict")):
            yield Case(
                "arrays",
                f"{method}, {what}",
                ("tests.campaign.asked", run, method, what),
                (run,),
                None,
                _EITHER if what in ("no chips", "NaN", "infinite", "another side") else (REFUSED,),
            )
