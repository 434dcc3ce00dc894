import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from elev_ssl_jax.models import up_conv
from elev_ssl_jax.models.up_conv import UpConv


def as_torch(array):
    return torch.from_numpy(np.asarray(array)).permute(0, 3, 1, 2).requires_grad_()


@pytest.mark.parametrize("padding", ["zeros", "edge"])
@pytest.mark.parametrize("depth", [0, 5])
@pytest.mark.parametrize(
    "size", [(10, 12), (9, 12), (9, 11), (13, 14)], ids=["double", "one short", "short", "other"]
)
def test_value_and_gradients_are_pytorchs_on_all_devices(monkeypatch, padding, depth, size, rng):
    """The form for a TPU, computed here, and that for others."""
    x = rng.normal(size=(2, 5, 6, 3)).astype(np.float32)
    skip = rng.normal(size=(2, *size, depth)).astype(np.float32) if depth else None
    kernel = rng.normal(size=(3, 3, 3 + depth, 4)).astype(np.float32)
    gradient = rng.normal(size=(2, *size, 4)).astype(np.float32)
    conv = UpConv(4, padding)

    given = [as_torch(x)] + ([as_torch(skip)] if depth else [])
    weight = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()).requires_grad_()
    seen = torch.cat([torch.nn.functional.interpolate(given[0], size), *given[1:]], 1)
    mode = {"zeros": "constant", "edge": "replicate"}[padding]
    wanted = torch.nn.functional.conv2d(torch.nn.functional.pad(seen, [1] * 4, mode), weight)
    wanted.backward(as_torch(gradient).detach())
    gradients = [weight.grad.permute(2, 3, 1, 0), *(g.grad.permute(0, 2, 3, 1) for g in given)]

    def check():
        def apply(kernel, *maps):
            maps = maps if depth else (*maps, None)
            return conv.apply({"params": {"kernel": kernel}}, maps[0], size, maps[1])

        @jax.jit
        def both(gradient, *inputs):
            value, back = jax.vjp(apply, *inputs)
            return value, back(gradient)

        value, found = both(gradient, kernel, x, *([skip] if depth else []))
        np.testing.assert_allclose(value, wanted.detach().permute(0, 2, 3, 1), atol=1e-4)
        for got, right in zip(found, gradients, strict=True):
            np.testing.assert_allclose(got, right, atol=2e-4)

    check()
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *given, tpu, default: tpu(*given))
    check()


def test_what_is_doubled_is_never_made(monkeypatch):
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *given, tpu, default: tpu(*given))
    monkeypatch.setattr(up_conv, "upsample", None)
    conv, x = UpConv(4, dtype=jnp.bfloat16), jnp.ones((2, 5, 6, 3))
    params = conv.init(jax.random.key(0), x, (10, 12), None)
    assert conv.apply(params, x, (10, 12), None).dtype == jnp.bfloat16
