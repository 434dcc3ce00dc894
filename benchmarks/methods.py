"""Trains every method of the paper with the same data and settings, and prints one table.

python benchmarks/methods.py --workdir=runs/methods --variant=demo
python benchmarks/methods.py --workdir=runs/own --config.data.dir=prepared ...   # as for main

All flags but these two go to `elev_ssl_jax.main`. A method that is finished is not trained again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

METHODS = {
    "simclr": "SimCLR",
    "glcnet": "GLCNet",
    "elevation": "Elevation-Map",
    "simclr_elev": "SimCLR+Elevation",
    "glcnet_elev": "GLCNet+Elevation",
}
COLUMNS = {
    "elevation_rmse_m": ("elevation RMSE (m)", ".1f"),
    "elevation_relief_rmse_m": ("relief RMSE (m)", ".1f"),
    "elevation_relief_correlation": ("relief, correlation", ".3f"),
    "probe_accuracy": ("probe, accuracy", ".3f"),
    "probe_macro_f1": ("probe, macro F1", ".3f"),
    "contrastive_top1": ("contrastive top-1", ".3f"),
    "feature_std": ("feature spread", ".3f"),
}
CONFIGS = Path(__file__).parents[1] / "configs"


def main() -> None:
    """Trains, then prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--variant", default="", help="of every configuration, such as demo")
    args, flags = parser.parse_known_args()

    results = {}
    for method in METHODS:
        config = f"{CONFIGS / method}.py" + (f":{args.variant}" if args.variant else "")
        folder = args.workdir / method
        command = [sys.executable, "-m", "elev_ssl_jax.main", f"--config={config}"]
        # GLCNet's own configurations have the chips for segmentation.
        command += [f"--workdir={folder}", "--config.data.name=nwrc/classification", *flags]
        print(f"== {METHODS[method]}", flush=True)
        subprocess.run(command, check=True)
        results[method] = json.loads((folder / "results.json").read_text())

    # The untrained encoder is the same for every method: its weights depend on the seed alone.
    first = next(iter(results.values()))
    untrained = {name: first[f"random_{name}"] for name in COLUMNS if f"random_{name}" in first}
    rows = [("untrained", untrained), *((METHODS[m], scores) for m, scores in results.items())]
    print("\n| method | " + " | ".join(title for title, _ in COLUMNS.values()) + " |")
    print("| --- " * (1 + len(COLUMNS)) + "|")
    for name, scores in rows:
        cells = [
            format(scores[column], form) if column in scores else ""
            for column, (_, form) in COLUMNS.items()
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
