"""The claim of this project: does depth hurt plain networks, and only them?

The rule of digits was stated before any run, that of CIFAR-10 before those of configs/sweeps/degradation.py:cifar10_short.
"""

import itertools
import statistics

from plain56 import runs

SHALLOW, DEEP = 20, 56
PLAIN_RISE_AT_LEAST, RESIDUAL_RISE_AT_MOST = 0.20, 0.02
CIFAR10 = "cifar10"
RULE = """The rule, on final training errors averaged over seeds: from 20 to 56 layers, the error of plain networks rises by at
least 20 percentage points, that of residual ones by at most 2. The paper (He et al. 2015, Fig. 1 and 6) makes no such claim about
other depths, so a sweep without these two is drawn and not judged.

On CIFAR-10, where plain networks converge when they are trained for long, the rule is about all depths of a sweep: the error of
plain networks rises from each depth to the next; that of residual ones rises nowhere by more than the spread of seeds, which is
the widest range among residual networks of one depth; and the deepest residual network has no greater error than the shallowest.

Where a sweep overrides other keys, too, each group of runs with the same overrides is judged by itself.
"""


def judge_group(rows):
    """Judges the rows of a sweep's summary by `RULE`: `(held, sentence)`, where None as `held` means not judged."""
    plain, residual = (_by_depth(rows, family) for family in ("plain", "residual"))
    if any(row.get("data") == CIFAR10 for row in rows):
        depths, rule, about = sorted({*plain, *residual}), _judge_depths, "plain and residual networks of several depths"
    else:
        depths, rule, about = [SHALLOW, DEEP], _judge_rise, f"{SHALLOW} and {DEEP} layers"
    wanted = {f"plain{depth}": plain.get(depth) for depth in depths} | {f"resnet{depth}": residual.get(depth) for depth in depths}
    missing = [name for name, members in wanted.items() if not members]
    if missing or len(depths) < 2:
        lacks = f"the sweep lacks {', '.join(missing)}" if missing else "the sweep has fewer than two"
        return None, f"The claim was not judged: it is about {about}, and {lacks}."
    concerned = [row for members in wanted.values() for row in members]
    unfinished = [f"{row['model']} with seed {row['seed']} is {row['state']}" for row in concerned if row["state"] != "finished"]
    if unfinished:
        return None, f"The claim was not judged: {', '.join(unfinished)}."
    errors = [[[row["train_error"] for row in family[depth]] for depth in depths] for family in (plain, residual)]
    return rule(depths, *errors)


def _by_depth(rows, family):
    """The rows of a family, `{depth: rows}`."""
    return runs.grouped([row for row in rows if runs.family(row) == family], lambda row: row["depth"])


def _judge_rise(depths, plain, residual):
    """The rule from one depth to another; `plain` and `residual` are the errors of each depth's seeds."""
    plain_rise, residual_rise = (statistics.fmean(deep) - statistics.fmean(shallow) for shallow, deep in (plain, residual))
    held = plain_rise >= PLAIN_RISE_AT_LEAST and residual_rise <= RESIDUAL_RISE_AT_MOST
    return held, (
        f"The claim {'held' if held else 'did not hold'}: from {depths[0]} to {depths[1]} layers the training error changed by "
        f"{100 * plain_rise:+.1f} points in plain networks (claimed: at least {100 * PLAIN_RISE_AT_LEAST:+.0f}) and by "
        f"{100 * residual_rise:+.1f} points in residual networks (claimed: at most {100 * RESIDUAL_RISE_AT_MOST:+.0f})."
    )


def _judge_depths(depths, plain, residual):
    """The rule of CIFAR-10; arguments as of `_judge_rise`."""
    spread = max(max(errors) - min(errors) for errors in residual)
    means = [[statistics.fmean(errors) for errors in family] for family in (plain, residual)]
    plain_rises, residual_rises = ([deeper - before for before, deeper in itertools.pairwise(family)] for family in means)
    held = min(plain_rises) > 0 and max(residual_rises) <= spread and means[1][-1] <= means[1][0]
    shown = [", ".join(f"{100 * error:.2f}" for error in family) for family in means]
    return held, (
        f"The claim {'held' if held else 'did not hold'}: at {', '.join(map(str, depths))} layers the training error is "
        f"{shown[0]} % in plain networks (claimed: each above the one before) and {shown[1]} % in residual networks (claimed: "
        f"none above the one before by more than the spread of seeds, {100 * spread:.2f}, and the last not above the first)."
    )


def judge(rows):
    """As `judge_group`, of each group of overrides by itself: the claim holds if it holds in all of them."""
    keys = runs.group_keys(rows)
    groups = runs.grouped(rows, lambda row: tuple(row[key] for key in keys)).values()
    judged = [judge_group(members) for members in groups]
    if len(judged) == 1:
        return judged[0]
    named = zip(groups, judged, strict=True)
    sentence = "\n".join(f"With {runs.label(members[0], keys)}: {sentence}" for members, (_, sentence) in named)
    verdicts = [held for held, _ in judged]
    return next((held for held in (False, None) if held in verdicts), True), sentence


def title(rows):
    """What a figure of these runs says: the claim if it holds for them, otherwise what it shows."""
    if judge(rows)[0]:
        return "Deeper plain networks train worse, deeper residual networks do not"
    return "Error of plain and residual networks in training"
