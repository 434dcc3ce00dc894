"""`python -m elev_ssl_jax.convert`, in this process."""

import json
import sys

import flax
import jax
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from elev_ssl_jax.convert import imported
from elev_ssl_jax.inference import model as inference
from elev_ssl_jax.runtime import starting
from tests import runs
from tests.convert.printed import as_torch, run_usage
from tests.models import torch_resnet

SHAPE = (64, 64, 3)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Runs of full width: a classification, a segmentation, a pre-training, of two bands."""
    folder = tmp_path_factory.mktemp("runs")
    for name, head, bands in (("linear", "linear", 3), ("unet", "unet", 3), ("two", None, 2)):
        settings = runs.settings(head, width=1.0, low=100.0, high=5100.0)
        runs.save_run(folder / name, settings, (64, 64, bands))
    return folder


def load(model, path):
    model.load_state_dict({k: torch.from_numpy(v) for k, v in load_file(path).items()})
    return model.eval()


@pytest.mark.parametrize(
    ("run", "target", "result"),
    [
        ("linear", "torchvision", "logits"),
        ("unet", "segmentation_models_pytorch", "logits"),
        ("two", "torchvision", "features"),
        ("two", "timm", "features"),
        ("linear", "timm", "logits"),
        ("two", "onnx", "features"),
        ("unet", "onnx", "logits"),
    ],
)
def test_the_printed_lines_give_what_the_run_gives(
    convert, full, rng, tmp_path, monkeypatch, run, target, result
):
    model = inference.load(full / run)
    images = rng.integers(0, 6000, (3, *model.image_shape)).astype(np.uint16)
    out = tmp_path / ("file.onnx" if target == "onnx" else "file.safetensors")
    scope = {"usage": "written\n"}
    if target == "onnx":  # which has to be made by PyTorch
        run_usage("written\n", images, monkeypatch, tmp_path)
    code, usage = convert(full / run, target, out, "--print-usage")
    assert code == 0, usage
    given = np.moveaxis(images, -1, 1) if target == "onnx" else as_torch(images)
    scope = run_usage(usage, given, monkeypatch, tmp_path)
    got = np.asarray(scope[result])
    if result == "logits":
        got = np.exp(got) / np.exp(got).sum(axis=1, keepdims=True)
        wanted = np.moveaxis(model.probabilities(images), -1, 1)
    else:
        wanted = model.features(images)
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert {p.name for p in tmp_path.iterdir()} == {out.name, f"{out.name}.md"}
    page = (tmp_path / f"{out.name}.md").read_text()
    assert usage.split("written\n")[1].strip() in page
    if target == "onnx":
        import onnxruntime

        about = onnxruntime.InferenceSession(out).get_modelmeta().custom_metadata_map
        assert json.loads(about["classes"]) == list(model.classes)
    else:
        with safe_open(out, "np") as file:
            told = file.metadata()
        assert told["bands"] == str(model.image_shape[2])
        assert told["value_range"] == "100 5100"
        assert json.loads(told["config"])["model"]["encoder"] == "resnet18"


def test_a_page_beside_the_weights_says_what_they_are(convert, tmp_path):
    settings = runs.settings("unet")
    settings.finetune.num_classes, settings.finetune.classes = 2, ("land", "wa|ter")
    settings.data.dir = str(tmp_path / "private")
    runs.save_run(tmp_path / "run", settings, SHAPE)
    out, page = tmp_path / "all.msgpack", tmp_path / "all.msgpack.md"
    assert convert(tmp_path / "run", "flax", out)[0] == 0
    assert "The run has no results" in page.read_text()
    scores = {"accuracy": 0.8125, "confusion_matrix": [[1, 2], [3, 4]], "classes": ["land"]}
    (tmp_path / "run" / "results.json").write_text(json.dumps(scores))
    code, said = convert(tmp_path / "run", "flax", out)
    assert (code, f"{out} exists already" in said) == (2, True)
    page.write_text("mine")
    out.unlink()
    code, said = convert(tmp_path / "run", "flax", out)  # nor is a page of somebody's replaced
    assert (code, f"{page} exists already" in said) == (2, True)
    assert (out.exists(), page.read_text()) == (False, "mine")
    assert convert(tmp_path / "run", "flax", out, "--overwrite")[0] == 0
    text = page.read_text()
    for said in (
        "| accuracy | 0.8125 |",
        "| tells | classes, one of them: land, wa\\|ter |",
        "| encoder | resnet18, width 0.125 |",
        "| value range | 0 to 6000, in sensor units |",
        "| trained on | nwrc/segmentation, labeled[:80] |",
        "msgpack_restore",
        "one of them",
    ):
        assert said in text
    assert "confusion" not in text
    assert str(tmp_path) not in text

    # Of what was only converted nothing is claimed.
    weights = torch_resnet.tensors(torch_resnet.randomize(torch_resnet.ResNet()))
    save_file(weights, tmp_path / "theirs.safetensors")
    assert convert(tmp_path / "theirs.safetensors", "run", tmp_path / "taken")[0] == 0
    assert convert(tmp_path / "taken", "torchvision", tmp_path / "back.safetensors")[0] == 0
    text = (tmp_path / "back.safetensors.md").read_text()
    assert "| method | converted from theirs.safetensors |" in text
    assert "trained on" not in text

    (tmp_path / "run" / "results.json").write_text("{")
    code, said = convert(tmp_path / "run", "flax", tmp_path / "again.msgpack")
    assert (code, "results.json can't be read" in said) == (2, True)
    assert not (tmp_path / "again.msgpack").exists()


def several_sensors(folder):
    """A pre-training that saw optics, radar and heights, standardised."""
    settings = runs.settings(width=1.0)
    settings.data.inputs, settings.data.rgb = ("s2", "s1", "elevation"), (0, 1, 2)
    settings.data.value_range = (*[(0.0, 6000.0)] * 3, (-25.0, 0.0123456789))
    settings.data.elevation_scale = 250.0
    settings.data.mean, settings.data.std = (100.0, 200.0, 300.0, -12.0), (50.0, 60.0, 70.0, 4.0)
    shapes = {"s2": (32, 32, 3), "s1": (32, 32, 1), "elevation": (32, 32)}
    runs.save_run(folder, settings, (32, 32, 5), elevation=(32, 32), shapes=shapes)
    return inference.load(folder)


def test_several_sensors_and_heights_go_to_pytorch_and_back(convert, tmp_path, monkeypatch, rng):
    model = several_sensors(tmp_path / "run")
    chips = {
        "s2": rng.integers(0, 7000, (3, 32, 32, 3)).astype(np.uint16),
        "s1": rng.normal(-12, 6, (3, 32, 32, 1)).astype(np.float32),
        "elevation": rng.uniform(0, 900, (3, 32, 32)).astype(np.float32),
    }
    joined = np.concatenate([chips["s2"], chips["s1"], chips["elevation"][..., None]], axis=-1)
    out = tmp_path / "out" / "encoder.safetensors"
    out.parent.mkdir()
    code, usage = convert(tmp_path / "run", "torchvision", out, "--print-usage")
    assert code == 0, usage
    assert "s2, 3 bands; s1, 1 bands; elevation in metres" in usage
    got = run_usage(usage, as_torch(joined), monkeypatch, out.parent)["features"]
    wanted = model.features(chips)
    assert np.abs(np.asarray(got) - wanted).max() < 1e-5 * np.abs(wanted).max()

    assert convert(tmp_path / "run", "run", tmp_path / "again")[0] == 0
    again = inference.load(tmp_path / "again")
    assert again.inputs == model.inputs
    np.testing.assert_allclose(again.features(chips), wanted, rtol=1e-4, atol=1e-5)
    assert convert(out, "run", tmp_path / "back")[0] == 0  # from the file
    back = inference.load(tmp_path / "back")
    assert back.inputs == model.inputs
    np.testing.assert_allclose(back.features(chips), wanted, rtol=1e-4, atol=1e-5)
    code, said = convert(tmp_path / "run", "run", tmp_path / "few", "--bands", "0", "3")
    assert code == 2
    assert "takes elevation, which is no band of an image" in said


def test_a_file_of_ours_tells_the_scale_of_each_band(convert, tmp_path):
    settings = runs.settings(width=1.0)
    settings.data.value_range = ((0.0, 10.0), (0.0, 20.0), (0.0, 30.0))
    settings.data.mean, settings.data.std = (1.0, 2.0, 3.0), (4.0,)
    runs.save_run(tmp_path / "run", settings, SHAPE)
    assert convert(tmp_path / "run", "torchvision", tmp_path / "e.safetensors")[0] == 0
    assert convert(tmp_path / "e.safetensors", "run", tmp_path / "back")[0] == 0
    back = inference.load(tmp_path / "back").inputs
    assert back == inference.load(tmp_path / "run").inputs
    more = ("--bands", "2", "0")
    assert convert(tmp_path / "e.safetensors", "run", tmp_path / "two", *more)[0] == 0
    two = inference.load(tmp_path / "two")
    assert two.inputs.value_range == ((0.0, 30.0), (0.0, 10.0))
    assert (two.inputs.mean, two.inputs.std, two.image_shape[2]) == ((3.0, 1.0), (4.0,), 2)


@pytest.mark.parametrize("suffix", ["safetensors", "msgpack"])
def test_flax_variables(convert, tmp_path, suffix):
    variables = runs.save_run(tmp_path / "run", runs.settings("unet"), SHAPE)
    out = tmp_path / f"variables.{suffix}"
    assert convert(tmp_path / "run", "flax", out)[0] == 0
    if suffix == "msgpack":
        back = flax.serialization.msgpack_restore(out.read_bytes())
    else:
        back = flax.traverse_util.unflatten_dict(load_file(out), sep="/")
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    code, printed = convert(tmp_path / "run", "flax", tmp_path / "variables.bin")
    assert code == 2
    assert "must be .safetensors or .msgpack" in printed


def test_a_file_is_replaced_only_when_asked_and_says_nothing_of_this_machine(convert, tmp_path):
    settings = runs.settings("linear")
    settings.data.dir = settings.init_from = str(tmp_path / "somewhere" / "private")
    runs.save_run(tmp_path / "run", settings, SHAPE)
    out = tmp_path / "variables.safetensors"
    out.write_text("mine")
    code, printed = convert(tmp_path / "run", "flax", out)
    assert (code, "exists already; name another file, or add --overwrite" in printed) == (2, True)
    assert out.read_text() == "mine"
    assert convert(tmp_path / "run", "flax", out, "--overwrite")[0] == 0
    with safe_open(out, "np") as file:
        told = file.metadata()
    assert json.loads(told["config"])["init_from"] == "private"
    assert told["method"] == "fine-tuned from private"
    assert "somewhere" not in str(told)


def test_what_does_not_suit_a_library_is_refused(convert, tmp_path, full):
    runs.save_run(tmp_path / "small", runs.settings("unet"), SHAPE)
    runs.save_run(tmp_path / "odd", runs.settings("unet", width=1.0), (40, 40, 3))
    for run, target, message in (
        (tmp_path / "small", "torchvision", "model.width=0.125"),
        (tmp_path / "odd", "segmentation_models_pytorch", "40 x 40 pixels"),
        (full / "linear", "segmentation_models_pytorch", "is not a segmentation run"),
        (tmp_path / "none", "flax", "none has no checkpoint"),
    ):
        code, printed = convert(run, target, tmp_path / "x.safetensors")
        assert (code, len(printed.splitlines())) == (2, 1)
        assert message in printed
        assert not (tmp_path / "x.safetensors").exists()
    code, printed = convert(full / "two", "torchvision", tmp_path / "nowhere" / "x.safetensors")
    assert (code, "there is no folder" in printed) == (2, True)
    code, printed = convert(full / "two", "torchvision", tmp_path / "x", "--bands", "0")
    assert (code, "--bands: for --to=run only" in printed) == (2, True)


@pytest.mark.parametrize("kind", ["pth", "nested.pth", "safetensors"])
def test_weights_from_pytorch_become_a_run(convert, tmp_path, rng, kind):
    theirs = torch_resnet.randomize(torch_resnet.Classifier()).eval()
    path = tmp_path / f"weights.{kind}"
    more = []
    if kind == "pth":
        torch.save(theirs.state_dict(), path)
    elif kind == "nested.pth":
        named = {f"net.{k}": v for k, v in theirs.state_dict().items()} | {"queue": torch.ones(3)}
        torch.save({"epoch": 3, "state_dict": named}, path)
        more = ["--prefix=net."]
    else:
        save_file(torch_resnet.tensors(theirs), path)
    code, printed = convert(path, "run", tmp_path / "run", "--value-range", "0", "255", *more)
    assert code == 0, printed
    assert "resnet18, width 1, 3 bands" in printed
    model = inference.load(tmp_path / "run")
    images = rng.integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    theirs.fc = torch.nn.Identity()
    with torch.no_grad():
        wanted = theirs(as_torch(images) / 255).numpy()
    assert np.abs(model.features(images) - wanted).max() < 1e-5 * np.abs(wanted).max()

    # And as any pre-training's, the encoder starts a fine-tuning, and goes back to the same bits.
    settings = runs.settings("linear", width=1.0)
    ours = runs.save_run(tmp_path / "other", settings, SHAPE)
    loaded = starting.from_run(tmp_path / "run", ours).variables
    kernel = np.asarray(loaded["params"]["encoder"]["conv1"]["kernel"])
    np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), theirs.conv1.weight.detach())
    assert convert(tmp_path / "run", "torchvision", tmp_path / "back.safetensors")[0] == 0
    back = load_file(tmp_path / "back.safetensors")
    for name, value in torch_resnet.tensors(theirs).items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_the_stem_takes_other_bands_and_raw_values(rng):
    theirs = torch_resnet.randomize(torch_resnet.ResNet())
    _, _, variables = imported.encoder_variables(torch_resnet.tensors(theirs), "it")
    stem = variables["params"]["conv1"]["kernel"]

    def answer(tree, images):
        """The stem after its BatchNorm, without the border."""
        from elev_ssl_jax.models.resnet import ResNet18

        return np.asarray(ResNet18().apply(tree, images, train=False)[0])[:, 2:-2, 2:-2]

    # Every band of the weights is used: an image whose bands are alike is seen as before.
    gray = rng.random((1, 64, 64, 1), np.float32)
    five = starting.adapt_stem(variables, bands=[0, 1, 2, 0, 0])
    np.testing.assert_allclose(
        answer(five, gray.repeat(5, 3)), answer(variables, gray.repeat(3, 3)), atol=2e-4
    )
    np.testing.assert_allclose(five["params"]["conv1"]["kernel"][:, :, 3], stem[:, :, 0] / 3)
    one = starting.adapt_stem(variables, bands=[1])
    np.testing.assert_allclose(one["params"]["conv1"]["kernel"], 3 * stem[:, :, 1:2])
    turned = starting.adapt_stem(variables, bands=[2, 1, 0])
    np.testing.assert_array_equal(turned["params"]["conv1"]["kernel"], stem[:, :, ::-1])

    images = rng.random((1, 64, 64, 3), np.float32)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    raw = starting.adapt_stem(variables, mean=mean, std=std)
    standardised = ((images - np.float32(mean)) / np.float32(std)).astype(np.float32)
    np.testing.assert_allclose(answer(raw, images), answer(variables, standardised), atol=2e-4)


def test_weights_that_cannot_be_used_are_refused(convert, tmp_path, monkeypatch):
    good = torch_resnet.tensors(torch_resnet.ResNet())
    lacking = {k: v for k, v in good.items() if k != "layer2.0.bn1.weight"}

    def write(name, tensors):
        save_file(tensors, tmp_path / name)
        return tmp_path / name

    class Code:
        def __reduce__(self):
            return (exec, ("raise SystemExit('a pickle was run')",))

    nans = np.full(64, np.nan, np.float32)
    boasting = tmp_path / "boasting.safetensors"
    save_file(good, boasting, {"value_range": "all of them"})
    torch.save({"conv1.weight": Code()}, tmp_path / "evil.pth")
    torch.save({"conv1.weight": 3}, tmp_path / "number.pth")
    (tmp_path / "torn.pth").write_bytes(b"PK\x03\x04 torn")
    (tmp_path / "torn.safetensors").write_bytes(b"\xff" * 100)
    for path, message, *more in (
        (write("a.safetensors", lacking), "as a resnet18, doesn't fit (missing keys: layer2.0.bn1"),
        (write("b.safetensors", good | {"queue": np.ones(2)}), "unknown keys: queue"),
        (write("c.safetensors", {f"m.{k}": v for k, v in good.items()}), "try --prefix=m."),
        (write("d.safetensors", {"x": np.ones(2)}), "has no conv1.weight"),
        (write("e.safetensors", good), "--bands is [0, 3]; ", "--bands", "0", "3"),
        (write("f.safetensors", good), "--mean has 1 numbers; ", "--mean", "0.5"),
        (write("g.safetensors", good), "--value-range is", "--value-range", "9", "3"),
        (tmp_path / "g.safetensors", "--value-range is", "--value-range", "nan", "3"),
        (tmp_path / "g.safetensors", "--mean is nan", "--mean", "nan", "0", "0"),
        (tmp_path / "g.safetensors", "--std is inf", "--std", "inf", "1", "1"),
        (write("h.safetensors", good | {"bn1.bias": nans}), "bn1.bias has values that are not fin"),
        (boasting, "says that its value_range is 'all of them'"),
        (tmp_path / "evil.pth", "holds other things than tensors, which are never run"),
        (tmp_path / "number.pth", "is not a state_dict"),
        (tmp_path / "torn.pth", "is damaged"),
        (tmp_path / "torn.safetensors", "is not a readable safetensors file"),
        (tmp_path / "none.pth", "none.pth not found"),
    ):
        code, printed = convert(path, "run", tmp_path / "run", *more)
        assert (code, len(printed.splitlines())) == (2, 1), printed
        assert message in printed
        assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    code, printed = convert(tmp_path / "g.safetensors", "run", tmp_path / "run")
    assert (code, "exists already" in printed) == (2, True)

    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    code, printed = convert(tmp_path / "number.pth", "run", tmp_path / "new")
    assert (code, "PyTorch 2.5.1+cpu may run code" in printed) == (2, True)

    monkeypatch.setitem(sys.modules, "torch", None)
    code, printed = convert(tmp_path / "number.pth", "run", tmp_path / "new")
    assert (code, "needs PyTorch, which is not installed; pip install torch" in printed) == (
        2,
        True,
    )
