"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = id => document.getElementById(id);
const element = (name, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};
const dark = matchMedia("(prefers-color-scheme: dark)");
const colorOf = group => dark.matches ? group.dark : group.light;
const mean = values => values.reduce((sum, value) => sum + value, 0) / values.length;
const spread = values => Math.sqrt(values.reduce((sum, value) => sum + (value - mean(values)) ** 2, 0) / (values.length - 1));
const COMPLETE = ["finished", "stopped"];
const isComplete = run => COMPLETE.includes(run.row.state);

const MOST_SHOWN = 24;  // at first: more lines cannot be told apart, and are slow to draw
let drawn = 0;
for (const group of data.groups) {
  group.members = group.runs.map(i => data.runs[i]);
  group.shown = group.members.some(run => Object.keys(run.curves).length) && drawn++ < MOST_SHOWN;
  group.open = group.members.length > 1 && !group.members.every(isComplete);
}

// The table: a line for each group of seeds, and below it, if it is open, one for each of its runs.
const percent = value => (100 * value).toFixed(2);
const number = value => Math.round(value).toLocaleString("en");
const COLUMNS = [
  ["train_error", "training error", percent], ["test_error", "test error", percent],
  ["train_clean_error", "training error, without augmentation", percent], ["validation_error", "validation error", percent],
  ["train_loss", "training loss", value => value.toFixed(4)], ["parameters", "parameters", number],
  ["steps", "steps", number], ["seconds", "seconds", number],
].filter(([key]) => data.runs.some(run => run.row[key] !== null));
let sorting = { key: null, down: false };

function measured(runs, key) {
  return runs.map(run => run.row[key]).filter(value => value !== null);
}

function cell(runs, key, format) {
  const values = measured(runs, key);
  if (!values.length) return "–";
  const several = values.length > 1 && new Set(values).size > 1;
  return format(mean(values)) + (several && (key.endsWith("_error") || key === "train_loss") ? " ± " + format(spread(values)) : "");
}

function stateOf(runs) {
  const counts = new Map();
  for (const run of runs) counts.set(run.row.state, (counts.get(run.row.state) || 0) + 1);
  if (runs.length > 1) return [...counts].map(([state, count]) => count === runs.length ? "all " + state : count + " " + state).join(", ");
  return runs[0].row.state + (runs[0].row.reason ? ": " + runs[0].row.reason : "");
}

function line(runs, name, seed) {
  const broken = runs.length === 1 && runs[0].row.reason && !isComplete(runs[0]);
  return element("tr", { className: seed ? "seed" : "" }, element("td", { className: "text" }, ...name),
    ...COLUMNS.map(([key, , format]) => element("td", { textContent: cell(runs, key, format) })),
    element("td", { className: broken ? "state bad" : "state", textContent: stateOf(runs) }));
}

function groupLines(group) {
  const tick = element("input", { type: "checkbox", checked: group.shown, onchange: () => {
    group.shown = tick.checked;
    drawPlots();
  } });
  tick.setAttribute("aria-label", "show " + group.name);
  const swatch = element("span", { className: "swatch" });
  swatch.style.borderColor = colorOf(group);
  swatch.style.borderTopStyle = { solid: "solid", dash: "dashed", dot: "dotted" }[group.dash];
  if (group.members.length === 1) return [line(group.members, [tick, " ", swatch, group.name])];
  const opener = element("button", { type: "button", onclick: () => {
    group.open = !group.open;
    drawTable();
    drawPlots();
  } }, group.name, element("span", { className: "count", textContent: ", " + group.members.length + " seeds" }));
  opener.dataset.key = "open " + group.name;
  opener.setAttribute("aria-expanded", group.open);
  const seeds = group.open ? group.members.map(run => line([run], ["seed " + run.row.seed], true)) : [];
  return [line(group.members, [tick, " ", swatch, opener]), ...seeds];
}

function drawTable() {
  const groups = [...data.groups];
  const valueOf = group => {
    if (sorting.key === "name") return group.name;
    const values = measured(group.members, sorting.key);
    return values.length ? mean(values) : null;
  };
  if (sorting.key) groups.sort((a, b) => {
    const [x, y] = [valueOf(a), valueOf(b)];
    if (x === null || y === null) return (x === null) - (y === null);
    return (typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true })) * (sorting.down ? -1 : 1);
  });
  const heads = [["name", "network"], ...COLUMNS].map(([key, title]) => {
    const sorter = element("button", { type: "button", textContent: title, onclick: () => {
      sorting = { key, down: sorting.key === key && !sorting.down };
      drawTable();
    } });
    sorter.dataset.key = key;
    const head = element("th", { scope: "col", className: key === "name" ? "text" : "" }, sorter);
    if (sorting.key === key) head.setAttribute("aria-sort", sorting.down ? "descending" : "ascending");
    return head;
  });
  heads.push(element("th", { scope: "col", className: "text", textContent: "state" }));
  const focused = document.activeElement.dataset?.key;
  byId("runs").replaceChildren(element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...groups.flatMap(groupLines)));
  if (focused) [...byId("runs").querySelectorAll("button")].find(button => button.dataset.key === focused)?.focus();
}

// What all plots share.
const OPTIONS = { responsive: true, displaylogo: false, modeBarButtons: [["zoom2d", "pan2d", "resetScale2d"]] };

function layout(changes) {
  const style = getComputedStyle(document.documentElement);
  const [page, ink, quiet, rule] = ["--page", "--ink", "--quiet", "--line"].map(name => style.getPropertyValue(name).trim());
  const axis = { gridcolor: rule, zeroline: false, tickfont: { color: quiet }, separatethousands: true };
  return {
    paper_bgcolor: page, plot_bgcolor: page, font: { color: ink, size: 14, family: getComputedStyle(document.body).fontFamily },
    margin: { l: 60, r: 20, t: 10, b: 50 }, showlegend: false, hoverlabel: { bgcolor: page, bordercolor: rule, font: { size: 13 } },
    ...changes, xaxis: { ...axis, showgrid: false, ...changes.xaxis }, yaxis: { ...axis, ...changes.yaxis },
  };
}

// The room that names at the ends of lines need, or 0 if they would take more than two fifths of the plot.
function roomFor(plot, ends) {
  const context = document.createElement("canvas").getContext("2d");
  context.font = "14px " + getComputedStyle(document.body).fontFamily;
  const widest = Math.max(0, ...ends.map(end => context.measureText(end.name).width));
  return widest < 0.4 * plot.clientWidth ? widest : 0;
}

// Writes the groups' names at the right ends of their lines, pushed apart, if there is room for all.
function nameLines(plot, ends) {
  const axis = plot._fullLayout.yaxis, distance = 17;
  if (!roomFor(plot, ends)) return Plotly.relayout(plot, { annotations: [] });
  const inside = ends.map(end => ({ ...end, pixel: axis.d2p(end.y) })).filter(end => end.pixel >= -1 && end.pixel <= axis._length + 1);
  inside.sort((a, b) => a.pixel - b.pixel);
  const room = inside.length * distance <= axis._length + distance;
  for (let i = 1; i < inside.length; ++i) inside[i].pixel = Math.max(inside[i].pixel, inside[i - 1].pixel + distance);
  let most = axis._length - distance / 2;
  for (const end of [...inside].reverse()) {
    end.pixel = Math.min(end.pixel, most);
    most = end.pixel - distance;
  }
  Plotly.relayout(plot, { annotations: room ? inside.map(end => ({
    text: end.name, xref: "paper", yref: "paper", x: 1, y: 1 - end.pixel / axis._length, xanchor: "left", yanchor: "middle",
    xshift: 4, showarrow: false, font: { color: end.color }, align: "left",
  })) : [] });
}

// Round numbers up to the last, which is one of them.
function ticks(last) {
  const power = 10 ** Math.floor(Math.log10(last / 4));
  const step = [5, 2, 1].map(digit => digit * power).find(step => step <= last / 4);
  const found = [];
  for (let i = 0; i * step < last - step / 2; ++i) found.push(i * step);
  return [...found, last];
}

function draw(id, traces, changes, ends) {
  const plot = byId(id), hover = traces.filter(trace => trace.hoverinfo !== "skip").length;
  plot.ends = ends;
  const made = layout({ hovermode: hover <= 24 ? "x unified" : "closest", ...changes });
  made.margin.r += roomFor(plot, ends);
  Plotly.react(plot, traces, made, OPTIONS);
  nameLines(plot, ends);
  if (plot.watched) return;
  plot.watched = true;
  plot.on("plotly_relayout", event => {
    if ("annotations" in event) return;
    if ("xaxis.range[0]" in event) Plotly.relayout(plot, { "xaxis.tickmode": "auto" }).then(() => nameLines(plot, plot.ends));
    else if ("xaxis.autorange" in event) drawPlots();
    else nameLines(plot, plot.ends);
  });
}

// The curves.
const METRICS = { top1: "error (%)", top5: "top-5 error (%)", loss: "loss" };
for (const [key, title] of Object.entries(METRICS)) byId("metric").append(element("option", { value: key, textContent: title }));
for (const key of ["step", "epoch", "seconds"]) byId("axis").append(element("option", { value: key, textContent: key }));
const SPLITS = { train: ["training", 1.2], train_clean: ["training, without augmentation", 1.2], validation: ["validation", 1.8], test: ["test", 2.8] };
const splits = Object.keys(SPLITS).filter(split => data.runs.some(run => run.curves[split]));
for (const split of splits) byId("splits").append(element("label", {}, element("input", { type: "checkbox", checked: true, value: split,
  onchange: drawCurves }), " " + SPLITS[split][0] + " "));

function smoothed(values, weight) {
  let [total, mass] = [0, 0];
  return values.map(value => {
    total = weight * total + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return total / mass;
  });
}

// The points of a run's curve that are numbers, as {step: [x, y]}.
function points(run, split, axis, metric) {
  const curve = run.curves[split], found = new Map();
  const along = (step, i) => axis === "step" ? step : axis === "epoch" ? step * run.epochs_per_step : curve.seconds[i];
  if (curve) data.steps[curve.step].forEach((step, i) => {
    if (curve[metric][i] !== null) found.set(step, [along(step, i), curve[metric][i]]);
  });
  return found;
}

// The lines of a group: its seeds if it is open, else their mean, over the steps that all of them have, and what lies between them.
function lines(group, split, axis, metric, weight) {
  const seeds = group.members.map(run => [run, points(run, split, axis, metric)]).filter(([, found]) => found.size);
  const steps = seeds.length ? [...seeds[0][1].keys()].filter(step => seeds.every(([, found]) => found.has(step))) : [];
  if (group.open || seeds.length < 2 || !steps.length) return seeds.map(([run, found]) => {
    const [x, y] = [0, 1].map(i => [...found.values()].map(point => point[i]));
    return { name: group.members.length > 1 ? group.name + ", seed " + run.row.seed : group.name, x, y: smoothed(y, weight) };
  });
  const curves = seeds.map(([, found]) => smoothed(steps.map(step => found.get(step)[1]), weight));
  const across = combine => steps.map((_, i) => combine(curves.map(curve => curve[i])));
  const x = steps.map(step => mean(seeds.map(([, found]) => found.get(step)[0])));
  return [{ name: group.name, x, y: across(mean), low: across(values => Math.min(...values)), high: across(values => Math.max(...values)) }];
}

function drawCurves() {
  const [metric, axis, weight] = [byId("metric").value, byId("axis").value, Number(byId("smooth").value)];
  const chosen = [...byId("splits").querySelectorAll("input:checked")].map(box => box.value);
  const traces = [], ends = [], logarithmic = byId("log").checked;
  const drawable = values => logarithmic ? values.map(value => value > 0 ? value : null) : values;
  for (const group of data.groups.filter(group => group.shown)) {
    const color = colorOf(group);
    let end = null;
    for (const split of chosen) for (const { name, x, y, low, high } of lines(group, split, axis, metric, weight)) {
      if (!x.length) continue;
      if (low) {
        const edge = { x, mode: "lines", line: { width: 0 }, hoverinfo: "skip" };
        traces.push({ ...edge, y: drawable(low) }, { ...edge, y: drawable(high), fill: "tonexty", fillcolor: color + "26" });
      }
      traces.push({
        x, y: drawable(y), name: name + ", " + SPLITS[split][0], mode: x.length > 1 ? "lines" : "markers", marker: { color },
        line: { color, dash: group.dash, width: SPLITS[split][1] }, hovertemplate: "%{fullData.name} %{y:.4~g}<extra></extra>",
      });
      if (!logarithmic || y.at(-1) > 0) end = { name: group.name, y: y.at(-1), color };
    }
    if (end) ends.push(end);
  }
  const last = Math.max(0, ...traces.map(trace => trace.x.at(-1))), at = last ? ticks(last) : [0];
  const tickText = at.map(value => Number(value.toPrecision(4)).toLocaleString("en"));
  draw("curves", traces, {
    xaxis: { title: { text: axis }, range: [0, last * 1.005 || 1], tickmode: "array", tickvals: at, ticktext: tickText },
    yaxis: { title: { text: METRICS[metric] }, type: logarithmic ? "log" : "linear", rangemode: "tozero",
      ...(logarithmic ? { dtick: "D2" } : {}) },
    uirevision: [metric, axis, logarithmic].join(),  // what was zoomed stays so until another quantity is shown
  }, ends);
}

const flowSteps = [...new Set(data.runs.flatMap(run => run.gradients.map(record => record.step)))].sort((a, b) => a - b);
function drawFlow() {
  if (!flowSteps.length) return;
  const step = flowSteps[byId("flow-step").value], traces = [];
  let ends = [];
  byId("flow-label").textContent = step.toLocaleString("en");
  byId("flow-step").setAttribute("aria-valuetext", "step " + step);
  for (const group of data.groups.filter(group => group.shown)) for (const run of group.members) {
    const record = run.gradients.filter(record => record.step <= step).at(-1);
    if (!record) continue;
    const name = group.members.length > 1 ? group.name + ", seed " + run.row.seed : group.name;
    traces.push({
      x: record.norms.map((_, i) => 1 + i), y: record.norms, text: run.blocks, name, mode: "lines", line: { color: colorOf(group), dash: group.dash },
      hovertemplate: "%{fullData.name}<br>%{text}, step " + record.step + ": %{y:.3~g}<extra></extra>",
    });
    ends = [...ends.filter(end => end.name !== group.name), { name: group.name, y: record.norms.at(-1), color: colorOf(group) }];
  }
  draw("flow-plot", traces, { hovermode: "closest", xaxis: { title: { text: "block" } },
    yaxis: { title: { text: "norm of the gradient" }, type: "log", exponentformat: "power" } }, ends);
}

function drawPlots() {
  drawCurves();
  drawFlow();
}
if (flowSteps.length) {
  byId("flow").hidden = false;
  byId("flow-step").max = byId("flow-step").value = flowSteps.length - 1;
  byId("flow-step").oninput = drawFlow;
}
for (const id of ["metric", "axis", "log"]) byId(id).onchange = drawCurves;
byId("smooth").oninput = drawCurves;
dark.addEventListener("change", () => { drawTable(); drawPlots(); });

// Each picture can be saved: those of the directory as they are, plots as they are seen.
function saved(address, name) {
  element("a", { href: address, download: name }).click();
}

function savePicture(image, name, form) {
  if (image.currentSrc.startsWith("data:image/" + form)) return saved(image.currentSrc, name + "." + form);
  const canvas = element("canvas", { width: 2 * image.naturalWidth, height: 2 * image.naturalHeight });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  saved(canvas.toDataURL("image/png"), name + ".png");
}

function savers(name, forms, save) {
  return element("div", { className: "save" }, ...forms.map(form => {
    const button = element("button", { type: "button", textContent: "Save " + form.toUpperCase(), onclick: () => save(form) });
    button.setAttribute("aria-label", "Save " + form.toUpperCase() + ": " + name);
    return button;
  }));
}
for (const image of document.querySelectorAll("figure img")) {
  const forms = image.src.startsWith("data:image/svg") ? ["svg", "png"] : ["png"], name = image.closest("figure").querySelector("h2").textContent;
  image.closest("figure").append(savers(name, forms, form => savePicture(image, name.toLowerCase().replaceAll(" ", "_"), form)));
}
for (const id of ["curves", "flow-plot"]) byId(id).after(savers(byId(id).getAttribute("aria-label"), ["svg", "png"], form =>
  Plotly.downloadImage(byId(id), { format: form, filename: id, width: byId(id).clientWidth, height: byId(id).clientHeight,
    scale: form === "png" ? 2 : 1 })));

// The configs.
const written = config => Object.entries(config).map(([key, value]) => key + " = " + JSON.stringify(value)).join("\n");
const told = ["model.name", "seed"];  // by the runs' names
const differing = [...new Set(data.runs.flatMap(run => Object.keys(run.config)))].filter(key => !told.includes(key)).sort();
byId("same").textContent = data.runs.length === 1 ? "" : differing.length ? "Besides network and seed, the runs differ in these keys."
  : "All runs have the same config but for network and seed.";
if (differing.length) byId("differences").replaceChildren(
  element("thead", {}, element("tr", {}, ...["run", ...differing].map(key => element("th", { scope: "col", className: "text", textContent: key })))),
  element("tbody", {}, ...data.runs.map(run => element("tr", {}, element("td", { className: "text", textContent: run.name }),
    ...differing.map(key => element("td", { className: "text", textContent: key in run.config ? JSON.stringify(run.config[key]) : "–" }))))));
byId("common").textContent = written(data.common);

// A page of runs that still train is read again, and then looks as before.
const CONTROLS = ["metric", "axis", "smooth"], BOXES = ["log", "reload"], KEY = "plain56 " + location.pathname;
const kept = data.reload ? JSON.parse(sessionStorage.getItem(KEY)) : null;
if (kept) {
  for (const id of CONTROLS) byId(id).value = kept[id];
  for (const id of BOXES) byId(id).checked = kept[id];
  for (const group of data.groups) Object.assign(group, kept.groups[group.name]);
  sorting = kept.sorting;
}
if (data.reload) {
  byId("watched").hidden = false;
  setInterval(() => {
    if (!byId("reload").checked) return;
    const state = { sorting, groups: Object.fromEntries(data.groups.map(({ name, shown, open }) => [name, { shown, open }])) };
    for (const id of CONTROLS) state[id] = byId(id).value;
    for (const id of BOXES) state[id] = byId(id).checked;
    sessionStorage.setItem(KEY, JSON.stringify(state));
    location.reload();
  }, 1000 * data.reload);
}

drawTable();
drawPlots();
