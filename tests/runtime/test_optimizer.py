import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from elev_ssl_jax.runtime.optimizer import make_optimizer

make = functools.partial(make_optimizer, epochs=1, steps_per_epoch=5, batch_size=256)


@pytest.mark.parametrize(("name", "reference"), [("adamw", "AdamW"), ("adam", "Adam")])
def test_updates_equal_pytorch(tiny, rng, name, reference):
    tiny.optimizer.name, tiny.optimizer.weight_decay = name, 0.1
    optimizer, schedule = make(tiny.optimizer)
    start, *gradients = rng.normal(size=(6, 7)).astype(np.float32)
    params, state = jnp.asarray(start), optimizer.init(jnp.asarray(start))
    weights = torch.nn.Parameter(torch.from_numpy(start.copy()))
    peer = getattr(torch.optim, reference)([weights], lr=1e-3, weight_decay=0.1)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(peer, 5)
    for step, gradient in enumerate(gradients):
        np.testing.assert_allclose(schedule(step), cosine.get_last_lr()[0], rtol=1e-5, atol=1e-9)
        updates, state = optimizer.update(jnp.asarray(gradient), state, params)
        params = optax.apply_updates(params, updates)
        weights.grad = torch.from_numpy(gradient)
        peer.step()
        cosine.step()
        np.testing.assert_allclose(params, weights.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_lars_equals_its_paper_and_leaves_biases_alone(tiny, rng):
    tiny.optimizer.name, tiny.optimizer.schedule = "lars", "constant"
    tiny.optimizer.learning_rate, tiny.optimizer.weight_decay = 0.5, 0.01
    optimizer, _ = make(tiny.optimizer)
    shapes = {"kernel": (4, 3), "bias": (3,)}
    params = {k: rng.normal(size=s) for k, s in shapes.items()}
    got = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    state = optimizer.init(got)
    momentum = {k: np.zeros(s) for k, s in shapes.items()}
    for _ in range(4):
        gradient = {k: rng.normal(size=s) for k, s in shapes.items()}
        updates, state = optimizer.update(jax.tree.map(jnp.float32, gradient), state, got)
        got = optax.apply_updates(got, updates)
        for name, weight in params.items():
            step = gradient[name]
            if name == "kernel":
                step = step + 0.01 * weight
                step = step * 0.001 * np.linalg.norm(weight) / np.linalg.norm(step)
            momentum[name] = 0.9 * momentum[name] + 0.5 * step
            params[name] = weight - momentum[name]
            np.testing.assert_allclose(got[name], params[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("scaling", "peak"), [("none", 0.1), ("linear", 0.4), ("sqrt", 0.2)])
def test_the_rate_grows_with_the_batch_and_warms_up(tiny, scaling, peak):
    tiny.optimizer.learning_rate, tiny.optimizer.scaling = 0.1, scaling
    tiny.optimizer.warmup_epochs = 1.5
    _, schedule = make_optimizer(tiny.optimizer, epochs=4, steps_per_epoch=4, batch_size=1024)
    rates = [float(schedule(step)) for step in range(17)]
    np.testing.assert_allclose(rates[:7], np.linspace(0, peak, 7), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(
        rates[6:], peak * (1 + np.cos(np.linspace(0, np.pi, 11))) / 2, rtol=1e-4, atol=1e-7
    )
