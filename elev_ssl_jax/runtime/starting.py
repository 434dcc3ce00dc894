"""Weights of another run as what a run starts from, and what is said of where they come from."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from elev_ssl_jax import sensors
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.runtime import checkpoint

STEMS = ("conv1", "patch_embed", "block1_conv1")  # of ResNets, Swin and VGG
DECODER = "elevation_decoder"


class Start(NamedTuple):
    """A model's variables with another run's in place of some, and what these are."""

    variables: Any
    origin: dict[str, Any]


def from_run(
    run: Path,
    variables: Any,
    inputs: sensors.Inputs | None = None,
    *,
    bands: Sequence[int] = (),
    decoder: bool = False,
    mesh: Mesh | None = None,
) -> Start:
    """`variables` with the encoder of a run's last checkpoint in place of their own.

    Args:
      run: The run's folder, or what `convert --to run` made.
      variables: Those of any model with parts under `encoder`, or their shapes.
      inputs: What the encoder is to see; there is a word if the numbers are others than the run's.
      bands: For each band of the images, the one of the run's images whose kernels it takes, see
        `adapt_stem`; () is all in their order.
      decoder: Whether the elevation decoder is taken, too.
      mesh: The devices of all processes of this run; None is the first device of this one.

    Raises:
      InputError: As in `checkpoint.load`, or the parts have another architecture, width or number
        of bands.
    """
    saved = checkpoint.load(run, mesh)
    parts = ("encoder", *[DECODER] * decoder)
    theirs, ours = saved.variables, variables["params"]
    if DECODER in parts and not (DECODER in theirs["params"] and DECODER in ours):
        whose = "this method" if DECODER in theirs["params"] else f"init_from={run}"
        raise InputError(f"{whose} has no elevation decoder; leave init_decoder at False")
    taken = {
        kind: {part: tree[part] for part in parts if part in tree} for kind, tree in theirs.items()
    }
    if bands:
        encoder = {kind: tree.get("encoder", {}) for kind, tree in jax.device_get(taken).items()}
        adapted = adapt_stem(encoder, bands=bands, source=f"init_from={run}", field="init_bands")
        for kind, tree in adapted.items():
            taken[kind] = {**taken[kind], "encoder": tree} if tree else taken[kind]
    there, here = (_stem_bands(tree["encoder"]) for tree in (taken["params"], ours))
    if there and here and there != here:
        example = tuple(i % there for i in range(here))
        raise InputError(
            f"init_bands is of {there} bands, but these images have {here}"
            if bands
            else f"the encoder of init_from={run} takes {there} bands, but these images have "
            f"{here}; say which of them each takes, such as --config.init_bands={example}, or let "
            "python -m elev_ssl_jax.convert --to run --bands adapt it"
        )
    differing = checkpoint.differing(taken["params"], {part: ours[part] for part in parts})
    if differing:
        raise InputError(
            f"init_from={run} has another encoder ({differing}); set model.encoder, model.width, "
            "model.fusion and data.inputs as in its config.json"
        )
    if inputs is not None:
        _compare_scales(run, saved.about["config"]["data"], inputs, bands)
    merged = {kind: {**tree, **taken.get(kind, {})} for kind, tree in variables.items()}
    return Start(merged, origin_of(run, saved.step, saved.about, parts, bands))


def _stem_bands(encoder: Any) -> int | None:
    """Of an encoder's images, if it has a stem."""
    name = stem_of(encoder)
    return None if name is None else int(encoder[name]["kernel"].shape[2])


def stem_of(encoder: Any) -> str | None:
    """The name of the layer that sees the images, in an encoder's parameters.

    None of several encoders side by side, and of one that has it deeper.
    """
    return next((name for name in STEMS if name in encoder), None)


def _compare_scales(run, data, inputs, bands) -> None:
    """Says in which numbers `inputs` differ from those that a run was trained with."""
    for field in ("value_range", "mean", "std", "scaling"):
        then, now = data.get(field, ()), getattr(inputs, field)
        if field == "scaling":
            then, now = (then or "range",), (now,)  # which it was before there was another
        then = sensors.pairs(then) if field == "value_range" else tuple(then)
        if bands and field != "scaling" and then and now:
            then = _of_bands(then, data.get("bands"), len(bands), bands)
            now = _of_bands(now, inputs.bands, len(bands), range(len(bands)))
            common = min(len(then), len(now))  # elevation has no numbers of its own
            then, now = then[:common], now[:common]
        if then != now:
            shown = [v[0] if len(set(v)) == 1 else v for v in (then, now)]
            print(
                f"warning: init_from={run} was trained with data.{field} {shown[0]}, and here it "
                f"is {shown[1]}; where the sensor is the same, it should be the same",
                file=sys.stderr,
            )


def _of_bands(values, shown, count, chosen):
    """One value for all of `count` bands, or those of the `chosen` ones of the bands shown."""
    if len(values) == 1:
        return tuple(values) * count
    of_shown = [values[band] for band in shown] if shown else values
    return tuple(of_shown[band] for band in chosen if band < len(of_shown))


def origin_of(
    run: Path, step: int, about: dict[str, Any], parts: Sequence[str], bands: Sequence[int] = ()
) -> dict[str, Any]:
    """What a checkpoint says of the run that its own started from.

    Of the folder its name alone: where it lies on this machine is nobody's business.

    Args:
      run: The folder.
      step: Of its checkpoint.
      about: What that says of itself.
      parts: That were taken.
      bands: As in `from_run`.
    """
    return {
        "run": run.absolute().name,
        "step": step,
        "checksum": about.get("checksum"),
        "commit": about.get("commit"),
        "parts": [*parts],
        "bands": [*bands],
        "origin": about.get("origin"),
    }


def words_of(origin: dict[str, Any]) -> str:
    """An origin as its descent: the run, what that started from, and so on to a file."""
    told = []
    step: dict[str, Any] | None = origin
    while step:
        told.append(str(step.get("file") or f"{step['run']} after {step['step']} steps"))
        step = step.get("origin")
    # What was only converted has not learned for a step.
    return ", from ".join(part.removesuffix(" after 0 steps") for part in told)


def descent_of(run: Path) -> str:
    """A run and what it started from, in words that tell it from others.

    Raises:
      InputError: As in `checkpoint.load`.
    """
    step, about = checkpoint.about(run)
    words = words_of(origin_of(run, step, about, ["encoder"]))
    return f"{words} (checksum {about.get('checksum', 'unknown')})"


def adapt_stem(
    variables: Any,
    *,
    bands: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    source: str = "the stem",
    field: str = "--bands",
) -> Any:
    """The encoder for images of other bands, or that are not standardised.

    Bands: band i of the images takes the kernel of band `bands[i]` of the weights; where several
    take the same one, each has its share, and all kernels are multiplied by the number of the
    weights' bands over that of those used. So the answer to an image whose bands are all alike
    stays about what it was, and exactly what it was if every band is used.

    Standardisation: weights that were trained on (x - mean) / std take x instead. The kernels are
    divided by std, and what mean adds to the stem's output, a constant, goes into the running mean
    of its BatchNorm, or into its bias. In inference mode nothing else changes, but at the border,
    where zero stands for what the image lacks: a ResNet's three pixels, and what fills a Swin's
    images up to whole patches.

    Args:
      variables: The encoder's.
      bands: Numbers, from 0, of the weights' bands; None is all of them.
      mean: For each of the weights' bands, in units of the images after `data.value_range`.
      std: Likewise.
      source: What to call it in errors.
      field: What to call `bands` there.

    Raises:
      InputError: A number doesn't fit the weights' bands, or the encoder has no such stem.
    """
    stem = stem_of(variables["params"])
    if stem is None:
        raise InputError(f"{field}, --mean, --std: {source} has no single stem that takes them")
    kernel = np.asarray(variables["params"][stem]["kernel"], np.float64)
    count = kernel.shape[2]
    for name, values in (("--mean", mean), ("--std", std)):
        if values is not None and not np.isfinite(values).all():
            raise InputError(f"{name} is {' '.join(map(str, values))}; numbers are needed")
        if values is not None and len(values) != count:
            raise InputError(f"{name} has {len(values)} numbers; {source} has {count} bands")
    if std is not None and min(std) <= 0:
        raise InputError(f"--std is {min(std):g}; it must be above 0")
    chosen = np.arange(count) if bands is None else np.asarray(bands, int)
    if chosen.min() < 0 or chosen.max() >= count:
        raise InputError(f"{field} is {chosen.tolist()}; {source} has the bands 0 to {count - 1}")

    share = count / len(np.unique(chosen)) / np.bincount(chosen)[chosen]
    means = np.zeros(count) if mean is None else np.asarray(mean)
    stds = np.ones(count) if std is None else np.asarray(std)
    kernel = kernel[:, :, chosen] * (share / stds[chosen])[:, None]
    shift = np.einsum("hwio,i->o", kernel, means[chosen])
    params, stats = dict(variables["params"]), dict(variables["batch_stats"])
    params[stem] = {**params[stem], "kernel": kernel.astype(np.float32)}
    if "bias" in params[stem]:
        params[stem]["bias"] = (params[stem]["bias"] - shift).astype(np.float32)
    else:
        norm = stem.replace("conv", "bn")
        stats[norm] = {**stats[norm], "mean": (stats[norm]["mean"] + shift).astype(np.float32)}
    return {"params": params, "batch_stats": stats}
