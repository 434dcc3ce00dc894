"""Runs of several sensors: which bands are seen, in which numbers, and by which encoder."""

import json

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from elev_ssl_jax.inference import model as inference
from tests import runs
from tests.convert.printed import as_torch, run_usage

SHAPES = {"s1": (32, 32, 2), "s2": (32, 32, 3), "elevation": (32, 32)}
RANGES = ((-25.0, 0.5), (-30.0, -5.0), (0.0, 6000.0), (100.0, 5000.12345678), (0.0, 4000.0))


def chips(rng, shapes=SHAPES):
    """Of two sensors, one of whose bands is dark everywhere, and heights."""
    found = {
        "s1": rng.normal(-14, 8, (3, *shapes["s1"])).astype(np.float32),
        "s2": rng.integers(0, 7000, (3, *shapes["s2"])).astype(np.uint16),
        "elevation": rng.uniform(0, 900, (3, 32, 32)).astype(np.float32),
    }
    found["s2"][1, ..., 1] = 7
    return found


def joined(found, inputs):
    arrays = [found[name] for name in inputs]
    return np.concatenate(
        [a if a.ndim == 4 else a[..., None] for a in arrays], -1, dtype=np.float32
    )


@pytest.fixture
def make(tmp_path):
    """Saves a pre-training run of full width with these fields of `config.data`."""

    def run(**fields):
        settings = runs.settings(width=1.0)
        settings.data.update({"inputs": ("s1", "s2"), "value_range": RANGES, **fields})
        inputs, bands = settings.data.inputs, settings.data.bands
        count = (len(bands) or 5) + ("elevation" in inputs)
        runs.save_run(
            tmp_path / "run", settings, (32, 32, count), elevation=(32, 32), shapes=SHAPES
        )
        return inference.load(tmp_path / "run")

    return run


@pytest.mark.parametrize(
    ("fields", "targets"),
    [
        ({"bands": (3, 0, 4)}, ("torchvision", "flax")),
        ({"bands": (3, 0, 4), "mean": (1.0, 2.0, 3.0, 4.0, 5.0), "std": (2.0,)}, ("flax",)),
        ({"bands": (2, 1), "value_range": (-25.0, 6000.0)}, ("torchvision", "onnx")),
        ({"scaling": "crop_max"}, ("torchvision", "flax", "timm")),
        ({"scaling": "crop_max", "value_range": (-25.0, 6000.0)}, ("flax",)),
        (
            {"scaling": "crop_max", "bands": (3, 0, 4), "inputs": ("s1", "s2", "elevation")},
            ("torchvision", "flax", "onnx"),
        ),
        ({"scaling": "crop_max", "bands": (1, 3)}, ("onnx",)),
    ],
)
def test_the_printed_lines_choose_bands_and_scale_them(
    convert, make, rng, tmp_path, monkeypatch, fields, targets
):
    model, found = make(**fields), chips(rng)
    wanted = model.features(found)
    images = joined(found, model.inputs.names)
    for target in targets:
        suffix = "onnx" if target == "onnx" else "safetensors"
        out = tmp_path / target / f"file.{suffix}"
        out.parent.mkdir()
        if target == "onnx":  # which has to be made by PyTorch
            run_usage("written\n", images, monkeypatch, out.parent)
        code, usage = convert(tmp_path / "run", target, out, "--print-usage")
        assert code == 0, usage
        assert f"[B, {images.shape[-1]}, " in usage or f", W, {images.shape[-1]}]" in usage
        given = {"flax": images, "onnx": np.moveaxis(images, -1, 1)}.get(target)
        scope = run_usage(
            usage, as_torch(images) if given is None else given, monkeypatch, out.parent
        )
        if target == "flax":
            got = scope["maps"][-1].mean(axis=(1, 2))
        else:
            got = np.asarray(scope["features"])
        assert np.abs(got - wanted).max() < 1e-5 * np.abs(wanted).max(), target

    # What a file says of bands and scaling comes back with it.
    if "torchvision" in targets:
        for source in (tmp_path / "torchvision" / "file.safetensors", tmp_path / "run"):
            back = tmp_path / f"back_{source.name}"
            assert convert(source, "run", back)[0] == 0
            assert inference.load(back).inputs == model.inputs
            np.testing.assert_allclose(
                inference.load(back).features(found), wanted, rtol=1e-4, atol=1e-5
            )


def test_bands_of_bands_keep_their_scale(convert, make, rng, tmp_path):
    make(bands=(3, 0, 4), scaling="crop_max")
    out = tmp_path / "file.safetensors"
    assert convert(tmp_path / "run", "torchvision", out)[0] == 0
    for number, source in enumerate((tmp_path / "run", out)):
        code, said = convert(source, "run", tmp_path / f"new{number}", "--bands", "2", "0")
        assert (code, "resnet18, width 1, 2 bands" in said) == (0, True)
        new = inference.load(tmp_path / f"new{number}")
        assert new.inputs.value_range == (RANGES[4], RANGES[3])
        assert (new.inputs.names, new.inputs.bands) == (("image",), ())
        assert new.inputs.scaling == "crop_max"
        assert new.features(rng.random((1, 32, 32, 2), np.float32)).shape == (1, 512)


def test_a_head_that_makes_no_sense_is_refused(convert, make, tmp_path):
    make(bands=(3, 0, 4))
    out = tmp_path / "file.safetensors"
    assert convert(tmp_path / "run", "torchvision", out)[0] == 0
    with safe_open(out, "np") as file:
        told = file.metadata()
    wrong = tmp_path / "wrong.safetensors"
    for change, message in (
        ({"band_numbers": "3 0"}, "doesn't say what its 3 bands are"),
        ({"band_numbers": "3 0 5"}, "doesn't say what its 3 bands are"),
        ({"band_numbers": "3 3 0"}, "doesn't say what its 3 bands are"),
        ({"band_numbers": "red"}, "doesn't say what its 3 bands are"),
        ({"scaling": "log"}, "says that its scaling is 'log'"),
    ):
        save_file(load_file(out), wrong, told | change)
        code, said = convert(wrong, "run", tmp_path / "new")
        assert (code, len(said.splitlines()), message in said) == (2, 1, True), said


def late(folder, encoder="resnet18", head="linear", width=1.0):
    settings = runs.settings(head, width=width)
    settings.model.encoder, settings.model.fusion = encoder, "late"
    settings.data.inputs, settings.data.rgb = ("s1", "s2"), (2, 3, 4)
    settings.data.value_range = RANGES
    settings.data.scaling = "crop_max"
    settings.init_from = "runs/dual"
    runs.save_run(folder, settings, (32, 32, 5), shapes=SHAPES)
    return inference.load(folder)


def test_one_branch_goes_out_alone(convert, rng, tmp_path, monkeypatch):
    model, found = late(tmp_path / "run"), chips(rng)
    both = model.features(found)
    parts = {"s1": both[:, :512], "s2": both[:, 512:]}
    for name, target in (("s1", "torchvision"), ("s2", "torchvision"), ("s2", "timm")):
        out = tmp_path / f"{name}.safetensors"
        more = ("--branch", name, "--print-usage", "--overwrite")
        code, usage = convert(tmp_path / "run", target, out, *more)
        assert code == 0, usage
        got = run_usage(usage, as_torch(found[name]), monkeypatch, tmp_path)["features"]
        assert np.abs(got.numpy() - parts[name]).max() < 1e-5 * np.abs(both).max()
        with safe_open(out, "np") as file:
            told = file.metadata()
            assert not [key for key in file.keys() if key.startswith("fc.")]  # noqa: SIM118
        ends = RANGES[:2] if name == "s1" else RANGES[2:]
        assert told["value_range"] == " ".join(f"{v:.12g}" for pair in ends for v in pair)
        assert (told["inputs"], told["bands"]) == (name, str(len(ends)))
        assert told["rgb"] == ("" if name == "s1" else "0 1 2")
        assert (told["classes"], told["method"]) == ("[]", "fine-tuned from dual")
        assert json.loads(told["config"])["data"]["inputs"] == [name]
        assert json.loads(told["shapes"]) == {name: list(SHAPES[name])}

    code, said = convert(tmp_path / "run", "run", tmp_path / "new", "--branch", "s2")
    assert (code, "resnet18, width 1, 3 bands" in said) == (0, True)
    new = inference.load(tmp_path / "new")
    assert (new.inputs.names, new.inputs.value_range) == (("s2",), RANGES[2:])
    np.testing.assert_allclose(new.features(found), parts["s2"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("encoder", "suffix"),
    [("resnet18", "safetensors"), ("swin_t", "msgpack"), ("vgg", "safetensors")],
)
def test_flax_rebuilds_several_encoders_or_one(
    convert, rng, tmp_path, monkeypatch, encoder, suffix
):
    model, found = late(tmp_path / "run", encoder, width=0.125), chips(rng)
    wanted = model.features(found)
    out = tmp_path / f"file.{suffix}"
    images = joined(found, ("s1", "s2"))
    for name, given in ((None, images), ("s1", images[..., :2])):
        more = ("--overwrite", "--print-usage") + (("--branch", name) if name else ())
        code, usage = convert(tmp_path / "run", "flax", out, *more)
        assert code == 0, usage
        scope = run_usage(usage, given, monkeypatch, tmp_path)
        got = scope["maps"][-1].mean(axis=(1, 2))
        part = wanted if name is None else wanted[:, : wanted.shape[1] // 2]
        assert got.shape == part.shape
        assert np.abs(got - part).max() < 1e-5 * np.abs(wanted).max()
    if suffix == "safetensors":
        assert not [key for key in load_file(out) if "/head/" in key]


def test_several_encoders_are_no_single_network(convert, full_width_runs, tmp_path):
    run, single = full_width_runs
    out = tmp_path / "file.safetensors"
    for target in ("torchvision", "timm", "onnx", "segmentation_models_pytorch", "run"):
        code, said = convert(run, target, out)
        assert (code, len(said.splitlines())) == (2, 1), said
        assert "--branch s1 or --branch s2" in said
    for source, target, name, message in (
        (run, "torchvision", "s3", "has --branch s1 or --branch s2"),
        (run, "segmentation_models_pytorch", "s1", "is not a segmentation run"),
        (single, "torchvision", "s1", "has one encoder for all its inputs; leave it out"),
        (single, "run", "s1", "has one encoder for all its inputs; leave it out"),
        (tmp_path / "w.pth", "run", "s1", "of a run, and"),
    ):
        code, said = convert(source, target, out, "--branch", name)
        assert (code, len(said.splitlines()), message in said) == (2, 1, True), said
    assert not out.exists()


@pytest.fixture(scope="module")
def full_width_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    late(folder / "late", width=0.125)
    runs.save_run(folder / "single", runs.settings(width=0.125), (32, 32, 3))
    return folder / "late", folder / "single"


def test_two_sensors_pretraining_gives_either(convert, rng, tmp_path):
    settings = runs.settings(width=0.125)
    settings.model.encoder, settings.model.fusion = "swin_t", "late"
    settings.data.inputs, settings.objective.positives = ("s1", "s2"), "sensors"
    settings.objective.alpha = 0.0
    variables = runs.save_run(tmp_path / "run", settings, (32, 32, 5), shapes=SHAPES)
    out = tmp_path / "s2.safetensors"
    assert convert(tmp_path / "run", "flax", out, "--branch", "s2")[0] == 0
    with safe_open(out, "np") as file:
        assert file.metadata()["method"] == "dual_simclr"
    kept = load_file(out)
    ours = variables["params"]["encoder"]["s2"]
    assert len(kept) == len(jax.tree.leaves(ours))
    np.testing.assert_array_equal(kept["params/encoder/norm/scale"], ours["norm"]["scale"])


def test_classes_that_are_present_have_a_sigmoid_each(convert, rng, tmp_path, monkeypatch):
    settings = runs.settings("linear", width=1.0)
    settings.finetune.target, settings.data.inputs = "present", ("s2",)
    runs.save_run(tmp_path / "run", settings, (32, 32, 3), shapes=SHAPES)
    out = tmp_path / "file.safetensors"
    code, usage = convert(tmp_path / "run", "torchvision", out, "--print-usage")
    assert (code, "each has the sigmoid of its logit" in usage) == (0, True)
    found = chips(rng)
    got = run_usage(usage, as_torch(found["s2"]), monkeypatch, tmp_path)["logits"].sigmoid()
    wanted = inference.load(tmp_path / "run").probabilities({"s2": found["s2"]})
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    with safe_open(out, "np") as file:
        assert file.metadata()["probabilities"] == "sigmoid"


def test_a_vgg_takes_other_bands(convert, rng, tmp_path):
    settings = runs.settings(width=0.125)
    settings.model.encoder, settings.objective.alpha = "vgg", 0.0
    runs.save_run(tmp_path / "run", settings, (16, 16, 3))
    code, said = convert(tmp_path / "run", "run", tmp_path / "five", "--bands", *"01200")
    assert (code, "vgg, width 0.125, 5 bands" in said) == (0, True), said
    gray = rng.uniform(0, 6000, (1, 16, 16, 1)).astype(np.float32)
    three, five = (inference.load(tmp_path / name) for name in ("run", "five"))
    np.testing.assert_allclose(
        five.features(gray.repeat(5, 3)), three.features(gray.repeat(3, 3)), rtol=1e-4, atol=1e-5
    )
    # An image that is the mean everywhere, where no border shows, is nothing to the stem.
    more = ("--mean", "0.5", "0.25", "0.1", "--std", "0.2", "0.2", "0.2")
    assert convert(tmp_path / "run", "run", tmp_path / "raw", *more)[0] == 0
    raw = inference.load(tmp_path / "raw").variables
    kernel = np.asarray(raw["params"]["encoder"]["block1_conv1"]["kernel"])
    (then, now) = (
        np.asarray(tree["batch_stats"]["encoder"]["block1_bn1"]["mean"])
        for tree in (three.variables, raw)
    )
    np.testing.assert_allclose(
        np.einsum("hwio,i->o", kernel, [0.5, 0.25, 0.1]) - now, -then, atol=1e-5
    )
