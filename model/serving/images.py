"""Loads the images of a request from data: URLs and, if allowed, from the network."""

import base64
import contextlib
import io
import re
from collections.abc import Callable, Sequence
from urllib.parse import unquote

from PIL import Image

from model.serving.content import ImageReference
from model.serving.errors import RequestError
from model.serving.fetch_image import FetchError, fetch
from pipelines.core.errors import ImageRefError
from pipelines.images.decode import FORMATS, MAX_PIXELS, decode, to_rgb

_DATA = re.compile(r"\s*data:[^,]{0,200};\s*base64\s*,", re.IGNORECASE)
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/]")
_PLAIN_BASE64 = {**dict.fromkeys(map(ord, " \t\r\n\f\v")), ord("-"): "+", ord("_"): "/"}


async def image_bytes(reference: ImageReference, allow_urls: bool, max_bytes: int) -> Callable[[], bytes]:
    """Returns a function that returns the file's bytes, so that base64 can be decoded in a worker thread.

    Raises RequestError (400).
    """
    url = reference.url
    if _DATA.match(url):
        return lambda: _from_base64(reference)
    if url.lower().startswith(("http://", "https://")):
        if not allow_urls:
            raise _invalid(
                reference,
                "this server does not fetch images from the network: send the image as a data: URL, "
                "or start the server with --allow-urls",
            )
        try:
            data = await fetch(url, max_bytes)
        except FetchError as error:
            raise _invalid(reference, f"{url[:200]} could not be fetched: {error}") from None
        return lambda: data
    scheme = url[:40].partition(":")[0] if ":" in url[:40] else "none"
    raise _invalid(
        reference,
        f"an image must be a base64 data: URL such as data:image/png;base64,…; found the scheme {scheme[:20]!r}",
    )


def check_total_pixels(files: Sequence[bytes]) -> None:
    """Raises RequestError (400) if all images together have more pixels than are allowed for one image."""
    pixels = 0
    for data in files:
        with contextlib.suppress(Exception), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            size = image.width * image.height
            pixels += size if size <= MAX_PIXELS else 0  # `decode_image` reports single images that are too large
    if pixels > MAX_PIXELS:
        message = (
            f"the images of the request have {pixels:,} pixels in total, more than the allowed {MAX_PIXELS:,}: "
            "send smaller images"
        )
        raise RequestError(400, message, "messages", "invalid_image")


def decode_image(reference: ImageReference, data: bytes) -> Image.Image:
    """Decodes an image to upright RGB. Raises RequestError (400), naming the field, if it is not a valid image."""
    try:
        return to_rgb(decode(data))
    except ImageRefError as error:
        raise _invalid(reference, str(error)) from None
    except Exception as error:  # malformed EXIF data can raise anything when the orientation is applied
        raise _invalid(reference, f"the image cannot be converted: {type(error).__name__}: {error}") from None


def _from_base64(reference: ImageReference) -> bytes:
    """Decodes base64 as clients write it: with line breaks, percent-encoded, URL-safe, without padding."""
    text = reference.url[reference.url.index(",") + 1 :]
    with contextlib.suppress(ValueError):
        return base64.b64decode(text, validate=True)
    text = (unquote(text) if "%" in text else text).translate(_PLAIN_BASE64)
    data = text.rstrip("=")
    if found := _NOT_BASE64.search(data):
        raise _invalid(
            reference,
            f"the data: URL is not valid base64: it has {found[0]!r} after {found.start()} characters of base64",
        )
    if len(data) % 4 == 1:
        raise _invalid(
            reference,
            f"the data: URL is not valid base64: {len(data)} characters are one too many or too few; is it cut off?",
        )
    return base64.b64decode(data + "=" * (-len(data) % 4))


def _invalid(reference: ImageReference, message: str) -> RequestError:
    return RequestError(400, f"{reference.place}: {message}", reference.place, "invalid_image")
