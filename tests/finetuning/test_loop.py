import collections
import dataclasses
import functools
import itertools
import json

import jax
import numpy as np
import optax
import pytest
import sklearn.metrics
from sklearn.utils.class_weight import compute_class_weight

from elev_ssl_jax import metrics, sensors
from elev_ssl_jax.checks import check
from elev_ssl_jax.config import fine_tuning
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.finetuning import labelled, loop, single, step
from elev_ssl_jax.inference import model as inference
from elev_ssl_jax.pretraining import loop as pretraining
from elev_ssl_jax.runtime import sharding, starting
from elev_ssl_jax.runtime.train_state import TrainState
from tests import runs
from tests.pretraining.test_loop import Stop, Stopping, Writer

SIZE = 32


@pytest.fixture(params=["linear", "unet"])
def head(request):
    return request.param


@pytest.fixture
def config(head):
    """A fine-tuning whose steps take milliseconds, with a rate that shows in a few of them."""
    config = fine_tuning(head)
    config.model.encoder = "vgg"
    config.model.width, config.finetune.num_classes = 0.125, 2
    config.finetune.frozen_epochs, config.epochs = 2, 3
    config.finetune.frozen_learning_rate = config.optimizer.learning_rate = 3e-3
    config.checkpoint.every_epochs = 1
    return config


def make_chips(head, count, seed=0):
    """Class 1 is bright, and so are its pixels; some are unlabelled."""
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, 2, (count, 4, 4)).repeat(SIZE // 4, 1).repeat(SIZE // 4, 2)
    label = np.arange(count) % 2
    if head == "linear":
        mask = np.broadcast_to(label[:, None, None], mask.shape)
    images = rng.integers(0, 3000, (count, SIZE, SIZE, 3)) + 2500 * mask[..., None]
    targets = (label if head == "linear" else mask).astype(np.uint8)
    if head == "unet":
        targets[:, :3, :3] = labelled.UNLABELLED
    return labelled.Labelled({"image": images.astype(np.uint16)}, targets)


@pytest.fixture
def chips(head):
    return make_chips(head, 24)


def start(config, chips):
    setup = loop.make_setup(config, {"image": (SIZE, SIZE, 3)}, len(chips.targets))
    return setup, runs.drawn(lambda: loop.init(setup, 0, (SIZE, SIZE, 3)))


def equal(one, other):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_the_frozen_stage_leaves_the_encoder_as_it_is(config, chips, mode):
    config.finetune.frozen_batchnorm, config.epochs = mode, 1
    setup, variables = start(config, chips)
    before = jax.device_get(variables)
    states = {}
    for epoch in loop.fit(setup, variables, chips, seed=0):
        states[epoch.stage] = jax.device_get(epoch.state)
        assert np.isfinite(epoch.loss)
    frozen, full = states["frozen"], states["full"]
    assert "encoder" not in frozen.params
    statistics = frozen.batch_stats["encoder"]
    assert equal(statistics, before["batch_stats"]["encoder"]) == (mode == "inference")
    new = {name: p for name, p in before["params"].items() if name != "encoder"}
    assert not equal(frozen.params, new)
    # The variables that the caller passed in are still his, and the full stage moves them all.
    assert equal(jax.device_get(variables), before)
    assert not equal(full.params["encoder"], before["params"]["encoder"])
    assert int(full.step) == len(chips.targets) // config.batch_size


def test_the_encoder_that_enters_the_full_stage_is_bit_identical(config, chips):
    config.optimizer.learning_rate = 0.0  # the full stage then moves nothing
    setup, variables = start(config, chips)
    *_, last = loop.fit(setup, variables, chips, seed=0)
    assert equal(last.state.params["encoder"], variables["params"]["encoder"])


def test_the_last_chips_of_an_epoch_are_learned_from_too(config, head):
    chips = make_chips(head, 20)  # two batches of eight and one of four
    steps = [batch for epoch in (0, 1) for batch in loop._batches(3, epoch, np.arange(20), 8)]
    assert [len(batch) for batch in steps] == [8, 8, 4] * 2
    for epoch in (steps[:3], steps[3:]):
        np.testing.assert_array_equal(np.sort(np.concatenate(epoch)), np.arange(20))
    setup, variables = start(config, chips)
    last = collections.deque(loop.fit(setup, variables, chips, seed=0), maxlen=1).pop()
    assert int(last.state.step) == 3 * config.epochs


def test_no_batch_is_a_single_chip(rng):
    for count, sizes in ((8, [8]), (9, [9]), (16, [8, 8]), (17, [8, 9]), (18, [8, 8, 2])):
        batches = loop._batches(0, 0, np.arange(count), 8)
        assert [len(batch) for batch in batches] == sizes
        assert loop.steps_per_epoch(count, 8) == len(sizes)
    assert len(loop._batches(0, 0, np.arange(3), 1)) == 3  # unless that is what is asked for


def test_the_frozen_stage_has_a_rate_of_its_own(config, chips):
    def after_frozen_stage():
        setup, variables = start(config, chips)
        epochs = loop.fit(setup, variables, chips, seed=0)
        frozen = list(itertools.islice(epochs, config.finetune.frozen_epochs))
        return jax.device_get(frozen[-1].state.params)

    plain = after_frozen_stage()
    config.optimizer.schedule, config.optimizer.scaling = "cosine", "linear"
    config.optimizer.warmup_epochs = 2.5  # longer than the frozen stage
    check(config)
    assert equal(after_frozen_stage(), plain)


def test_classes_that_eight_bits_do_not_hold_are_refused():
    np.testing.assert_array_equal(labelled.as_targets(np.array([-1, 0, 254])), [255, 0, 254])
    with pytest.raises(InputError, match="class 256 is above 254"):
        labelled.as_targets(np.array([0, 256]))


def test_maps_that_are_known_change_nothing(config, chips):
    # Adam takes the sign of gradients that are only rounding, which one step then shows.
    config.epochs, config.optimizer.name = 1, "lars"
    setup, variables = start(config, chips)
    maps = loop.encode_views(setup, variables, chips.inputs)
    known, encoded = (
        [float(epoch.loss) for epoch in loop.fit(setup, variables, chips, seed=4, maps=m)]
        for m in (maps, None)
    )
    np.testing.assert_allclose(known, encoded, rtol=1e-5)
    assert np.abs(np.diff(known)).min() > 1e-3  # what the steps have done shows
    config.data.resident_gib = 1e-6
    small = loop.make_setup(config, {"image": (SIZE, SIZE, 3)}, 24)
    assert loop.encode_views(small, variables, chips.inputs) is None


def test_it_learns_and_counts_like_scikit_learn(config, chips, head):
    config.epochs = 15
    setup, variables = start(config, chips)
    *_, last = loop.fit(setup, variables, chips, seed=0)
    test = make_chips(head, 70, seed=1)  # more than a batch, and not a whole number of them
    matrix, classes = step.judge(setup, last.state.variables, test)
    assert classes.shape == test.targets.shape
    known = test.targets != labelled.UNLABELLED
    expected = sklearn.metrics.confusion_matrix(test.targets[known], classes[known])
    np.testing.assert_array_equal(matrix, expected)
    assert np.trace(matrix) > 0.9 * matrix.sum()


def test_fewer_labels_are_the_first_ones(config, chips):
    config.epochs = 1
    setup, variables = start(config, chips)
    few = chips.take(slice(16))
    *_, whole = loop.fit(setup, variables, chips, seed=0, count=16)
    *_, part = loop.fit(setup, variables, few, seed=0)
    np.testing.assert_allclose(whole.loss, part.loss, rtol=1e-4)


@pytest.mark.parametrize("head", ["linear"], indirect=True)
def test_an_encoder_of_another_rate_moves_so_much_less(config, chips):
    config.finetune.frozen_epochs, config.epochs = 0, 1
    moved = {}
    for scale in (1.0, 0.1, 0.0):
        config.optimizer.encoder_scale = scale
        setup, variables = start(config, chips)
        *_, last = loop.fit(setup, variables, chips.take(slice(8)), seed=0)
        moved[scale] = jax.tree.map(
            lambda new, old: np.abs(np.asarray(new) - old).max(),
            last.state.params,
            jax.device_get(variables["params"]),
        )
    first, less, none = (moved[scale] for scale in (1.0, 0.1, 0.0))
    others = set(first) - {"encoder"}
    assert equal({n: first[n] for n in others}, {n: none[n] for n in others})
    kernel = ("encoder", "block1_conv1", "kernel")
    at = [functools.reduce(lambda tree, name: tree[name], kernel, m) for m in (first, less, none)]
    assert at[0] > 0
    assert at[1] == pytest.approx(0.1 * at[0], rel=0.02)  # one step of Adam
    assert at[2] == 0


@pytest.mark.parametrize("head", ["unet"], indirect=True)
def test_balanced_classes_are_those_of_the_numbers_that_they_stand_for(config, chips):
    config.finetune.frozen_epochs, config.epochs = 0, 1
    chips = chips.take(slice(8))
    known = chips.targets[chips.targets != labelled.UNLABELLED]
    numbers = compute_class_weight("balanced", classes=np.array([0, 1]), y=known)
    losses = {}
    for name, weights in (
        ("plain", ()),
        ("balanced", ("balanced",)),
        ("numbers", tuple(map(float, numbers))),
        ("second", (1e-3, 1.0)),
    ):
        config.finetune.class_weights = weights
        check(config)
        setup, variables = start(config, chips)
        *_, last = loop.fit(setup, variables, chips, seed=0)
        losses[name] = float(last.loss)
    assert losses["balanced"] == pytest.approx(losses["numbers"], rel=1e-5)
    assert abs(losses["second"] - losses["plain"]) > 1e-3
    config.finetune.class_weights = (1.0, 2.0, 3.0)
    with pytest.raises(InputError, match=r"class_weights is \(1.0, 2.0, 3.0\); .* has 2 classes"):
        labelled.check_chips(config, chips, chips)


@pytest.mark.parametrize("head", ["unet"], indirect=True)
def test_a_run_starts_from_an_encoder_and_resumes_to_the_same_bits(
    config, chips, head, tmp_path, monkeypatch, batch_mesh, capsys
):
    monkeypatch.setattr(sharding, "make_mesh", lambda devices=None: batch_mesh(1))
    elevation = np.random.default_rng(0).uniform(0, 900, (24, 8, 8)).astype(np.float32)
    arrays = {**chips.inputs, "elevation": elevation, "mask": chips.targets}
    settings = pretrain_settings(config)
    pretraining.pretrain(
        settings, tmp_path / "pretrained", pretraining.Data(arrays, arrays), Writer()
    )
    config.init_from = str(tmp_path / "pretrained")
    test = make_chips(head, 10, seed=2)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    scores = single.finetune(config, whole, chips, test, Writer())
    assert json.loads((whole / "results.json").read_text()) == scores
    classes = inference.load(whole).predict(test.inputs["image"])
    matrix = metrics.confusion_matrix(test.targets, classes, 2)
    np.testing.assert_array_equal(matrix, scores["confusion_matrix"])
    assert (whole / "predictions.png").stat().st_size > 5000
    assert sum(map(sum, scores["confusion_matrix"])) == (test.targets < 2).sum()

    with pytest.raises(Stop):  # in the second epoch of the full stage
        single.finetune(config, parts, chips, test, Stopping(4))
    resumed = Writer()
    assert single.finetune(config, parts, chips, test, resumed) == scores
    assert min(resumed.scalars) == 4

    for width, bands, message in (
        (0.25, 3, r"has another encoder \(encoder/block1_bn1/bias is \(8,\) there .*model.width"),
        (0.125, 4, "takes 3 bands, but these images have 4"),
    ):
        config.model.width = width
        setup = loop.make_setup(config, {"image": (SIZE, SIZE, 3)}, 24)
        variables = loop.init(setup, 0, (SIZE, SIZE, bands))
        with pytest.raises(InputError, match=message):
            starting.from_run(tmp_path / "pretrained", variables)
    capsys.readouterr()
    config.model.width = 0.125
    _, variables = start(config, chips)
    load = functools.partial(starting.from_run, tmp_path / "pretrained", variables)
    load(sensors.of(config))
    assert capsys.readouterr().err == ""
    config.data.value_range = (0.0, 10000.0)
    load(sensors.of(config))
    said = capsys.readouterr().err
    assert "data.value_range (0.0, 6000.0), and here it is (0.0, 10000.0)" in said
    with pytest.raises(InputError, match="nowhere has no checkpoint"):
        starting.from_run(tmp_path / "nowhere", variables)


@pytest.mark.parametrize("head", ["unet"], indirect=True)
def test_devices_share_a_batch_and_learn_the_same(config, chips, tmp_path):
    # By plain descent in small steps: Adam makes much of what rounding leaves of small gradients.
    setup, variables = start(config, chips)
    descent = {"frozen_optimizer": optax.sgd(0.01), "full_optimizer": optax.sgd(0.01)}
    setup = dataclasses.replace(setup, **descent)
    found, work = [], []
    for count in (1, 4):
        mesh = sharding.make_mesh(jax.devices()[:count])
        few = chips.take(slice(22))  # four devices don't divide the last batch, of 6
        maps = loop.encode_views(setup, variables, few.inputs, mesh)
        epochs = loop.fit(setup, variables, few, 0, maps=maps, mesh=mesh)
        found.append([float(epoch.loss) for epoch in epochs])
        state = jax.device_put(
            TrainState.create(variables, setup.full_optimizer), sharding.replicated(mesh)
        )
        indices = jax.device_put(np.arange(8, dtype=np.int32), sharding.split(mesh))
        program = step.full_step.lower(setup, state, loop.place(chips, mesh), indices, 0)
        work.append(program.compile().cost_analysis()["flops"])
    np.testing.assert_allclose(found[0][:3], found[1][:3], rtol=2e-4)
    np.testing.assert_allclose(*found, rtol=1e-2)  # rounding adds up
    assert work[1] < 0.5 * work[0]

    config.finetune.devices = 0
    assert loop.shared_by(config, jax.devices()) == jax.devices()
    test, shown = make_chips("unet", 10, seed=2), {}
    for devices, message in (
        (4, ""),
        (3, "multiple of the 3 devices"),
        (99, "devices is 99; there are"),
    ):
        config.finetune.devices = devices
        workdir = tmp_path / str(devices)
        if message:
            with pytest.raises(InputError, match=message):
                single.finetune(config, workdir, chips, test, Writer())
        else:
            shown = single.finetune(config, workdir, chips, test, Writer())
    assert shown["accuracy"] > 0.6


def pretrain_settings(config):
    from elev_ssl_jax.config import default

    settings = default()
    settings.model.update(config.model)
    settings.batch_size, settings.epochs = 8, 1
    settings.model.projection = (16, 8)
    return settings


@pytest.mark.parametrize("head", ["linear"], indirect=True)
def test_chips_that_are_fewer_than_a_batch_are_one(config, tmp_path):
    config.batch_size, config.finetune.frozen_epochs = 32, 0
    train = make_chips("linear", 5)
    scores = single.finetune(config, tmp_path, train, make_chips("linear", 12, seed=1), Writer())
    assert scores["accuracy"] >= 0.5
    assert inference.load(tmp_path).step == config.epochs == 3


@pytest.mark.parametrize("head", ["unet"], indirect=True)
def test_chips_that_cannot_be_learned_from_are_refused(config, chips):
    labelled.check_chips(config, chips, chips, 24)

    def change(targets):
        return chips._replace(targets=np.asarray(targets, np.uint8))

    for train, test, labels, message in (
        (chips, chips, 25, "25 labels are more than .* has: 24"),
        (change(np.zeros_like(chips.targets)), chips, None, "are all of class 0"),
        (chips, change(chips.targets + 6), None, "test chips .* have class 5.* below 2, or 255"),
    ):
        with pytest.raises(InputError, match=message):
            labelled.check_chips(config, train, test, labels)
    tall = jax.tree.map(lambda array: array[:, : SIZE // 2], chips)
    with pytest.raises(InputError, match=r"augment.finetune.transpose is 0.5; it must be 0"):
        labelled.check_chips(config, tall, tall)
