"""The speed table and picture of docs/speed.md, from benchmarks/results.

python benchmarks/plot.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

RESULTS = Path(__file__).parent / "results"
SIDES = {
    "ours": "ours",
    "eager": "PyTorch, eager",
    "compiled": "PyTorch, compiled",
    "reference": "PyTorch, DataLoader and torchvision",
}


def main() -> None:
    """Prints the table and draws `speed.png`."""
    tables = [
        pd.read_csv(path).assign(what=what)
        for what in ("pretrain_step", "epoch")
        for path in sorted(RESULTS.glob(f"{what}_*.csv"))
    ]
    rows = pd.concat(tables, ignore_index=True)
    rows["what"] = rows["what"].replace({"pretrain_step": "a step", "epoch": "an epoch"})
    print("| on | | | images/s | ours over it |\n| --- | --- | --- | --- | --- |")
    for row in rows.itertuples():
        ratio = f"{row.ours_over_it:.2f} ({row.lowest:.2f}-{row.highest:.2f})"
        print(
            f"| {row.chip}, batch {row.batch} | {row.what} | {SIDES[row.side]} ({row.version}) "
            f"| {row.images_per_second} | {'' if row.side == 'ours' else ratio} |"
        )
    ours = rows["side"].eq("ours")
    labels = rows["what"] + ": " + rows["side"].map(SIDES) + ", " + rows["version"]
    if rows["chip"].nunique() > 1:
        labels = rows["chip"] + ", " + labels
    figure, axes = plt.subplots(figsize=(9, 0.7 + 0.32 * len(rows)), layout="constrained")
    colors = ["tab:blue" if mine else "lightgray" for mine in ours]
    bars = axes.barh(labels + " ", rows["images_per_second"], color=colors)
    axes.bar_label(bars, padding=3)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("images per second")
    figure.savefig(RESULTS.parents[1] / "docs" / "speed.png", dpi=120)


if __name__ == "__main__":
    main()
