"""Swin weights to timm and back, by the command."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from elev_ssl_jax.convert import imported
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.inference import model as inference
from elev_ssl_jax.runtime import starting
from tests import runs
from tests.convert.printed import as_torch, run_usage
from tests.models import torch_swin

WIDTH, CHANNELS = 0.25, 24


def settings(head=None):
    result = runs.settings(head, width=WIDTH, low=100.0, high=5100.0)
    result.model.encoder = "swin_t"
    if head is None:
        result.objective.alpha = 0.0
    return result


def tensors_of(model):
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def reference():
    """A Swin of three bands with timm's names, as narrow as `WIDTH` makes it."""
    return torch_swin.randomize(torch_swin.Classifier(7, 3, CHANNELS)).eval()


@pytest.mark.parametrize(
    ("head", "shape", "scaling"),
    [("linear", (224, 224, 4), "crop_max"), (None, (64, 64, 2), "range")],
)
def test_the_printed_lines_give_what_the_run_gives(
    convert, rng, tmp_path, monkeypatch, head, shape, scaling
):
    config = settings(head)
    config.data.scaling = scaling
    runs.save_run(tmp_path / "run", config, shape)
    model = inference.load(tmp_path / "run")
    out = tmp_path / "encoder.safetensors"
    code, usage = convert(tmp_path / "run", "timm", out, "--print-usage")
    assert code == 0, usage
    # timm's windows lie as ours at multiples of 224 pixels alone.
    assert ("the run's are 64 x 64; at sizes that 224" in usage) == (head is None)
    images = rng.integers(0, 6000, (1, 224, 224, shape[2])).astype(np.uint16)
    scope = run_usage(usage, as_torch(images), monkeypatch, tmp_path)
    got = np.asarray(scope["features" if head is None else "logits"])
    wanted = model.features(images)
    if head:
        got = np.exp(got) / np.exp(got).sum(axis=1, keepdims=True)
        wanted = model.probabilities(images)
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() < 1e-5 * np.abs(wanted).max()
    with safe_open(out, "np") as file:
        told = file.metadata()
        assert ("head.fc.weight" in file.keys()) == (head is not None)  # noqa: SIM118
    assert (told["encoder"], told["bands"]) == ("swin_t", str(shape[2]))
    assert told["scaling"] == scaling
    assert json.loads(told["classes"]) == list(model.classes)


def test_larger_images_are_told_to_timm(convert, tmp_path):
    runs.save_run(tmp_path / "run", settings("linear"), (224, 448, 3))
    code, usage = convert(tmp_path / "run", "timm", tmp_path / "e.safetensors", "--print-usage")
    assert (code, "img_size=(224, 448)" in usage) == (0, True)
    assert "[B, 3, 224, 448]" in usage


@pytest.mark.parametrize("kind", ["timm", "microsoft", "prefixed"])
def test_timms_weights_become_a_run_and_go_back_to_the_same_bits(
    convert, rng, tmp_path, reference, kind
):
    weights = tensors_of(reference)
    path, more = tmp_path / "weights.safetensors", ()
    theirs = dict(weights)
    if kind == "microsoft":  # or older timm: buffers, and merging at the end of a stage
        for stage in (1, 2, 3):
            for name in [n for n in theirs if n.startswith(f"layers.{stage}.downsample.")]:
                theirs[name.replace(f"layers.{stage}", f"new.{stage - 1}")] = theirs.pop(name)
        theirs = {name.replace("new.", "layers."): value for name, value in theirs.items()}
        theirs["layers.0.blocks.0.attn.relative_position_index"] = np.zeros((49, 49), np.int64)
        theirs["layers.0.blocks.1.attn_mask"] = np.zeros((64, 49, 49), np.float32)
        theirs["head.weight"] = theirs.pop("head.fc.weight")
        theirs["head.bias"] = theirs.pop("head.fc.bias")
    if kind == "prefixed":
        theirs = {f"net.{name}": value for name, value in theirs.items()}
        save_file(theirs, path)
        code, said = convert(path, "run", tmp_path / "run")
        assert (code, "try --prefix=net." in said) == (2, True)
        more = ("--prefix=net.",)
    save_file({name: np.ascontiguousarray(value) for name, value in theirs.items()}, path)
    code, said = convert(path, "run", tmp_path / "run", "--value-range", "0", "255", *more)
    assert (code, "swin_t, width 0.25, 3 bands" in said) == (0, True), said

    assert convert(tmp_path / "run", "timm", tmp_path / "back.safetensors")[0] == 0
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == {name for name in weights if not name.startswith("head.")}
    for name, value in back.items():
        np.testing.assert_array_equal(value, weights[name], err_msg=name)
    if kind != "timm":
        return

    # The run sees what timm sees, starts a fine-tuning, and its file makes the same file again.
    model = inference.load(tmp_path / "run")
    images = rng.integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    with torch.no_grad():
        wanted = torch_swin.Swin.forward(reference, as_torch(images) / 255)[-1].mean((1, 2))
    got = model.features(images)
    assert np.abs(got - wanted.numpy()).max() < 1e-5 * np.abs(wanted.numpy()).max()
    ours = runs.save_run(tmp_path / "other", settings("linear"), (64, 64, 3))
    loaded = starting.from_run(tmp_path / "run", ours).variables
    kernel = np.asarray(loaded["params"]["encoder"]["patch_embed"]["kernel"])
    np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), weights["patch_embed.proj.weight"])
    assert convert(tmp_path / "back.safetensors", "run", tmp_path / "again")[0] == 0
    assert convert(tmp_path / "again", "timm", tmp_path / "again.safetensors")[0] == 0
    paths = [tmp_path / f"{name}.safetensors" for name in ("back", "again")]
    first, second = (load_file(path) for path in paths)
    for name, value in first.items():
        np.testing.assert_array_equal(second[name], value, err_msg=name)
    heads = []
    for path in paths:
        with safe_open(path, "np") as file:
            heads.append(file.metadata())
    assert heads[0] == heads[1]

    # Another number of bands is told when it is loaded, with the way to adapt it.
    two = runs.save_run(tmp_path / "two", settings("linear"), (64, 64, 2))
    with pytest.raises(InputError, match=r"takes 3 bands, but these images have 2; .* --bands"):
        starting.from_run(tmp_path / "run", two)
    assert convert(tmp_path / "run", "run", tmp_path / "fits", "--bands", "2", "0")[0] == 0
    starting.from_run(tmp_path / "fits", two)


def test_the_patch_embedding_takes_other_bands_and_raw_values(rng, reference):
    _, _, variables = imported.encoder_variables(tensors_of(reference), "it")
    stem = variables["params"]["patch_embed"]["kernel"]

    def answer(tree, images):
        """The patch embedding, before its LayerNorm."""
        layer = tree["params"]["patch_embed"]
        parts = images.reshape(len(images), 8, 4, 8, 4, -1)
        return np.einsum("bhiwjc,ijco->bhwo", parts, layer["kernel"]) + layer["bias"]

    gray = rng.random((1, 32, 32, 1), np.float32)
    five = starting.adapt_stem(variables, bands=[0, 1, 2, 0, 0])
    np.testing.assert_allclose(
        answer(five, gray.repeat(5, 3)), answer(variables, gray.repeat(3, 3)), atol=2e-5
    )
    np.testing.assert_allclose(five["params"]["patch_embed"]["kernel"][:, :, 3], stem[:, :, 0] / 3)
    one = starting.adapt_stem(variables, bands=[1])
    np.testing.assert_allclose(one["params"]["patch_embed"]["kernel"], 3 * stem[:, :, 1:2])

    images = rng.random((1, 32, 32, 3), np.float32)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    raw = starting.adapt_stem(variables, mean=mean, std=std)
    standardised = ((images - np.float32(mean)) / np.float32(std)).astype(np.float32)
    np.testing.assert_allclose(answer(raw, images), answer(variables, standardised), atol=2e-5)
    assert raw["batch_stats"] == {}


def test_weights_of_another_swin_are_refused(convert, tmp_path, reference):
    good = tensors_of(reference)
    table = "layers.0.blocks.0.attn.relative_position_bias_table"
    deeper = good | {
        name.replace("layers.2.blocks.5", f"layers.2.blocks.{block}"): value
        for name, value in good.items()
        for block in range(6, 18)
        if name.startswith("layers.2.blocks.5.")
    }
    ours = "model.encoder=swin_t is of depths 2 2 6 2, heads 3 6 12 24, windows 7 7 7 7"
    wide = np.zeros((25, 3, 4, 4), np.float32)
    for number, (change, message) in enumerate(
        (
            (deeper, f"is a Swin of depths 2 2 18 2, heads 3 6 12 24, windows 7 7 7 7; {ours}"),
            (good | {table: np.zeros((529, 4), np.float32)}, "heads 4 6 12 24, windows 12 7 7 7; "),
            (good | {table: np.zeros(3, np.float32)}, "heads 0 6 12 24"),
            (
                {"patch_embed.proj.weight": wide},
                f"is a Swin of depths none, heads none, windows none; {ours}",
            ),
            (good | {"patch_embed.proj.weight": wide}, "as a swin_t, doesn't fit: patch_embed"),
            (good | {"patch_embed.proj.weight": wide[:, :0]}, "has no conv1.weight"),
            ({k: v for k, v in good.items() if k != "norm.bias"}, "(missing keys: norm.bias)"),
            (good | {"norm.bias": np.full(192, np.nan, np.float32)}, "norm.bias has values that"),
        )
    ):
        path = tmp_path / f"{number}.safetensors"
        save_file(change, path)
        code, said = convert(path, "run", tmp_path / "run")
        assert (code, len(said.splitlines()), message in said) == (2, 1, True), said
        assert not (tmp_path / "run").exists()


def test_what_has_no_such_encoder_names_what_has(convert, tmp_path):
    for encoder, head in (("swin_t", "unet"), ("swin_t", "swin_unet"), ("vgg", None)):
        config = settings(head and "unet")
        if head:
            config.finetune.head = head
        config.model.encoder = encoder
        runs.save_run(tmp_path / f"{encoder}{head}", config, (64, 64, 3))
    out = tmp_path / "x.safetensors"
    for run, target, message in (
        ("swin_tunet", "torchvision", "--to=timm takes its encoder, --to=flax takes all of it"),
        ("swin_tunet", "onnx", "--to=timm takes its encoder, --to=flax takes all of it"),
        ("swin_tunet", "segmentation_models_pytorch", "--to=timm takes its encoder"),
        ("swin_tswin_unet", "segmentation_models_pytorch", "--to=flax takes all of it"),
        ("vggNone", "torchvision", "model.encoder=vgg, and --to=torchvision is for resnet18, "),
        ("vggNone", "timm", "resnet50, swin_t; --to=flax takes all of it"),
    ):
        code, said = convert(tmp_path / run, target, out)
        assert (code, len(said.splitlines()), message in said) == (2, 1, True), said
        assert not out.exists()
    assert convert(tmp_path / "swin_tswin_unet", "timm", out)[0] == 0
