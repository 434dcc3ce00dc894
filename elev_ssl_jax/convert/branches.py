"""One encoder out of a run that has one for each sensor."""

import dataclasses

from elev_ssl_jax import sensors
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.inference.model import Model


def names(model: Model) -> tuple[str, ...]:
    """The sensors that have an encoder of their own; () of a run with one encoder for all."""
    if model.config.model.fusion != "late":
        return ()
    return tuple(name for name in model.inputs.names if name != sensors.ELEVATION)


def advice(model: Model) -> str:
    """What names one of them to the command."""
    return " or ".join(f"--branch {name}" for name in names(model))


def one(model: Model, name: str) -> Model:
    """The encoder of a sensor as a model that sees this sensor alone.

    What sees all encoders' maps, a classifier or a decoder, is left out.

    Raises:
      InputError: The run has no such encoder.
    """
    if not names(model):
        raise InputError(
            f"--branch={name}: {model.run} has one encoder for all its inputs; leave it out"
        )
    if name not in names(model):
        raise InputError(f"--branch={name}: {model.run} has {advice(model)}")
    config = model.config.copy_and_resolve_references()
    config.data.update(sensors.of_inputs(config, [name], model.shapes))
    config.model.fusion = "early"
    # LayerNorm alone leaves no statistics.
    variables = {
        part: {"encoder": tree["encoder"][name]}
        for part, tree in model.variables.items()
        if name in tree.get("encoder", {})
    }
    shapes = {name: model.shapes[name]}
    return dataclasses.replace(model, config=config, variables=variables, shapes=shapes)


def head(model: Model) -> str | None:
    """What lies on the encoder, as `finetune.head`; None of a pre-training, and of a branch."""
    alone = model.variables["params"].keys() <= {"encoder"}
    return None if model.config.task != "finetune" or alone else model.config.finetune.head
