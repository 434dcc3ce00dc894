import jax
import numpy as np
import pytest

from elev_ssl_jax.errors import InputError
from elev_ssl_jax.runtime import starting
from tests import runs

SHAPE = (32, 32, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pre-training of three bands, and one of four that it knows nothing of."""
    folder = tmp_path_factory.mktemp("runs")
    runs.save_run(folder / "three", runs.settings(), SHAPE)
    return folder


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """The variables of other pre-trainings, by their images' bands."""
    folder = tmp_path_factory.mktemp("ours")
    return {
        bands: runs.save_run(folder / str(bands), runs.settings(), (32, 32, bands), seed=bands)
        for bands in (3, 4)
    }


def theirs(folder):
    return starting.checkpoint.load(folder / "three").variables


def same(one, other):
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


@pytest.mark.parametrize("decoder", [False, True])
def test_the_encoder_is_taken_and_the_decoder_if_asked_for(folder, ours, decoder):
    found, origin = starting.from_run(folder / "three", ours[3], decoder=decoder)
    for kind, tree in ours[3].items():
        assert same(found[kind]["encoder"], theirs(folder)[kind]["encoder"])
        assert same(found[kind]["projection"], tree["projection"])
        from_whom = theirs(folder)[kind] if decoder else tree
        assert same(found[kind]["elevation_decoder"], from_whom["elevation_decoder"])
    assert origin["parts"] == ["encoder", "elevation_decoder"][: 1 + decoder]
    assert origin["run"] == "three"
    assert starting.words_of(origin) == "three after 4 steps"
    chain = {"run": "mine", "step": 0, "origin": origin | {"origin": {"file": "resnet18.pth"}}}
    assert starting.words_of(chain) == "mine, from three after 4 steps, from resnet18.pth"


def test_images_of_other_bands_take_the_bands_that_are_said(folder, ours):
    found, origin = starting.from_run(folder / "three", ours[4], bands=(2, 1, 0, 0))
    before = np.asarray(theirs(folder)["params"]["encoder"]["conv1"]["kernel"])
    after = found["params"]["encoder"]["conv1"]["kernel"]
    np.testing.assert_allclose(after[:, :, :2], before[:, :, [2, 1]], rtol=1e-6)
    np.testing.assert_allclose(after[:, :, 2:], before[:, :, [0, 0]] / 2, rtol=1e-6)
    assert same(found["batch_stats"]["encoder"], theirs(folder)["batch_stats"]["encoder"])
    assert origin["bands"] == [2, 1, 0, 0]


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        ((), r"takes 3 bands, but these images have 4; .*init_bands=\(0, 1, 2, 0\)"),
        ((0, 1), "init_bands is of 2 bands, but these images have 4"),
        ((0, 1, 2, 3), r"init_bands is \[0, 1, 2, 3\]; init_from=.*three has the bands 0 to 2"),
    ],
)
def test_bands_that_do_not_fit_are_refused_with_the_remedy(folder, ours, bands, message):
    with pytest.raises(InputError, match=message):
        starting.from_run(folder / "three", ours[4], bands=bands)


def test_a_decoder_that_is_not_there_is_refused(folder, ours):
    contrast = runs.settings()
    contrast.objective.alpha = 0.0
    without = runs.save_run(folder / "simclr", contrast, SHAPE)
    with pytest.raises(InputError, match=r"init_from=.*simclr has no elevation decoder"):
        starting.from_run(folder / "simclr", ours[3], decoder=True)
    with pytest.raises(InputError, match="this method has no elevation decoder"):
        starting.from_run(folder / "three", without, decoder=True)
    found, _ = starting.from_run(folder / "three", without)
    assert same(found["params"]["encoder"], theirs(folder)["params"]["encoder"])


def test_scales_are_compared_band_by_band(folder, ours, capsys):
    """Of one range for all, or one for each band, and of elevation, which has none."""
    low = starting.sensors.of(runs.settings())
    four = low._replace(names=("image", "elevation"), value_range=((0.0, 6000.0),) * 3)
    starting.from_run(folder / "three", ours[4], four, bands=(0, 1, 2, 0))
    starting.from_run(folder / "three", ours[4], low, bands=(0, 1, 2, 0))
    assert capsys.readouterr().err == ""
    other = low._replace(value_range=((0.0, 6000.0), (0.0, 6000.0), (0.0, 1.0), (0.0, 6000.0)))
    starting.from_run(folder / "three", ours[4], other, bands=(0, 1, 2, 0))
    assert "was trained with data.value_range (0.0, 6000.0), and here it is" in (
        capsys.readouterr().err
    )
