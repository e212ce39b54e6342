"""The report: a sweep in one HTML file that opens from disk and asks no host for anything."""

import base64
import html
import json
import logging
import string
from pathlib import Path

from plain56 import runs
from plain56.figures.palette import PALETTES, depth_colors

logger = logging.getLogger(__name__)

TEMPLATE = Path(__file__).with_name("report.html")
DASHES = ("solid", "dash", "dot")  # for more networks than colors
CURVES = ("step", "epoch", "seconds", "split", "loss", "top1_error", "top5_error")


def write(workdir, rows):
    """Writes report.html in a sweep directory from the rows of its summary, and returns its path.

    A run that has not begun, was cut, has diverged or is damaged is shown as such.
    """
    workdir = Path(workdir)
    by_name = {row["run"]: row for row in rows}  # another launch may have added runs since
    members = [(run, by_name[run.run.path.name]) for run in runs.read_sweep(workdir) if run.run.path.name in by_name]
    styles = _styles([row for _, row in members])
    described = [_describe(run, row) | style for (run, row), style in zip(members, styles, strict=True)]
    keys = sorted(set().union(*(run["config"] for run in described)))
    begun = [run["config"] for run in described if run["config"]]
    differences = [key for key in keys if len({json.dumps(config.get(key)) for config in begun}) > 1]
    states = [run["row"]["state"] for run in described]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    data = {"runs": described, "differences": differences, "facts": f"{len(rows)} runs: {counts}."}
    page = string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=html.escape(workdir.resolve().name),
        figures="".join(_figure(path) for path in sorted(workdir.glob("*.png")) if not path.stem.endswith(".dark")),
        # In a script, "<" may begin its end, or a comment that hides the end.
        data=json.dumps(runs.finite(data)).replace("<", "\\u003c"),
        library=_library(),
    )
    runs.write_text(workdir / "report.html", page)
    return workdir / "report.html"


def _library():
    from plotly.offline import get_plotlyjs  # not before: it is large

    return get_plotlyjs()


def _describe(planned, row):
    """The data of a run that the page shows."""
    status, config, found = planned.view()
    records, gradients = [], []
    for record in found:
        if record["split"] == "gradients":
            outputs = record["outputs"]
            gradients.append({"step": record["step"], "blocks": list(outputs), "outputs": list(outputs.values())})
        else:
            records.append({key: record.get(key) for key in CURVES})
    row = row | {"step": row["steps"], "reason": status.reason}
    if status.state == "damaged":  # in a part of its log that the summary does not read
        row["state"] = "damaged"
    return {"name": row["run"], "row": row, "records": records, "gradients": gradients, "config": config}


def _styles(rows):
    """A line style for each run: its colors on light and dark pages, and its dash. Seeds of one network have the same.

    Plain and residual networks have the colors of the figures; where overrides tell runs apart, each network has a color.
    """
    keys = runs.group_keys(rows)
    if not keys and all(runs.family(row) in ("plain", "residual") for row in rows):
        depths = [row["depth"] for row in rows]
        ramps = {(page, kind): depth_colors(depths, kind, PALETTES[page]) for page in PALETTES for kind in (False, True)}
        return [{page: ramps[page, row["residual"]][row["depth"]] for page in PALETTES} | {"dash": DASHES[0]} for row in rows]
    networks = list(dict.fromkeys((row["model"], *(row[key] for key in keys)) for row in rows))
    styles = []
    for row in rows:
        number = networks.index((row["model"], *(row[key] for key in keys)))
        colors = {page: palette.categories[number % len(palette.categories)] for page, palette in PALETTES.items()}
        cycle = number // len(PALETTES["light"].categories)
        styles.append(colors | {"dash": DASHES[cycle % len(DASHES)]})
    return styles


def _figure(path):
    """A figure of the sweep's directory, with links to its other forms beside the page."""
    forms = [path.with_suffix(suffix) for suffix in (".png", ".svg", ".pdf", ".csv")]
    forms += [path.with_name("summary.csv")] if path.stem == "degradation" else []
    links = ", ".join(f'<a href="{html.escape(form.name)}">{form.suffix[1:].upper()}</a>' for form in forms if form.exists())
    image = _encoded(path)
    if not image:
        return ""
    title, dark = html.escape(path.stem.replace("_", " ")), path.with_suffix(".dark.png")
    dark = _encoded(dark) if dark.exists() else ""
    source = f'<source srcset="{dark}" media="(prefers-color-scheme: dark)">' if dark else ""
    return (
        f'<figure><h2>{title.capitalize()}</h2><picture>{source}<img alt="{title}" src="{image}"></picture>'
        f"<figcaption>{links}</figcaption></figure>"
    )


def _encoded(path):
    """A picture as an address that holds it, or "" if there is none."""
    try:
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    except OSError as error:  # a link to nothing, or a folder
        logger.warning("The figure %s cannot be read, and is left out: %s.", path, error.strerror)
        return ""
