"""The loss around trained networks, along random directions with filters of the network's own length (Li et al. 2018).

Reads only the run directories of a sweep. Takes the shallowest and the deepest plain and residual networks, or those in files of
weights, on the training split without augmentation, along one direction, and the deepest also over the plane of two:

    python -m plain56.experiments.landscape [--workdir=runs/degradation]
    python -m plain56.experiments.landscape --weights=FILE,FILE --config=configs/cifar10.py --workdir=runs/landscape
"""

import numpy as np

from plain56 import cli, runs, summary
from plain56.figures import landscape as figure

WORKDIR = "runs/degradation"
EXAMPLES = 512  # of the training split, at random
AT_A_TIME = 4  # how many places are computed together
REACH, LINE_POINTS, SIDE_POINTS = 1.0, 41, 21  # from −1 to 1 along each direction, as in Li et al.


def loss_of(trained, split):
    """A function from parameters to the mean loss and top-1 error on some examples, in evaluation mode."""
    import jax.numpy as jnp

    from plain56.data import normalize
    from plain56.training.metrics import example_losses

    chosen = np.random.default_rng(0).permutation(len(split.labels))[:EXAMPLES]
    images = normalize(jnp.asarray(split.images[chosen]), trained.config.data.mean, trained.config.data.std)
    labels = jnp.asarray(split.labels[chosen])

    def loss(params):
        logits = trained.model.apply({"params": params, "batch_stats": trained.state.batch_stats}, images).logits
        wrong = jnp.argmax(logits, axis=-1) != labels
        return jnp.mean(example_losses(logits, labels)), jnp.mean(wrong.astype(jnp.float32))

    return loss


def look_around(options, arguments):
    """Measures the loss around each network, writes landscape.csv, and draws the figure."""
    import jax

    from plain56 import machine
    from plain56.analysis.landscape import losses_around, random_direction
    from plain56.data import load_resident

    machine.set_up()
    found = cli.networks_of(options, summary.shallowest_and_deepest)
    deepest = max(row["depth"] for row, _ in found)
    line, axis = (np.linspace(-REACH, REACH, points) for points in (LINE_POINTS, SIDE_POINTS))
    rows = []
    with cli.progress() as show:
        for number, (row, load) in enumerate(found):
            show(row["run"], number / len(found))
            trained = load()
            params, places = trained.state.params, [(x, 0.0) for x in line]
            if row["depth"] == deepest:
                places += [(x, y) for x in axis for y in axis]
            directions = [random_direction(params, key) for key in jax.random.split(jax.random.key(0))]
            loss = loss_of(trained, load_resident(trained.config.data).train)

            @jax.jit
            def measure(params, loss=loss, directions=directions, places=places):
                return losses_around(loss, params, directions, places, AT_A_TIME)

            losses, errors = jax.device_get(measure(params))
            for (x, y), value, error in zip(places, losses, errors, strict=True):
                place = {"x": f"{x:.4g}", "y": f"{y:.4g}"}
                rows.append({**row, **place, "loss": f"{value:.5g}", "top1_error": f"{error:.5g}"})
    runs.write_table(options.workdir, "landscape", rows)
    drawn = figure.draw(options.workdir)
    cli.print_paths("figure", drawn)
    cli.print_result({"figure": str(drawn)})


if __name__ == "__main__":
    cli.run_experiment(look_around, {"workdir": WORKDIR}, __doc__, cli.WEIGHTS_EXPERIMENT)
