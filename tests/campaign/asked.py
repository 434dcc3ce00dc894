"""Asks a run's model about an array: `python -m tests.campaign.asked RUN WHAT`."""

import sys

import numpy as np

import elev_ssl_jax
from elev_ssl_jax.errors import reported

ARRAYS = {
    "text": np.full((2, 32, 32, 3), "a"),
    "complex": np.ones((2, 32, 32, 3), complex),
    "objects": np.full((2, 32, 32, 3), None),
    "times": np.zeros((2, 32, 32, 3), "datetime64[s]"),
    "records": np.zeros((2, 32, 32, 3), [("a", int)]),
    "no dimensions": np.float32(1),
    "no chips": np.ones((0, 32, 32, 3), np.float32),
    "no height": np.ones((2, 0, 32, 3), np.float32),
    "no bands": np.ones((2, 32, 32, 0), np.float32),
    "too many bands": np.ones((2, 32, 32, 4), np.float32),
    "one chip": np.ones((32, 32, 3), np.float32),
    "five dimensions": np.ones((1, 2, 32, 32, 3), np.float32),
    "another side": np.ones((2, 31, 32, 3), np.float32),
    "NaN": np.full((2, 32, 32, 3), np.nan, np.float32),
    "infinite": np.full((2, 32, 32, 3), np.inf, np.float32),
    "an unknown name": {"radar": np.ones((2, 32, 32, 3), np.float32)},
    "nothing": {},
    "None": None,
    "ragged": [[1], [1, 2]],
}


def main() -> None:
    """The command."""
    with reported():
        model = elev_ssl_jax.load(sys.argv[1])
        getattr(model, sys.argv[2])(ARRAYS[sys.argv[3]])


if __name__ == "__main__":
    main()
