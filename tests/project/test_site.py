"""The documentation as a reader's browser shows it, from the disk and over http, without a network."""

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser
webdriver = pytest.importorskip("selenium.webdriver")

from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

ROOT = Path(__file__).parents[2]
PAGES = [
    "index",
    "install",
    "tutorials/with_spikingjelly",
    "tutorials/long_sequences",
    "swap",
    "several_gpus",
    "own",
    "coming_from",
    "neurons",
    "benchmarks",
    "experiments",
    "recipes",
    "energy",
    "api/neurons",
]
WIDTHS = [1280, 400]
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built pages."""
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        check=True,
    )
    return folder


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module", params=["disk", "http"])
def address(request, site):
    """Where the pages are, with a slash at the end."""
    if request.param == "disk":
        yield f"{site.as_uri()}/"
        return
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def look(browser, url, width):
    """Load a page at a width; the window of a headless browser can be narrower than it allows by itself."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    browser.get(url)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_cut_off_and_nothing_fails(browser, address, page, width, tmp_path):
    look(browser, f"{address}{page}.html", width)
    browser.save_screenshot(str(tmp_path / "page.png"))
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= width
    errors = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []


@pytest.mark.parametrize("page", PAGES)
def test_code_fits_beside_the_menus(browser, address, page):
    """A block that must be scrolled hides what stands at its right end."""
    look(browser, f"{address}{page}.html", 1280)
    blocks = "[...document.querySelectorAll('.highlight pre > code')]"
    cut = browser.execute_script(
        f"return {blocks}.filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent.slice(0, 60))"
    )
    assert browser.execute_script(f"return {blocks}.length") or page in ("benchmarks", "experiments")
    assert cut == []


@pytest.mark.parametrize(("words", "page"), [("troubleshoot", "install.html"), ("PMSNNode", "spikingjelly")])
def test_search_answers(browser, address, words, page):
    look(browser, f"{address}index.html", 1280)
    field = browser.find_element(By.CSS_SELECTOR, "input.md-search__input")
    browser.execute_script("arguments[0].focus()", field)
    field.send_keys(words)

    def found(driver):
        links = driver.find_elements(By.CSS_SELECTOR, ".md-search-result__link")
        return [link.get_attribute("href") for link in links]

    links = WebDriverWait(browser, 20).until(found)
    assert any(page in link for link in links)
