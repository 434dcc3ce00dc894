import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from elev_ssl_jax.finetuning import objective

CLASSES = 4


@pytest.fixture(params=[(6,), (2, 5, 5)], ids=["chips", "pixels"])
def examples(request, rng):
    """Logits, and classes of which some are unlabelled and the last is nowhere."""
    logits = 4 * rng.normal(size=(*request.param, CLASSES)).astype(np.float32)
    targets = rng.choice([0, 1, 2, 255], request.param, p=[0.5, 0.2, 0.2, 0.1]).astype(np.uint8)
    targets.flat[:3] = 0, 1, 2
    return logits, targets


def weights_of(rng, weighed):
    return rng.uniform(0.2, 3, CLASSES).astype(np.float32) if weighed else None


def compare(loss, reference, logits):
    """Values, and gradients by the logits, against PyTorch in float64."""
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(logits))
    theirs = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    wanted = reference(theirs)
    wanted.backward()
    np.testing.assert_allclose(value, wanted.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_pytorchs(examples, rng, weighed, smoothing):
    logits, targets = examples
    weights = weights_of(rng, weighed)

    def theirs(z):
        return torch.nn.functional.cross_entropy(
            z.reshape(-1, CLASSES),
            torch.tensor(targets.ravel().astype(int)),
            None if weights is None else torch.tensor(weights, dtype=torch.float64),
            ignore_index=255,
            label_smoothing=smoothing,
        )

    def ours(z):
        return objective.cross_entropy(z, targets, weights, smoothing=smoothing)

    compare(ours, theirs, logits)


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_equals_its_formula(examples, rng, weighed, gamma):
    logits, targets = examples
    weights = weights_of(rng, weighed)
    known = targets != 255

    def theirs(z):
        w = torch.ones(CLASSES, dtype=torch.float64) if weights is None else torch.tensor(weights)
        p = torch.softmax(z, -1)[torch.tensor(known)]
        right = torch.tensor(targets[known].astype(int))
        p, w = p[torch.arange(len(p)), right], w.double()[right]
        return (-w * (1 - p) ** gamma * torch.log(p)).sum() / w.sum()

    compare(lambda z: objective.focal(z, targets, weights, gamma=gamma), theirs, logits)


@pytest.mark.parametrize("weighed", [False, True])
def test_dice_loss_equals_its_formula(examples, rng, weighed):
    logits, targets = examples
    weights = weights_of(rng, weighed)
    known = targets != 255

    def theirs(z):
        p = torch.softmax(z, -1)[torch.tensor(known)]
        y = torch.tensor(np.eye(CLASSES)[targets[known]])
        losses, each = [], []
        for k in range(CLASSES):
            if y[:, k].sum() > 0:
                losses.append(1 - 2 * (p[:, k] * y[:, k]).sum() / (p[:, k] + y[:, k]).sum())
                each.append(1.0 if weights is None else float(weights[k]))
        return sum(w * v for w, v in zip(each, losses, strict=True)) / sum(each)

    compare(lambda z: objective.dice(z, targets, weights), theirs, logits)


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "dice", "cross_entropy+dice"])
def test_what_is_unlabelled_or_told_already_costs_nothing(name, rng):
    its = objective.Objective(name, 0.0, 2.0)
    logits = jnp.asarray(rng.normal(size=(2, 3, CLASSES)), jnp.float32)
    nothing = np.full((2, 3), 255, np.uint8)
    value, gradient = jax.value_and_grad(objective.loss, 1)(its, logits, nothing)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)
    targets = rng.integers(0, CLASSES, (2, 3)).astype(np.uint8)
    sure = 200.0 * jax.nn.one_hot(targets, CLASSES)
    value, gradient = jax.value_and_grad(objective.loss, 1)(its, sure, targets)
    assert value < 1e-6
    assert np.isfinite(gradient).all()
    parts = name.split("+")
    wanted = sum(objective.loss(its._replace(loss=part), logits, targets) for part in parts)
    np.testing.assert_allclose(objective.loss(its, logits, targets), wanted, rtol=1e-6)


def test_squared_error_equals_pytorchs_over_what_is_known(rng):
    told = rng.normal(size=(5, 4, 6, 1)).astype(np.float32)
    targets = rng.normal(800, 300, (5, 4, 6)).astype(np.float32)
    targets[rng.random(targets.shape) < 0.3] = np.nan
    known = ~np.isnan(targets)
    theirs = torch.tensor(told[known][:, 0], dtype=torch.float64, requires_grad=True)
    wanted = (torch.tensor(targets[known], dtype=torch.float64) - 750) / 250
    error = torch.nn.functional.mse_loss(theirs, wanted)
    error.backward()
    assert theirs.grad is not None

    def ours(told):
        return objective.squared_error(told, jnp.asarray(targets), (750.0, 250.0))

    value, gradient = jax.value_and_grad(ours)(jnp.asarray(told))
    assert float(value) == pytest.approx(error.item(), rel=1e-5)
    np.testing.assert_allclose(gradient[known][:, 0], theirs.grad, rtol=1e-4, atol=1e-7)
    assert not np.asarray(gradient)[~known].any()
    assert float(objective.squared_error(jnp.asarray(told), np.nan * targets, (0.0, 1.0))) == 0


def test_balanced_weights_equal_scikit_learns(rng):
    targets = rng.choice([0, 1, 3, 255], (5, 4, 4), p=[0.6, 0.2, 0.1, 0.1]).astype(np.uint8)
    targets.flat[:3] = 0, 1, 3
    found = objective.class_weights(("balanced",), targets, "mask", CLASSES)
    known = targets[targets != 255]
    wanted = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=known)
    np.testing.assert_allclose(found[[0, 1, 3]], wanted, rtol=1e-6)
    assert found[2] == 0  # nobody is of it
    commonest = np.stack([np.full((2, 2), k, np.uint8) for k in (0, 0, 0, 1)])
    found = objective.class_weights(("balanced",), commonest, "commonest", 2)
    np.testing.assert_allclose(found, [4 / 6, 2])
    np.testing.assert_array_equal(
        objective.class_weights((1.0, 2.0, 3.0, 4.0), targets, "mask", CLASSES), [1, 2, 3, 4]
    )
