"""One page for a study: what helps, by how much, over what it was repeated, what is noise."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from elev_ssl_jax import pictures
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.recipes import ELSEWHERE, GIVEN
from elev_ssl_jax.reporting import compose, documents, evidence, pretrained, verdicts
from elev_ssl_jax.runtime import run_folder

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
    config = run_folder.read_config(run)
    names = [t + where for where in ("", ELSEWHERE) for t in config["experiment"]["tasks"]]
    tasks = [name for name in names if any((run / name / "cells").glob("*.json"))]
    if not tasks:
        raise InputError(f"{run} holds no finished fine-tuning; is it a study's --workdir?")
    means, tables = _collect(run, tasks, config)
    answers = _answers(tables, config)
    title = f"{config['data']['name']}: a study of {len(tasks)} tasks"
    said = _say(answers, given=any(method.startswith(GIVEN) for method in means))
    blocks: list[tuple[str, Any]] = [("title", title), ("text", said)]
    if answers:
        titles, overall = [a.question for a in answers], [a.overall for a in answers]
        image, rows = _shown(run / "answers.png", titles, overall)
        blocks += [image, ("text", _HOW), rows]
    table = pd.DataFrame(
        [{"method": verdicts.name_of(m), **row} for m, row in means.items()]
    ).fillna("")
    blocks += [("heading", "Every method"), ("table", table)]
    if any(len(a.tables) > 1 for a in answers):
        titles = [f"{a.question}\n{where}" for a in answers for where in a.tables]
        each = [d for a in answers for d in a.tables.values()]
        blocks += [("heading", "The questions, table by table"), ("text", _BY_TABLE)]
        blocks += _shown(run / "answers-by-table.png", titles, each)
    whole = [m for m in means if all(m in table.methods for table in tables.values())]
    if len(whole) > 1 and len(tables) > 1:
        summary = evidence.summarise([t.of(whole).scores[..., 0] for t in tables.values()])
        blocks.append(("heading", "All tasks in one number"))
        if np.isnan(summary.mean).any():
            blocks.append(("text", "No repetition is whole in every task yet."))
        else:
            blocks += [("text", _SUMMARY), ("table", _summary_table(whole, summary))]
    for task in tasks:
        its, results, _ = compose.read(run / task)
        setting = verdicts.setting(its, results)
        if task.endswith(ELSEWHERE):
            setting += f" Elsewhere is {its['data']['name']} of {its['data']['dir']}."
        blocks += [
            ("heading", f"Task {task}: {_title(task)}"),
            ("text", f"{setting} All of it: {task}/report.html."),
        ]
        if (run / task / "curves.png").exists():
            blocks.append(("image", run / task / "curves.png"))
    blocks += pretrained.blocks(run, config["experiment"]["methods"])
    return f"{table.to_string(index=False)}\n{said}\nreport: {documents.write(run, blocks)}"


class _Answer(NamedTuple):
    """To a question."""

    question: str
    overall: evidence.Difference  # the mean over all tables
    tables: dict[str, evidence.Difference]  # that have both methods


class _Table(NamedTuple):
    """A task with a number of labels."""

    methods: list[str]
    all: evidence.Table  # of these methods in the task's first metric

    def of(self, methods: Sequence[str]) -> evidence.Table:
        """Of some methods."""
        return self.all.of([self.methods.index(method) for method in methods])


def _collect(run, tasks, config) -> tuple[dict[str, dict[str, str]], dict[str, _Table]]:
    """Each method's mean in every table, as it is shown, and the tables by what they are of."""
    means: dict[str, dict[str, str]] = {}
    tables: dict[str, _Table] = {}
    read = {}
    for task in tasks:
        compose.write(run / task)
        read[task] = compose.read(run / task)[:2]
    # A study that was stopped has repetitions that not all of its tasks have.
    repetitions = sorted(set().union(*(results["repetition"] for _, results in read.values())))
    for task, (its, results) in read.items():
        metric = dict([next(iter(verdicts.metrics_of(its).items()))])
        methods = [m for m in its["experiment"]["methods"] if m in set(results["method"])]
        results = results[results["method"].isin(methods)]
        for labels in sorted(results["labels"].unique().tolist()):
            some = results[results["labels"] == labels]
            where = f"{_title(task)}, {labels} labels"
            seed = int(task.endswith(ELSEWHERE))  # other ground is drawn by itself
            table = compose.table_of(
                run / task, some, methods, metric, repetitions=repetitions, seed=seed
            )
            tables[where] = _Table(methods, table)
            for method in methods:
                [(name, title)] = metric.items()
                mine = 100 * verdicts.repetition_means(some[some["method"] == method], name)
                cell = documents.plus_minus(*evidence.interval(mine), 1)
                means.setdefault(method, {})[f"{where}: {title} (%)"] = cell
    return means, tables


def _answers(tables: dict[str, _Table], config: dict[str, Any]) -> list[_Answer]:
    """To the questions whose methods some repetition has in all tables that are of both."""
    answers = []
    for one, other, question in _questions(config):
        each, mine = {}, []
        for where, table in tables.items():
            if {one, other} <= {*table.methods}:
                pair = table.of((one, other))
                for difference in evidence.compare(pair, [(0, 1)]):  # none, if they share nothing
                    each[where] = difference
                    mine.append(pair)
        overall = evidence.compare(evidence.pool(mine), [(0, 1)]) if mine else []
        if overall:
            among = zip(each, evidence.adjusted([*each.values()]), strict=True)
            answers.append(_Answer(question, overall[0], dict(among)))
    all_of_them = evidence.adjusted([answer.overall for answer in answers])
    return [a._replace(overall=d) for a, d in zip(answers, all_of_them, strict=True)]


def _shown(path: Path, titles: list[str], differences: list[evidence.Difference]):
    """Their forest plot and their table."""
    rows = verdicts.forest(differences, [], titles)
    pictures.draw_forest(path, rows, "points, with 95 % intervals")
    with_blocks = any(d.blocks for d in differences)
    table = [
        {"question": title.replace("\n", ": ")}
        | verdicts.difference_row(d, with_blocks=with_blocks)
        for title, d in zip(titles, differences, strict=True)
    ]
    return [("image", path), ("table", pd.DataFrame(table))]


def _questions(config) -> list[tuple[str, str, str]]:
    """`QUESTIONS`, and those of the encoders that the study is given."""
    given = [m for m in config["experiment"]["methods"] if m.startswith(GIVEN)]
    return [
        *QUESTIONS,
        *(("simclr_elev", m, f"SimCLR+Elevation against {verdicts.name_of(m)}") for m in given),
    ]


_HOW = (
    "A question's answer is the mean difference over all tables that have both methods. Dots are "
    "single pre-trainings (repetitions), each the mean of its fine-tunings; diamonds are their "
    "mean. Lines are 95 % intervals, of one question by itself, with the luck of pre-training and, "
    "where the test's blocks are known, of its ground. Colours go by p-values that are adjusted "
    "for the number of questions, so that a grey line may leave out zero: blue is more than noise, "
    "grey could be noise, light grey is not known."
)
_BY_TABLE = (
    "The same, where each answer comes from. P-values are adjusted among the tables of a question."
)
_SUMMARY = (
    "Within each task and number of labels the lowest method's mean is 0 and the highest one's 1; "
    "the number is the mean of the middle half of all repetitions in all tasks (GEO-Bench), of "
    "methods that are in every task. Intervals are of a "
    "bootstrap over pre-trainings and the fine-tunings within; with few pre-trainings it is too "
    "narrow, and no verdict is drawn from it."
)


def _title(task) -> str:
    return _TASKS[task.removesuffix(ELSEWHERE)] + " elsewhere" * task.endswith(ELSEWHERE)


def _say(answers, *, given: bool = False) -> str:
    """The answers in words."""
    if not answers:
        return "No question has both its methods in a repetition that all their tables share."
    sentences = []
    for question, d, tables in answers:
        ends = f" ({verdicts.between(*d.ends)})" * (d.repetitions > 1)
        said = f"{question[0].upper()}{question[1:]}: {d.mean:+.2f} points{ends}, "
        said += verdicts.judgement(d)
        if len(tables) > 1:
            means = [each.mean for each in tables.values()]
            beyond = [each.mean for each in tables.values() if each.more_than_noise]
            said += f"; {min(means):+.2f} to {max(means):+.2f} over {len(tables)} tables"
            said += f", more than noise in {len(beyond)} of them" * bool(beyond)
        sentences.append(f"{said}.")
    repetitions = min(answer.overall.repetitions for answer in answers)
    sentences.append(
        f"Repeated over {repetitions} pre-training{'s' * (repetitions != 1)} of each method"
        f"{', but for the encoders that are given, of which there is one each' * given}. "
        f"In brackets 95 % intervals; p-values are adjusted (Holm) for {len(answers)} questions."
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
