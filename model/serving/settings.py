"""The settings of the HTTP server."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Server settings. name: model name in requests. max_upload: limit in bytes for a request body and for a fetched
    image."""

    name: str = "model"
    max_batch: int = 8
    max_images: int = 8
    max_upload: int = 20 << 20
    allow_urls: bool = False
