"""The degradation result: deeper plain networks train worse, deeper residual networks do not.

He et al. 2015, Fig. 1 and Fig. 6: "the deeper network has higher training error, and thus test error" if it is plain, but not if
it is residual. Runs the sweep, draws the figure from its run directories and checks the claim:

    python -m plain56.experiments.degradation [--workdir=runs/degradation] [--config.sweep.depths='(20,32,44,56)']
"""

from plain56 import claim, cli, runs


def reproduce(options, arguments):
    """Runs the sweep, draws the figure and judges the claim.

    Returns the exit status: 1 if the claim did not hold, or a run has neither finished nor been stopped by `train.stop_after`.
    """
    rows = cli.run_sweep(options)
    held, sentence = claim.judge(rows)
    figure = cli.draw_degradation(options.workdir) if any(row["steps"] for row in rows) else None
    status = cli.print_claim(held, sentence, figure)
    return status if all(row["state"] in runs.COMPLETE for row in rows) else cli.FAILED


if __name__ == "__main__":
    cli.run_experiment(
        reproduce, {"config": "configs/sweeps/degradation.py", "workdir": "runs/degradation"}, f"{__doc__}\n{claim.RULE}"
    )
