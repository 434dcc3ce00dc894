import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elev_ssl_jax import augment, objective


def build(config, chips):
    model = objective.make_model(config, (11, 11))
    keys = augment.sample_keys(0, jnp.int32(0), 8)
    views, elevation = objective.make_views(
        config, keys, jnp.asarray(chips["image"][:8]), jnp.asarray(chips["elevation"][:8])
    )
    return model, views, elevation


@pytest.mark.parametrize(
    ("alpha", "views", "parts"),
    [
        (0.0, 2, {"encoder", "projection"}),
        (0.5, 3, {"encoder", "projection", "elevation_decoder"}),
        (1.0, 1, {"encoder", "elevation_decoder"}),
    ],
)
def test_a_branch_without_weight_does_not_exist(tiny, chips, alpha, views, parts):
    tiny.objective.alpha = alpha
    model, made, _ = build(tiny, chips)
    assert made.shape == (8, views, 32, 32, 3)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), made, train=True))
    assert set(variables["params"]) == parts


def test_gradients_of_each_term_reach_its_branch_and_the_encoder(tiny, chips):
    tiny.objective.alpha = 0.3
    model, views, elevation = build(tiny, chips)
    variables = model.init(jax.random.key(0), views, train=True)

    @jax.jit
    def terms(params):
        outputs, _ = model.apply(
            {**variables, "params": params}, views, train=True, mutable=["batch_stats"]
        )
        assert outputs["embeddings"].shape == (8, 2, 8)
        assert outputs["elevation"].shape == (8, 11, 11)
        return objective.weighted_loss(tiny, outputs, elevation)[1]

    values = terms(variables["params"])
    np.testing.assert_allclose(
        values["loss"],
        0.3 * values["elevation_loss"] + 0.7 * values["contrastive_loss"],
        rtol=1e-6,
    )
    jacobian = jax.jit(jax.jacrev(terms))(variables["params"])

    def size(term, part):
        return sum(float(jnp.abs(g).sum()) for g in jax.tree.leaves(jacobian[term][part]))

    for term, own, other in (
        ("elevation_loss", "elevation_decoder", "projection"),
        ("contrastive_loss", "projection", "elevation_decoder"),
    ):
        assert size(term, "encoder") > 0
        assert size(term, own) > 0
        assert size(term, other) == 0


def test_evaluation_views_end_with_the_image_itself(tiny, chips):
    keys = augment.sample_keys(0, jnp.int32(0), 8)
    views, elevation = objective.make_views(
        tiny, keys, chips["image"][:8], chips["elevation"][:8], train=False
    )
    assert views.shape[1] == 3
    np.testing.assert_allclose(views[:, 2], chips["image"][:8] / 6000, atol=1e-6)
    np.testing.assert_allclose(elevation, chips["elevation"][:8] / 500, rtol=1e-6)
