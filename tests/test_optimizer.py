import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from elev_ssl_jax.optimizer import make_optimizer


@pytest.mark.parametrize(("name", "reference"), [("adamw", "AdamW"), ("adam", "Adam")])
def test_updates_equal_pytorch(tiny, rng, name, reference):
    tiny.optimizer.name, tiny.optimizer.weight_decay = name, 0.1
    optimizer, schedule = make_optimizer(tiny.optimizer, total_steps=5)
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
