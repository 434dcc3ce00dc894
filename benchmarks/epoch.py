"""Whole epochs of SimCLR+Elevation, as a run takes them, here and in PyTorch.

python benchmarks/epoch.py [--chips 256] [--batch 32] [--size 100] [--epochs 4] [--csv F]

Ours is `pretraining.loop`, the loop behind `main`: batches in another order each epoch, metrics, a
checkpoint after every epoch, and scores at the end. The peers are those of
`torch_peer.py`, which do none of that. Each side runs by itself, in turn, `--rounds` times; with
`--child ours` ours alone, once.
"""

import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pretrain_step

from elev_ssl_jax.runtime.huge_pages import use_huge_pages


class Rates:
    """A writer for `pretrain` that keeps the images per second that it reports."""

    def __init__(self):
        self.rates = []

    def write_scalars(self, step, scalars):
        """One report."""
        if "images_per_second_per_device" in scalars:
            self.rates.append(scalars["images_per_second_per_device"])

    def flush(self):
        """Nothing is kept back."""


def ours(args) -> dict:
    """Our run: images per second of each epoch but the first, which is compiled in."""
    use_huge_pages()  # as main does
    import jax

    from elev_ssl_jax.config import default
    from elev_ssl_jax.pretraining import loop

    config = default()
    config.batch_size, config.model.width, config.epochs = args.batch, args.width, args.epochs
    config.checkpoint.every_epochs = 1
    config.log.every_steps = args.chips // args.batch
    chips = pretrain_step.make_chips(args.size, args.chips)
    heldout = {name: array[: args.batch] for name, array in chips.items()}
    writer = Rates()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        traced = 5 if args.trace else 0
        loop.pretrain(config, Path(folder), loop.Data(chips, heldout), writer, profile=traced)
        if args.trace:
            shutil.copytree(Path(folder) / "profile", args.trace, dirs_exist_ok=True)
    return {
        "rates": writer.rates,
        "seconds": time.perf_counter() - start,
        "chip": jax.devices()[0].device_kind,
        "version": f"jax {jax.__version__}",
    }


def theirs(args) -> dict:
    """A peer's epochs, after three steps to warm up."""
    step, about, _ = pretrain_step.theirs(args, args.child)
    for _ in range(3):
        float(step())
    rates, steps = [], args.chips // args.batch
    for _ in range(args.epochs - 1):
        start = time.perf_counter()
        for _ in range(steps):
            loss = step()
        float(loss)
        rates.append(steps * args.batch / (time.perf_counter() - start))
    return {"rates": rates, **about}


def main() -> None:
    """The command."""
    parser = pretrain_step.make_parser(__doc__)
    parser.add_argument("--chips", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--trace", type=Path, help="folder for a trace of five of our steps")
    args = parser.parse_args()
    if args.child:
        print(json.dumps(ours(args) if args.child == "ours" else theirs(args)))
        return
    sides = ["ours", "eager"] + ["reference"] * bool(importlib.util.find_spec("torchvision"))
    rates: dict[str, list[float]] = {name: [] for name in sides}
    about: dict[str, dict] = {}
    for turn in range(args.rounds):
        for name in sides:
            command = [sys.executable, __file__, *sys.argv[1:], f"--child={name}"]
            environment = {**os.environ, "TQDM_DISABLE": "1"}
            output = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True, env=environment
            ).stdout
            about[name] = json.loads(output.splitlines()[-1])
            rates[name] += about[name]["rates"]
            each = " ".join(f"{rate:.1f}" for rate in about[name]["rates"])
            print(f"round {turn + 1}: {name} {each} images/s", flush=True)
    chip = pretrain_step.chip_name(about["ours"]["chip"])
    print(f"{chip}; {args.chips} chips of {args.size} pixels, batch {args.batch}")
    rows = []
    for name in sides:
        median = statistics.median(rates[name])
        ratio = statistics.median(rates["ours"]) / median
        print(
            f"{name:<9} {about[name]['version']}: {median:,.1f} images/s in an epoch"
            + ("" if name == "ours" else f"; ours is {ratio:.2f} times as fast")
        )
        rows.append(
            {
                "chip": chip,
                "side": name,
                "version": about[name]["version"],
                "batch": args.batch,
                "size": args.size,
                "width": args.width,
                "images_per_second": f"{median:.1f}",
                "ours_over_it": f"{ratio:.2f}",
                "lowest": f"{min(rates['ours']) / max(rates[name]):.2f}",
                "highest": f"{max(rates['ours']) / min(rates[name]):.2f}",
            }
        )
    overhead = about["ours"]["seconds"] - args.epochs * args.chips / rates["ours"][-1]
    print(f"of our run, {overhead:.0f} s were not steps: compilation, scores, pictures, saving")
    if args.csv:
        pretrain_step.append(args.csv, rows)


if __name__ == "__main__":
    main()
