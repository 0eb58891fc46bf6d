"""Who may predict at the deployment's own address: the gateway, and tokens for this model.

What is known of a token is the SHA-256 of its secret, so that a model, which is foreign code and
sees everything in this process, learns none that was never sent here.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Set

from server.model_server.refusals import Refusal

SECRET_HEADER = "X-Persephone-Secret"  # noqa: S105 - a header's name
_SECRET_KEY = SECRET_HEADER.lower().encode()
_TOKEN = re.compile(rb"(?:[Bb][Ee][Aa][Rr][Ee][Rr] +)?(psk_([0-9a-f]{16})_[A-Za-z0-9_-]{43})")
_MAX_KNOWN = 1024
"""Spellings of the header that were accepted; each token has few."""
_CHALLENGE = 'Bearer realm="persephone"'


class _Admitted(NamedTuple):
    digest: str
    expires: Optional[float]
    """Unix time in seconds."""


class Admission:
    """Judges the heads of requests.

    Whoever keeps judgements has to forget them after ``renew``, and when ``expire`` says so.
    """

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()
        self._tokens: Dict[str, _Admitted] = {}
        self._known: Dict[bytes, str] = {}
        self._used: Set[str] = set()
        self.first_end: Optional[float] = None
        """When the next token expires, in Unix time."""

    def renew(self, tokens: Mapping[str, Any]) -> List[str]:
        """Take the tokens that are good from now on; return which were used since the last time.

        ``tokens`` has the digest and the end, in Unix time, of each by its id.

        Raises:
            ValueError: that is not what it holds; nothing was changed.
        """
        try:
            taken = {
                str(token_id): _Admitted(str(digest), None if end is None else float(end))
                for token_id, (digest, end) in tokens.items()
            }
        except (AttributeError, TypeError):
            raise ValueError("tokens") from None
        self._tokens = taken
        used, self._used = sorted(self._used), set()
        self._forget()
        return used

    def expire(self, now: float) -> bool:
        """Drop the tokens whose time is over at ``now``, a Unix time; return whether there were any."""
        if self.first_end is None or now < self.first_end:
            return False
        self._tokens = {
            token_id: token
            for token_id, token in self._tokens.items()
            if token.expires is None or now < token.expires
        }
        self._forget()
        return True

    def _forget(self) -> None:
        self._known.clear()
        ends = [token.expires for token in self._tokens.values() if token.expires is not None]
        self.first_end = min(ends, default=None)

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Let a request pass, by its headers.

        Raises:
            Refusal: 401.
        """
        given = headers.get(b"authorization")
        if given is not None and self._is_good(given):
            return
        if hmac.compare_digest(headers.get(_SECRET_KEY, b""), self._secret):
            return
        code = "inference_needs_identification" if given is None else "inference_token_refused"
        raise Refusal(401, code, headers={"WWW-Authenticate": _CHALLENGE})

    def _is_good(self, given: bytes) -> bool:
        token_id = self._known.get(given)
        if token_id is None:
            form = _TOKEN.fullmatch(given.strip())
            if form is None:
                return False
            token_id = form[2].decode("ascii")
            token = self._tokens.get(token_id)
            digest = hashlib.sha256(form[1]).hexdigest()
            if token is None or not hmac.compare_digest(token.digest, digest):
                return False
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[given] = token_id
        self._used.add(token_id)
        return True
