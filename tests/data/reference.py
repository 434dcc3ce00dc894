"""A folder in the exact format of the reference implementation, oddities included."""

import numpy as np
import pandas as pd
import rasterio


def write_folder(folder, count=30, size=100, elevation_size=33, bands=4):
    """`count` chips with labels, and two that are legal exclusions; returns the metadata.

    Odd chips have a leading time axis, every third an elevation a pixel off, and the masks go
    from pure class 0 over mixed to pure class 1.
    """
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count + 2):
        tile = ("18NVN", "18NWN", "18NVM")[i % 3]
        path = f"{tile}/{tile}_{i % 2}_0/({100 * (i // 3)}, 900)"
        image = rng.integers(0, 7000, (bands, size, size)).astype(np.int16)
        elevation = rng.uniform(0, 3000, (elevation_size, elevation_size)).astype(np.float32)
        if i % 3 == 0:
            elevation = np.pad(elevation, ((0, 1), (0, 0)), mode="edge")
        if i == 4:
            elevation[:5] = np.nan
        mask = np.zeros((size, size), np.uint8)
        kind = i % 5
        if kind in (1, 3):
            mask[:] = 2
        elif kind == 4:
            mask[: size // 2] = 2
            mask[-2:] = 1  # some legal exclusions
        legal = i >= count
        if legal:
            mask[:] = 1
        arrays = {"Dataset": image[None] if i % 2 else image}
        for top, name, array in (
            ("Elevations", "elevation.tif", elevation),
            ("LabelsGeoTiffv2", "mask.tif", mask),
        ):
            target = folder / top / path
            target.mkdir(parents=True)
            height, width = array.shape
            with rasterio.open(
                target / name, "w", driver="GTiff", count=1, height=height, width=width,
                dtype=array.dtype,
            ) as sink:  # fmt: skip
                sink.write(array, 1)
        (folder / "Dataset" / path).mkdir(parents=True)
        np.save(folder / "Dataset" / path / "chip.npy", arrays["Dataset"])
        frontier = (mask == 2).mean()
        rows.append(
            {
                "Id": i,
                "Elevation": f"{path}/elevation.tif",
                "Image": f"{path}/chip.npy",
                "Mask": f"{path}/mask.tif",
                "non_agricultural(km2)": (mask == 0).mean(),
                "agricultural_frontier(km2)": frontier,
                "legal_exclusions(km2)": (mask == 1).mean(),
                "non_agricultural": int((mask == 0).all()),
                "legal_exclusions": int(legal),
                "agricultural_frontier": int(frontier == 1),
            }
        )
    metadata = pd.DataFrame(rows)
    metadata.to_csv(folder / "metadata.csv", index=False)
    return metadata
