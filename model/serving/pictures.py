"""The pictures of a request: from data: URLs, and where it is allowed from the network."""

import base64
import binascii
import contextlib
import io
import re
from collections.abc import Callable, Sequence

from PIL import Image

from model.serving.content import Reference
from model.serving.errors import RequestError
from model.serving.fetch import FetchError, fetch
from pipelines.image_error import ImageRefError
from pipelines.images import FORMATS, MAX_PIXELS, decode, to_rgb

_DATA = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)


async def encoded(reference: Reference, allow_urls: bool, max_bytes: int) -> Callable[[], bytes]:
    """What gives the file's bytes: a call, since decoding base64 is for a thread. Raises RequestError (400)."""
    url = reference.url
    if _DATA.match(url):
        return lambda: _from_base64(reference)
    if url.lower().startswith(("http://", "https://")):
        if not allow_urls:
            raise _invalid(
                reference,
                "this server fetches nothing from the network: send the picture as a data: URL, "
                "or start the server with --allow-urls",
            )
        try:
            data = await fetch(url, max_bytes)
        except FetchError as error:
            raise _invalid(reference, f"{url[:200]} was not fetched: {error}") from None
        return lambda: data
    scheme = url[:40].partition(":")[0] if ":" in url[:40] else "none"
    raise _invalid(
        reference,
        f"a picture must be a data: URL in base64, as data:image/png;base64,…; this one's scheme is {scheme[:20]!r}",
    )


def check_together(files: Sequence[bytes]) -> None:
    """Raises RequestError (400) for pictures that together have more pixels than one may have."""
    pixels = 0
    for data in files:
        with contextlib.suppress(Exception), Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            size = picture.width * picture.height
            pixels += size if size <= MAX_PIXELS else 0  # `opened` names one that is too large alone
    if pixels > MAX_PIXELS:
        message = (
            f"the pictures of the request have {pixels:,} pixels together, more than {MAX_PIXELS:,}: send smaller ones"
        )
        raise RequestError(400, message, "messages", "invalid_image")


def opened(reference: Reference, data: bytes) -> Image.Image:
    """The picture, upright, RGB. Raises RequestError (400), naming the place, for what is no picture."""
    try:
        return to_rgb(decode(data))
    except ImageRefError as error:
        raise _invalid(reference, str(error)) from None
    except Exception as error:  # EXIF that turns the picture, but cannot be read
        raise _invalid(reference, f"the picture cannot be shown: {type(error).__name__}: {error}") from None


def _from_base64(reference: Reference) -> bytes:
    url = reference.url
    try:
        return base64.b64decode(url[url.index(",") + 1 :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise _invalid(reference, f"the data: URL holds no base64: {error}") from None


def _invalid(reference: Reference, message: str) -> RequestError:
    return RequestError(400, f"{reference.place}: {message}", reference.place, "invalid_image")
