"""A page in headless Chromium, over its own protocol through a pipe: for tests of pages that people look at.

    with chromium.Page("file:///...", width=1200, height=800) as page:
        page.evaluate("document.title")
        page.hover(x, y); page.click(x, y); page.key("Home"); page.screenshot("page.png")

Nothing is downloaded; the browser gets a profile of its own and no network."""

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "headless_shell")


def program():
    """Where Chromium is, or None."""
    return next(filter(None, map(shutil.which, [os.environ.get("CHROMIUM", "")] + list(NAMES))), None)


def starts():
    """Whether there is one that opens a page: it may be there and miss a library, or a right."""
    if not program():
        return False
    try:
        with Page("about:blank", seconds=45) as page:
            return page.evaluate("1 + 1") == 2
    except (OSError, TimeoutError, RuntimeError):
        return False


class Page:
    def __init__(self, url, width=1200, height=900, dark=False, seconds=60):
        self.until = time.monotonic() + seconds
        self.profile = tempfile.mkdtemp(prefix="tenon-chromium-")
        self.received, self.next_id, self.session, self.requests, self.complaints = b"", 0, None, [], []
        theirs_in, self.to = os.pipe()
        self.back, theirs_out = os.pipe()
        # The browser reads commands from descriptor 3 and answers on 4.
        command = ['exec "$@" 3<&%d 4>&%d' % (theirs_in, theirs_out), "sh", program(), "--headless=new", "--remote-debugging-pipe", "--no-sandbox",
                   "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions", "--disable-background-networking",
                   "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND", "--hide-scrollbars", f"--user-data-dir={self.profile}",
                   "about:blank"]
        self.process = subprocess.Popen(["/bin/sh", "-c", *command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL, pass_fds=(theirs_in, theirs_out), env=dict(os.environ, HOME=self.profile),
                                        start_new_session=True)
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            self._open(url, width, height, dark)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        os.killpg(self.process.pid, signal.SIGKILL)  # its own helpers too
        self.process.wait()
        os.close(self.to)
        os.close(self.back)
        shutil.rmtree(self.profile, ignore_errors=True)

    # ---- the protocol: JSON with a zero behind it ----

    def _receive(self):
        while b"\0" not in self.received:
            left = self.until - time.monotonic()
            if left <= 0 or not select.select([self.back], [], [], left)[0]:
                raise TimeoutError("Chromium does not answer")
            piece = os.read(self.back, 1 << 20)
            if not piece:
                raise ConnectionError("Chromium ended")
            self.received += piece
        line, self.received = self.received.split(b"\0", 1)
        return json.loads(line)

    def _note(self, message):
        method, params = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(params["args"]))

    def send(self, method, **params):
        self.next_id += 1
        message = {"id": self.next_id, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self.next_id:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self._note(answer)

    def _wait_for(self, method):
        while True:
            message = self._receive()
            self._note(message)
            if message.get("method") == method:
                return

    def _open(self, url, width, height, dark):
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.send(domain + ".enable")
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.send("Page.navigate", url=url)
        self._wait_for("Page.loadEventFired")

    # ---- what a person does ----

    def evaluate(self, expression):
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails'].get('exception', {}).get('description')}")
        return result["result"].get("value")

    def hover(self, x, y):
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, x, y):
        self.hover(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def key(self, key):
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def screenshot(self, path):
        with open(path, "wb") as file:
            file.write(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))
