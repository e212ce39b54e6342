"""Test errors by depth beside the paper's: He et al. 2015, Table 6, and the plain networks of section 4.2.

From the run directories of a sweep over depths alone, on CIFAR-10 that of configs/sweeps/degradation.py:cifar10; for another data
set the paper's errors stand there for comparison only:

    python -m experiments.resnet_table6 [--workdir=runs/degradation]
"""

import json
import statistics

import launch
from plain56 import sweeps

FAMILIES = ("plain", "resnet")
WORKDIR = "runs/degradation"
# Test error (%) on CIFAR-10 by layers; of 110 layers the best of five runs, 6.61 ± 0.16 (Table 6). Plain-110: "higher than 60 %".
PAPER = {20: "8.75", 32: "7.51", 44: "7.17", 56: "6.97", 110: "6.43", 1202: "7.93"}
PAPER_PLAIN = {110: "> 60"}


def tabulate(options, arguments):
    """Prints mean ± standard deviation of the finished runs' last test errors."""
    launch.refuse_config(options, "the run directories alone")
    rows = [row for row in sweeps.summarise(options.workdir) if row["state"] == "finished" and row["model"].startswith(FAMILIES)]
    lines = []
    for depth in sorted({row["depth"] for row in rows}):
        line = {"layers": depth}
        for residual, published in ((False, PAPER_PLAIN), (True, PAPER)):
            errors = [100 * row["test_error"] for row in rows if (row["depth"], row["residual"]) == (depth, residual)]
            family = "residual" if residual else "plain"
            deviation = f" ± {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
            line[family] = f"{statistics.mean(errors):.2f}{deviation}" if errors else "–"
            line[f"{family}, paper on CIFAR-10"] = published.get(depth, "–")
        parameters = {row["parameters"] for row in rows if row["depth"] == depth}
        line["parameters"] = " or ".join(f"{count:,}" for count in sorted(parameters))
        lines.append(line)
    if lines:
        launch.print_table("test error (%)", lines)
    print(json.dumps({"table": lines}))


if __name__ == "__main__":
    launch.run_experiment(tabulate, {"workdir": WORKDIR}, __doc__)
