"""One page for a study: what helps, by how much, over what it was repeated, what is noise."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from elev_ssl_jax import pictures
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.recipes import ELSEWHERE, GIVEN
from elev_ssl_jax.reporting import compose, documents, evidence, pretrained, verdicts

# Questions that a study is made for: a method, what it is held against, and what that tells.
QUESTIONS = (
    ("simclr", "random", "SimCLR against no pre-training"),
    ("simclr_elev", "simclr", "elevation beside SimCLR"),
    ("glcnet_elev", "glcnet", "elevation beside GLCNet"),
    ("simclr_elev", "simclr_shuffled", "the image's own elevation against another's"),
    ("simclr_elev", "simclr_slope", "elevation against its slope alone"),
    ("simclr_elev", "simclr_brightness", "elevation against brightness as the target"),
    ("simclr_elev", "simclr_ndvi", "elevation against NDVI as the target"),
    ("simclr_elev", "simclr_sees_elev", "elevation as a target against elevation as an input"),
    ("simclr_elev", "statistics", "SimCLR+Elevation against band statistics"),
    ("simclr_elev", "supervised", "SimCLR+Elevation against training on the labels alone"),
)
_TASKS = {
    "linear": "chip class, fine-tuned",
    "unet": "pixel class, fine-tuned",
    "probe": "chip class, linear probe",
    "knn": "chip class, 5 nearest",
}


def write(run: Path) -> str:
    """Writes the reports of a study's folder and of its tasks; returns what the page says first.

    Raises:
      InputError: The folder holds no finished fine-tuning, or what it holds can't be read.
    """
    try:
        config = json.loads((run / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{run} can't be read ({error}); run the study again") from error
    names = [t + where for where in ("", ELSEWHERE) for t in config["experiment"]["tasks"]]
    tasks = [name for name in names if any((run / name / "cells").glob("*.json"))]
    if not tasks:
        raise InputError(f"{run} holds no finished fine-tuning; is it a study's --workdir?")
    found = _collect(run, tasks, config)
    title = f"{config['data']['name']}: a study of {len(tasks)} tasks"
    given = any(method.startswith(GIVEN) for method in found.means)
    answers, said = found.answers, _say(found.answers, given=given)
    blocks: list[tuple[str, Any]] = [("title", title), ("text", said)]
    if answers:
        titles = [f"{words}\n{where}" for words, where, _ in answers]
        differences = [d for *_, d in answers]
        rows = verdicts.forest(differences, [], titles)
        pictures.draw_forest(run / "answers.png", rows, "points, with 95 % intervals")
        blocks += [("image", run / "answers.png"), ("text", _HOW)]
        with_blocks = any(d.blocks for d in differences)
        answered = [
            {"question": q, "in": where, **verdicts.difference_row(d, with_blocks=with_blocks)}
            for q, where, d in answers
        ]
        blocks.append(("table", pd.DataFrame(answered)))
    table = pd.DataFrame(
        [{"method": verdicts.name_of(m), **row} for m, row in found.means.items()]
    ).fillna("")
    blocks += [("heading", "Every method"), ("table", table)]
    whole = [m for m in found.means if all(m in scores for scores in found.strata)]
    if len(whole) > 1 and len(found.strata) > 1:
        summary = evidence.summarise([np.stack([s[m] for m in whole]) for s in found.strata])
        blocks.append(("heading", "All tasks in one number"))
        if np.isnan(summary.mean).any():
            blocks.append(("text", "No repetition is whole in every task yet."))
        else:
            blocks += [("text", _SUMMARY), ("table", _summary_table(whole, summary))]
    for task in tasks:
        its, results, _ = compose.read(run / task)
        blocks += [
            ("heading", f"Task {task}: {_title(task, config)}"),
            ("text", verdicts.setting(its, results) + f" All of it: {task}/report.html."),
        ]
        if (run / task / "curves.png").exists():
            blocks.append(("image", run / task / "curves.png"))
    blocks += pretrained.blocks(run, config["experiment"]["methods"])
    return f"{table.to_string(index=False)}\n{said}\nreport: {documents.write(run, blocks)}"


class _Found(NamedTuple):
    """What the tasks say."""

    means: dict[str, dict[str, str]]  # of each method, by table
    # A question, the table that it is asked of, and the difference.
    answers: list[tuple[str, str, evidence.Difference]]
    strata: list[dict[str, np.ndarray]]  # of each table, each method's scores [R, C]


def _collect(run, tasks, config) -> _Found:
    found, at = _Found({}, [], []), []
    questions = _questions(config)
    for task in tasks:
        compose.write(run / task)
        its, results, _ = compose.read(run / task)
        name, title = next(iter(verdicts.metrics_of(its).items()))
        methods = [m for m in its["experiment"]["methods"] if m in set(results["method"])]
        results = results[results["method"].isin(methods)]
        asked = [q for q in questions if {*q[:2]} <= {*methods}]
        pairs = [(methods.index(one), methods.index(other)) for one, other, _ in asked]
        for labels in sorted(results["labels"].unique().tolist()):
            some = results[results["labels"] == labels]
            where = f"{_title(task, config)}, {labels} labels"
            scores, _ = compose.scores_of(some, methods, {name: title})
            found.strata.append(dict(zip(methods, scores[..., 0], strict=True)))
            at.append(sorted(some["repetition"].unique()))
            for method in methods:
                mine = 100 * verdicts.repetition_means(some[some["method"] == method], name)
                cell = documents.plus_minus(*evidence.interval(mine), 1)
                found.means.setdefault(method, {})[f"{where}: {title} (%)"] = cell
            said = {pair: question for pair, (*_, question) in zip(pairs, asked, strict=True)}
            found.answers.extend(
                (said[d.one, d.other], where, d)
                for d in compose.compare(
                    run / task, some, methods, {name: title}, presence=False, pairs=pairs
                )
            )
    # A study that was stopped has repetitions that not all of its tasks have.
    common = sorted(set.intersection(*map(set, at)))
    for stratum, there in zip(found.strata, at, strict=True):
        rows = [there.index(repetition) for repetition in common]
        stratum.update({method: scores[rows] for method, scores in stratum.items()})
    order = [question for *_, question in questions]
    differences = evidence.adjusted([d for *_, d in found.answers])
    answers = [(*a[:2], d) for a, d in zip(found.answers, differences, strict=True)]
    return found._replace(answers=sorted(answers, key=lambda answer: order.index(answer[0])))


def _questions(config) -> list[tuple[str, str, str]]:
    """`QUESTIONS`, and those of the encoders that the study is given."""
    given = [m for m in config["experiment"]["methods"] if m.startswith(GIVEN)]
    return [
        *QUESTIONS,
        *(("simclr_elev", m, f"SimCLR+Elevation against {verdicts.name_of(m)}") for m in given),
    ]


_HOW = (
    "Dots are single pre-trainings (repetitions), each the mean of its fine-tunings; diamonds are "
    "their mean. The line is the wider of two 95 % intervals: over pre-trainings (Student's t) and "
    "over blocks of test ground, where these are known, each of one comparison by itself. Colours "
    "go by p-values that are adjusted for all of them, so that a grey line may leave out zero: "
    "blue is more than noise, grey could be noise, light grey is not known."
)
_SUMMARY = (
    "Within each task and number of labels the lowest method's mean is 0 and the highest one's 1; "
    "the number is the mean of the middle half of all repetitions in all tasks (GEO-Bench), of "
    "methods that are in every task. Intervals are of a "
    "bootstrap over pre-trainings and the fine-tunings within; with few pre-trainings it is too "
    "narrow, and no verdict is drawn from it."
)


def _title(task, config) -> str:
    title = _TASKS[task.removesuffix(ELSEWHERE)]
    if task.endswith(ELSEWHERE):
        title += f" on {config['data']['transfer']['name']}"
    return title


def _say(answers, *, given: bool = False) -> str:
    """The answers in words."""
    if not answers:
        return "No two methods of the study's questions are finished."
    sentences = []
    for words in dict.fromkeys(answer[0] for answer in answers):
        mine = [d for w, _, d in answers if w == words]
        means = [d.mean for d in mine]
        shown = (
            f"{means[0]:+.1f} points"
            if len(means) == 1
            else f"{min(means):+.1f} to {max(means):+.1f} points over {len(means)} tables"
        )
        judged = [d.more_than_noise for d in mine]
        up = sum(j is True and d.mean > 0 for j, d in zip(judged, mine, strict=True))
        down = sum(j is True and d.mean < 0 for j, d in zip(judged, mine, strict=True))
        unknown = judged.count(None)
        noise = "noise of pre-training" if all(d.ground is None for d in mine) else "noise"
        if unknown == len(judged):
            said = "whether that is noise is not known"
        elif not up and not down:
            known = "none is known to be" if unknown else "none of it is"
            said = f"{known} more than {noise}" if len(mine) > 1 else "which could be noise"
        else:
            parts = [f"better beyond {noise} in {up}"] * (up > 0)
            parts += [f"worse beyond {noise} in {down}"] * (down > 0)
            said = f"{', '.join(parts)} of {len(mine)}"
        if 0 < unknown < len(judged):
            said += f", {unknown} not known"
        sentences.append(f"{words[0].upper()}{words[1:]}: {shown}; {said}.")
    repetitions = min(d.repetitions for *_, d in answers)
    sentences.append(
        f"Repeated over {repetitions} pre-training{'s' * (repetitions != 1)} of each method"
        f"{', but for the encoders that are given, of which there is one each' * given}. "
        f"P-values are adjusted (Holm) for all {len(answers)} comparisons of this page."
    )
    return " ".join(sentences)


def _summary_table(methods, summary) -> pd.DataFrame:
    order = np.argsort(-summary.mean)
    return pd.DataFrame(
        [
            {
                "method": verdicts.name_of(methods[i]),
                "normalised, interquartile mean": f"{summary.mean[i]:.3f}",
                "95 % interval": f"{summary.low[i]:.3f} to {summary.high[i]:.3f}",
            }
            for i in order
        ]
    )
