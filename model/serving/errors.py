"""Errors in OpenAI's format."""

from typing import Any


class RequestError(Exception):
    """Raised for a request that cannot be answered; the message is sent to the client.

    status: HTTP status. param: the invalid field, such as `messages[0].content[1]`. code: a short, stable identifier.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """Returns the JSON body of the response."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}
