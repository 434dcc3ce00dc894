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
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from elev_ssl_jax.runtime.huge_pages import use_huge_pages

if __name__ == "__main__":
    use_huge_pages()  # before the imports, which take a second

from absl import app, flags, logging
from ml_collections import config_flags

from elev_ssl_jax import checks, command_line, fields, files, run_data, storage
from elev_ssl_jax.errors import InputError, reported
from elev_ssl_jax.finetuning import methods
from elev_ssl_jax.recipes import PROBES, recipe
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
    # Orbax and clu tell of every step they take, and what they raise once more, in pages.
    logging.set_verbosity(logging.FATAL)
    with sharding.leaving(), reported():
        if argv[1:]:
            raise InputError(f"unknown argument {argv[1]!r}; fields are set by --config.NAME=VALUE")
        config, workdir = _CONFIG.value, storage.run_path(str(_WORKDIR.value))
        refusal = f"--workdir={workdir} is in use by another run; wait for it, or name another"
        checks.check(config)
        if _PROFILE.value and config.task != "pretrain":
            raise InputError(f"--profile traces pre-trainings; config.task is {config.task!r}")
        if _PROFILE.value and storage.in_bucket(workdir):
            raise InputError("--profile writes to a folder of this machine; name a local --workdir")
        _join_processes(config)
        if sharding.is_first():
            for line in fields.without_effect(config):
                print(f"note: {line}", file=sys.stderr)
        run_data.find(config, workdir)
        with ExitStack() as stack:
            with sharding.together():
                if sharding.is_first():  # which keeps other runs out for all of this one
                    storage.check_writable(workdir)
                    run_folder.check_same_run(workdir, config)
                    stack.enter_context(files.sole_writer(workdir, refusal))
            sharding.check_shared(workdir)
            if config.data.synthetic.chips:
                run_data.make_synthetic(config, workdir)
            task = {"pretrain": _pretrain, "finetune": _finetune, "experiment": _experiment}
            task[config.task](config, workdir)
            sharding.wait_for_all("end")  # the first has pictures to draw


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


def _pretrain(config, workdir: Path) -> None:
    from elev_ssl_jax.data import source
    from elev_ssl_jax.pretraining import elevation, loop

    with sharding.together():
        train = source.open_split(config.data, config.data.split)
        run_data.measure_alike(config, config, workdir)
        run_data.measure(config, train)
        elevation.check(config, train.shapes)
        heldout = source.open_split(config.data, config.data.eval_split)
        if config.data.probe_split:
            run_data.check_apart(
                config, "data.probe_split", config.data.probe_split, heldout.counts
            )
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

    train = run_data.read_labelled(config, config.data.split)
    test = run_data.read_labelled(config, config.data.eval_split)
    validation = None
    if config.data.validation_split:
        counts = source.open_split(config.data, config.data.eval_split).counts
        run_data.check_apart(config, "data.split", config.data.split, counts)
        validation = run_data.read_labelled(config, config.data.validation_split)
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
        run_data.measure_alike(config, config.experiment.pretrain)
        run_data.measure(config, split)
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
    if any(any(workdir.glob(f"{deeper}cells/*.json")) for deeper in ("", "*/")):
        print(write(workdir))
    if failed:
        raise InputError(f"{len(failed)} failed, see above; the same command tries them again")


def _task(config, kept):
    """What an experiment learns from and is judged by."""
    from elev_ssl_jax.data import source
    from elev_ssl_jax.finetuning import study

    members = {m for name in config.experiment.methods for m in methods.members_of(name)}
    more = tuple(sorted({n for name in members for n in recipe(name).also_sees}))
    labelled_by = functools.partial(run_data.read_labelled, config, more=more, kept=kept)
    train = labelled_by(config.experiment.split)  # whatever the counts: the same data
    test = labelled_by(config.data.eval_split)
    validation = None
    if config.data.validation_split and config.finetune.head in PROBES:
        validation = labelled_by(config.data.validation_split)
    splits = source.open_split(config.data, config.data.eval_split).counts
    if config.finetune.head in PROBES:
        run_data.check_apart(config, "experiment.split", config.experiment.split, splits)
    return study.Task(config, train, test, validation, splits)


class _Writer:
    """Of event files, which are made when there is something to write: a refused run has none.

    Those of a run in a bucket are written on this machine and copied there, whole, at each flush.
    """

    def __init__(self, workdir: Path):
        quiet.import_tensorflow()  # now, rather than between two steps
        from clu import metric_writers

        self._bucket = workdir if storage.in_bucket(workdir) else None
        if self._bucket:
            self._scratch = tempfile.TemporaryDirectory()
            workdir = Path(self._scratch.name)
        self._local = workdir
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
        if self._bucket:
            for path in self._local.glob("events.*"):
                with storage.told(self._bucket):
                    (self._bucket / path.name).write_bytes(path.read_bytes())


if __name__ == "__main__":
    app.run(main, flags_parser=functools.partial(command_line.parse, config=_CONFIG))
