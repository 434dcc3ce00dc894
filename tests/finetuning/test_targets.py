"""What is learned of masks, of squares and by which chips, and what is said of it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from elev_ssl_jax import metrics, sensors
from elev_ssl_jax.checks import check
from elev_ssl_jax.config import fine_tuning
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.finetuning import labelled, loop, methods, single, step
from elev_ssl_jax.inference import model as inference
from tests import runs
from tests.pretraining.test_loop import Writer

SIZE, CLASSES = 32, 3


@pytest.fixture
def config():
    config = fine_tuning("linear")
    config.data.inputs = ("s1", "s2")
    config.data.value_range = (*[(-30.0, 0.0)] * 2, *[(0.0, 9000.0)] * 3)
    config.model.encoder = "vgg"
    config.model.width, config.finetune.num_classes = 0.125, CLASSES
    config.augment.crop_size = 16
    config.finetune.target = "commonest"
    config.finetune.frozen_epochs, config.epochs = 1, 1
    config.finetune.frozen_learning_rate = config.optimizer.learning_rate = 3e-3
    check(config)
    return config


def make_chips(count, seed=0):
    """Quarters of one class each, of which radar tells the first and optics the last."""
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, CLASSES, (count, 2, 2)).repeat(SIZE // 2, 1).repeat(SIZE // 2, 2)
    noise = rng.normal(size=(count, SIZE, SIZE, 5))
    s1 = -20 + 12.0 * (mask == 0)[..., None] + noise[..., :2]
    s2 = 2000 + 4000 * (mask == CLASSES - 1)[..., None] + 200 * noise[..., 2:]
    mask[:, :3, :3] = labelled.UNLABELLED
    inputs = {"s1": s1.astype(np.float32), "s2": s2.astype(np.uint16)}
    return labelled.Labelled(inputs, mask.astype(np.uint8))


def by_hand(mask, share):
    """Commonest class, of equals the lowest, where 255 takes part; and the classes present."""
    values, counts = np.unique(mask, return_counts=True)
    present = [np.mean(mask == k) >= share for k in range(CLASSES)]
    return values[np.argmax(counts)], np.array(present, np.uint8)


def test_a_square_has_its_commonest_class_and_those_that_are_present(rng):
    masks = rng.choice([0, 1, 2, 255], size=(40, 4, 5), p=[0.4, 0.2, 0.1, 0.3]).astype(np.uint8)
    masks[0] = 255
    masks[1] = np.repeat([[2, 1, 255, 0]], 5, axis=0).T  # all alike
    wanted = [by_hand(mask, 0.25) for mask in masks]
    commonest = labelled.as_learned(jnp.asarray(masks), "commonest", CLASSES, 0.25)
    np.testing.assert_array_equal(commonest, [w[0] for w in wanted])
    assert commonest[0] == 255
    assert commonest[1] == 0
    present = labelled.as_learned(jnp.asarray(masks), "present", CLASSES, 0.25)
    np.testing.assert_array_equal(present, [w[1] for w in wanted])
    assert not present[0].any()


def test_tests_are_on_squares_that_stand_side_by_side(config):
    chips = make_chips(5)._replace(groups=np.array(list("abcde")))
    judged = labelled.as_judged(config, chips)
    assert len(judged.targets) == 5 * 4
    assert judged.groups.tolist() == list("aaaabbbbccccddddeeee")
    for i, (row, column) in enumerate([(0, 0), (0, 16), (16, 0), (16, 16)]):
        place = np.s_[:, row : row + 16, column : column + 16]
        for name in ("s1", "s2"):
            np.testing.assert_array_equal(judged.inputs[name][i::4], chips.inputs[name][place])
            assert judged.inputs[name][:2].dtype == chips.inputs[name].dtype
        classes = [by_hand(mask, 0.1)[0] for mask in chips.targets[place]]
        np.testing.assert_array_equal(judged.targets[i::4], classes)
    config.augment.crop_size = 28  # one, in the middle
    judged = labelled.as_judged(config, chips)
    np.testing.assert_array_equal(judged.inputs["s1"][:], chips.inputs["s1"][:, 2:30, 2:30])
    assert judged.inputs["s1"].shape == (5, 28, 28, 2)
    grid = np.arange(8.0) * 4 + 1.5  # metres of a slope, at the centres of 8 cells of 4 pixels
    chips.inputs["elevation"] = np.broadcast_to(grid[:, None] + 100 * grid, (5, 8, 8))
    config.augment.crop_size = 16
    cells = labelled.as_judged(config, chips).inputs["elevation"]
    assert cells.shape == (20, 4, 4)
    for i, (top, left) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
        whole = chips.inputs["elevation"][:, top : top + 4, left : left + 4]
        np.testing.assert_allclose(cells[i::4], whole, rtol=1e-5)
    config.augment.crop_size, chips = 33, make_chips(8)
    with pytest.raises(InputError, match="crop_size is 33; s1 has 32 x 32"):
        single.finetune(config, None, chips, chips, None)


def test_squares_of_which_nothing_can_be_judged_are_refused(config):
    chips = make_chips(5)
    config.finetune.target, config.finetune.present_share = "present", 1.0
    masks = np.where(np.arange(SIZE) % 2, chips.targets, 255).astype(np.uint8)
    with pytest.raises(InputError, match=r"present_share is 1.0, which no class covers"):
        labelled.as_judged(config, chips._replace(targets=masks))
    config.finetune.target = "mask"
    masks[:, 4:-4, 4:-4] = 255
    config.augment.crop_size = 24
    with pytest.raises(InputError, match=r"the 5 images to judge by.* one class at most"):
        labelled.as_judged(config, chips._replace(targets=masks))


def test_rare_classes_come_about_as_often_as_the_commonest(rng):
    counts = rng.permutation([76, 37, 101, 180, 156, 62, 23, 351])
    labels = rng.permutation(np.repeat(np.arange(8), counts)).astype(np.uint8)
    rows = labelled.epoch_rows(labels, oversample=True)
    assert set(rows) == set(range(len(labels)))
    each = np.bincount(labels[rows])
    assert 0.7 * 351 < each.min() <= each.max() < 1.35 * 351
    assert each[np.argmax(counts)] == 351
    assert each.sum() == 2756  # as docs/two-sensors.md has it
    np.testing.assert_array_equal(
        labelled.epoch_rows(labels, oversample=False), np.arange(len(labels))
    )
    masks = np.repeat(labels, 4).reshape(-1, 2, 2)
    masks[:, 0, 0] = 255
    np.testing.assert_array_equal(labelled.epoch_rows(masks, oversample=True), rows)
    none = np.full(4, 255, np.uint8)
    np.testing.assert_array_equal(labelled.epoch_rows(none, oversample=True), np.arange(4))


def test_shares_of_labels_have_every_class(rng):
    labels = rng.permutation(np.repeat(np.arange(8), [76, 37, 101, 180, 156, 62, 23, 351]))
    config = fine_tuning("linear")
    config.task, config.experiment.labels = "experiment", (0.01, 0.1, 0.5, 1.0)
    assert methods.with_counts(config, 986).experiment.labels == (10, 99, 493, 986)
    orders = [
        methods.draw_labels(labels, 0, repetition, 0, stratified=True) for repetition in (0, 1)
    ]
    assert not np.array_equal(*orders)
    shares = np.bincount(labels) / 986
    for order in orders:
        assert sorted(order) == list(range(986))
        assert set(labels[order[:8]]) == set(range(8))
        for count in (99, 493):
            drawn = np.bincount(labels[order[:count]]) / count
            np.testing.assert_allclose(drawn, shares, atol=8 / count)
    config.experiment.labels = (0.01, 0.011)
    with pytest.raises(InputError, match=r"of 986 labelled chips that is \(10, 11\)|leave one out"):
        methods.with_counts(config, 100)


def test_presence_is_scored_as_scikit_learn_does(rng):
    true, said = (rng.integers(0, 2, (200, 5)) for _ in range(2))
    matrices = metrics.presence_matrices(true, said)
    scores = metrics.presence_scores(matrices)
    for average in ("macro", "micro"):
        wanted = sklearn.metrics.f1_score(true, said, average=average)
        assert scores[f"{average}_f1"] == pytest.approx(wanted)
    each = metrics.summary(matrices)["f1"]
    np.testing.assert_allclose(each, sklearn.metrics.f1_score(true, said, average=None))
    assert scores["accuracy"] == pytest.approx(np.mean(true == said))
    groups = rng.integers(0, 3, 200)
    parts, names = metrics.confusion_matrices(true, said, 5, groups, presence=True)
    np.testing.assert_array_equal(parts.sum(axis=0), matrices)
    assert names.tolist() == [0, 1, 2]

    labels, guesses = rng.integers(0, 4, 300), rng.integers(0, 4, 300)
    recall = metrics.scores(metrics.confusion_matrix(labels, guesses, 5))["mean_recall"]
    assert recall == pytest.approx(sklearn.metrics.balanced_accuracy_score(labels, guesses))


@pytest.mark.parametrize("target", ["commonest", "present"])
def test_two_sensors_tell_what_each_alone_does_not(config, tmp_path, target):
    config.finetune.target, config.model.fusion = target, "late"
    config.finetune.oversample = True
    config.finetune.drop_sensor = 0.3
    config.finetune.frozen_epochs, config.epochs = 0, 12
    check(config)
    train, test = make_chips(40), make_chips(20, seed=1)
    scores = single.finetune(config, tmp_path, train, test, Writer())
    assert scores["macro_f1"] > 0.7
    # Without one of them it says what it can, and is told to be worse.
    assert set(scores["without"]) == {"s1", "s2"}
    for part in scores["without"].values():
        assert part["macro_f1"] < scores["macro_f1"]

    model = inference.load(tmp_path)
    assert model.together == (target == "present")
    judged = labelled.as_judged(config, test).take(slice(None))
    said = model.predict(judged.inputs)
    right = np.mean(said == judged.targets, where=judged.targets != labelled.UNLABELLED)
    assert right > 0.7
    whole = model.probabilities(judged.inputs)
    if target == "commonest":
        np.testing.assert_allclose(whole.sum(axis=-1), 1, rtol=1e-5)
    # Again goes on, which is to say that nothing is left to do.
    assert single.finetune(config, tmp_path, train, test, Writer()) == scores


def test_a_frozen_fine_tuning_ends_with_its_frozen_stage(config, tmp_path):
    config.finetune.frozen_epochs, config.epochs = 3, 0
    check(config)
    train, test = make_chips(16), make_chips(8, seed=1)
    scores = single.finetune(config, tmp_path, train, test, Writer())
    assert single.finetune(config, tmp_path, train, test, Writer()) == scores
    setup = loop.make_setup(config, labelled.shapes_of(config, train), 16)
    variables = loop.init(setup, config.seed, (16, 16, 5))
    loaded = inference.load(tmp_path).variables
    jax.tree.map(
        np.testing.assert_array_equal, loaded["params"]["encoder"], variables["params"]["encoder"]
    )
    assert not np.array_equal(
        loaded["params"]["head"]["kernel"], variables["params"]["head"]["kernel"]
    )


def test_the_rate_drops_to_a_tenth(config):
    from elev_ssl_jax.runtime.optimizer import make_optimizer

    config.optimizer.drop_epoch = 3
    make = dict(epochs=5, steps_per_epoch=4, batch_size=8)
    _, schedule = make_optimizer(config.optimizer, **make)
    rates = np.array([schedule(i) for i in range(20)])
    np.testing.assert_allclose(rates[:12], 3e-3)
    np.testing.assert_allclose(rates[12:], 3e-4, rtol=1e-6)


def test_the_rate_drops_in_the_stage_that_has_it(config):
    """The frozen stage is before; it has the drop where it is all there is."""
    shapes = labelled.shapes_of(config, make_chips(1))
    config.finetune.frozen_epochs, config.epochs, config.optimizer.drop_epoch = 2, 3, 1
    config.task, config.experiment.methods = "experiment", ("late_fusion", "late_fusion_frozen")

    def drops(settings):
        """The size of the second epoch's steps beside the first's."""
        setup = loop.make_setup(settings, shapes, 8)
        found = []
        for optimizer in (setup.frozen_optimizer, setup.full_optimizer):
            state, sizes = optimizer.init(jnp.ones(1)), []
            for _ in range(5):
                update, state = optimizer.update(jnp.ones(1), state, jnp.ones(1))
                sizes.append(float(-update[0]))
            found.append([round(size / sizes[0], 1) for size in sizes])
        return found

    full, low = [1, 1, 1, 1, 1], [1, 0.1, 0.1, 0.1, 0.1]
    assert drops(config) == [full, low]
    alone = methods.config_of(config, "late_fusion_frozen", shapes)
    assert (alone.finetune.frozen_epochs, alone.epochs) == (5, 0)
    assert drops(alone)[0] == [1, 1, 1, 0.1, 0.1]


def test_views_that_can_not_occur_are_not_encoded(config):
    config.augment.crop_size = 0
    config.augment.finetune.transpose = 0.0
    chips = make_chips(4)
    for flip, views in ((0.0, 1), (0.5, 4)):
        config.augment.finetune.flip = flip
        setup = loop.make_setup(config, labelled.shapes_of(config, chips), 4)
        variables = runs.drawn(lambda: loop.init(setup, 0, (SIZE, SIZE, 5)))  # noqa: B023
        (maps,) = loop.encode_views(setup, variables, chips.inputs)
        assert len(maps) == 4 * views
    dropping = dataclasses.replace(setup, drop_sensor=0.5)
    assert loop.encode_views(dropping, variables, chips.inputs) is None


def test_an_ensemble_says_what_its_members_mean(config, rng):
    config.augment.crop_size = 0
    chips = make_chips(5)
    config.finetune.target, config.finetune.head = "mask", "unet"
    members = []
    for head, encoder in (("unet", "resnet18"), ("plain_unet", "plain")):
        config.finetune.head, config.model.encoder = head, encoder
        check(config)
        setup = loop.make_setup(config, labelled.shapes_of(config, chips), 5)
        variables = runs.drawn(lambda: loop.init(setup, 0, (SIZE, SIZE, 5)))  # noqa: B023
        members.append((setup, variables))
    matrix, classes = step.judge_together(members, chips)
    images = sensors.shown(members[0][0].inputs, chips.inputs)
    total = 0
    for setup, variables in members:
        apply = jax.jit(functools.partial(setup.model.apply, train=False))
        logits = np.asarray(apply(variables, images), np.float64)
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        total = total + weights / weights.sum(axis=-1, keepdims=True)
    clear = np.diff(np.sort(total, axis=-1)[..., -2:])[..., 0] > 1e-4
    np.testing.assert_array_equal(classes[clear], total.argmax(axis=-1)[clear])
    wanted = metrics.confusion_matrix(chips.targets, classes, CLASSES)
    np.testing.assert_array_equal(matrix, wanted)
