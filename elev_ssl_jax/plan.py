"""What a run would take of devices that need not be there: memory, time, traffic.

python -m elev_ssl_jax.plan --config=configs/simclr_elev.py --topology=v5e:16x16 \\
    --data=39720x100x100x3

TPUs are compiled for by libtpu (`pip install "jax[tpu]"`); --topology=local is the devices at
hand. Numbers of time are the compiler's estimates, of which TPUs alone have any.
"""

import functools
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags
from tqdm import tqdm

from elev_ssl_jax import checks, command_line, sensors
from elev_ssl_jax.errors import InputError, reported
from elev_ssl_jax.forecast import report, topologies
from elev_ssl_jax.forecast.advice import advise
from elev_ssl_jax.forecast.forecast import forecast
from elev_ssl_jax.forecast.programs import of_run

_CONFIG = config_flags.DEFINE_config_file("config", None, "File with the run's configuration.")
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "Devices, such as v5e:16x16, or local.")
_SLICES = flags.DEFINE_integer(
    "slices", 1, "How many of these, connected by a slower network.", lower_bound=1
)
_DATA = flags.DEFINE_string(
    "data",
    None,
    "Chips to learn from, COUNTxHEIGHTxWIDTHxBANDS of uint16, +BANDS for each further sensor; "
    "without it those of config.data.",
)
_LABELLED = flags.DEFINE_integer(
    "labelled", None, "Labelled chips of an experiment whose label counts are shares."
)
_QUICK = flags.DEFINE_bool(
    "quick", False, "In a fraction of the time; what devices hold and exchange, not how long."
)
_JSON = flags.DEFINE_bool("json", False, "One object rather than a screen.")
flags.mark_flags_as_required(["config"])


def main(argv: list[str]) -> None:
    """The command."""
    with reported():
        if argv[1:]:
            raise InputError(f"unknown argument {argv[1]!r}; fields are set by --config.NAME=VALUE")
        config, topology, slices = _CONFIG.value, str(_TOPOLOGY.value), int(_SLICES.value)
        checks.check(config)
        if topology != topologies.LOCAL:
            topologies.prepare()
        mesh = topologies.make_mesh(topology, slices)
        chip, count = _parse(config, _DATA.value) if _DATA.value else _find(config)
        stages = of_run(config, chip, count, _LABELLED.value or count, mesh)
        found = forecast(stages, mesh, _bar, _QUICK.value)
        found = {"topology": topology, "slices": slices, **found, "advice": []}
        if found["device_memory_gib"]:
            for stage, facts in zip(stages, found["stages"], strict=True):
                if not facts["fits"]:
                    needed, there = facts["memory_gib_per_device"], found["device_memory_gib"]
                    found["advice"] += advise(config, topology, stage, needed, there)
        print(json.dumps(found, indent=2) if _JSON.value else report.screen(found))


def _parse(config, text):
    """The features of a chip, and how many chips there are."""
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)x(\d+(?:\+\d+)*)", text)
    names = [name for name in config.data.inputs if name != sensors.ELEVATION]
    bands = match[4].split("+") if match else []
    if match is None or len(bands) != len(names) or not all(map(int, re.findall(r"\d+", text))):
        raise InputError(
            f"--data={text}; it must be COUNTxHEIGHTxWIDTHxBANDS, such as 39720x100x100x3, with "
            f"bands for {', '.join(names)}"
        )
    count, height, width = (int(match[i]) for i in (1, 2, 3))
    chip = {
        name: jax.ShapeDtypeStruct((height, width, int(number)), np.uint16)
        for name, number in zip(names, bands, strict=True)
    }
    # A DEM is about three times as coarse.
    cells = (max(1, height // 3), max(1, width // 3))
    chip[sensors.ELEVATION] = jax.ShapeDtypeStruct(cells, np.float32)
    chip[sensors.QUANTITY] = jax.ShapeDtypeStruct((height, width), np.float32)
    return chip, count


def _find(config):
    """The same of the data that `config.data` names, which may be yet to be made."""
    data = config.data
    if data.synthetic.chips:
        from elev_ssl_jax.data import synthetic

        chip, counts = synthetic.chip_of(data), synthetic.counts_of(data)
        known = {name: jax.ShapeDtypeStruct(*about) for name, about in chip.items()}
        learned = "labeled" if config.task == "finetune" else "unlabeled"
        return known, counts[learned]
    from elev_ssl_jax.data import source

    split = data.split
    if config.task == "experiment":
        data = data.copy_and_resolve_references()
        data.name = config.experiment.pretrain.name or data.name
        split = config.experiment.pretrain.split
    try:
        opened = source.open_split(data, split, exact=config.task == "finetune")
    except InputError as error:
        raise InputError(f"{error}; or say what they are like: --data=39720x100x100x3") from error
    names = {*data.inputs, *sensors.FIELDS} & opened.shapes.keys()
    return {
        name: jax.ShapeDtypeStruct(opened.shapes[name], opened.features[name].np_dtype)
        for name in names
    }, len(opened)


@contextmanager
def _bar(what: str) -> Iterator[None]:
    """Tells how long something takes, while it does."""
    done = threading.Event()
    with tqdm(desc=f"compiling {what}", bar_format="{desc}: {elapsed}", disable=None) as bar:

        def tell():
            while not done.wait(1):
                bar.refresh()

        thread = threading.Thread(target=tell, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


if __name__ == "__main__":
    app.run(main, flags_parser=functools.partial(command_line.parse, config=_CONFIG))
