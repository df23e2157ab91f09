"""The settings of the HTTP server."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Server settings.

    name: model name in requests. max_upload: limit in bytes for a request body and for a fetched image. origins: web
    sites whose pages may send requests. body_seconds, stall_seconds: how long a body may take, and pause.
    """

    name: str = "model"
    max_batch: int = 8
    max_images: int = 8
    max_upload: int = 20 << 20
    allow_urls: bool = False
    origins: tuple[str, ...] = ()
    body_seconds: float = 60.0
    stall_seconds: float = 10.0

    @property
    def max_bodies(self) -> int:
        """Limit in bytes for all request bodies in memory."""
        return 8 * self.max_upload
