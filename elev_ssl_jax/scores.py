"""What a pre-training run is scored by on its held-out chips, and how that is shown."""

from collections.abc import Callable
from typing import Any

import numpy as np

from elev_ssl_jax import evaluate

Arrays = dict[str, np.ndarray]


def measure(
    predict: Callable[[Any, Arrays], evaluate.Outputs],
    variables: Any,
    heldout: Arrays,
    labelled: Arrays | None,
    train_mean: float,
) -> tuple[dict[str, float], evaluate.Outputs]:
    """Scores on the held-out chips, by name, and the outputs they come from.

    Args:
      predict: From `evaluate.make_predict`.
      variables: The model's.
      heldout: `image`, `elevation`, and labels of any kind.
      labelled: Chips for the linear probe to learn from; None does without.
      train_mean: Mean elevation in metres of the training chips.
    """
    outputs = predict(variables, heldout)
    scores = {"feature_std": evaluate.feature_std(outputs.features)}
    true = heldout["elevation"]
    if outputs.elevation is not None:
        own_mean = float(np.nanmean(true, dtype=np.float64))
        for name, rmse in (("", evaluate.rmse), ("level_", evaluate.level_rmse)):
            scores[f"elevation_{name}rmse_m"] = rmse(outputs.elevation, true)
            scores[f"elevation_{name}rmse_of_train_mean_m"] = rmse(train_mean, true)
            scores[f"elevation_{name}rmse_of_heldout_mean_m"] = rmse(own_mean, true)
        scores["elevation_relief_rmse_m"] = evaluate.relief_rmse(outputs.elevation, true)
        scores["elevation_relief_rmse_of_none_m"] = evaluate.relief_rmse(0.0, true)
        correlation = evaluate.relief_correlation(outputs.elevation, true)
        scores["elevation_relief_correlation"] = correlation
    if outputs.embeddings is not None:
        scores["contrastive_top1"] = evaluate.top1(outputs.embeddings)
    if labelled is not None:
        probe = evaluate.linear_probe(
            predict(variables, labelled).features,
            evaluate.chip_labels(labelled),
            outputs.features,
            evaluate.chip_labels(heldout),
        )
        scores |= {f"probe_{name}": value for name, value in (probe or {}).items()}
    return scores, outputs


def table(scores: dict[str, float], heldout: int, split: str) -> str:
    """The final scores as a short text table, each beside what it must beat.

    Args:
      scores: From `measure`, and those of the untrained encoder's probe with `random_` before.
      heldout: How many chips they are on.
      split: The name of these.
    """
    pool = 2 * min(evaluate.TOP1_POOL, heldout) - 1
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
    for name, what in (("probe_accuracy", "accuracy"), ("probe_macro_f1", "macro F1")):
        if name in scores:
            rival = f"{scores[f'random_{name}']:.3f}"
            text = f"{scores[name]:.3f}"
            lines.append((f"linear probe, {what}", text, rival, "the same encoder, untrained"))
    if "contrastive_top1" in scores:
        text, rival = f"{scores['contrastive_top1']:.3f}", f"{1 / pool:.3f}"
        lines.append(("contrastive top-1", text, rival, f"chance among {pool} views"))
    lines.append(("feature spread", f"{scores['feature_std']:.3f}", "0", "collapse"))
    title = f"on {heldout} held-out chips ({split}), BatchNorm in inference mode"
    return "\n".join([title, *(f"  {a:<24}{b:>10}{c:>10}   {d}".rstrip() for a, b, c, d in lines)])
