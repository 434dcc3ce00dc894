"""What a pre-training run is scored by on its held-out chips, and how that is shown."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from elev_ssl_jax import augment, probes, squares
from elev_ssl_jax.pretraining import controls, measures
from elev_ssl_jax.pretraining.method import Method
from elev_ssl_jax.recipes import PROBES
from elev_ssl_jax.runtime import batches, sharding
from elev_ssl_jax.sensors import ELEVATION

Arrays = dict[str, np.ndarray]
TOP1_POOL = 2048  # chips, the first of the held-out ones, among whose views a partner is sought
_AT_A_TIME = 1024  # chips, at most, or one for each device
LABELS = ("label", "mask")  # features that give a chip a class; the first that is there counts
GROUND = ("block", "tile")  # likewise those that say in which block of ground it lies

# Of the model's variables and chips: batches of outputs, elevation in metres, each beside what is
# true of its chips.
Predict = Callable[[Any, batches.Chips], Iterator[tuple[Arrays, Arrays]]]


def make_predict(config: Any, method: Method, mesh: Mesh) -> Predict:
    """The model of a method on chips, BatchNorm in inference mode, a batch at a time."""
    # Not those of training, which may be more than there are chips to score.
    most = -(-_AT_A_TIME // mesh.size) * mesh.size
    batch_size = min(config.microbatch_size or config.batch_size, most)

    # On every device, so that every process has all of them.
    @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
    def step(variables, batch, first, seed):
        # A chip's views depend on its place among the chips, not on how they are batched.
        keys = augment.sample_keys(seed, 0, batch_size, first)
        batch = squares.cut_chips(batch, config.augment.crop_size)  # and its labels
        inputs, _ = method.views(keys, batch, False)
        outputs: Any = method.model.apply(variables, *inputs, train=False)
        if ELEVATION in outputs:
            outputs[ELEVATION] *= config.data.elevation_scale
            if not controls.is_elevation(config):
                del outputs[ELEVATION]  # what is learned in its place is not judged
        return outputs, {name: batch[name] for name in batch if name in (ELEVATION, *LABELS)}

    def predict(variables, chips):
        known = batches.take(chips, [0])
        labels = [name for name in LABELS if name in known][:1]
        names = list(dict.fromkeys([*method.reads, *labels]))
        done = 0
        for batch, count in batches.in_order(chips, names, mesh, batch_size):
            arrays = jax.device_get(step(variables, batch, done, config.seed))
            done += count
            yield jax.tree.map(lambda array, n=count: array[:n], arrays)

    return predict


def blocks_of(chips: batches.Chips) -> np.ndarray | None:
    """The block of ground that each chip lies in, str [N], if that is known."""
    features = chips if isinstance(chips, dict) else getattr(chips, "features", {})
    for name in GROUND:
        if name in features:
            return chips[name] if isinstance(chips, dict) else chips.arrays(name)[name]
    return None


def measure(
    predict: Predict,
    variables: Any,
    heldout: batches.Chips,
    labelled: batches.Chips | None,
    train_mean: float,
    *,
    validation: batches.Chips | None = None,
    blocks: np.ndarray | None = None,
) -> dict[str, float]:
    """Scores on the held-out chips, by name: of those outputs that the model has.

    Args:
      predict: From `make_predict`.
      variables: The model's.
      heldout: What to judge by.
      labelled: Chips for the probes to learn from; None does without.
      train_mean: Mean elevation in metres of the training chips.
      validation: Chips that the linear probe's C is chosen on; None chooses within `labelled`.
      blocks: Of the held-out chips, see `blocks_of`.
    """

    def seen(chips):
        if chips is None:
            return None
        parts = [(o["features"], _labels(o, true)) for o, true in predict(variables, chips)]
        return probes.Examples(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    fitted: dict[str, probes.Classify] = {}
    if (train := seen(labelled)) is not None:
        validated = seen(validation)
        for kind in PROBES:
            if (classify := probes.fit(kind, train, validated)) is not None:
                fitted[kind] = classify
    errors, spread = measures.ElevationErrors(), measures.FeatureSpread()
    embeddings, labels = [], []
    guesses: dict[str, list[np.ndarray]] = {kind: [] for kind in fitted}
    with_elevation, count = False, 0
    for outputs, true in predict(variables, heldout):
        spread.add(outputs["features"])
        if ELEVATION in outputs:
            with_elevation = True
            errors.add(outputs[ELEVATION], true[ELEVATION])
        if "embeddings" in outputs and count < TOP1_POOL:
            embeddings.append(outputs["embeddings"][: TOP1_POOL - count])
        labels.append(_labels(outputs, true))
        for kind, classify in fitted.items():
            guesses[kind].append(classify(outputs["features"]))
        count += len(outputs["features"])

    scores = {"feature_std": spread.score()}
    if with_elevation:
        scores |= errors.scores(train_mean)
    if embeddings:
        scores["contrastive_top1"] = measures.top1(np.concatenate(embeddings))
    for kind, parts in guesses.items():
        found = measures.probe_scores(np.concatenate(labels), np.concatenate(parts), blocks)
        scores |= {f"{kind}_{name}": value for name, value in found.items()}
    return scores


def _labels(outputs, true):
    if not set(LABELS) & true.keys():
        return np.full(len(outputs["features"]), -1)
    return measures.chip_labels(true)


def table(scores: dict[str, float], heldout: int, split: str) -> str:
    """The final scores as a short text table, each beside what it must beat.

    Args:
      scores: From `measure`, and the probes' of the untrained encoder with `random_` before, and
        of the weights that it started from, if it did, with `start_`.
      heldout: How many chips they are on.
      split: The name of these.
    """
    pool = 2 * min(TOP1_POOL, heldout) - 1
    lines = [("", "this run", "to beat", "")]
    if "elevation_rmse_m" in scores:
        means = [
            ("train_mean", "the mean of the training chips"),
            ("heldout_mean", "the mean of the held-out chips"),
        ]
        for part, what, rivals in (
            ("", "elevation RMSE", means),
            ("level_", "  of a chip's mean", means),
            ("relief_", "  of what is left", [("none", "no relief")]),
        ):
            value = f"{scores[f'elevation_{part}rmse_m']:.1f} m"
            for rival, whose in rivals:
                rival = f"{scores[f'elevation_{part}rmse_of_{rival}_m']:.1f} m"
                lines.append((what, value, rival, whose))
        value = f"{scores['elevation_relief_correlation']:.3f}"
        lines.append(("  its correlation", value, "0", "no relief"))
    for kind, of in (("probe", "linear probe"), ("knn", f"{probes.NEIGHBOURS} nearest")):
        for score, what in (("accuracy", "accuracy"), ("macro_f1", "macro F1")):
            if (name := f"{kind}_{score}") in scores:
                text, over = f"{scores[name]:.3f}", ""
                if f"{name}_low" in scores:
                    ends = (f"{scores[f'{name}_{end}']:.3f}" for end in ("low", "high"))
                    over = f"; over test blocks {' to '.join(ends)}"
                for rival, whose in (
                    ("random", "the same encoder, untrained"),
                    ("start", "the weights that it started from"),
                ):
                    if (theirs := scores.get(f"{rival}_{name}")) is not None:
                        lines.append((f"{of}, {what}", text, f"{theirs:.3f}", whose + over))
                        over = ""
    if "contrastive_top1" in scores:
        text, rival = f"{scores['contrastive_top1']:.3f}", f"{1 / pool:.3f}"
        lines.append(("contrastive top-1", text, rival, f"chance among {pool} views"))
    lines.append(("feature spread", f"{scores['feature_std']:.3f}", "0", "collapse"))
    title = f"on {heldout} held-out chips ({split}), BatchNorm in inference mode"
    return "\n".join([title, *(f"  {a:<24}{b:>10}{c:>10}   {d}".rstrip() for a, b, c, d in lines)])
