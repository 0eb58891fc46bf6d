"""Headless Chromium over the WebDriver protocol, and origins on which our test page is served."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import aiohttp
from aiohttp import web

from tests.support.needs import need

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PAGE = Path(__file__).with_name("page")
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_STARTED = re.compile(r"started successfully on port (\d+)")


class Browser:
    """One Chromium with a fresh profile; it can reach nothing but this machine."""

    def __init__(self, profile: Path, language: str = "ru") -> None:
        self._chromium = need("chromium", "chromium")
        self._driver = need("chromedriver", "chromium-driver")
        self._profile = profile
        self._language = language
        self._process: asyncio.subprocess.Process | None = None
        self._http: aiohttp.ClientSession | None = None
        self._base = ""

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            self._driver,
            "--port=0",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120))
        try:
            async with asyncio.timeout(60):
                driver = f"http://127.0.0.1:{await self._port()}/session"
                self._base = driver
                session = await self._call("POST", "", {"capabilities": self._capabilities()})
            self._base = f"{driver}/{session['sessionId']}"
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *_exc: object) -> None:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, AssertionError):
            await self._call("DELETE", "")
        await self._end()

    async def _end(self) -> None:
        assert self._process is not None
        assert self._http is not None
        await self._http.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        await self._process.wait()
        # Chromium writes its last files while it ends.
        await asyncio.to_thread(shutil.rmtree, self._profile, ignore_errors=True)

    async def _port(self) -> int:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := (await self._process.stdout.readline()).decode():
            if match := _STARTED.search(line):
                return int(match[1])
        raise AssertionError("chromedriver did not start")

    def _capabilities(self) -> dict[str, Any]:
        arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--no-proxy-server",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
            "--window-size=1000,1000",
            f"--lang={self._language}",
            f"--accept-lang={self._language}",
            f"--user-data-dir={self._profile}",
        ]
        return {
            "alwaysMatch": {
                "browserName": "chrome",
                "goog:chromeOptions": {
                    "binary": self._chromium,
                    "args": arguments,
                    "prefs": {"intl.accept_languages": self._language},
                },
                "timeouts": {"script": 60_000, "pageLoad": 60_000},
            }
        }

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        assert self._http is not None
        json = body if body is not None or method != "POST" else {}
        async with self._http.request(method, self._base + path, json=json) as answer:
            value = (await answer.json())["value"]
        assert answer.status == 200, value
        return value

    async def open(self, url: str) -> None:
        """Load a page and wait for it."""
        await self._call("POST", "/url", {"url": url})

    async def reload(self) -> None:
        """Load the same page again."""
        await self._call("POST", "/refresh")

    async def forget(self) -> None:
        """Drop the cookies and the storage of the page's origin."""
        await self._call("DELETE", "/cookie")
        await self.run("localStorage.clear()")

    async def run(self, script: str, *arguments: Any) -> Any:
        """Run a function's body in the page and return its result, awaited."""
        return await self._call(
            "POST", "/execute/sync", {"script": script, "args": list(arguments)}
        )

    async def ask(self, method: str, path: str) -> dict[str, Any]:
        """Let the page send one request; return what a page may know about its answer."""
        outcome: dict[str, Any] = await self.run(
            "return ask(arguments[0], arguments[1])", method, path
        )
        return outcome

    async def _find(self, css: str) -> str:
        found = await self._call("POST", "/element", {"using": "css selector", "value": css})
        return str(found[_ELEMENT])

    async def click(self, css: str) -> None:
        """Click as a person does: what is covered or disabled is not clicked."""
        await self._call("POST", f"/element/{await self._find(css)}/click")

    async def choose_file(self, css: str, path: Path) -> None:
        """Put a file into a file input."""
        element = await self._find(css)
        await self._call("POST", f"/element/{element}/value", {"text": str(path)})

    async def text(self, css: str) -> str:
        """Return the text of an element, shown or not."""
        script = "return document.querySelector(arguments[0])?.textContent ?? ''"
        return str(await self.run(script, css))

    async def is_enabled(self, css: str) -> bool:
        """Whether a control can be used."""
        return bool(await self._call("GET", f"/element/{await self._find(css)}/enabled"))

    async def is_shown(self, css: str) -> bool:
        """Whether an element can be seen."""
        return bool(await self._call("GET", f"/element/{await self._find(css)}/displayed"))

    async def until(self, css: str, pattern: str, seconds: float = 60) -> str:
        """Wait until an element's whole text matches; return the text."""
        deadline = time.monotonic() + seconds
        while True:
            text = await self.text(css)
            if re.fullmatch(pattern, text, re.DOTALL):
                return text
            assert time.monotonic() < deadline, (
                f"{css} is {text!r}; the page: {await self.text('body')}"
            )
            await asyncio.sleep(0.05)

    async def screenshot(self, path: Path) -> None:
        """Save what the window shows as PNG."""
        path.write_bytes(base64.b64decode(await self._call("GET", "/screenshot")))


@contextlib.asynccontextmanager
async def pages(number: int) -> AsyncIterator[list[int]]:
    """Serve the test page on as many ports, hence origins, of this machine."""
    app = web.Application()

    async def index(_request: web.Request) -> web.FileResponse:
        return web.FileResponse(PAGE / "index.html")

    app.router.add_get("/", index)
    app.router.add_static("/", PAGE)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        for _ in range(number):
            await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield [address[1] for address in runner.addresses]
    finally:
        await runner.cleanup()
