"""The claim of this project, judged by a rule that was stated before any run: does depth hurt plain networks, and only them?"""

from plain56 import runs

SHALLOW, DEEP = 20, 56
PLAIN_RISE_AT_LEAST, RESIDUAL_RISE_AT_MOST = 0.20, 0.02
RULE = """The rule, on final training errors averaged over seeds: from 20 to 56 layers, the error of plain networks rises by at
least 20 percentage points, that of residual ones by at most 2. The paper (He et al. 2015, Fig. 1 and 6) makes no such claim about
other depths, so a sweep without these two is drawn and not judged. Where a sweep overrides other keys, too, each group of runs
with the same overrides is judged by itself.
"""


def judge_group(rows):
    """Judges the rows of a sweep's summary by `RULE`: `(held, sentence)`, where None as `held` means not judged."""
    claimed = [f"{family}{depth}" for family in ("plain", "resnet") for depth in (SHALLOW, DEEP)]
    errors = {name: [row["train_error"] for row in rows if row["model"] == name] for name in claimed}
    missing = [name for name in claimed if not errors[name]]
    if missing:
        about = f"it is about {SHALLOW} and {DEEP} layers"
        return None, f"The claim was not judged: {about}, and the sweep lacks {', '.join(missing)}."
    concerned = [row for row in rows if row["model"] in claimed]
    unfinished = [f"{row['model']} with seed {row['seed']} is {row['state']}" for row in concerned if row["state"] != "finished"]
    if unfinished:
        return None, f"The claim was not judged: {', '.join(unfinished)}."
    means = {name: sum(errors[name]) / len(errors[name]) for name in claimed}
    plain, residual = (means[f"{family}{DEEP}"] - means[f"{family}{SHALLOW}"] for family in ("plain", "resnet"))
    held = plain >= PLAIN_RISE_AT_LEAST and residual <= RESIDUAL_RISE_AT_MOST
    return held, (
        f"The claim {'held' if held else 'did not hold'}: from {SHALLOW} to {DEEP} layers the training error changed by "
        f"{100 * plain:+.1f} points in plain networks (claimed: at least {100 * PLAIN_RISE_AT_LEAST:+.0f}) and by "
        f"{100 * residual:+.1f} points in residual networks (claimed: at most {100 * RESIDUAL_RISE_AT_MOST:+.0f})."
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
