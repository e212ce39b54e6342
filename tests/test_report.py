"""The report is one file that asks no host for anything, and shows every run as it stands."""

import base64
import json
import re
import shutil
import time

import pytest

import launch
from plain56 import runs
from plain56.figures import report

OTHERS = re.compile(
    r"""(?:src|href|action)\s*=\s*["']?\s*(?:https?:)?//|url\(\s*["']?(?:https?:)?//|@import|fetch\(|XMLHttpRequest"""
)


OF_DIGITS = {"data": {"name": "digits"}, "train": {"steps": 20}}


def record(step, split, error, **more):
    values = {"loss": 2 * error, "top1_error": error, "top5_error": error / 2, "seconds": step / 10}
    return {"step": step, "epoch": step / 5, "split": split, **values, **more}


def write_run(folder, name, state, records=(), reason="", config=None):
    run = runs.Run(folder / name)
    run.path.mkdir()
    run.write_config(config or {**OF_DIGITS, "model": {"name": name.partition("-")[0]}, "seed": 0})
    run.write_status(runs.Status(state, 20, reason, 1000, 2.0))
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records))


@pytest.fixture
def sweep(tmp_path):
    """Two finished runs, one with gradients, and others that are queued, cut, stopped, diverged, and damaged."""
    names = ("plain20-seed0", "resnet20-seed0", "plain56-seed0", "resnet56-seed0", "plain44-seed0", "resnet44-seed0")
    names += ("plain32-seed0",)
    elements = {name: {"overrides": {"model.name": name.partition("-")[0], "seed": 0}, "config": {}} for name in names}
    runs.write_sweep(tmp_path, elements)
    for name, low in zip(names[:2], (0.2, 0.1), strict=True):
        curve = [record(step, split, low + 1 / step) for step in (5, 10, 20) for split in ("train", "test")]
        flow = {"outputs": {"stem": 2.0, "stage1.0": 1.0}, "kernels": {}, "shortcuts": {}, "branches": {}, "shortcut_shares": {}}
        curve += [{"step": 20, "epoch": 4.0, "split": "gradients", "seconds": 2.0, **flow}] if low == 0.1 else []
        write_run(tmp_path, name, "finished", curve)
    reason = "the loss at step 6 is not finite <!--<script>"
    write_run(tmp_path, names[2], "diverged", [record(5, "train", 0.9, loss=None)], reason)
    (tmp_path / names[3]).mkdir()  # nothing but its folder
    write_run(tmp_path, names[4], "preempted", [record(5, "train", 0.9)])
    with (tmp_path / names[4] / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "spl')  # cut while it was written
    write_run(tmp_path, names[6], "stopped", [record(20, split, 0.3) for split in ("train", "test")], "by train.stop_after = 20")
    write_run(tmp_path, names[5], "finished")
    (tmp_path / names[5] / "metrics.jsonl").write_text("no JSON\n")
    return tmp_path


def written(sweep, capsys):
    assert launch.main(["report", f"--workdir={sweep}"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["report"] == str(sweep / "report.html")
    return (sweep / "report.html").read_text()


def test_page(sweep, capsys):
    page = written(sweep, capsys)
    # What is ours: the page without the library and the figures.
    ours = page.replace(report._library(), "")
    assert len(ours) < len(page) and not OTHERS.search(re.sub(r"data:image/png;base64,[\w+/=]+", "", ours))
    data = data_of(page)
    states = {run["name"]: run["row"]["state"] for run in data["runs"]}
    assert states == {
        "plain20-seed0": "finished",
        "resnet20-seed0": "finished",
        "plain56-seed0": "diverged",
        "resnet56-seed0": "queued",
        "plain44-seed0": "preempted",
        "resnet44-seed0": "damaged",
        "plain32-seed0": "stopped",
    }
    shown = {run["name"]: run for run in data["runs"]}
    test = shown["plain20-seed0"]["curves"]["test"]
    assert test["top1"] == [40, 30, 25] and data["steps"][test["step"]] == [5, 10, 20]
    assert shown["plain56-seed0"]["curves"]["train"]["loss"] == [None]
    assert shown["plain56-seed0"]["row"]["reason"].endswith("<!--<script>")
    assert "is damaged: line 1 is not a record" in shown["resnet44-seed0"]["row"]["reason"]
    flow = shown["resnet20-seed0"]
    assert flow["gradients"] == [{"step": 20, "norms": [2.0, 1.0]}] and flow["blocks"] == ["stem", "stage1.0"]
    assert shown["resnet56-seed0"]["row"]["seconds"] is None  # it has not begun
    assert shown["plain32-seed0"]["row"]["test_error"] == 0.3 and "stop_after" in shown["plain32-seed0"]["row"]["reason"]
    assert len(data["steps"][shown["plain44-seed0"]["curves"]["train"]["step"]]) == 1 and shown["resnet56-seed0"]["curves"] == {}
    assert (
        flow["config"] == {"model.name": "resnet20"}
        and data["common"]["train.steps"] == 20
        and "model.name" not in data["common"]
    )
    # The head says what it is about, and that the claim cannot be judged.
    assert "<dd>2 finished, 1 diverged, 1 queued, 1 preempted, 1 damaged, 1 stopped</dd>" in ours
    assert "The claim was not judged: plain56 with seed 0 is diverged" in ours
    # The figure is in the page, for light and for dark readers.
    for name in ("degradation.svg", "degradation.dark.svg"):
        assert base64.b64encode((sweep / name).read_bytes()).decode() in page


def data_of(page):
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)[1])


def test_a_run_has_a_page(sweep, capsys):
    data = data_of(written(sweep / "plain20-seed0", capsys))
    assert [run["name"] for run in data["runs"]] == ["plain20-seed0"] and data["groups"][0]["name"] == "plain20"
    assert not (sweep / "plain20-seed0/summary.csv").exists()


def test_what_is_no_run_is_refused(tmp_path, capsys):
    assert launch.main(["report", f"--workdir={tmp_path}"]) == 2
    assert "is neither a sweep nor a run directory" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_watched_page_is_written_until_all_runs_have_ended(sweep, capsys, monkeypatch):
    pages = []

    def end(seconds):
        pages.append((sweep / "report.html").read_text())
        for name in ("resnet56-seed0", "plain44-seed0"):
            runs.Run(sweep / name).write_config({**OF_DIGITS, "model": {"name": name.partition("-")[0]}, "seed": 0})
            runs.Run(sweep / name).write_status(runs.Status("finished", 20))

    monkeypatch.setattr("time.sleep", end)
    assert launch.main(["report", "--watch", f"--workdir={sweep}"]) == 0
    assert len(pages) == 1 and data_of(pages[0])["reload"] == 20
    assert data_of((sweep / "report.html").read_text())["reload"] is None


def test_a_page_is_no_longer_watched_if_nobody_trains(sweep, capsys, monkeypatch):
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    assert launch.main(["report", "--watch", f"--workdir={sweep}"]) == 0  # of a queued and a preempted run
    assert waited == [20, 20, 20]


def test_networks_of_ones_own_are_told_apart_by_depth(tmp_path, capsys):
    def overrides(depth, seed):
        return {"model.name": "my_ideas:halved", "model.options.depth": depth, "seed": seed}

    elements = {
        f"own{depth}-seed{seed}": {"overrides": overrides(depth, seed), "config": {}} for depth in (20, 56) for seed in (0, 1)
    }
    runs.write_sweep(tmp_path, elements)
    for name, element in elements.items():
        own = element["overrides"]
        model = {"name": own["model.name"], "options": {"depth": own["model.options.depth"]}}
        curve = [record(20, "train", own["model.options.depth"] / 100)]
        write_run(tmp_path, name, "finished", curve, config={"model": model, "seed": own["seed"]})
    groups = data_of(written(tmp_path, capsys))["groups"]
    assert [(group["name"], group["runs"]) for group in groups] == [
        ("my_ideas:halved, 20 layers", [0, 1]),
        ("my_ideas:halved, 56 layers", [2, 3]),
    ]


@pytest.mark.parametrize("model", [5, {"name": 5}])
def test_a_run_with_a_damaged_config_is_refused(tmp_path, capsys, model):
    (tmp_path / "config.json").write_text(json.dumps({"model": model, "seed": 0}))
    assert launch.main(["report", f"--workdir={tmp_path}"]) == 2
    assert "config.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("name", [7, [7], None])
def test_a_damaged_element_damages_no_other_run(sweep, capsys, name):
    elements = runs.read_json(sweep / "sweep.json")
    elements["plain20-seed0"]["config"] = {"data": {"name": name}}
    (sweep / "sweep.json").write_text(json.dumps(elements))
    data = data_of(written(sweep, capsys))
    assert next(run for run in data["runs"] if run["name"] == "resnet20-seed0")["row"]["state"] == "finished"


def test_seeds_are_groups_and_many_runs_a_small_page(tmp_path, capsys):
    networks = [f"{family}{depth}" for family in ("plain", "resnet") for depth in (20, 32, 44, 56)]
    elements = {
        f"{network}-seed{seed}": {"overrides": {"model.name": network, "seed": seed}, "config": {}}
        for network in networks
        for seed in range(3)
    }
    runs.write_sweep(tmp_path, elements)
    for number, name in enumerate(elements):
        curve = [record(step, split, 0.1234567 + 0.7 / (step + number)) for step in range(1, 101) for split in ("train", "test")]
        write_run(tmp_path, name, "finished", curve)
    page = written(tmp_path, capsys)
    groups = data_of(page)["groups"]
    assert [(group["name"], group["runs"]) for group in groups[:2]] == [("plain20", [0, 1, 2]), ("plain32", [3, 4, 5])]
    assert len({group["light"] for group in groups}) == len(groups) == 8
    assert len(page.encode()) - len(report._library().encode()) < 1e6
    a_run = len(json.dumps(data_of(page)["runs"], separators=(",", ":"))) / len(elements)
    assert 1000 * a_run + len(report._library().encode()) < 10e6  # a thousand runs of 200 records


def test_a_sweep_over_something_else_has_a_page_without_that_figure(tmp_path, capsys):
    elements = {f"rate{i}": {"overrides": {"model.name": "resnet20", "seed": 0}, "config": {}} for i in range(2)}
    runs.write_sweep(tmp_path, elements)
    for name in elements:
        write_run(tmp_path, name, "finished", [record(5, "train", 0.5), record(5, "test", 0.6)])
    page = written(tmp_path, capsys)
    assert "rate1" in page and not (tmp_path / "degradation.png").exists()


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not (shutil.which("chromium") and shutil.which("chromedriver")), reason="no Chromium")
@pytest.mark.parametrize(("width", "height", "scheme"), [(1280, 900, "light"), (390, 844, "dark")])
def test_in_a_browser(sweep, capsys, width, height, scheme):
    from axe_core_python.selenium import Axe
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    written(sweep, capsys)
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
        driver.get((sweep / "report.html").as_uri())
        ask = driver.execute_script

        def traces():
            return ask("return document.getElementById('curves').data.map(trace => [trace.name, trace.y])")

        def column(number):
            return ask(f"return [...document.querySelectorAll('#runs tbody tr')].map(row => row.cells[{number}].textContent)")

        assert ask("return document.documentElement.scrollWidth") <= width, "the page is wider than the screen"
        background = ask("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == (scheme == "dark")
        names = [name for name, _ in traces()]
        assert "plain20, test" in names and "plain20, training" in names
        # What axe-core knows of WCAG's levels A and AA.
        ask(Axe().axe_script)
        found = driver.execute_async_script("axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa']}).then(arguments[0])")
        assert [(rule["id"], rule["nodes"][0]["html"]) for rule in found["violations"]] == [] and len(found["passes"]) > 20
        # A tick taken away takes the run's curves away; the slider smooths; the scale changes.
        driver.find_element(By.CSS_SELECTOR, "input[aria-label='show plain20']").click()
        assert [name for name, _ in traces()] == [name for name in names if not name.startswith("plain20")]
        before = dict(traces())["resnet20, test"]
        assert before == pytest.approx([30, 20, 15])
        ask("const s = document.getElementById('smooth'); s.value = 0.5; s.dispatchEvent(new Event('input'))")
        assert dict(traces())["resnet20, test"] == pytest.approx([30, 70 / 3, 130 / 7])
        driver.find_element(By.ID, "log").click()
        assert ask("return document.getElementById('curves').layout.yaxis.type") == "log"
        # The table sorts, and what is unknown stays last.
        heads = driver.find_elements(By.CSS_SELECTOR, "#runs thead button")
        place = [head.text for head in heads].index("test error")
        for descending in (False, True):
            if descending:  # the heading still has the keyboard
                driver.switch_to.active_element.send_keys(Keys.ENTER)
            else:
                driver.find_elements(By.CSS_SELECTOR, "#runs thead button")[place].click()
            cells = column(place)
            known = ["15.00", "25.00", "30.00"]
            assert cells[:3] == known[:: -1 if descending else 1] and set(cells[3:]) == {"–"}
        assert "the loss at step 6 is not finite <!--<script>" in driver.find_element(By.ID, "runs").text
        assert ask("return document.getElementById('flow-plot').data[0].y") == [2, 1]
        time.sleep(0.5)
        assert driver.get_log("browser") == []
        messages = [json.loads(line["message"])["message"] for line in driver.get_log("performance")]
        asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        assert asked and all(url.startswith(("file:", "data:", "blob:")) for url in asked)
    finally:
        driver.quit()
