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


def record(step, split, error, **more):
    values = {"loss": 2 * error, "top1_error": error, "top5_error": error / 2, "seconds": step / 10}
    return {"step": step, "epoch": step / 5, "split": split, **values, **more}


def write_run(folder, name, state, records=(), reason=""):
    run = runs.Run(folder / name)
    run.path.mkdir()
    run.write_config({"model": {"name": name.partition("-")[0]}, "seed": 0, "train": {"steps": 20}})
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
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)[1])
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
    assert [r["top1_error"] for r in shown["plain20-seed0"]["records"] if r["split"] == "test"] == pytest.approx([0.4, 0.3, 0.25])
    assert shown["plain56-seed0"]["records"][0]["loss"] is None
    assert shown["plain56-seed0"]["row"]["reason"].endswith("<!--<script>")
    assert "is damaged: line 1 is not a record" in shown["resnet44-seed0"]["row"]["reason"]
    assert shown["resnet20-seed0"]["gradients"] == [{"step": 20, "blocks": ["stem", "stage1.0"], "outputs": [2.0, 1.0]}]
    assert shown["plain32-seed0"]["row"]["test_error"] == 0.3 and "stop_after" in shown["plain32-seed0"]["row"]["reason"]
    assert len(shown["plain44-seed0"]["records"]) == 1 and shown["resnet56-seed0"]["records"] == []
    assert data["differences"] == ["model.name"]
    assert data["facts"] == "7 runs: 2 finished, 1 diverged, 1 queued, 1 preempted, 1 damaged, 1 stopped."
    # The figure is in the page, and the forms of it lie beside it.
    assert base64.b64encode((sweep / "degradation.png").read_bytes()).decode() in page
    links = re.findall(r'<a href="([^"]+)"', ours)
    assert {"degradation.svg", "degradation.pdf", "summary.csv"} <= set(links) and all((sweep / link).exists() for link in links)


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
        assert "plain20-seed0, test" in names and "plain20-seed0, training" in names
        # A tick taken away takes the run's curves away; the slider smooths; the scale changes.
        driver.find_element(By.CSS_SELECTOR, "input[aria-label='show plain20-seed0']").click()
        assert [name for name, _ in traces()] == [name for name in names if not name.startswith("plain20")]
        before = dict(traces())["resnet20-seed0, test"]
        assert before == pytest.approx([30, 20, 15])
        ask("const s = document.getElementById('smooth'); s.value = 0.5; s.dispatchEvent(new Event('input'))")
        assert dict(traces())["resnet20-seed0, test"] == pytest.approx([30, 70 / 3, 130 / 7])
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
            cells = column(place + 1)
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
