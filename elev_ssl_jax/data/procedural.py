"""Made-up scenes: terrain, light, plants, radar. Never to be taken for real data."""

import numpy as np

PIXEL_METRES = 10.0
# The 10 m pixels under one cell of the DEM, as Sentinel-2 and SRTM have it.
DEM_FACTOR = 3

# Reflectance (x 10,000) of red, green, blue on flat ground; plants at the bottom, in the middle
# and at the top of the mountains, wet and dry.
_WET = np.array([[420, 800, 400], [600, 880, 480], [1500, 1450, 1350]], np.float32)
_DRY = np.array([[1150, 1150, 700], [1300, 1200, 820], [1900, 1800, 1700]], np.float32)

# The eight classes of DFC2020, and what two sensors make of them. To the optical one forest and
# shrubland are alike, and so are towns and barren land; to the radar forest and wetlands are, and
# shrubland, grassland and croplands. Only both together tell all eight.
LAND_COVER = (
    *("Forest", "Shrubland", "Grassland", "Wetlands"),
    *("Croplands", "Urban", "Barren", "Water"),
)
# Sentinel-2, top of the atmosphere, x 10,000: B1 to B8, B8A, B9 to B12.
_PLANTS = (1150, 850, 800, 550, 1000, 2000, 2400, 2350, 2600, 900, 15, 1500, 750)
_GRASS = (1250, 1000, 1100, 950, 1500, 2300, 2600, 2550, 2800, 950, 15, 2400, 1500)
_MARSH = (1200, 900, 850, 700, 1000, 1500, 1700, 1650, 1750, 650, 15, 900, 450)
_FIELDS = (1300, 1150, 1250, 1300, 1700, 2100, 2300, 2350, 2500, 850, 15, 2700, 2000)
_STONE = (1500, 1450, 1500, 1700, 1850, 1950, 2050, 2100, 2150, 700, 20, 2400, 2200)
_WATER = (1150, 900, 700, 450, 400, 350, 330, 280, 250, 100, 12, 120, 80)
_SPECTRA = np.array([_PLANTS, _PLANTS, _GRASS, _MARSH, _FIELDS, _STONE, _STONE, _WATER], np.float32)
_HAZE = np.array([1.4, 1, 0.7, 0.5, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0, 0.05, 0.02], np.float32)
# Sentinel-1, sigma0 of VV and VH in dB.
_BACKSCATTER = np.array(
    [[-9, -15], [-13, -20], [-13, -20], [-9, -15], [-13, -20], [-4, -12], [-16, -24], [-21, -28]],
    np.float32,
)
_LOOKS = 4.4  # of Sentinel-1's GRD products: how often speckle is averaged


def make_scene(seed: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One scene: image uint16 [3, size, size], elevation float32 [size / 3, size / 3], labels.

    Elevation is fractal, in metres. Plant cover depends on height, slope, moisture and aspect,
    shading on the slope. Labels, uint8 [size, size], are 1 where land is farmed: on gentle, moist
    slopes, in patches of their own. Farms differ from wild land by their parcels, not by their
    mean colour, and every scene has light and haze of its own, so that colour alone tells little.

    Args:
      seed: The same seed gives the same scene.
      size: Side in pixels, a multiple of `DEM_FACTOR`.
    """
    rng = np.random.default_rng(seed)
    relief = rng.uniform(0.04, 0.18) * size * PIXEL_METRES  # slopes alike at every size
    heights = rng.uniform(100, 2400) + relief * fractal(rng, size, 2.0)
    heights = np.maximum(heights, 0)
    dy, dx = np.gradient(heights, PIXEL_METRES)
    slope = np.hypot(dx, dy)
    moisture = 0.6 * fractal(rng, size, 1.6) - 2.0 * (slope - slope.mean())

    # The tree line and the like: where between bottom, middle and top a height lies.
    level = np.clip((heights + 120 * fractal(rng, size, 1.0)) / 1300, 0, 1.999)
    lower, share = level.astype(int), (level % 1)[..., None]
    wetness = (1 / (1 + np.exp(-2 * moisture)))[..., None]
    plants = [wetness * _WET[lower + i] + (1 - wetness) * _DRY[lower + i] for i in (0, 1)]
    reflectance = (1 - share) * plants[0] + share * plants[1]

    suitable = (1450 - heights) / 500 + 0.3 * moisture - 1.0 * slope
    farmed = fractal(rng, size, 2.4) + suitable > 0
    wild_texture = 0.22 * fractal(rng, size, 0.9)
    texture = np.where(farmed, parcels(rng, size), wild_texture)
    reflectance = reflectance * (1 + texture[..., None])

    azimuth, altitude = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.2)
    light = np.sin(altitude) - np.cos(altitude) * (dx * np.cos(azimuth) + dy * np.sin(azimuth))
    light = np.clip(light / np.sqrt(1 + slope**2) / np.sin(altitude), 0.15, 2)
    haze = rng.uniform(0, 400) * np.array([0.6, 0.8, 1.2])
    radiance = reflectance * light[..., None] * rng.uniform(0.85, 1.18, 3) + haze
    radiance += rng.normal(0, 60, radiance.shape)

    image = np.clip(np.rint(radiance), 1, 10000).astype(np.uint16)
    cells = size // DEM_FACTOR
    dem = heights.reshape(cells, DEM_FACTOR, cells, DEM_FACTOR).mean(axis=(1, 3))
    return np.moveaxis(image, -1, 0), dem.astype(np.float32), farmed.astype(np.uint8)


def fractal(rng: np.random.Generator, size: int, roughness: float) -> np.ndarray:
    """A random field [size, size] with amplitude 1 / frequency^roughness, mean 0 and variance 1."""
    # Twice the size, so that the field doesn't repeat across the scene.
    frequency = np.hypot(np.fft.fftfreq(2 * size)[:, None], np.fft.rfftfreq(2 * size)[None])
    frequency[0, 0] = np.inf
    noise = np.fft.rfft2(rng.normal(size=(2 * size, 2 * size)))
    field = np.fft.irfft2(noise * frequency**-roughness)[:size, :size]
    return (field - field.mean()) / field.std()


def parcels(rng: np.random.Generator, size: int) -> np.ndarray:
    """A relative brightness for each parcel of a turned, irregular grid: [size, size], mean 0."""
    angle = rng.uniform(0, np.pi)
    rows, columns = np.mgrid[:size, :size] + rng.uniform(0, 100, (2, 1, 1))
    along = rows * np.cos(angle) + columns * np.sin(angle)
    across = columns * np.cos(angle) - rows * np.sin(angle)
    strip = np.floor(across / rng.uniform(6, 12)).astype(int)
    strip -= strip.min()
    offset = rng.uniform(0, 30, strip.max() + 1)[strip]
    parcel = np.floor((along + offset) / rng.uniform(10, 20)).astype(int)
    parcel -= parcel.min()
    brightness = rng.normal(0, 0.22, (strip.max() + 1, parcel.max() + 1))
    return brightness[strip, parcel]


def make_two_sensor_scene(
    seed: int, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One scene of two sensors.

    Returns:
      Radar, VV and VH in dB, float32 [2, size, size]; the thirteen bands of Sentinel-2, uint16
      [13, size, size]; elevation in metres, float32 [size / 3, size / 3]; and the classes of
      `LAND_COVER`, uint8 [size, size].

    Which class is where depends on height, slope and moisture. Light, haze and the atmosphere of
    a scene are its own, and so are its wetness and the direction that the radar looks in; its
    speckle is multiplicative.

    Args:
      seed: The same seed gives the same scene.
      size: Side in pixels, a multiple of `DEM_FACTOR`.
    """
    rng = np.random.default_rng(seed)
    relief = rng.uniform(0.04, 0.18) * size * PIXEL_METRES
    heights = np.maximum(rng.uniform(100, 2400) + relief * fractal(rng, size, 2.0), 0)
    dy, dx = np.gradient(heights, PIXEL_METRES)
    slope = np.hypot(dx, dy)
    high, steep = (heights - 1200) / 700, (slope - slope.mean()) / slope.std()
    low = -(heights - heights.mean()) / heights.std()
    wet = fractal(rng, size, 1.6) + 0.5 * low
    suits = np.stack(
        [
            0.5 * wet - 0.4 * np.abs(high),
            -0.5 * wet + 0.3 * steep,
            0.5 * high,
            0.7 * wet + 0.5 * low - 0.6 * steep,
            -0.6 * high - 0.5 * steep,
            -0.6 * high - 0.4 * steep - 0.2 * wet,
            0.8 * high - 0.5 * wet,
            1.2 * low - 0.5 * steep - 0.4,
        ]
    )
    fields = np.stack([fractal(rng, size, 2.2) for _ in LAND_COVER])
    classes = np.argmax(suits + 1.6 * fields, axis=0)

    plots = parcels(rng, size)
    farmed = (classes == LAND_COVER.index("Croplands")) | (classes == LAND_COVER.index("Urban"))
    texture = np.where(farmed, plots, 0.12 * fractal(rng, size, 0.9))
    azimuth, altitude = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.2)
    light = np.sin(altitude) - np.cos(altitude) * (dx * np.cos(azimuth) + dy * np.sin(azimuth))
    light = np.clip(light / np.sqrt(1 + slope**2) / np.sin(altitude), 0.15, 2)
    air = np.exp(rng.normal(0, 0.1) + 0.05 * rng.normal(size=13))
    optics = _SPECTRA[classes] * (light * (1 + texture))[..., None] * air
    optics += rng.uniform(0, 500) * _HAZE
    optics *= 1 + 0.03 * rng.normal(size=optics.shape)

    look = rng.uniform(0, 2 * np.pi)
    facing = dx * np.cos(look) + dy * np.sin(look)
    decibels = _BACKSCATTER[classes] + (1.5 * np.tanh(facing) + 0.8 * texture)[..., None]
    decibels += rng.normal(0, 0.8, 2)
    speckle = rng.gamma(_LOOKS, 1 / _LOOKS, decibels.shape)
    decibels += 10 * np.log10(np.maximum(speckle, 1e-3))

    cells = size // DEM_FACTOR
    dem = heights.reshape(cells, DEM_FACTOR, cells, DEM_FACTOR).mean(axis=(1, 3))
    return (
        np.moveaxis(decibels, -1, 0).astype(np.float32),
        np.moveaxis(np.clip(np.rint(optics), 1, 20000), -1, 0).astype(np.uint16),
        dem.astype(np.float32),
        classes.astype(np.uint8),
    )
