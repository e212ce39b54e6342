"""plain56: plain against residual networks at any depth, in JAX.

    python launch.py train    --config=configs/digits.py:resnet56 --workdir=runs/resnet56
    python launch.py evaluate --workdir=runs/resnet56
    python launch.py sweep    --config=configs/sweeps/degradation.py --workdir=runs/degradation
    python launch.py report   --workdir=runs/degradation
    python launch.py describe resnet56        (or --all; at any size: --image_size=64 --num_classes=5)
    python launch.py finetune --config=configs/finetune.py --weights=FILE --workdir=runs/finetuned
    python launch.py export   --workdir=runs/resnet56 --weights=resnet56.safetensors
    python launch.py predict  --weights=resnet56.safetensors picture.png …

launch.py MODE --help shows the flags of a mode and all keys of the config; describe --list names the networks and recipes.

A flag overrides any key of the config: --config.train.steps=1000. --config=RUN/config.json repeats a run. A sweep that has begun
needs only its --workdir to go on, also with --workers=N or, one element at a time, with --index=K. The published test protocols
are evaluate --protocol=center, ten_crop or dense; --exact_statistics takes batch norm's statistics over the whole training split.

Tables go to stdout; if it is no terminal, or with --json, its last line is one JSON object. Progress goes to stderr. Exit status:
0 done; 1 ran but failed; 2 a mistake in the command; 75 interrupted, launch again. SIGTERM and Ctrl-C save first.
"""

import sys

from plain56.cli import MISTAKE, MODES, manual, run


def main(argv):
    """Runs the mode that the command line names, and returns the exit status."""
    mode, *rest = argv or [None]
    if mode in MODES:
        return run(MODES[mode], rest, __doc__, mode)
    if {"--help", "-h", "help"} & set(argv):
        return run(lambda options, arguments: print(manual.wrapped(__doc__)), [])
    given = "No mode was given" if mode is None else f"There is no mode {mode!r}"
    print(f"error: {given}; it must be one of {', '.join(MODES)} (see --help).", file=sys.stderr)
    return MISTAKE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
