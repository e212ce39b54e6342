"""The modes for one network: `train`, `finetune`, `evaluate`, `export` and `predict`."""

import logging
import os
import sys

from plain56 import runs
from plain56.cli.flags import refuse_config, refuse_unused, required
from plain56.cli.progress_line import progress
from plain56.cli.tables import print_table
from plain56.cli.terminal import FAILED, percent, print_paths, print_result
from plain56.errors import UserError


def finetune(options, arguments):
    """Trains a run that begins with given weights."""
    source = required(options, "weights")
    required(options, "config").transfer.weights = source
    return train(options, arguments)


def train(options, arguments):
    """Trains a run."""
    from plain56 import machine, parallel, training

    config, workdir = required(options, "config"), required(options, "workdir")
    try:
        with parallel.explaining_lost_processes():
            several = _join(options)
            machine.set_up()
            if config.transfer.weights:
                config = parallel.on_all(training.initial_weights.choose, config, options.model, workdir)
        if several and not parallel.is_first():  # process 0 speaks for all
            logging.getLogger("plain56").setLevel(logging.WARNING)
            status = training.train(config, workdir)
        else:
            with progress() as show:
                status = training.train(config, workdir, lambda now: show("", now.share, {config.model.name: now}))
            if status.reason:
                print(f"{status.state}: {status.reason}", file=sys.stderr)
            _print_errors(config.model.name, workdir)
            print_result(status._asdict())
    except parallel.Lost as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(FAILED)  # at a normal exit, JAX would wait for the lost process and abort
    return FAILED if status.state == "diverged" else 0


def _print_errors(name, workdir):
    """Prints the newest loss and errors of each split."""
    rows = {}
    for record in runs.read_run(workdir).metrics():
        if "top1_error" in record:
            rows[record["split"]] = {"split": record["split"], "step": record["step"], **_shown(record)}
    if rows:
        print_table(name, list(rows.values()))


def _shown(record):
    """Loss and errors of a record as texts."""
    loss = "–" if record["loss"] is None else f"{record['loss']:.4f}"
    return {"loss": loss, **{key: percent(record[key]) for key in ("top1_error", "top5_error")}}


def _join(options):
    """Connects this process to the others, if the flags say that there are others. Returns whether there are."""
    from plain56 import parallel

    given = {name: options[name].value for name in ("coordinator", "num_processes", "process_id")}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if len(missing) < len(given):
        if missing or options.distributed:
            wrong = "--distributed must be left out" if options.distributed else f"it lacks {' and '.join(missing)}"
            raise UserError(f"One of several processes needs --coordinator, --num_processes and --process_id; {wrong}.")
        parallel.join(**given)
    elif options.distributed:
        parallel.join()
    return options.distributed or not missing


def evaluate(options, arguments):
    """Tests a run, or weights with a config, on the test split."""
    from plain56 import machine, training

    choices = {"protocol": options.protocol, "sides": tuple(options.side or ()), "exact_statistics": options.exact_statistics}
    with progress() as show:
        choices["on_progress"] = lambda share: show("evaluate", share)
        if options.weights:
            from plain56 import pretrained

            if options.workdir:
                raise UserError("--weights and --workdir cannot both be given: give --weights with --config, or only --workdir.")
            config = required(options, "config")
            refuse_unused(options, ("model.", "batch_norm.epsilon", "data.", "train.batch_size"))
            machine.set_up()
            result = pretrained.evaluate_weights(config, options.weights, **choices)
        else:
            refuse_config(options, "the run's own config")
            workdir = required(options, "workdir")
            machine.set_up()
            result = training.evaluate_run(workdir, **choices)
    print_table("test split", [{key: value for key, value in (result | _shown(result)).items() if key != "split"}])
    print_result(result)


def export(options, arguments):
    """Writes a run's network as a file of weights."""
    from plain56 import machine, pretrained

    refuse_config(options, "a run")
    workdir, file = required(options, "workdir"), required(options, "weights")
    machine.set_up()
    pretrained.save_pretrained(file, workdir, dtype=options.dtype)
    print_paths("weights", file)
    print_result({"weights": file})


def predict(options, arguments):
    """Prints the most likely classes of pictures."""
    from plain56 import machine, pretrained

    refuse_config(options, "weights and pictures")
    source = required(options, "weights")
    if not arguments:
        raise UserError("predict needs the paths of pictures.")
    machine.set_up()
    results = pretrained.predict(source, arguments, options.model)
    for result in results:
        rows = [{"class": guess["class"], "probability": f"{100 * guess['probability']:.2f} %"} for guess in result["top5"]]
        print_table(result["picture"], rows)
    print_result({"predictions": results})
