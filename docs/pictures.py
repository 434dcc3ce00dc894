r"""Draws the README's picture: image, true and predicted elevation, and the map of a scene.

python docs/pictures.py --image red.tif green.tif blue.tif --elevation dem.tif \
    --predicted elevation.tif --map map.tif --out docs/scene.jpg
"""

import argparse
from pathlib import Path

import numpy as np
import rasterio
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

SIDE = 560  # pixels along the longer side of a panel
# What people expect of a land cover; other classes have the map's own colours.
COLORS = {
    "water": "#4a90d9",
    "developed": "#c0504d",
    "barren": "#d9c8a5",
    "forest": "#2e7d32",
    "shrubland": "#a69b4f",
    "herbaceous": "#9ccc65",
    "cultivated": "#f2c14e",
    "wetlands": "#5fb3a1",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", type=Path, nargs=3, required=True)
    for name in ("elevation", "predicted", "map", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    with rasterio.open(args.image[0]) as scene:
        factor = SIDE / max(scene.shape)
        shape = tuple(round(side * factor) for side in scene.shape)
        crs, transform = scene.crs, scene.transform @ scene.transform.scale(1 / factor)
    grid = {"crs": crs, "transform": transform, "height": shape[0], "width": shape[1]}

    def read(path, resampling=Resampling.average):
        with rasterio.open(path) as source, WarpedVRT(source, resampling=resampling, **grid) as on:
            return on.read(1, masked=True)

    bands = [read(path) for path in args.image]
    known = ~bands[0].mask
    shown = [np.interp(b, np.percentile(b[known].data, (1, 99)), (0, 1)) for b in bands]
    image = np.dstack([*shown, known])
    fields = [np.ma.masked_where(~known, read(p)) for p in (args.elevation, args.predicted)]
    classes = read(args.map, Resampling.nearest)
    with rasterio.open(args.map) as source:
        colors, tags = source.colormap(1), source.tags(1)
    names = {k: tags[f"class_{k}"] for k in np.unique(classes.compressed())}
    colors = np.array([colors[k] for k in range(256)]) / 255
    for k, name in names.items():
        colors[k] = to_rgba(COLORS.get(name, colors[k]))

    figure = Figure(figsize=(10, 4.2), layout="constrained", dpi=100)
    axes = figure.subplots(1, 4)
    titles = ("image", "elevation", "elevation, from the image", "land cover, from the image")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=10)
        axis.axis("off")
        axis.set_anchor("N")
    axes[0].imshow(image)
    low, high = np.percentile(fields[0].compressed(), (1, 99))
    for axis, field in zip(axes[1:3], fields, strict=True):
        drawn = axis.imshow(field, cmap="terrain", vmin=low, vmax=high)
    figure.colorbar(drawn, ax=axes[1:3], location="bottom", shrink=0.7, label="m")
    axes[3].imshow(np.where(classes.mask[..., None], 1, colors[classes.filled(0)]))
    share = {k: np.mean(classes == k) for k in names}
    legend = [
        Patch(color=to_hex(colors[k]), label=names[k]) for k in sorted(names, key=share.get)[::-1]
    ]
    axes[3].legend(
        handles=legend[:6], loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3, fontsize=7
    )
    figure.savefig(args.out)


if __name__ == "__main__":
    main()
