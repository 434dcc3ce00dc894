"""The page that lies beside exported weights: what they are, and how far to trust them."""

from pathlib import Path
from typing import Any

from elev_ssl_jax import __version__, files, storage
from elev_ssl_jax.convert import branches, facts
from elev_ssl_jax.inference.model import Model
from elev_ssl_jax.pictures import with_unit


def path_of(out: Path) -> Path:
    """Where the page of the weights `out` lies."""
    return out.with_name(f"{out.name}.md")


def card(model: Model, out: Path, usage: str) -> str:
    """A page in Markdown: origin, images, scores, and the Python that loads the weights.

    Args:
      model: The run's.
      out: The file of the weights.
      usage: That Python.

    Raises:
      InputError: The run's results are damaged.
    """
    said, config = facts.metadata(model), model.config
    ranges = ", ".join(f"{low:g} to {high:g}" for low, high in model.inputs.value_range)
    sizes = "{} x {} pixels, {} bands".format(*model.image_shape)
    trained = {  # and not only converted
        "tells": _told(model),
        "trained on": f"{config.data.name}, {config.data.split}",
        "steps": f"{model.step:,} of {config.batch_size} chips, seed {config.seed}",
    }
    rows = {
        "encoder": f"{said['encoder']}, width {said['width']}",
        "method": said["method"],
        "started from": said["started_from"],
        **(trained if model.step else {}),
        "inputs": f"{said['inputs'].replace(' ', ', ')}: chips of {sizes}",
        "bands seen": said["band_numbers"].replace(" ", ", "),
        "red, green, blue": said["rgb"].replace(" ", ", "),
        "value range": f"{ranges}, in sensor units",
        "normalization": said["normalization"],
        "made by": f"elev_ssl_jax {__version__}; trained by commit {model.commit}",
        "checksum of the run": model.checksum,
    }
    table = [f"| {name} | {_cell(value)} |" for name, value in rows.items() if value]
    scores = _scores(model)
    judged = f"on the split `{config.data.eval_split}` of the same data, in inference mode"
    lines = [
        *(f"# {out.name}", "", "| | |", "| --- | --- |", *table, ""),
        *("## Use", "", "```python", usage, "```", ""),
        *("## Scores", ""),
        *(
            [f"Of the whole run, {judged}:", "", "| | |", "| --- | --- |", *scores]
            if scores
            else []
        ),
        *(["The run has no results."] if not scores else []),
        "",
        "One run with one seed: another would differ. On other ground, seasons or sensors nothing",
        "was measured. What the images and labels allow is to be asked of who has made them.",
        "",
    ]
    return "\n".join(lines)


def _told(model: Model) -> str:
    if branches.head(model) is None:
        return "features"
    if model.tells:
        return f"{with_unit(*model.tells)} of each pixel"
    kind = "each present or not" if model.together else "one of them"
    return f"classes, {kind}: {', '.join(model.classes)}"


def _scores(model: Model) -> list[str]:
    """A row for each number that the run's `results.json` has at its top."""
    path = model.run / "results.json"
    with storage.told(path):
        if not path.exists():
            return []
    found = files.read_json(path, "the command that made the run writes it again")
    return [f"| {_words(k)} | {v:.4g} |" for k, v in found.items() if isinstance(v, float)]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
