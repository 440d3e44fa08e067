"""A headless Chromium, for what only a page shows: asked over pipes, in its DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.support.waiting import wait_for

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")

TEXT = """
(() => {
  // Also in components and frames, whose insides textContent leaves out.
  const seen = [];
  const walk = (node) => {
    if (node.nodeType === Node.TEXT_NODE) {
      if (node.data.trim()) seen.push(node.data.trim());
    } else if (!["STYLE", "SCRIPT", "TEMPLATE"].includes(node.nodeName)) {
      if (node.shadowRoot) walk(node.shadowRoot);
      if (node.contentDocument) walk(node.contentDocument.body);
      node.childNodes.forEach(walk);
    }
  };
  walk(document.body);
  return seen.join(" ");
})()
"""


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Browser:
    """One page of one Chromium, `width` by `height` pixels."""

    def __init__(self, program: str, width: int = 1280, height: int = 900) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="ranktap-browser-")
        # It reads questions from descriptor 3, and answers on 4.
        asked, self._asking = os.pipe()
        self._answers, answered = os.pipe()
        options = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--hide-scrollbars", "--no-first-run", "--remote-debugging-pipe",
            # WebGL, which the projector and meshes need, without a graphics card.
            "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
            f"--user-data-dir={self._profile.name}", f"--window-size={width},{height}",
        ]  # fmt: skip
        command = f'exec "$@" 3<&{asked} 4>&{answered}'
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", command, "bash", program, *options, "about:blank"],
            pass_fds=(asked, answered), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(asked)
        os.close(answered)
        self._unread = b""
        self._number = 0
        self._session: str | None = None
        (target,) = [
            each for each in self._ask("Target.getTargets")["targetInfos"] if each["type"] == "page"
        ]
        attached = self._ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip

    def open(self, url: str) -> None:
        # A page that differs in what stands behind "#" alone would not be loaded again.
        self._ask("Page.navigate", url="about:blank")
        self._ask("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        answer = self._ask("Runtime.evaluate", expression=script, returnByValue=True)
        return answer["result"].get("value")

    def text(self) -> str:
        """All that the page shows as text."""
        return self.evaluate(TEXT) or ""

    def wait_for_text(self, *words: str) -> None:
        for word in words:
            wait_for(lambda word=word: word in self.text(), f"{word!r} on the page")

    def screenshot(self, path: Path) -> None:
        """Write what the page looks like, as PNG."""
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        self._process.kill()
        self._process.wait(10)
        os.close(self._asking)
        os.close(self._answers)
        self._profile.cleanup()

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        question: dict[str, Any] = {
            "id": self._number, "method": method, "params": parameters
        }  # fmt: skip
        if self._session is not None:
            question["sessionId"] = self._session
        os.write(self._asking, json.dumps(question).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            received = os.read(self._answers, 1 << 16)
            assert received, "Chromium has ended"
            self._unread += received
        message, _, self._unread = self._unread.partition(b"\0")
        decoded: dict[str, Any] = json.loads(message)
        return decoded
