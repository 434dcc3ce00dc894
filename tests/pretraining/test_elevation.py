import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elev_ssl_jax import augment
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.pretraining import elevation as objective
from tests import runs
from tests.test_losses import reference_nt_xent

COMMON = {"encoder", "projection"}
LOCAL = {"local_decoder", "local_head"}
METHODS = [  # alpha, lam, views, parts of the model
    pytest.param(0.0, 1.0, 2, COMMON, id="simclr"),
    pytest.param(0.0, 0.5, 2, COMMON | LOCAL, id="glcnet"),
    pytest.param(0.0, 0.0, 2, {"encoder"} | LOCAL, id="local"),
    pytest.param(1.0, 0.5, 1, {"encoder", "elevation_decoder"}, id="elevation"),
    pytest.param(0.5, 1.0, 3, COMMON | {"elevation_decoder"}, id="simclr_elev"),
    pytest.param(0.5, 0.5, 3, COMMON | LOCAL | {"elevation_decoder"}, id="glcnet_elev"),
]


@pytest.fixture
def tiny(tiny):
    tiny.objective.local.patch_size = 6
    tiny.objective.local.patches = 3
    tiny.objective.local.projection = (8, 4)
    return tiny


def build(config, chips, run=lambda made, *inputs: jax.jit(made)(*inputs)):
    model = objective.make_model(config, {"image": (32, 32, 3), "elevation": (11, 11)}, "cpu")
    keys = augment.sample_keys(0, jnp.int32(0), 8)
    few = {name: jnp.asarray(chips[name][:8]) for name in ("image", "elevation")}
    return model, run(functools.partial(objective.make_views, config), keys, few)


def start(model, *inputs):
    return runs.drawn(lambda: model.init(jax.random.key(0), *inputs, train=True))


def make_terms(config, model, views, variables):
    """The loss terms, and the model's outputs, as a function of the parameters."""

    def terms(params):
        outputs, _ = model.apply(
            {**variables, "params": params},
            *views.inputs,
            train=True,
            mutable=["batch_stats"],
        )
        values = objective.weighted_loss(config, outputs, views.targets)[1]
        return values, (values, outputs)

    return terms


@pytest.mark.parametrize(("alpha", "lam", "count", "parts"), METHODS)
def test_a_branch_without_weight_does_not_exist(tiny, chips, alpha, lam, count, parts):
    tiny.objective.alpha, tiny.objective.lam = alpha, lam
    model, views = build(tiny, chips, run=jax.eval_shape)
    assert views.inputs.images.shape == (8, count, 32, 32, 3)
    assert (views.inputs.patches is not None) == ("local_decoder" in parts)
    init = functools.partial(model.init, train=True)
    variables = jax.eval_shape(init, jax.random.key(0), *views.inputs)
    assert set(variables["params"]) == parts


def test_a_branch_without_weight_costs_nothing(tiny, chips):
    def cost(alpha, lam):
        tiny.objective.alpha, tiny.objective.lam = alpha, lam
        model, views = build(tiny, chips)

        variables = jax.eval_shape(lambda: model.init(jax.random.key(0), *views.inputs, train=True))

        @jax.jit
        def loss(variables, images, elevation, keys):
            views = objective.make_views(tiny, keys, {"image": images, "elevation": elevation})
            return make_terms(tiny, model, views, variables)(variables["params"])[0]["loss"]

        keys = augment.sample_keys(0, 0, 8)
        lowered = loss.lower(variables, chips["image"][:8], chips["elevation"][:8], keys)
        return lowered.compile().cost_analysis()["flops"]

    simclr, glcnet, both = cost(0.0, 1.0), cost(0.0, 0.5), cost(0.5, 0.5)
    assert simclr < 0.95 * glcnet < 0.9 * both
    elevation = cost(1.0, 1.0)
    assert elevation == cost(1.0, 0.5)  # lam has no say
    assert elevation < 0.7 * both


def test_gradients_of_each_term_reach_its_branch_and_the_encoder(tiny, chips):
    tiny.objective.alpha, tiny.objective.lam = 0.3, 0.6
    model, views = build(tiny, chips)
    variables = start(model, *views.inputs)
    terms = make_terms(tiny, model, views, variables)
    jacobian, (values, outputs) = jax.device_get(
        jax.jit(jax.jacrev(terms, has_aux=True))(variables["params"])
    )
    assert outputs["embeddings"].shape == (8, 2, 8)
    assert outputs["local_embeddings"].shape == (8, 2, 3, 4)
    assert outputs["elevation"].shape == (8, 11, 11)
    expected = 0.3 * values["elevation_loss"] + 0.7 * (
        0.6 * values["global_loss"] + 0.4 * values["local_loss"]
    )
    np.testing.assert_allclose(values["loss"], expected, rtol=1e-6)

    def reached(term):
        return {
            part
            for part, leaves in jacobian[term].items()
            if sum(np.abs(leaf).sum() for leaf in jax.tree.leaves(leaves)) > 0
        }

    assert reached("elevation_loss") == {"encoder", "elevation_decoder"}
    assert reached("global_loss") == {"encoder", "projection"}
    assert reached("local_loss") == {"encoder", *LOCAL}


def test_local_loss_pairs_each_patch_with_its_own(tiny, chips, rng):
    tiny.objective.lam = 0.5
    _, views = build(tiny, chips)
    z = rng.normal(size=(8, 2, 3, 5)).astype(np.float32)
    valid = np.array([True] * 5 + [False] * 3)
    patches = views.targets.patches._replace(valid=jnp.asarray(valid))
    views = views._replace(targets=views.targets._replace(patches=patches))
    outputs = {
        "embeddings": jnp.asarray(z[:, :, 0]),
        "local_embeddings": jnp.asarray(z),
        "elevation": jnp.zeros((8, 11, 11)),
    }
    loss = jax.jit(functools.partial(objective.weighted_loss, tiny))
    _, terms = loss(outputs, views.targets)
    rows = z[valid].transpose(1, 0, 2, 3).reshape(2, -1, 5)
    np.testing.assert_allclose(terms["local_loss"], reference_nt_xent(*rows, 0.5)[0], rtol=1e-5)
    np.testing.assert_allclose(terms["local_without_room"], 3 / 8)


def test_style_is_the_mean_and_variance_of_the_last_map(tiny, chips):
    chips["image"] = np.concatenate([chips["image"]] * 2, axis=1)  # two rows in the last map
    tiny.objective.alpha, tiny.model.encoder = 0.0, "resnet18"
    heads = {}
    for features in ("mean", "style"):
        tiny.objective.global_features = features
        model, views = build(tiny, chips)
        variables = start(model, views.inputs.images)
        heads[features] = variables["params"]["projection"]["linear1"]["kernel"].shape
    assert heads == {"mean": (64, 16), "style": (128, 16)}
    outputs = jax.jit(functools.partial(model.apply, train=False))(variables, views.inputs.images)
    assert outputs["features"].shape == (8, 64)
    encoder = {name: variables[name]["encoder"] for name in ("params", "batch_stats")}
    alone = functools.partial(model.encoder(width=model.width).apply, train=False)
    last = jax.jit(alone)(encoder, views.inputs.images[:, 0])[-1]
    assert last.shape[1:3] == (2, 1)
    style = jnp.concatenate([last.mean((1, 2)), last.var((1, 2))], axis=-1)
    head, stats = (variables[kind]["projection"] for kind in ("params", "batch_stats"))
    hidden = jax.nn.relu(style @ head["linear1"]["kernel"]) - stats["bn"]["mean"]
    hidden = hidden * head["bn"]["scale"] / np.sqrt(stats["bn"]["var"] + 1e-5) + head["bn"]["bias"]
    expected = hidden @ head["linear2"]["kernel"]
    np.testing.assert_allclose(outputs["embeddings"][:, 0], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("lam", "features", "patch_size", "size", "message"),
    [
        (0.5, "mean", 33, 32, r"objective.local.patch_size is 33; .* at most 32"),
        (1.0, "mean", 33, 32, None),
        (0.5, "style", 16, 32, r"objective.global_features is 'style'; it must be 'mean'"),
        (0.0, "style", 16, 32, None),
        (0.5, "style", 16, 33, None),
    ],
)
def test_images_too_small_for_the_objective_are_refused(
    tiny, lam, features, patch_size, size, message
):
    tiny.objective.lam, tiny.objective.global_features = lam, features
    tiny.objective.local.patch_size = patch_size
    if message is None:
        objective.check_image_size(tiny, size, size + 1)
        return
    with pytest.raises(InputError, match=message):
        objective.check_image_size(tiny, size, size + 1)


def test_evaluation_views_end_with_the_image_itself(tiny, chips):
    keys = augment.sample_keys(0, jnp.int32(0), 8)
    tiny.objective.lam = 0.5
    few = {name: chips[name][:8] for name in ("image", "elevation")}
    views = jax.jit(functools.partial(objective.make_views, tiny, train=False))(keys, few)
    assert views.inputs.images.shape[1] == 3
    assert views.inputs.patches is None
    np.testing.assert_allclose(views.inputs.images[:, 2], chips["image"][:8] / 6000, atol=1e-6)
    np.testing.assert_allclose(views.targets.elevation, chips["elevation"][:8] / 500, rtol=1e-6)


def test_relief_weight_adds_to_the_relief_alone_and_1_is_the_plain_sum(tiny, chips):
    model, views = build(tiny, chips)
    outputs, _ = jax.jit(model.init_with_output, static_argnames="train")(
        jax.random.key(0), *views.inputs, train=True
    )
    plain, terms = objective.weighted_loss(tiny, outputs, views.targets)
    assert "relief_loss" not in terms
    tiny.loss.relief_weight = 5.0
    weighted, terms = objective.weighted_loss(tiny, outputs, views.targets)
    assert 0 < terms["relief_loss"] < terms["elevation_loss"]
    np.testing.assert_allclose(weighted, plain + 0.5 * 4 * terms["relief_loss"], rtol=1e-6)
