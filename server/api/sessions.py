"""Sessions: an opaque random id in the cookie, the session itself in the store, a cache before it."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import secrets
import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import orjson
from aiohttp import web
from aiohttp_session import (
    SESSION_KEY,
    STORAGE_KEY,
    AbstractStorage,
    Session,
    SessionData,
    get_session,
)

from server.api.connections import counted_as
from server.errors import ForbiddenError, StorageFullError
from server.pipeline.quotas import HOUR_SECONDS, check_session

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.settings import Settings

logger = logging.getLogger(__name__)

COOKIE = "persephone_session"
OWNER = "owner"

IDLE_SECONDS = 7 * 24 * 3600
ABSOLUTE_SECONDS = 30 * 24 * 3600
TOUCH_SECONDS = 3600

_CACHED = 10_000
_ADDRESSES = 10_000
_ID_BYTES = 32
_COOKIE = re.compile(rf'(?:^|;)[ \t]*{COOKIE}="?([A-Za-z0-9_-]{{43}})"?[ \t]*(?=;|$)')


class SessionRow(Protocol):
    """What the store gives back of a session."""

    @property
    def data(self) -> str:
        """The text that was saved."""

    @property
    def expires(self) -> float:
        """Unix time in seconds after which the row counts as gone."""


class SessionStore(Protocol):
    """Where sessions survive a restart. ``key`` is the hex SHA-256 of the cookie's value."""

    async def load(self, key: str) -> SessionRow | None:
        """Return the row of ``key``, expired or not, or ``None``."""

    async def save(self, key: str, data: str, expires: float) -> None:
        """Insert or replace the row of ``key``; durable when this returns."""

    async def delete(self, key: str) -> None:
        """Forget ``key``; unknown is fine."""


@dataclass(slots=True)
class _Known:
    """A session as the cache holds it; times are Unix seconds."""

    content: dict[str, Any]
    created: float
    touched: float

    @property
    def expires(self) -> float:
        return min(self.touched + IDLE_SECONDS, self.created + ABSOLUTE_SECONDS)

    def dump(self) -> str:
        return orjson.dumps(
            {"created": self.created, "touched": self.touched, "session": self.content}
        ).decode()


class SessionStorage(AbstractStorage):
    """aiohttp-session's storage over a :class:`SessionStore`.

    A stranger's read makes neither a row nor a cookie; only putting something into a session does.
    Cached sessions never touch the store, save for one write an hour that keeps them alive.
    """

    def __init__(
        self, settings: Settings, store: SessionStore, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(
            cookie_name=COOKIE,
            max_age=None,
            secure=settings.cookie_samesite == "none" or settings.public_url.startswith("https://"),
            httponly=True,
            samesite=settings.cookie_samesite.capitalize(),
        )
        self._store = store
        self._clock = clock
        self._cache: OrderedDict[str, _Known] = OrderedDict()
        self._keeps_cross_site_cookies = settings.cookie_samesite == "none"
        self._newcomers = Newcomers(settings.max_sessions_per_hour)

    def attach(self, request: web.Request) -> None:
        """Let ``aiohttp_session.get_session`` find this storage; nothing is loaded yet.

        This, :meth:`is_changed` and :meth:`keep` are aiohttp-session's middleware without a layer
        of its own, which costs a poll a tenth of its time.
        """
        request[STORAGE_KEY] = self

    def is_changed(self, request: web.Request) -> bool:
        """Whether the request's session has to be stored with its answer."""
        session: Session | None = request.get(SESSION_KEY)
        return session is not None and session._changed

    async def keep(self, request: web.Request, response: web.StreamResponse) -> None:
        """Store the request's session, unless its answer is on the way and can carry no cookie."""
        if not response.prepared:
            await self.save_session(request, response, request[SESSION_KEY])

    def quick_owner(self, request: web.Request) -> str | None:
        """Return the owner if it can be told without any store or change; the way of polls."""
        header = request.headers.get("Cookie")
        if header is None or SESSION_KEY in request:
            return None
        known = self._cache.get(_key_in(header))
        if known is None:
            return None
        now = self._clock()
        if now - known.touched > TOUCH_SECONDS or now >= known.expires:
            return None
        owner = known.content.get(OWNER)
        return owner if isinstance(owner, str) else None

    def load_cookie(self, request: web.Request) -> str | None:
        """Return the session id that the request carries, if it has the form of one."""
        header = request.headers.get("Cookie")
        if header is None:
            return None
        return _identity_in(header)

    def check_cookie_would_stay(self, request: web.Request) -> None:
        """Raise ``ForbiddenError`` if the browser would not keep a cookie of this answer.

        ``BusyError``: too many sessions were begun from its address.
        """
        if (
            not self._keeps_cross_site_cookies
            and request.headers.get("Sec-Fetch-Site") == "cross-site"
        ):
            raise ForbiddenError("cookie_samesite_blocks")
        self._newcomers.check(request.remote or "")

    async def load_session(self, request: web.Request) -> Session:
        """Return the session of the request's cookie, or a new empty one."""
        identity = self.load_cookie(request)
        if identity is None:
            return Session(None, data=None, new=True)
        known = await self._find(_key(identity))
        if known is None:
            # An id that we did not make, or that expired, is never taken up again.
            return Session(None, data=None, new=True)
        data = SessionData(created=int(known.created), session=known.content)
        session = Session(identity, data=data, new=False)
        if self._clock() - known.touched > TOUCH_SECONDS:
            session.changed()
        return session

    async def save_session(
        self, request: web.Request, response: web.StreamResponse, session: Session
    ) -> None:
        """Store what changed and give the browser its cookie; an emptied session is deleted."""
        identity: str | None = session.identity
        if session.empty:
            if identity is not None:
                self._cache.pop(_key(identity), None)
                await self._store.delete(_key(identity))
                self.save_cookie(response, "")
            return
        if identity is None:
            identity = await self._begin(request, session)
            known = self._cache[_key(identity)]
        else:
            known = await self._go_on(_key(identity), session)
        self.save_cookie(response, identity, max_age=max(1, round(known.expires - self._clock())))

    async def begin(self, request: web.Request) -> None:
        """Keep a new session before anything belongs to it; its cookie goes out with the answer."""
        session: Session | None = request.get(SESSION_KEY)
        if session is not None and session.identity is None and not session.empty:
            session.set_new_identity(await self._begin(request, session))

    async def _begin(self, request: web.Request, session: Session) -> str:
        identity = secrets.token_urlsafe(_ID_BYTES)
        now = self._clock()
        known = _Known(dict(session), now, now)
        await self._store.save(_key(identity), known.dump(), known.expires)
        self._newcomers.count(request.remote or "")
        self._remember(_key(identity), known)
        return identity

    async def _go_on(self, key: str, session: Session) -> _Known:
        now = self._clock()
        before = self._cache.get(key)
        known = _Known(dict(session), before.created if before else now, now)
        if before is None or before.content != known.content:
            await self._store.save(key, known.dump(), known.expires)
        elif now - before.touched > TOUCH_SECONDS:
            await self._touch(key, known)
        else:
            # Just begun, before what belongs to it.
            return before
        self._remember(key, known)
        return known

    async def _touch(self, key: str, known: _Known) -> None:
        try:
            await self._store.save(key, known.dump(), known.expires)
        except Exception:
            # The caller's answer does not depend on this write; the next one comes in an hour.
            logger.exception("a session could not be kept alive in the store")

    async def _find(self, key: str) -> _Known | None:
        known = self._cache.get(key)
        if known is None:
            row = await self._store.load(key)
            known = _parse(row.data) if row is not None else None
            if known is None:
                return None
            self._remember(key, known)
        if self._clock() >= known.expires:
            self._cache.pop(key, None)
            # Whoever reads shall not fail for a row that is swept anyway.
            with contextlib.suppress(StorageFullError):
                await self._store.delete(key)
            return None
        return known

    def _remember(self, key: str, known: _Known) -> None:
        self._cache[key] = known
        self._cache.move_to_end(key)
        while len(self._cache) > _CACHED:
            self._cache.popitem(last=False)


class Newcomers:
    """Sessions begun in the last hour, by address: a caller without cookies makes one each time."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._begun: dict[str, deque[float]] = {}

    def check(self, address: str) -> None:
        """Raise ``BusyError`` if no further session may begin from there."""
        now = self._clock()
        begun = self._begun.get(counted_as(address), ())
        check_session(self._limit, [now - at for at in begun if now - at < HOUR_SECONDS])

    def count(self, address: str) -> None:
        """Count a session."""
        now = self._clock()
        if len(self._begun) >= _ADDRESSES:
            fresh = (item for item in self._begun.items() if now - item[1][-1] < HOUR_SECONDS)
            self._begun = dict(fresh)
        begun = self._begun.setdefault(counted_as(address), deque(maxlen=self._limit))
        begun.append(now)


STORAGE = web.AppKey("session_storage", SessionStorage)


async def session_owner(request: web.Request) -> str | None:
    """Return the owner that the request's session stands for, or ``None`` for a stranger."""
    if "Cookie" not in request.headers and SESSION_KEY not in request:
        # Programs that predict have none: nothing to look up for each of their requests.
        return None
    owner = request.app[STORAGE].quick_owner(request)
    if owner is None:
        owner = (await get_session(request)).get(OWNER)
    return owner if isinstance(owner, str) else None


async def ensure_session(request: web.Request) -> str:
    """Return the session's owner; a stranger gets a new session, kept when the answer is sent.

    Raises ``ForbiddenError`` (``cookie_samesite_blocks``) where the browser would drop the cookie,
    so that the thing about to be made would be lost to its maker; ``BusyError`` where too many
    sessions were begun from the caller's address.
    """
    session = await get_session(request)
    owner = session.get(OWNER)
    if isinstance(owner, str):
        return owner
    storage = request.app[STORAGE]
    storage.check_cookie_would_stay(request)
    owner = secrets.token_hex(16)
    session[OWNER] = owner
    return owner


def owner_in(data: str) -> str | None:
    """Return the owner that a stored session stands for."""
    known = _parse(data)
    owner = None if known is None else known.content.get(OWNER)
    return owner if isinstance(owner, str) else None


def _identity_in(header: str) -> str | None:
    match = _COOKIE.search(header)
    return match[1] if match else None


@lru_cache(maxsize=4096)
def _key_in(header: str) -> str:
    """Return the key of the session in a Cookie header, or an empty one; each page sends one."""
    identity = _identity_in(header)
    return "" if identity is None else _key(identity)


def _key(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()


def _parse(data: str) -> _Known | None:
    try:
        saved = orjson.loads(data)
        return _Known(dict(saved["session"]), float(saved["created"]), float(saved["touched"]))
    except (ValueError, TypeError, KeyError):
        logger.warning("a stored session cannot be read and counts as unknown")
        return None
