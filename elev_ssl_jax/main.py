"""Starts a run.

python -m elev_ssl_jax.main --config=configs/simclr_elev.py --workdir=RUN

The same command on every worker of a TPU pod, or from every task of a Slurm job, is one run;
elsewhere --coordinator, --num_processes and --process_id say so. See launch/README.md.
"""

import functools
import json
import os
import re
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from elev_ssl_jax.runtime.huge_pages import use_huge_pages

if __name__ == "__main__":
    use_huge_pages()  # before the imports, which take a second

from absl import app, flags, logging
from ml_collections import config_flags

from elev_ssl_jax import checks, command_line, fields, files, sensor_scale
from elev_ssl_jax.errors import InputError, reported
from elev_ssl_jax.finetuning import labelled, methods
from elev_ssl_jax.recipes import PROBES, made_of, recipe
from elev_ssl_jax.runtime import quiet, run_folder, sharding

_CONFIG = config_flags.DEFINE_config_file("config", None, "File with the run's configuration.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything the run writes.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0 of a run of several, where JAX can't find it."
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "Of such a run; 1 runs alone whatever the environment says."
)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
_PROFILE = flags.DEFINE_integer(
    "profile",
    0,
    "Steps of a pre-training to trace, into the folder `profile` of --workdir.",
    lower_bound=0,
)
_JOIN_TIMEOUT = flags.DEFINE_integer("join_timeout", 300, "Seconds to wait for the others.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
    """Checks the configuration, joins the other processes, and hands over to the task's loop."""
    logging.set_verbosity(logging.WARNING)  # Orbax and clu tell of every step they take
    with reported():
        if argv[1:]:
            raise InputError(f"unknown argument {argv[1]!r}; fields are set by --config.NAME=VALUE")
        config, workdir = _CONFIG.value, Path(str(_WORKDIR.value))
        refusal = f"--workdir={workdir} is in use by another run; wait for it, or name another"
        checks.check(config)
        if _PROFILE.value and config.task != "pretrain":
            raise InputError(f"--profile traces pre-trainings; config.task is {config.task!r}")
        _join_processes(config)
        if sharding.is_first():
            for line in fields.without_effect(config):
                print(f"note: {line}", file=sys.stderr)
        _find_data(config, workdir)
        try:
            with ExitStack() as stack:
                with sharding.together():
                    if sharding.is_first():  # which keeps other runs out for all of this one
                        run_folder.check_same_run(workdir, config)
                        stack.enter_context(files.sole_writer(workdir, refusal))
                sharding.check_shared(workdir)
                if config.data.synthetic.chips:
                    _make_synthetic(config, workdir)
                task = {"pretrain": _pretrain, "finetune": _finetune, "experiment": _experiment}
                task[config.task](config, workdir)
                sharding.wait_for_all("end")  # the first has pictures to draw
        except KeyboardInterrupt:
            print("\ninterrupted; the same command goes on", file=sys.stderr)
            sys.exit(130)


def _join_processes(config) -> None:
    """Makes this process one of several, if there are; all but the first are silent."""
    sharding.start_processes(
        _COORDINATOR.value,
        _NUM_PROCESSES.value,
        _PROCESS_ID.value,
        timeout=_JOIN_TIMEOUT.value,
    )
    shared = config.to_dict()
    del shared["data"]["dir"]  # may lie elsewhere on another machine
    sharding.check_same("the configuration", json.dumps(shared, sort_keys=True))
    if config.task != "pretrain" and not sharding.alone():
        raise InputError(
            f"config.task is {config.task!r}, which runs in one process, on all its devices; start "
            "it once, with --num_processes=1"
        )
    if not sharding.is_first():
        os.environ["TQDM_DISABLE"] = "1"
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115, for as long as the process lives


def _make_synthetic(config, workdir: Path) -> None:
    from elev_ssl_jax.data import synthetic

    _check_synthetic(config)
    with sharding.together():
        if sharding.is_first():
            synthetic.prepare(config.data, workdir)


def _check_synthetic(config) -> None:
    """Refuses chips of a size that the encoders can't do with, before they are made."""
    from elev_ssl_jax.models import encoders
    from elev_ssl_jax.pretraining import elevation

    size = config.data.synthetic.size
    side = config.augment.crop_size or size
    if side > size:
        raise InputError(
            f"config.augment.crop_size is {side}; it must be at most {size}, as "
            "config.data.synthetic.size is"
        )
    runs: list[tuple[bool, dict]] = [(config.task == "pretrain", {})]
    if config.task == "experiment":
        runs = [(its.pretrained, its.fields) for its in made_of(config.experiment.methods)]
    for pretrained, its in runs:
        settings = config.copy_and_resolve_references()
        settings.update_from_flattened_dict(its)
        check = elevation.check_image_size if pretrained else encoders.check_size
        check(settings, side, side)


def _find_data(config, workdir: Path) -> None:
    """Sets `config.data` to the data that there are, or that will be made."""
    if config.data.synthetic.chips:
        from elev_ssl_jax.data import synthetic

        synthetic.point_to(config.data, workdir)
        return
    from elev_ssl_jax.data import source

    with sharding.together():
        name = source.find_name(config.data)
    if name != config.data.name:
        where = config.data.dir or "the default data.dir"
        print(f"note: {where} has no {config.data.name}, but {name}, which is taken")
        config.data.name = name


def _pretrain(config, workdir: Path) -> None:
    from elev_ssl_jax.data import source
    from elev_ssl_jax.pretraining import elevation, loop

    with sharding.together():
        train = source.open_split(config.data, config.data.split)
        _measure_alike(config, config, workdir)
        _measure(config, train)
        elevation.check(config, train.shapes)
        heldout = source.open_split(config.data, config.data.eval_split)
        if config.data.probe_split:
            _check_apart(config, "data.probe_split", config.data.probe_split, heldout.counts)
        learned, validated = (
            source.open_split(config.data, name) if name else None
            for name in (config.data.probe_split, config.data.validation_split)
        )
    data, profile = loop.Data(train, heldout, learned, validated), int(_PROFILE.value)
    profile *= sharding.is_first()
    loop.pretrain(config, workdir, data, _Writer(workdir), profile=profile)
    if config is not _CONFIG.value:  # one of an experiment's
        return
    more = f"--config.epochs={2 * config.epochs}"
    if sharding.alone():
        words = sys.argv[1:]
        for i, word in reversed([*enumerate(words)]):
            if re.fullmatch(r"--?config\.epochs(=.*)?", word):
                del words[i : i + (1 if "=" in word else 2)]
        print(f"to continue: python -m elev_ssl_jax.main {shlex.join([*words, more])}")
    else:
        print(f"to continue: the same command with {more}")


def _finetune(config, workdir: Path) -> None:
    from elev_ssl_jax.data import source
    from elev_ssl_jax.finetuning import single

    train = _labelled(config, config.data.split)
    test = _labelled(config, config.data.eval_split)
    validation = None
    if config.data.validation_split:
        counts = source.open_split(config.data, config.data.eval_split).counts
        _check_apart(config, "data.split", config.data.split, counts)
        validation = _labelled(config, config.data.validation_split)
    single.finetune(config, workdir, train, test, _Writer(workdir), validation)


def _experiment(config, workdir: Path) -> None:
    from elev_ssl_jax.runtime import programs

    with programs.kept():  # repetitions differ in seeds alone
        _compare(config, workdir)


def _compare(config, workdir: Path) -> None:
    from elev_ssl_jax import sensors
    from elev_ssl_jax.data import source
    from elev_ssl_jax.finetuning import experiment, study
    from elev_ssl_jax.pretraining import elevation, loop
    from elev_ssl_jax.pretraining import methods as pretraining_methods
    from elev_ssl_jax.reporting import compose, summary

    names, unlabelled, split = config.experiment.methods, None, None
    members = dict.fromkeys(m for name in names for m in methods.members_of(name))
    if any(recipe(name).pretrained for name in members):
        data = config.data.copy_and_resolve_references()
        data.name = config.experiment.pretrain.name or data.name
        split = source.open_split(data, config.experiment.pretrain.split)
        _measure_alike(config, config.experiment.pretrain)
        _measure(config, split)
        unlabelled = loop.fingerprint(config, loop.sample_of(split), len(split))
    kept: dict[Any, Any] = {}  # tasks have chips in common
    tasks = {name: _task(its, kept) for name, its in study.configs_of(config).items()}
    bands: dict[str, int] = {}
    for name in members:
        if split is None or not recipe(name).pretrained:
            continue
        settings = methods.pretrain_config(methods.config_of(config, name, split.shapes))
        checks.check(settings)
        bands[name] = sensors.channels(sensors.of(settings), split.shapes)
        loop.check_batches(settings, len(split), prefix="experiment.pretrain.")
        try:
            elevation.check(settings, split.shapes)
            if settings.init_from:
                few = loop.sample_of(split, 2)
                made = pretraining_methods.make(settings, few, sharding.make_mesh())
                loop.check_weights(settings, made, few)
        except InputError as error:
            raise InputError(f"experiment.methods has {name}: {error}") from error
    for task in tasks.values():
        experiment.check(task.config, task.train, task.test, task.validation, bands)
    if config.experiment.tasks:
        run_folder.claim(workdir, config, {})
        failed = study.run(config, workdir, tasks, _pretrain, split, unlabelled=unlabelled)
        write = summary.write
    else:
        (task,) = tasks.values()
        failed = experiment.run(
            task.config,
            workdir,
            task.train,
            task.test,
            _pretrain,
            validation=task.validation,
            unlabelled=unlabelled,
            splits=task.splits,
        )
        write = compose.write
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    if any(workdir.glob("**/cells/*.json")):
        print(write(workdir))
    if failed:
        raise InputError(f"{len(failed)} failed, see above; the same command tries them again")


def _task(config, kept):
    """What an experiment learns from and is judged by."""
    from elev_ssl_jax.data import source
    from elev_ssl_jax.finetuning import study

    members = {m for name in config.experiment.methods for m in methods.members_of(name)}
    more = tuple(sorted({n for name in members for n in recipe(name).also_sees}))
    labelled_by = functools.partial(_labelled, config, more=more, kept=kept)
    train = labelled_by(config.experiment.split)  # whatever the counts: the same data
    test = labelled_by(config.data.eval_split)
    validation = None
    if config.data.validation_split and config.finetune.head in PROBES:
        validation = labelled_by(config.data.validation_split)
    splits = source.open_split(config.data, config.data.eval_split).counts
    if config.finetune.head in PROBES:
        _check_apart(config, "experiment.split", config.experiment.split, splits)
    return study.Task(config, train, test, validation, splits)


def _check_apart(config, field, split, counts) -> None:
    """Refuses to learn from chips that are validated on, or judged by."""
    from elev_ssl_jax.data import source

    known = {field: split}
    for name in ("validation_split", "eval_split"):
        if its := config.data[name]:
            for other, theirs in known.items():
                if count := source.shared(theirs, its, counts):
                    raise InputError(
                        f"config.{other}={theirs!r} and config.data.{name}={its!r} have {count} "
                        f"chips of {config.data.name} in common; choose them apart"
                    )
            known[f"data.{name}"] = its


def _measure(config, split) -> None:
    """Sets what `config.data` leaves to the data, so that the run's own record has it."""
    from elev_ssl_jax.pretraining import loop

    if not config.data.nodata:
        config.data.nodata = split.nodata(config.data.inputs)
    if sensor_scale.is_open(config):
        config.data.update(sensor_scale.measure(config, loop.sample_of(split)))


def _labelled(config, split, more=(), kept=None):
    """Chips of a split with their classes, and features beside the inputs.

    What is read is kept in `kept`, and taken from there another time.
    """
    from elev_ssl_jax import sensors
    from elev_ssl_jax.data import source

    opened = source.open_split(config.data, split, exact=True)
    target = "label" if labelled.target_of(config) == "label" else "mask"
    if target not in opened.features:
        raise InputError(
            f"config.finetune learns a {target}, but {config.data.name} has no "
            f"{target}; prepare the chips with --config classification for a class a chip, with "
            "--config segmentation for a class a pixel (a chip's commonest is learned by "
            "--config.finetune.target=commonest)"
        )
    sensors.check_names(config, opened.shapes)
    for name in more:
        if name not in opened.shapes:
            raise InputError(
                f"{split} of {config.data.name} has no {name}, which a method of "
                "config.experiment.methods sees"
            )
    _name_classes(config, opened.classes)
    _measure_alike(config, config)
    _measure(config, opened)
    # Older data don't say in which block of ground a chip lies.
    ground = [name for name in ("block", "tile") if name in opened.features][:1]
    names = dict.fromkeys((*config.data.inputs, *more))
    features = *names, target, *ground
    key = config.data.name, config.data.dir, split, features
    kept = {} if kept is None else kept
    arrays = kept[key] = kept.get(key) or opened.arrays(*features)
    return labelled.Labelled(
        {name: arrays[name] for name in names},
        labelled.as_targets(arrays[target]),
        *(arrays[name] for name in ground),
    )


def _name_classes(config, names: tuple[str, ...]) -> None:
    """Sets the number and the names of the classes that `config.finetune` leaves to the data.

    Raises:
      InputError: They contradict the data.
    """
    settings = config.finetune
    there = f"{config.data.name} has {len(names)}: {', '.join(names)}"
    if names and settings.num_classes not in (0, len(names)):
        raise InputError(
            f"config.finetune.num_classes is {settings.num_classes}, but {there}; leave it at 0"
        )
    if names and tuple(settings.classes) not in ((), names):
        raise InputError(
            f"config.finetune.classes is {', '.join(settings.classes)}, but {there}; leave it at ()"
        )
    settings.classes = tuple(settings.classes) or names
    # Data that have no names for their classes are from when there were always two.
    settings.num_classes = settings.num_classes or len(settings.classes) or 2


def _measure_alike(config, settings, workdir: Path | None = None) -> None:
    """What `config.data` asks to be measured is what the run has that is started from.

    `settings` say which run; one that has begun in `workdir` can do without it. Images of other
    bands have a scale of their own.
    """
    from elev_ssl_jax.runtime import checkpoint

    if not settings.init_from or settings.init_bands:
        return
    auto = [n for n in ("value_range", "mean", "std") if sensor_scale.is_auto(config.data[n])]
    if auto:
        begun = workdir is not None and checkpoint.steps(workdir)
        _, about = checkpoint.about(workdir if workdir and begun else Path(settings.init_from))
        theirs = about["config"]["data"]
        config.data.update({name: tuple(theirs.get(name, ())) for name in auto})


class _Writer:
    """Of event files, which are made when there is something to write: a refused run has none."""

    def __init__(self, workdir: Path):
        quiet.import_tensorflow()  # now, rather than between two steps
        from clu import metric_writers

        self._make = functools.partial(
            metric_writers.create_default_writer,
            workdir,
            just_logging=not sharding.is_first(),
            asynchronous=False,
        )

    @functools.cached_property
    def _writer(self):
        return self._make()

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        self._writer.write_scalars(step, scalars)

    def flush(self) -> None:
        self._writer.flush()


if __name__ == "__main__":
    app.run(main, flags_parser=functools.partial(command_line.parse, config=_CONFIG))
