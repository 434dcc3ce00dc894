"""Tables and figures of an experiment, from its results alone.

python -m elev_ssl_jax.report RUN

Writes `report.md`, `report.html` (one file, pictures included), `results.csv` and the pictures.
"""

from elev_ssl_jax import command_line
from elev_ssl_jax.errors import reported
from elev_ssl_jax.reporting import compose, summary


def main() -> None:
    """The command."""
    parser = command_line.parser("report", __doc__)
    parser.add_argument("run", type=command_line.run, help="an experiment's --workdir")
    with reported():
        run = parser.parse_args().run
        # An experiment has cells; a study has tasks, which have them.
        print((compose if (run / "cells").is_dir() else summary).write(run))


if __name__ == "__main__":
    main()
