"""The report: a sweep or a run in one HTML file that opens from disk and asks no host for anything."""

import base64
import html
import json
import logging
import string
from pathlib import Path

from plain56 import claim, runs
from plain56.errors import UserError
from plain56.figures.palette import PALETTES, depth_colors

logger = logging.getLogger(__name__)

TEMPLATE, SCRIPT = (Path(__file__).with_name(name) for name in ("report.html", "report.js"))
DASHES = ("solid", "dash", "dot")  # for more networks than colors
FORMS = {".svg": "image/svg+xml", ".png": "image/png"}  # of a figure, the best first


def write(workdir, rows, reload_seconds=None):
    """Writes report.html in a sweep or run directory from the rows of its summary, and returns its path.

    A run that has not begun, was cut, has diverged or is damaged is shown as such.

    Args:
        reload_seconds: how often a browser that shows the page reads it again; not at all if None.
    """
    workdir = Path(workdir)
    by_name = {row["run"]: row for row in rows}  # another launch may have added runs since
    members = [(run, by_name[run.run.path.name]) for run in runs.read_any(workdir) if run.run.path.name in by_name]
    described = [_describe(run, row) for run, row in members]
    facts = list(_facts([run for run, _ in members], described))
    title, verdict = _claim(rows)
    steps = list(dict.fromkeys(tuple(curve["step"]) for run in described for curve in run["curves"].values()))
    for run in described:
        for curve in run["curves"].values():  # many runs have the same steps
            curve["step"] = steps.index(tuple(curve["step"]))
    common, configs = _shared([run["config"] for run in described])
    for run, config in zip(described, configs, strict=True):
        run["config"] = config
    data = {"groups": _groups(described), "runs": described, "steps": steps, "common": common, "reload": reload_seconds}
    page = string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        name=html.escape(workdir.resolve().name),
        above=f'<p class="quiet">{html.escape(workdir.resolve().name)}</p>' if title else "",
        title=html.escape(title or workdir.resolve().name),
        verdict=f'<p class="verdict">{html.escape(verdict)}</p>' if verdict else "",
        facts="".join(f"<div><dt>{name}</dt><dd>{html.escape(fact)}</dd></div>" for name, fact in facts if fact),
        figures="".join(_figures(workdir, verdict)),
        # In a script, "<" may begin its end, or a comment that hides the end.
        data=json.dumps(runs.finite(data), separators=(",", ":")).replace("<", "\\u003c"),
        library=_library(),
        script=SCRIPT.read_text(encoding="utf-8"),
    )
    runs.write_text(workdir / "report.html", page)
    return workdir / "report.html"


def _library():
    from plotly.offline import get_plotlyjs  # not before: it is large

    return get_plotlyjs()


def _claim(rows):
    """The title and the verdict of a sweep that compares plain and residual networks; "" and "" for other runs."""
    if {"plain", "residual"} <= {runs.family(row) for row in rows}:
        return claim.title(rows), claim.judge(rows)[1]
    return "", ""


def _facts(members, described):
    """`(name, text)` of what the head of the page says."""
    environments, rows = [], [run["row"] for run in described]
    for planned in members:
        try:
            environments.append(planned.run.environment())
        except UserError:  # the table says that the run is damaged
            continue
    configs = [run["config"] for run in described if run["row"]["state"] != "damaged"]
    starts = sorted(str(environment.get("started") or "")[:10] for environment in environments)
    states = [row["state"] for row in rows]
    counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    seconds = sum(row["seconds"] or 0 for row in rows)
    yield "runs", f"all {len(rows)} {states[0]}" if len(rows) > 1 and len(set(states)) == 1 else counted
    yield "data", _distinct(config.get("data.name") for config in configs)
    yield "networks", _distinct(row["model"] for row in rows)
    yield "seeds", _distinct(row["seed"] for row in rows)
    yield "steps", _distinct(f"{config['train.steps']:,}" for config in configs if runs.is_count(config.get("train.steps")))
    yield "date", _distinct([starts[0], starts[-1]] if starts else [], " to ")
    yield "devices", _distinct(_device(environment) for environment in environments)
    yield "hours", f"{seconds / 3600:.2f}" if seconds else ""
    yield "commit", _distinct(str(environment.get("commit") or "")[:10] for environment in environments)


def _device(environment):
    devices = environment.get("devices")
    if not (isinstance(devices, list) and devices):
        return ""
    cores = f", {environment['cpu_cores']} cores" if runs.is_count(environment.get("cpu_cores")) else ""
    return f"{len(devices)} × {devices[0]}{cores}" if len(devices) > 1 else f"{devices[0]}{cores}"


def _distinct(values, separator=", "):
    """The different values as a text, of which the first are shown."""
    values = list(dict.fromkeys(str(value) for value in values if value not in (None, "")))
    return separator.join(values[:8]) + (f" and {len(values) - 8} more" if len(values) > 8 else "")


def _describe(planned, row):
    """The data of a run that the page shows."""
    status, config, records = planned.view()
    curves, gradients, blocks, epochs = {}, [], [], None
    for record in records:
        if record["split"] == "gradients":
            blocks = list(record["outputs"])
            gradients.append({"step": record["step"], "norms": [_short(norm) for norm in record["outputs"].values()]})
        else:
            # Errors in percent. What is not drawn is not in the page: it would be long.
            curve = curves.setdefault(record["split"], {key: [] for key in ("step", "seconds", "loss", "top1", "top5")})
            curve["step"].append(record["step"])
            if record["step"] and record.get("epoch") is not None:
                epochs = record["epoch"] / record["step"]
            curve["loss"].append(_short(record.get("loss")))
            curve["seconds"].append(round(record["seconds"], 1 if record["seconds"] < 1000 else None))
            for key in ("top1", "top5"):
                error = record.get(f"{key}_error")
                curve[key].append(None if error is None else round(100 * error, 2))
    state = "damaged" if status.state == "damaged" else row["state"]  # in a part of its log that the summary does not read
    # What has not begun has no parameters, steps and seconds.
    row = row | {"state": state, "reason": status.reason} | {key: row[key] or None for key in ("parameters", "steps", "seconds")}
    curves = {"curves": curves, "epochs_per_step": epochs}
    return {"name": row["run"], "row": row, **curves, "blocks": blocks, "gradients": gradients, "config": config}


def _short(value):
    """A number with three digits, which is as much as can be seen."""
    if value is None:
        return None
    value = float(f"{value:.3g}")
    return int(value) if value.is_integer() else value


def _shared(configs):
    """The values that all configs have in common, and for each config the others; one that is not known has none."""
    begun = [config for config in configs if config]
    keys = begun[0] if begun else {}
    common = {key: keys[key] for key in keys if all(config.get(key, ...) == keys[key] for config in begun)}
    return common, [{key: value for key, value in config.items() if key not in common} for config in configs]


def _groups(described):
    """The runs by network and overrides, whose seeds are averaged: name, color on each page, dash, and indices of the runs.

    Plain and residual networks have the colors of the figures; where overrides tell runs apart, each group has a color.
    """
    rows = [run["row"] for run in described]
    keys = runs.group_keys(rows)
    # The depth of a user's own network is not in its name, and the name of a damaged run may not be known.
    groups = runs.grouped(
        range(len(rows)), lambda i: (rows[i]["model"] or rows[i]["run"], rows[i]["depth"], *(rows[i][key] for key in keys))
    )
    known = [row for row in rows if row["model"]]
    by_depth = not keys and all(runs.family(row) in ("plain", "residual") for row in known)
    depths = [row["depth"] for row in known] if by_depth else []
    shown = []
    for number, members in enumerate(groups.values()):
        row, dash = rows[members[0]], DASHES[0]
        if by_depth and row["model"]:
            colors = {page: depth_colors(depths, row["residual"], palette)[row["depth"]] for page, palette in PALETTES.items()}
        else:
            cycle, place = divmod(number, len(PALETTES["light"].categories))
            colors, dash = {page: palette.categories[place] for page, palette in PALETTES.items()}, DASHES[cycle % len(DASHES)]
        shown.append({"name": _name(row, keys), "dash": dash, "runs": members, **colors})
    return shown


def _name(row, keys):
    """The name of a group, by a row of one of its runs."""
    if not row["model"]:
        return row["run"]
    own = runs.family(row) == row["model"]
    return ", ".join([row["model"], *([f"{row['depth']} layers"] if own else []), *([runs.label(row, keys)] if keys else [])])


def _figures(workdir, verdict):
    """The figures in a directory, each for light and dark pages: that of the claim, whose verdict describes it, first."""
    names = {path.stem for suffix in FORMS for path in workdir.glob(f"*{suffix}") if not path.stem.endswith(".dark")}
    for name in sorted(names, key=lambda name: (name != "degradation", name)):
        light, dark = (_encoded(workdir / form) for form in (name, f"{name}.dark"))
        if not light:
            continue
        title = html.escape(name.replace("_", " ").capitalize())
        description = html.escape(verdict) if verdict and name == "degradation" else title
        source = f'<source srcset="{dark}" media="(prefers-color-scheme: dark)">' if dark else ""
        yield (
            f'<figure><h2>{title}</h2><div class="wide" tabindex="0" role="region" aria-label="{title}"><picture>{source}'
            f'<img alt="{description}" src="{light}"></picture></div></figure>'
        )


def _encoded(path):
    """A figure as an address that holds it, or "" if there is none."""
    for suffix, kind in FORMS.items():
        form = path.with_name(path.name + suffix)
        if not form.exists():
            continue
        try:
            return f"data:{kind};base64," + base64.b64encode(form.read_bytes()).decode()
        except OSError as error:  # a folder
            logger.warning("The figure %s cannot be read, and is left out: %s.", form, error.strerror)
    return ""
