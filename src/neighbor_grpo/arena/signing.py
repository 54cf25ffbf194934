"""What the server signs with the secret of a study: sessions, invitations, and the key of a page that others can reach."""

import hashlib
import hmac
from typing import Any

from itsdangerous import BadData, URLSafeSerializer, URLSafeTimedSerializer

SESSION = 90 * 24 * 3600  # seconds that a session lasts


class ExpiredError(ValueError):
    """Say that an invitation has expired."""


class Seal:
    """Sign and check with the secret of a study.  A signature for one purpose is none for another."""

    def __init__(self, secret: str) -> None:
        self._sessions = URLSafeTimedSerializer(secret, salt="session")
        self._requests = URLSafeSerializer(secret, salt="request")
        self._invitations = URLSafeSerializer(secret, salt="invitation")
        self.key = hmac.new(secret.encode(), b"key", hashlib.sha256).hexdigest()[:32]

    def session(self, rater: int) -> str:
        """Return the cookie of a rater."""
        return str(self._sessions.dumps(rater))

    def rater(self, cookie: str) -> int | None:
        """Return the rater of a cookie, None where it is not ours or has expired."""
        return _whole_number(self._sessions, cookie, max_age=SESSION)

    def csrf(self, rater: int) -> str:
        """Return what the page of a rater sends along, and no other page knows."""
        return str(self._requests.dumps(rater))

    def is_csrf(self, text: str, rater: int) -> bool:
        """Return whether a request comes from the page of a rater."""
        return _whole_number(self._requests, text) == rater

    def invitation(self, name: str, until: float) -> str:
        """Return the token of a link that lets a rater join until a time, in seconds since 1970."""
        return str(self._invitations.dumps([name, round(until)]))

    def invited(self, token: str, now: float) -> str | None:
        """Return the name on an invitation, None where it is not ours.  Raises ExpiredError."""
        try:
            name, until = self._invitations.loads(token)
        except (BadData, ValueError):
            return None
        if now > until:
            raise ExpiredError(name)
        return str(name)

    def is_key(self, text: str) -> bool:
        """Return whether a text is the key of the page."""
        return hmac.compare_digest(text.encode(), self.key.encode())


def _whole_number(serializer: URLSafeSerializer | URLSafeTimedSerializer, text: str, **limits: Any) -> int | None:
    try:
        found = serializer.loads(text, **limits)
    except BadData:
        return None
    return found if isinstance(found, int) else None
