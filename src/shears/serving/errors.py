"""What goes wrong with a request, in the form that clients of OpenAI's interface read."""

from collections.abc import Mapping
from typing import Any


class RequestError(Exception):
    """An answer other than 200: `message` says what must hold, what came, what to do; `param` names the key."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """Return the JSON of the answer."""
        return {"error": {"message": self.message, "type": self._kind(), "param": self.param, "code": self.code}}

    def headers(self) -> Mapping[str, str]:
        """Return the headers of the answer: when to come again, and that the rest of a body is not read."""
        again = {"Retry-After": "1"} if self.status in (429, 503) else {}
        return again | ({"Connection": "close"} if self.status in (408, 413) else {})

    def _kind(self) -> str:
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"
