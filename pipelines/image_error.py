"""The error for an unusable image reference, shared by images.py and image_cells.py."""


class ImageRefError(ValueError):
    """An image that cannot be used. `reason`: a short stable name. `detail`: a human-readable explanation."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail.encode("utf-8", "backslashreplace").decode()
