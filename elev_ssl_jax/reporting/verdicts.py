"""What an experiment's numbers say, in words and in a table of differences.

Results are a table with a row for each fine-tuning: `method`, `labels`, `repetition`, `draw`,
`seed`, scores and `confusion_matrix`.
"""

import math
from typing import Any

import numpy as np
import pandas as pd

from elev_ssl_jax import pictures
from elev_ssl_jax.recipes import FROZEN, GIVEN, METRICS, OF_CHIPS, PROBES, made_of, recipe
from elev_ssl_jax.reporting import evidence

_DEFAULT = {"label": ("accuracy", "macro_f1"), "mask": ("macro_f1", "mean_iou")}


def name_of(method: str) -> str:
    """As a reader knows it."""
    title = recipe(method).title
    return f"{title}, frozen" if method.endswith(FROZEN) else title


def target_of(config: dict[str, Any]) -> str:
    """What an experiment's fine-tunings learn, as `config.finetune.target`."""
    settings = config["finetune"]
    of_chips = settings["head"] in OF_CHIPS
    return settings.get("target") or ("label" if of_chips else "mask")


def metrics_of(config: dict[str, Any]) -> dict[str, str]:
    """The metrics that an experiment compares: their titles, by name."""
    target = target_of(config)
    default = _DEFAULT["mask" if target == "mask" else "label"]
    if target == "present":
        default = ("macro_f1", "micro_f1")
    return {name: METRICS[name] for name in config["experiment"].get("metrics") or default}


def setting(config: dict[str, Any], results: pd.DataFrame) -> str:
    """What was done, what is repeated and what isn't."""
    settings, pretrain = config["experiment"], config["experiment"]["pretrain"]
    methods = results["method"].unique().tolist()
    recipes = made_of(methods)
    trained = [recipe.pretrained for recipe in recipes]
    default = config["model"]["encoder"]
    given = [name_of(method) for method in methods if method.startswith(GIVEN)]
    encoders = dict.fromkeys(
        recipe(m).fields.get("model.encoder", default)
        for name in methods
        if not name.startswith(GIVEN)
        for m in recipe(name).members or (name,)
    )
    sentences = []
    if any(trained):
        its = pretrain["name"] or config["data"]["name"]
        sentences.append(
            f"Pre-training takes {pretrain['epochs']} epochs (batch {pretrain['batch_size']}, "
            f"{pretrain['split']} of {its})."
        )
        if pretrain.get("init_from"):
            sentences[-1] += f" It starts from the encoder of {results['data'].iloc[0]['start']}."
    frozen, full = config["finetune"]["frozen_epochs"], config["epochs"]
    alone = f"; of methods that stay frozen, {frozen + full} with a frozen encoder"
    matrix = np.asarray(results["confusion_matrix"].iloc[0])
    side = config["augment"].get("crop_size", 0)
    chips = f"squares of {side} x {side} pixels" if side else "chips"
    judged = {"mask": "pixels", "present": f"classes of {chips}"}.get(target_of(config), chips)
    if (head := config["finetune"]["head"]) in PROBES:
        validated = config["data"].get("validation_split")
        chosen = f"on {validated}" if validated else "by cross-validation within these"
        learned = f"Classes are told from frozen features of labelled chips of {settings['split']} "
        learned += {
            "probe": f"by logistic regression (C out of 40 values, chosen {chosen})",
            "knn": "by the five nearest of them",
        }[head]
    else:
        learned = (
            f"Fine-tuning is on labelled chips of {settings['split']} ({frozen} epochs with a "
            f"frozen encoder, {full} of everything"
            f"{alone * any(m.endswith(FROZEN) for m in methods)})"
        )
    sentences.append(
        f"{learned}, and "
        f"judged by {matrix.sum():,} labelled {judged} of {config['data']['eval_split']}. "
    )
    if encoders:
        sentences[-1] += (
            f"{'Encoder' if len(encoders) == 1 else 'Encoders'}: {', '.join(encoders)}, width "
            f"{config['model']['width']:g}. "
        )
    if given:
        sentences[-1] += (
            f"{', '.join(given)}: one encoder each, as it is given, so that nothing here is "
            "repeated of its own training. "
        )
    sentences[-1] += "Numbers are per cent."
    repetitions = results["repetition"].nunique()
    most = results.groupby(["method", "labels", "repetition", "draw"])["seed"].nunique().max()
    draws = settings["label_draws"]
    chosen = f", on {_count(draws, 'random choice')} of the labelled chips for each" * bool(draws)
    noun = "pre-training" if any(trained) else "initial encoder"
    others = " (of those that have none, initial encoders)" * (any(trained) and not all(trained))
    tunings = (
        f", and for each of those {_count(most, 'fine-tuning')} (the new layers' initial weights, "
        "order and augmentation of the chips)"
    ) * (head not in PROBES)
    sentences.append(
        f"Repeated: {_count(repetitions, noun)} of each method{others}{chosen}{tunings}."
        + ("" if draws else " Not repeated: the labelled chips, which are always the first.")
    )
    if repetitions > 1:
        sentences.append(
            "A method's interval holds its mean with 95 % confidence (Student's t) over "
            f"{noun}s, each the mean of its fine-tunings; the test chips are the same for "
            "all, and their luck is not in it."
        )
    if draws and any(trained) and pretrain["name"] in ("", config["data"]["name"]):
        sentences.append(
            f"Labelled chips are drawn from all of `{settings['split']}`, so that pre-training may "
            "have seen images (never labels) of some."
        )
    return " ".join(sentences)


def verdict(
    some: pd.DataFrame,
    methods: list[str],
    titles: dict[str, str],
    differences: list[evidence.Difference],
) -> str:
    """Which method is first, by how much, and whether that is noise, in words."""
    name, title = next(iter(titles.items()))
    means = {
        m: repetition_means(some[some["method"] == m], name).mean()
        for m in methods
        if (some["method"] == m).any()
    }
    if len(means) < 2:
        return "Only one method is finished."
    first, second = sorted(means, key=lambda m: -means[m])[:2]
    says = f"{name_of(first)} has the highest {title}"
    if not any(d.repetitions > 1 for d in differences):
        return f"{says}; one pre-training a method says nothing about noise."
    found = {(methods[d.one], methods[d.other]): d for d in differences if d.metric == 0}
    sentences = []
    for rival in dict.fromkeys((second, "random")):
        pair, sign = found.get((first, rival)), 1
        if pair is None:
            pair, sign = found.get((rival, first)), -1
        if rival == first or pair is None:
            continue
        judged = "of which one pre-training in common says nothing"
        if not math.isnan(pair.p):
            verb = "" if pair.more_than_noise is False else "is "
            judged = f"which {verb}{judgement(pair)} (p = {_p_value(pair.p)})".replace("= <", "<")
        sentences.append(f"{sign * pair.mean + 0.0:+.2f} points against {name_of(rival)}, {judged}")
    return f"{says}: " + "; ".join(sentences) + "." if sentences else f"{says}."


def differences_table(
    differences: list[evidence.Difference], methods: list[str], titles: dict[str, str]
) -> pd.DataFrame:
    """A row for each pair of methods and metric."""
    return pd.DataFrame(
        [
            {
                "difference": f"{name_of(methods[d.one])} - {name_of(methods[d.other])}",
                "in": list(titles.values())[d.metric],
                **difference_row(d, with_blocks=any(d.blocks for d in differences)),
            }
            for d in differences
        ]
    )


def difference_row(difference: evidence.Difference, *, with_blocks: bool) -> dict[str, str]:
    """What a table says of a difference."""
    mean, half, p = difference.mean, difference.half, difference.p
    row = {"points": f"{mean:+.2f}", "over pre-trainings": between(mean - half, mean + half)}
    if with_blocks:
        row["over test blocks"] = between(*difference.blocks) if difference.blocks else ""
        row["over both"] = between(*difference.ends)
    return row | {
        "p, adjusted": "" if math.isnan(p) else _p_value(p),
        "noise?": judgement(difference),
    }


def forest(
    differences: list[evidence.Difference], methods: list[str], titles: list[str] | None = None
) -> list[pictures.ForestRow]:
    """Rows of `pictures.draw_forest`, with the interval that holds all luck that is known.

    Of the first metric, unless titles are given, one for each difference.
    """
    if titles is None:
        differences = [d for d in differences if d.metric == 0]
        titles = [f"{name_of(methods[d.one])} - {name_of(methods[d.other])}" for d in differences]
    return [
        pictures.ForestRow(title, d.mean, d.ends, d.gaps, d.more_than_noise)
        for title, d in zip(titles, differences, strict=True)
    ]


def reading(differences: list[evidence.Difference]) -> str:
    """How to read `differences_table`."""
    tested = [d for d in differences if not math.isnan(d.p)]
    fewest = min(d.repetitions for d in tested)
    ground = tested[0].ground
    of_ground = ", so that the luck of the test ground is in none of the intervals and p-values"
    if ground is not None and ground.scores is not None:
        luck = (
            ", and hold both kinds of luck. The "
            f"{ground.blocks} blocks of test chips are drawn again and again, with replacement "
            "(expanded percentiles). More than noise: p below 0.05, and the interval over test "
            "blocks without zero."
        )
    elif ground is not None:
        luck = (
            f". The test chips lie in {_count(ground.blocks, 'block')} only{of_ground}: whether a "
            "difference with p below 0.05 would be there on other ground is not known."
        )
    else:
        luck = (
            f". Which chips of the test lie together isn't known{of_ground}. More than noise of "
            "pre-training: p below 0.05."
        )
    return (
        "Differences are taken within a pre-training's repetition, over the fine-tunings that both "
        "methods have. Intervals hold 95 % and are of one comparison by itself; p-values are "
        f"adjusted (Holm) for all {len(tested)}{luck} With "
        f"{_count(fewest, 'pre-training')} of each method that takes a difference of at "
        f"least {evidence.detectable(fewest, len(tested)):.1f} of its standard deviations between "
        "pre-trainings; more of them (experiment.pretrain_seeds) show smaller ones."
    )


def repetition_means(mine: pd.DataFrame, name: str) -> np.ndarray:
    """Each repetition's mean of a score over its fine-tunings."""
    return mine.groupby("repetition")[name].mean().to_numpy()


def judgement(difference: evidence.Difference) -> str:
    """Whether a difference is more than noise, in words."""
    beyond = difference.more_than_noise
    if beyond is not None:
        alone = " of pre-training" * (difference.ground is None)
        return f"more than noise{alone}" if beyond else "could be noise"
    if math.isnan(difference.p) or difference.ground is None:
        return "not known: one pre-training"
    return f"not known: the test lies in {_count(difference.ground.blocks, 'block')}"


def between(low: float, high: float) -> str:
    """An interval's ends; nothing if it isn't known."""
    return "" if math.isnan(low) else f"{low:+.2f} to {high:+.2f}"


def _p_value(p):
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _count(number, noun):
    return f"{number} {noun}" + ("" if number == 1 else "s")
