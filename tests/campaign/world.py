"""What the cases start from: a scene, chips, prepared data, runs, a map, weights; all tiny."""

import os
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin
from safetensors.torch import save_file

from tests.campaign import trial
from tests.data import reference

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = (
    *("--config.model.width=0.0625", "--config.model.projection=(8,4)", "--config.batch_size=8"),
    *("--config.epochs=1", "--config.augment.crop_size=32"),
    "--config.model.encoder=vgg",  # compiles soonest
)
MAIN, CHIPS, PREPARE = "elev_ssl_jax.main", "elev_ssl_jax.data.chips", "elev_ssl_jax.data.prepare"
PREDICT, CONVERT, REPORT = "elev_ssl_jax.predict", "elev_ssl_jax.convert", "elev_ssl_jax.report"
FEATURES, AREA = "elev_ssl_jax.features", "elev_ssl_jax.area"
POLYGONS, PLAN = "elev_ssl_jax.polygons", "elev_ssl_jax.plan"
SYNTHETIC = "elev_ssl_jax.data.synthetic"

CUT = (CHIPS, "--image", "image.tif", "--elevation", "dem.tif", "--labels", "labels.tif")
CUT = (*CUT, "--size", "32", "--stride", "16", "--elevation-size", "11", "--block", "48")
BUILD = (PREPARE, "--chips", "chips", "--split-by", "block", "--labeled", "12", "--test", "8")
DATA = ("--config.data.name=chips/segmentation", "--config.data.dir=data")
PRETRAIN = (MAIN, f"--config={CONFIGS / 'simclr_elev.py'}", *DATA, *SMALL)
FINETUNE = (
    *(MAIN, f"--config={CONFIGS / 'finetune_segmentation.py'}", *DATA),
    *("--config.model.width=0.0625", "--config.epochs=1", "--config.finetune.frozen_epochs=0"),
    *("--config.data.split=labeled", "--config.batch_size=4", "--config.model.encoder=vgg"),
)
EXPERIMENT = (
    *(MAIN, f"--config={CONFIGS / 'table1.py'}", *DATA, "--config.model.width=0.0625"),
    *("--config.experiment.methods=random,statistics", "--config.finetune.head=probe"),
    *("--config.finetune.target=commonest", "--config.experiment.labels=(8,)"),
    *("--config.experiment.pretrain_seeds=2", "--config.experiment.seeds=1"),
)
MAP = (PREDICT, "--run", "fine", "--image", "image.tif", "--out", "map.tif")

_STEPS = (
    (*CUT, "--out", "chips"),
    (*BUILD, "--data-dir", "data"),
)
_TRAINING = (
    (*PRETRAIN, "--workdir=pre"),
    (*FINETUNE, "--workdir=fine"),
    (*EXPERIMENT, "--workdir=exp"),
    MAP,
    (CONVERT, "--from", "pre", "--to", "flax", "--out", "flax.safetensors"),
)


def make(folder: Path, trained: bool = True) -> None:
    """Makes it all, by the commands themselves; or what needs no training, in seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    scene(folder)
    torch.save(weights(), folder / "encoder.pth")
    save_file(weights(), folder / "encoder.safetensors")
    raw = folder / "raw"
    raw.mkdir()
    reference.write_folder(raw, count=9, size=12, elevation_size=4)
    for words in (*_STEPS, *_TRAINING) if trained else _STEPS:
        case = trial.Case("world", " ".join(words), words)
        pid, pipe = trial.begun(case, folder)
        _, status = os.waitpid(pid, 0)
        said = trial.said_so_far(pipe)
        os.close(pipe)
        if status:
            raise RuntimeError(f"{case.name} failed: {said}")


def scene(folder: Path, side: int = 144) -> None:
    """An image of three bands, a DEM, classes 1 and 2."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    height = 500 + 300 * np.sin(5 * x) * np.cos(4 * y)
    classes = np.where(height > 520, 1, 2).astype(np.uint8)
    image = 1000 + 2000 * (classes == 1) + rng.normal(0, 100, (3, side, side))
    write(folder / "image.tif", image.astype(np.uint16))
    write(folder / "dem.tif", height[None, ::3, ::3].astype(np.float32), pixel=30)
    write(folder / "labels.tif", classes[None])


def write(path: Path, bands, *, pixel=10, crs="EPSG:32618", origin=(500000, 800000), **more):
    """A GeoTIFF [C, H, W]."""
    profile = {
        "driver": "GTiff",
        "count": len(bands),
        "height": bands.shape[1],
        "width": bands.shape[2],
        "dtype": bands.dtype,
        "crs": crs,
        "transform": from_origin(*origin, pixel, pixel),
    }
    with rasterio.open(path, "w", **{**profile, **more}) as sink:
        sink.write(bands)


def weights(channels: int = 4) -> dict[str, torch.Tensor]:
    """A narrow ResNet18's, by torchvision's names."""
    rng = torch.Generator().manual_seed(0)
    found = {}

    def convolution(name, outputs, inputs, side):
        found[f"{name}.weight"] = 0.1 * torch.randn(outputs, inputs, side, side, generator=rng)

    def norm(name, size):
        for part in ("weight", "bias", "running_mean", "running_var"):
            found[f"{name}.{part}"] = torch.rand(size, generator=rng) + 0.5
        found[f"{name}.num_batches_tracked"] = torch.tensor(1)

    convolution("conv1", channels, 3, 7)
    norm("bn1", channels)
    inputs = channels
    for layer in (1, 2, 3, 4):
        outputs = channels * 2 ** (layer - 1)
        for block in (0, 1):
            name = f"layer{layer}.{block}"
            convolution(f"{name}.conv1", outputs, outputs if block else inputs, 3)
            convolution(f"{name}.conv2", outputs, outputs, 3)
            norm(f"{name}.bn1", outputs)
            norm(f"{name}.bn2", outputs)
            if layer > 1 and not block:
                convolution(f"{name}.downsample.0", outputs, inputs, 1)
                norm(f"{name}.downsample.1", outputs)
        inputs = outputs
    return found
