"""What steps take of TPUs, by the compiler's estimates: a table of methods and topologies.

python benchmarks/topologies.py [--only v5e:2x2] [--method simclr_elev] \\
    [--csv benchmarks/results/topologies.csv]

Needs libtpu, no TPU. Each line is a `python -m elev_ssl_jax.plan`, of the paper's 39,720 chips of
100 pixels with three bands, or five times as many where the batch is larger than those.
"""

import argparse
import csv
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

CONFIGS = ("simclr_elev", "glcnet_elev")
# Topology, slices of it, chips in a batch over all devices.
TOPOLOGIES = (
    ("v5e:2x2", 1, 1024),
    ("v6e:4x4", 1, 4096),
    ("v5e:16x16", 1, 32_768),
    ("v5e:16x16", 4, 65_536),
)
CHIPS = 39_720
ROOT = Path(__file__).parents[1]


def plan(config: str, topology: str, slices: int, batch: int) -> dict:
    """What the command says."""
    count = CHIPS if batch < CHIPS else 5 * CHIPS
    done = subprocess.run(
        [
            *(sys.executable, "-m", "elev_ssl_jax.plan", "--json"),
            *(f"--config=configs/{config}.py", f"--config.batch_size={batch}"),
            *(f"--topology={topology}", f"--slices={slices}", f"--data={count}x100x100x3"),
            # More chips than lie on a device are streamed, and a step's batch is there already.
            "--config.data.resident_gib=4",
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout)


def row(config: str, batch: int, found: dict) -> dict:
    """A line of the table."""
    exchanges = found["collectives"] or {}
    parts = found["parts_ms"] or {}
    return {
        "method": config,
        "topology": found["topology"],
        "slices": found["slices"],
        "batch": batch,
        "fits": found["fits"],
        "memory_gib": round(found["memory_gib_per_device"], 2),
        **{
            name: found[name] and round(found[name], 2)
            for name in (
                *("estimated_step_ms", "flop_bound_ms", "bytes_accessed_gb"),
                *("chips_per_second", "hours", "device_hours"),
            )
        },
        "dataset_copies": found["dataset_copies"],
        "serial_loops": found["serial_loops"],
        **{
            f"{kind}_{what}": round(exchanges.get(kind, {}).get(what, 0), 2)
            for kind in ("all-reduce", "all-gather")
            for what in ("count", "megabytes")
        },
        **{
            f"{part}_ms": round(parts.get(part, 0), 2)
            for part in (
                *("views", "encoder", "decoder", "loss", "optimizer"),
                *("gather", "collectives", "rest"),
            )
        },
        **{name: importlib.metadata.version(name) for name in ("jax", "libtpu")},
    }


def _key(line):
    """What a line is of."""
    return tuple(str(line[name]) for name in ("method", "topology", "slices", "batch"))


def main(lines: Iterable[tuple] = TOPOLOGIES, plan: Callable[..., dict] = plan) -> None:
    """The command, of these lines of the table and by what plans them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="a topology")
    parser.add_argument("--method", choices=CONFIGS, help="one method")
    parser.add_argument("--csv", type=Path, help="where the table goes, beside the screen")
    args = parser.parse_args()
    rows: dict[tuple[str, ...], dict] = {}
    if args.csv and args.csv.exists():  # other lines stay
        with args.csv.open(newline="") as file:
            rows = {_key(line): line for line in csv.DictReader(file)}
    for topology, slices, batch in lines:
        for config in CONFIGS:
            if args.only in (None, topology) and args.method in (None, config):
                found = plan(config, topology, slices, batch)
                line = row(config, batch, found)
                rows[_key(line)] = line
                print(json.dumps(line), flush=True)
                if args.csv:  # each as soon as it is known
                    with args.csv.open("w", newline="") as file:
                        writer = csv.DictWriter(file, line.keys())
                        writer.writeheader()
                        writer.writerows(rows.values())


if __name__ == "__main__":
    main()
