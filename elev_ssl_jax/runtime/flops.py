"""Floating-point operations of a model, counted from what it is made of."""

import math
from collections.abc import Callable
from typing import Any

import jax

# Scopes of products with matrices that are no parameters: crops and upsampling are written so.
_UNCOUNTED = ("views", "resample")


def count(function: Callable[..., Any], *arguments: Any) -> int:
    """Of the convolutions and matrix products of a function; a multiply-add is two.

    Augmentation and upsampling, which are written as products too, are left out, and so is all that
    is no product. Nothing is computed: arrays may be `jax.ShapeDtypeStruct`.
    """
    return _of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of_jaxpr(jaxpr):
    total = 0
    for equation in jaxpr.eqns:
        if any(scope in str(equation.source_info.name_stack) for scope in _UNCOUNTED):
            continue
        kind, out = equation.primitive.name, math.prod(equation.outvars[0].aval.shape)
        if kind == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * out * math.prod(shape[axis] for axis in contracted)
        elif kind == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = equation.params["dimension_numbers"].rhs_spec[0]
            # Zeros that are put between pixels are multiplied by no one who counts.
            zeros = math.prod(equation.params["lhs_dilation"])
            total += 2 * out * math.prod(kernel) // kernel[features] // zeros
        else:
            times = equation.params.get("length", 1) if kind == "scan" else 1
            every = [_of_jaxpr(inner) for inner in _inner(equation.params)]
            total += times * (max(every) if kind == "cond" else sum(every))
    return total


def _inner(parameters):
    """The programs within an operation."""
    for value in jax.tree.leaves(
        list(parameters.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
    ):
        if hasattr(value, "jaxpr"):
            yield value.jaxpr
        elif hasattr(value, "eqns"):
            yield value
