"""Errors that several parts raise: an image that cannot be used, a shard or a store entry that is not as it was
written."""


class ImageRefError(ValueError):
    """An image that cannot be used. `reason`: a short stable name. `detail`: a human-readable explanation."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail.encode("utf-8", "backslashreplace").decode()


class ShardError(ValueError):
    """Raised for a shard, or an input of one, that does not match its manifest."""


class StoreError(ValueError):
    """Raised for an entry of the store that cannot be used or written; the message names it and says what to do."""
