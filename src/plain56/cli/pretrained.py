"""The modes `export` and `predict`: a run's weights as a file, and what a network sees in pictures."""

from plain56.cli.flags import refuse_config, required
from plain56.cli.terminal import print_result, print_table
from plain56.errors import UserError


def export(options, arguments):
    """Writes a run's network as a file of weights."""
    from plain56 import machine, pretrained

    refuse_config(options, "a run")
    workdir, file = required(options, "workdir"), required(options, "weights")
    machine.set_up()
    pretrained.save_pretrained(file, workdir)
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
