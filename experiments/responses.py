"""Layer responses: standard deviations of the 3×3 layers' outputs after batch norm (He et al. 2015, Fig. 7).

Reads only the run directories of a sweep. Measures every depth, plain and residual, over the training split without augmentation,
or the networks in files of weights:

    python -m plain56.experiments.responses [--workdir=runs/degradation]
    python -m plain56.experiments.responses --weights=FILE,FILE --config=configs/cifar10.py --workdir=runs/responses
"""

from plain56 import cli, runs, summary
from plain56.figures import responses as figure

WORKDIR = "runs/degradation"


def measure(options, arguments):
    """Measures all networks, writes responses.csv, and draws the figure."""
    from plain56 import machine, training
    from plain56.analysis.responses import layer_responses

    machine.set_up()
    rows = []
    with cli.progress() as show:
        found = cli.networks_of(options, summary.finished_runs)
        for number, (row, load) in enumerate(found):
            show(row["run"], number / len(found))
            trained = load()
            program = training.prepare(trained.config)
            params, batch_stats = trained.state.params, trained.state.batch_stats
            moments = program.measure_moments(params, batch_stats, program.dataset.train)
            responses = layer_responses(trained.model, params, batch_stats, moments, trained.image_shape)
            rows += [{**row, "layer": layer, "response": f"{value:.5g}"} for layer, value in responses.items()]
    runs.write_table(options.workdir, "responses", rows)
    cli.print_table("standard deviation of the layers' responses", figure.table(options.workdir))
    drawn = figure.draw(options.workdir)
    cli.print_paths("figure", drawn)
    cli.print_result({"figure": str(drawn)})


if __name__ == "__main__":
    cli.run_experiment(measure, {"workdir": WORKDIR}, __doc__, cli.WEIGHTS_EXPERIMENT)
