"""Pretrained models are checked before a run: directories, the local hub cache, and the hub."""

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from flows.preflight.models import check_backbones
from flows.preflight.outcome import Check, Status

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def checked(recipe_of):
    """checked(vision=…, llm=…) → (vision, llm), the outcomes; what is not given is the corpus's own."""

    def check(training: bool = True, env: dict[str, str] | None = None, **models: Path | str) -> list[Check]:
        recipe = recipe_of({"launch/env": env or {}})
        parts = recipe.backbones.model_copy(update={name: str(model) for name, model in models.items()})
        return list(check_backbones(recipe.model_copy(update={"backbones": parts}), training))

    return check


@pytest.fixture
def llm(corpus, tmp_path) -> Path:
    """A copy of the language model, to be damaged."""
    return Path(shutil.copytree(corpus / "backbones/llm", tmp_path / "llm"))


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty hub cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(cache: Path, model: Path, *names: str) -> None:
    """Puts the named files of a model (default: all) into the cache, as the model owner/name."""
    snapshot = cache / "models--owner--name/snapshots" / COMMIT
    shutil.copytree(model, snapshot, ignore=lambda _, files: [f for f in files if names and f not in names])
    (cache / "models--owner--name/refs").mkdir()
    (cache / "models--owner--name/refs/main").write_text(COMMIT)


def test_complete_directories_pass(checked, corpus):
    assert [check.status for check in checked()] == [Status.OK, Status.OK]
    assert [check.item for check in checked(training=False, vision="owner/nothing")] == ["backbones.llm"]


def remove(name):
    return lambda llm: (llm / name).unlink()


def cut(llm):
    path = llm / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def shard_missing(llm):
    (llm / "model.safetensors").rename(llm / "a.safetensors")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (llm / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("config.json"), "has no config.json. Put the files there, e.g. with `hf download NAME --local-dir "),
        (remove("model.safetensors"), "has no weights (model.safetensors or pytorch_model.bin)"),
        (remove("tokenizer.json"), "has no tokenizer (tokenizer.json)"),
        (lambda llm: (llm / "config.json").write_text("{"), "config.json is not valid JSON"),
        (lambda llm: (llm / "config.json").write_text("{}"), "config.json must be a JSON object with `model_type`"),
        (cut, "but its header describes"),
        (lambda llm: (llm / "model.safetensors").write_bytes(b""), "is empty or a Git LFS pointer"),
        (
            lambda llm: (llm / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid …"),
            "is empty or a Git LFS pointer: download or copy the model again",
        ),
        (lambda llm: (llm / "model.safetensors").write_bytes(b"x" * 99), "is not a complete safetensors file"),
        (shard_missing, "b.safetensors is missing, although model.safetensors.index.json lists it"),
    ],
)
def test_incomplete_directories_fail(checked, llm, damage, message):
    damage(llm)
    _, check = checked(llm=llm)
    assert check.status is Status.FAILED
    assert message in check.reason and str(llm) in check.reason


def test_a_directory_that_does_not_exist_fails(checked):
    check, _ = checked(vision="/no/such/model")
    assert (check.item, check.status) == ("backbones.vision", Status.FAILED)
    assert check.reason.startswith("/no/such/model is not a directory")


def test_offline_a_model_must_be_in_the_cache(checked, llm, cache, monkeypatch):
    """Tests run with HF_HUB_OFFLINE."""
    _, check = checked(llm="owner/name")
    assert check.status is Status.FAILED
    assert "no config.json of it; HF_HUB_OFFLINE is set" in check.reason and "`hf download owner/name`" in check.reason
    cached(cache, llm, "config.json", "tokenizer.json", "tokenizer_config.json")
    _, check = checked(llm="owner/name")
    assert check.status is Status.FAILED and "has no weights" in check.reason
    shutil.rmtree(cache)
    cached(cache, llm)
    _, check = checked(llm="owner/name")
    assert (check.status, check.reason) == (Status.OK, "owner/name, in the local hub cache")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    _, check = checked(llm="owner/other", env={"HF_HUB_OFFLINE": "1"})
    assert check.status is Status.FAILED and "launch.env sets HF_HUB_OFFLINE" in check.reason
    _, check = checked(llm="not a name")
    assert check.status is Status.FAILED and "nor a valid name on the hub" in check.reason


class Hub(BaseHTTPRequestHandler):
    """Serves a directory as the model owner/name; there is no other model, and owner/gated is not readable."""

    model: Path

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        files = {path.name: path for path in self.model.iterdir()}
        name = self.path.rpartition("/")[2]
        if self.path.startswith("/api/models/owner/name"):
            siblings = [{"rfilename": each} for each in files]
            tree = [{"type": "file", "path": each, "size": p.stat().st_size, "oid": each} for each, p in files.items()]
            facts = {"id": "owner/name", "sha": COMMIT, "siblings": siblings}
            self._send(200, json.dumps(tree if "/tree/" in self.path else facts).encode(), with_body)
        elif self.path.startswith("/owner/name/resolve/") and name in files:
            self._send(200, files[name].read_bytes(), with_body, {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT})
        else:
            code, error = (403, "GatedRepo") if "/gated" in self.path else (401, "RepoNotFound")
            self._send(code, b"", with_body, {"X-Error-Code": error})

    def _send(self, code: int, body: bytes, with_body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


@pytest.fixture
def hub(llm, cache, monkeypatch) -> Iterator[ThreadingHTTPServer]:
    """A hub on this machine that has the language model as owner/name, and a client that may ask it."""
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Hub,), {"model": llm})) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", address)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_model_on_the_hub_is_checked_without_its_weights(checked, llm, cache, hub):
    _, check = checked(llm="owner/name")
    assert (check.status, check.reason) == (Status.OK, "owner/name, on the hub; the run downloads the weights")
    assert not list(cache.rglob("*.safetensors")) and list(cache.rglob("tokenizer.json"))
    shutil.rmtree(cache)
    settings = json.loads((llm / "tokenizer_config.json").read_text())
    (llm / "tokenizer_config.json").write_text(json.dumps({**settings, "bos_token": None}))
    _, check = checked(llm="owner/name")
    assert check.status is Status.FAILED and "has no bos_token" in check.reason


def test_a_model_that_the_hub_lacks_fails(checked, llm, hub):
    (llm / "model.safetensors").unlink()
    _, check = checked(llm="owner/name")
    assert check.status is Status.FAILED and "owner/name on the hub has no weights" in check.reason
    _, check = checked(llm="owner/nmae")
    assert check.status is Status.FAILED and "the hub has no such model" in check.reason
    _, check = checked(llm="owner/gated")
    assert check.status is Status.FAILED and "is gated: accept its terms there" in check.reason


def test_a_hub_that_does_not_answer_leaves_the_model_unchecked(checked, hub):
    hub.shutdown()
    hub.server_close()
    _, check = checked(llm="owner/name")
    assert check.status is Status.NOT_CHECKED and check.needed
    assert "the hub cannot be reached" in check.reason and "`hf download owner/name`" in check.reason
