# %% [markdown]
# # From arrays to a map
#
# Pre-train an encoder that also learns elevation, fine-tune it to tell land cover apart, and map
# a scene: all from NumPy arrays, without TFDS or TensorFlow. The scenes are made up; put your own
# arrays in their place. A few minutes on a laptop, which is too short to learn much: `epochs` and
# `width` say how long and how large.

# %%
from pathlib import Path

import numpy as np
import rasterio
from matplotlib import pyplot as plt

import elev_ssl_jax
from elev_ssl_jax.config import default, fine_tuning
from elev_ssl_jax.data.procedural import LAND_COVER, make_two_sensor_scene
from elev_ssl_jax.finetuning import single
from elev_ssl_jax.finetuning.labelled import Labelled
from elev_ssl_jax.inference.scenes import map_scene
from elev_ssl_jax.pretraining import loop

folder = Path("runs/notebook")


# %% [markdown]
# ## Arrays
#
# A scene is an image, here the thirteen bands of Sentinel-2, uint16 [13, H, W]; elevation in
# metres, on a grid three times as coarse; and for each pixel one of eight classes. Chips are
# squares of it: [N, 48, 48, 13], [N, 16, 16] and [N, 48, 48].


# %%
def chips_of(scene, side=48):
    """Image, elevation and classes of a scene's squares."""

    def cut(array, side):  # [H, W, ...] to [N, side, side, ...]
        rows, columns = array.shape[0] // side, array.shape[1] // side
        parts = array.reshape(rows, side, columns, side, *array.shape[2:])
        return parts.swapaxes(1, 2).reshape(-1, side, side, *array.shape[2:])

    image, elevation, classes = scene
    return cut(np.moveaxis(image, 0, -1), side), cut(elevation, side // 3), cut(classes, side)


# Each has a light of its own, so that many small ones teach more than a few large ones.
scenes = [make_two_sensor_scene(seed, 144)[1:] for seed in range(32)]  # the first is a radar's
last = make_two_sensor_scene(32, 288)[1:]  # mapped at the end, and never learned from
image, elevation, classes = map(np.concatenate, zip(*map(chips_of, scenes), strict=True))
image.shape, elevation.shape, classes.shape


# %% [markdown]
# ## Pre-train
#
# Every field of a configuration is in `elev_ssl_jax/config/defaults.py`. The loop writes
# checkpoints, pictures and `results.json` into its folder, and goes on from there if it is called
# again. What it measures goes to a writer: anything with these two methods.


# %%
class Curves:
    def __init__(self):
        self.rows = []

    def write_scalars(self, step, scalars):
        self.rows.append({"step": step, **scalars})

    def flush(self):
        pass

    def of(self, name):
        rows = [(row["step"], row[name]) for row in self.rows if name in row]
        return zip(*rows, strict=True)


config = default()
config.model.width = 0.25  # of a ResNet18's channels
config.epochs, config.batch_size = 6, 36
config.log.every_steps = 3
config.data.value_range = (0.0, 5000.0)  # sensor units that become 0 and 1
config.data.rgb = (3, 2, 1)  # the bands to show

held_out = 36  # the chips of four scenes
learned = {"image": image[held_out:], "elevation": elevation[held_out:]}
judged = {"image": image[:held_out], "elevation": elevation[:held_out]}
curves = Curves()
scores = loop.pretrain(config, folder / "pretrained", loop.Data(learned, judged), curves)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.5), layout="constrained")
left.plot(*curves.of("loss"))
left.set(title="loss", xlabel="step")
right.plot(*curves.of("elevation_rmse_m"))
right.set(title="elevation RMSE (m)", xlabel="step")
# %% [markdown]
# ## Fine-tune
#
# A U-Net on the encoder, learned from 120 labelled chips and judged by those of scenes that it
# has not seen.

# %%
config = fine_tuning("unet")
config.init_from = str(folder / "pretrained")
config.model.width = 0.25
config.epochs, config.finetune.frozen_epochs = 30, 3
config.optimizer.learning_rate = 3e-3  # the paper's is for larger networks and longer training
config.finetune.classes = LAND_COVER
config.data.value_range, config.data.rgb = (0.0, 5000.0), (3, 2, 1)

few = np.random.default_rng(0).permutation(np.arange(held_out, len(image)))[:120]
train = Labelled({"image": image[few]}, classes[few])
test = Labelled({"image": image[:held_out]}, classes[:held_out])
scores = single.finetune(config, folder / "finetuned", train, test, Curves())

# %% [markdown]
# ## Map
#
# A finished run is a model on arrays, [B, H, W, C] in the sensor's units ...

# %%
model = elev_ssl_jax.load(folder / "finetuned")
image, elevation, classes = last
(predicted,) = model.predict(np.moveaxis(image, 0, -1)[None, :144, :144])
predicted.shape, np.mean(predicted == classes[:144, :144])

# %% [markdown]
# ... and over a scene of any size, in windows that are blended, from and to GeoTIFFs. With
# `probabilities`, `confidence`, `vector` or `features` it writes more of what it knows.

# %%
crs, transform = "EPSG:32618", rasterio.transform.from_origin(500_000, 4_000_000, 10, 10)
profile = {"height": 288, "width": 288, "count": 13, "dtype": "uint16", "crs": crs}
with rasterio.open(folder / "scene.tif", "w", transform=transform, **profile) as sink:
    sink.write(image)
done = map_scene(model, [folder / "scene.tif"], out=folder / "map.tif", overwrite=True)
with rasterio.open(folder / "map.tif") as source:
    mapped = source.read(1)

colors = np.clip(np.moveaxis(image[[3, 2, 1]], 0, -1) / 3000, 0, 1)
shown = {"image": colors, "true": classes, "mapped": mapped}
figure, axes = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
for axis, (title, picture) in zip(axes, shown.items(), strict=True):
    axis.imshow(picture, vmax=len(LAND_COVER) - 1, cmap="tab10")
    axis.set(title=title)
    axis.axis("off")
print(f"{np.mean(mapped == classes):.1%} of the pixels are right")

# %% [markdown]
# About half are, after minutes and on a scene in another light. To these optics forest looks like
# shrubland, and a town like barren land; a radar tells them apart ([two sensors](two-sensors.md)).
