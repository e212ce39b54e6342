"""Loss and errors of what was trained, on the whole test split."""

import functools
import logging

from plain56 import machine, runs
from plain56.config import build_model
from plain56.data import open_test_split
from plain56.errors import UserError
from plain56.models import parse_name
from plain56.training import protocols
from plain56.training.program import prepare
from plain56.training.statistics import exact_batch_stats
from plain56.training.stored import check_data, decide_mode, load_run

logger = logging.getLogger(__name__)


@machine.explaining_memory_errors()
def evaluate_run(workdir, protocol=None, sides=(), exact_statistics=False, on_progress=lambda share: None):
    """Loss and errors (fractions) of a run's newest checkpoint on the whole test split, and its step.

    Args:
        protocol: a name in `protocols`; None takes the images as training does, without augmentation.
        sides: of the protocol "dense", sizes of the shorter side in pixels; () for the published ones.
        exact_statistics: batch norm by statistics over the whole training split, in place of running averages.

    Raises UserError if there is no run or no checkpoint, or a protocol does not fit it.
    """
    config, _, state, image_shape = load_run(workdir)
    run = runs.read_run(workdir)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    options = {"protocol": protocol, "sides": sides, "exact_statistics": exact_statistics, "on_progress": on_progress}
    result = evaluate_variables(decide_mode(config, run), variables, image_shape, functools.partial(check_data, run), **options)
    return {"step": int(state.step), **result}


def evaluate_variables(config, variables, image_shape, check_found, *, protocol, sides, exact_statistics, on_progress):
    """As `evaluate_run`, of variables of the config's network for images of `image_shape`.

    Args:
        check_found: called with what is found of the data set.
    """
    params, batch_stats = variables["params"], variables["batch_stats"]
    if sides and protocol != "dense":
        raise UserError("--side needs --protocol=dense.")
    if protocol and image_shape[0] != image_shape[1]:
        raise UserError(f"--protocol needs square images; these are {image_shape[0]}×{image_shape[1]} pixels.")
    if exact_statistics and not batch_stats:
        raise UserError(f"--exact_statistics needs batch norm, and {config.model.name} has none.")
    if exact_statistics or not protocol:
        program = prepare(config)
        check_found(program.found)
    if exact_statistics:
        measure = functools.partial(program.measure_moments, params, split=program.dataset.train)
        batch_stats, passes = exact_batch_stats(batch_stats, measure)
        logger.info("Batch statistics over the training split: exact after %d passes.", passes)
    result = {"split": "test"}
    if protocol:
        result["protocol"] = protocol
        pictures, class_names = open_test_split(config.data)
        check_found({"class_names": list(class_names)})
        model = build_model(config, len(class_names))
        if protocol == "dense":
            result["sides"] = list(sides or protocols.dense_sides(parse_name(config.model.name)[0], image_shape[0]))
            model = protocols.for_any_size(model, image_shape)
        views = {"protocol": protocol, "size": image_shape[0], "sides": result.get("sides", ())}
        variables = {"params": params, "batch_stats": batch_stats}
        tested = protocols.evaluate_pictures(model, variables, pictures, config.data, **views, on_progress=on_progress)
    else:
        tested = program.evaluate(params, batch_stats, program.dataset.test)
    return result | {"examples": int(tested.examples), **tested.means()}
