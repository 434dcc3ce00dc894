r"""Takes weights to other frameworks, and back.

python -m elev_ssl_jax.convert --from RUN --to torchvision --out encoder.safetensors
python -m elev_ssl_jax.convert --from RUN --to timm --branch s2 --out s2.safetensors
python -m elev_ssl_jax.convert --from weights.safetensors --to run --out RUN
"""

import hashlib
import math
from pathlib import Path
from typing import Any

from elev_ssl_jax import command_line, files, storage
from elev_ssl_jax.config import default
from elev_ssl_jax.convert import branches, card, exported, facts, imported
from elev_ssl_jax.errors import InputError, reported
from elev_ssl_jax.inference.model import load
from elev_ssl_jax.runtime import starting
from elev_ssl_jax.sensors import pairs


def export(
    run: Path, target: str, out: Path, *, branch: str | None = None, overwrite: bool = False
) -> str:
    """Writes a run's weights for `target`, and a page about them; the Python that loads them.

    Args:
      run: Its folder.
      target: One of `exported.TARGETS`.
      out: The file.
      branch: The sensor whose encoder is wanted, of a run with an encoder for each.
      overwrite: Whether to replace a file that is there.

    Raises:
      InputError: The run is not finished, doesn't suit the target, or has no such branch, or `out`
        can't be written, or exists and `overwrite` is False.
    """
    page = card.path_of(out)
    files.check_outputs([out, page], overwrite=overwrite)
    model = load(run)
    if branch is not None:
        model = branches.one(model, branch)
    data, usage = exported.TARGETS[target](model, out)
    about = card.card(model, out, usage)
    try:
        with files.new_file(page) as partial_page, files.new_file(out) as partial:
            partial_page.write_text(about)
            partial.write_bytes(data)
    except OSError as error:
        raise InputError(f"--out={out} can't be written: {error.strerror}") from error
    return usage


def _import(args) -> str:
    source, size = args.source, (224, 224)
    scale: dict[str, Any] = {"value_range": default().data.value_range}  # fields of config.data
    shapes = None
    with storage.told(source):
        is_run = source.is_dir()
    if is_run:
        model = load(source)
        if args.branch is not None:
            model = branches.one(model, args.branch)
        elif branches.names(model):
            raise InputError(
                f"{source} has an encoder for each sensor (model.fusion=late), and --to=run takes "
                f"one; {branches.advice(model)} names it"
            )
        name, width = model.config.model.encoder, model.config.model.width
        variables = {part: tree.get("encoder", {}) for part, tree in model.variables.items()}
        scale = {field: model.config.data[field] for field in facts.SCALE}
        size, bands = model.image_shape[:2], model.image_shape[2]
        shapes = {name: model.shapes[name] for name in model.inputs.names}
        about = {"commit": model.commit, "origin": model.origin}
        origin = starting.origin_of(source, model.step, about, ["encoder"], args.bands or ())
    elif args.branch is not None:
        raise InputError(f"--branch={args.branch}: of a run, and {source} is none")
    elif storage.in_bucket(source):
        raise InputError(f"{source} is no run; copy a file of weights to this machine first")
    else:
        tensors, told = imported.read_tensors(source)
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        origin = {"file": source.name, "sha256": digest, "method": told.get("method")}
        name, width, variables = imported.encoder_variables(tensors, str(source), args.prefix)
        params = variables["params"]
        bands = params[starting.stem_of(params)]["kernel"].shape[2]
        seen, shapes = facts.told_inputs(told, bands, source)  # of a file of our own
        scale |= seen | facts.told_scale(told, source)
    if args.value_range:
        scale["value_range"] = tuple(args.value_range)
    if not all(-math.inf < low < high < math.inf for low, high in pairs(scale["value_range"])):
        raise InputError(
            f"--value-range is {scale['value_range']}; two numbers, the first below the second, "
            "are needed"
        )
    if args.bands:
        bands = len(args.bands)
        scale, shapes = facts.scale_of_bands(scale, args.bands, source), None
    if args.bands or args.mean or args.std:
        variables = starting.adapt_stem(
            variables, bands=args.bands, mean=args.mean, std=args.std, source=str(source)
        )
    shapes = shapes or {"image": (*size, bands)}
    imported.write_run(args.out, name, width, variables, scale, shapes, origin)
    return f"{name}, width {width:g}, {bands} bands; to start from: --config.init_from={args.out}"


def main() -> None:
    """The command."""
    parser = command_line.parser("convert", __doc__)
    parser.add_argument(
        "--from",
        dest="source",
        type=command_line.run,
        required=True,
        help="a run, .safetensors or .pth file",
    )
    parser.add_argument("--to", required=True, choices=[*exported.TARGETS, "run"])
    parser.add_argument(
        "--out", type=command_line.path, required=True, help="file, or folder of the new run"
    )
    parser.add_argument(
        "--print-usage", action="store_true", help="print the Python that loads the file"
    )
    parser.add_argument(
        "--branch", help="the sensor whose encoder to take, of a run with an encoder for each"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    group = parser.add_argument_group("with --to run")
    group.add_argument("--prefix", default="", help="of the encoder's names, as encoder.")
    group.add_argument(
        "--bands", type=int, nargs="+", help="the weights' band, from 0, for each of the images'"
    )
    group.add_argument("--mean", type=float, nargs="+", help="that the weights expect subtracted")
    group.add_argument("--std", type=float, nargs="+", help="that they expect to be divided by")
    group.add_argument(
        "--value-range", type=float, nargs=2, help="sensor units that become 0 and 1"
    )
    args = parser.parse_args()
    with reported():
        if args.to == "run":
            if args.overwrite:
                raise InputError("--overwrite: not for --to=run, whose folder is a new one")
            done = _import(args)
        else:
            only = ("prefix", "bands", "mean", "std", "value_range")
            given = [f"--{name.replace('_', '-')}" for name in only if getattr(args, name)]
            if given:
                raise InputError(f"{', '.join(given)}: for --to=run only")
            done = export(
                args.source, args.to, args.out, branch=args.branch, overwrite=args.overwrite
            )
        page = f" and {card.path_of(args.out).name}" if args.to != "run" else ""
        print(f"{args.out}{page} written")
        if args.to == "run" or args.print_usage:
            print(done)


if __name__ == "__main__":
    main()
