"""Errors in OpenAI's form."""

from typing import Any


class RequestError(Exception):
    """A request that gets no answer; what it says is sent to the client.

    status: of HTTP. param: the field to blame, as `messages[0].content[1]`. code: a short stable name.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """What is sent as JSON."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}
