"""GoogLeNet's parameters and operations, block by block, beside the paper's: Szegedy et al. 2014, Table 1. Nothing is trained.

python -m plain56.experiments.googlenet_table1
"""

from plain56 import cli

# Table 1: parameters in units of 1024, operations in millions.
PAPER = {
    "conv1": (2.7, 34),
    "conv2": (112, 360),
    "inception3a": (159, 128),
    "inception3b": (380, 304),
    "inception4a": (364, 73),
    "inception4b": (437, 88),
    "inception4c": (463, 100),
    "inception4d": (580, 119),
    "inception4e": (840, 170),
    "inception5a": (1072, 54),
    "inception5b": (1388, 71),
    "head": (1000, 1),
}


def compare(options, arguments):
    """Prints both tables side by side, without the auxiliary heads, which the paper's table leaves out."""
    from plain56.analysis.complexity import parts
    from plain56.models import create_model

    lines = []
    for row in parts(create_model("googlenet", 1000), (224, 224, 3)):
        if not row.training_only:
            parameters, operations = PAPER[row.name]
            line = {"block": row.name, "parameters (K)": f"{row.parameters / 1024:.1f}", "paper's": f"{parameters:g}"}
            line |= {"multiply-adds (M)": f"{row.multiply_adds / 1e6:.1f}", "paper's operations (M)": f"{operations}"}
            lines.append(line)
    cli.print_table("GoogLeNet (K: 1024, M: 10⁶)", lines)
    cli.print_result({"table": lines})


if __name__ == "__main__":
    cli.run_experiment(compare, {}, __doc__)
