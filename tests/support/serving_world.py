"""A real server on a free loopback port, and the parts of requests."""

import base64
import contextlib
import io
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn
from PIL import Image

from model.serving.app import create_app
from model.serving.connections import LimitedConnection
from model.serving.server import bind, config_of
from model.serving.service import Service
from model.serving.settings import Settings


@contextlib.contextmanager
def run_server(
    model: Any, processor: Any, connection: type[LimitedConnection] = LimitedConnection, **settings: Any
) -> Iterator[str]:
    """Runs a server for the model and yields its base URL, `http://127.0.0.1:…/v1`."""
    service = Service(model, processor, Settings(**settings))
    with bind("127.0.0.1", 0) as listener:
        app = create_app(service, loopback=True)
        server = uvicorn.Server(config_of(app, connection, log_level="warning", timeout_graceful_shutdown=5))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_for(lambda: server.started)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join()


def wait_for(condition: Any, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"the condition did not become true within {seconds} seconds"
        time.sleep(0.01)


def data_url(colour: Any = "red", kind: str = "PNG", size: tuple[int, int] = (20, 20), mode: str = "RGB") -> str:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": parts[0] if len(parts) == 1 and isinstance(parts[0], str) else list(parts)}
