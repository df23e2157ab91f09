"""Checkpoints that are written atomically, independent of the number of ranks and the ZeRO stage, without pickle.

`checkpoints/step-00000500/` holds, for every trained parameter, its fp32 weight and AdamW's two moments as flat
safetensors, and `manifest.json` with the state of the run and the checksums of all files. Frozen parameters are not
included: a resumed run loads them from their original source. A checkpoint is written under a temporary name and
renamed once it is complete and synced.
"""

import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from model.training.engine.deepspeed_engine import STATE, Engine
from model.training.work_directory import CheckpointError, explain_full_disk
from pipelines.core.files import file_sha256, write_atomic
from pipelines.core.integrity import CHECKSUM, CONTENTS, MANIFEST, DamagedError, read_manifest, seal

log = logging.getLogger("honeybee.training")
VERSION = 2
FILE_BYTES = 2 << 30  # a rank buffers about this many bytes before it writes a file
_NAME = re.compile(r"step-(\d{8})")
RESERVED = ("version", "step", "identity", CONTENTS, CHECKSUM)  # keys of the manifest that `facts` must not contain
_FACTS = {"version": int, "step": int, "identity": dict, CONTENTS: dict, "loader": dict}


class Checkpoints:
    """The checkpoints of one work directory, of which the newest `keep` are retained."""

    def __init__(self, work: Path, keep: int, engine: Engine, identity: dict[str, Any]):
        """identity: everything that the weights depend on; a checkpoint with a different identity is refused."""
        self.directory = work / "checkpoints"
        self.keep, self.engine, self.identity = keep, engine, identity
        numbers = sum(_full_shape(parameter).numel() for _, parameter in engine.trained)
        self.num_bytes = int(numbers * len(STATE) * 4 * 1.01) + (1 << 20)
        if engine.ranks.first:
            self.directory.mkdir(parents=True, exist_ok=True)
            for leftover in self.directory.glob(".step-*"):
                shutil.rmtree(leftover)
        engine.ranks.barrier()

    def save(self, step: int, facts: dict[str, Any]) -> None:
        """Writes the state after `step` steps, with `facts` (JSON, no key of RESERVED). All ranks must call it.

        Raises CheckpointError before writing if the disk has too little space, and DiskFullError if it fills up while
        writing.
        """
        ranks = self.engine.ranks
        self.check_space()
        partial = self.directory / f".step-{step:08d}"
        if ranks.first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        ranks.barrier()
        # Gathering (also a barrier) replaces listing the directory: a listing of a shared file system may be stale.
        written = ranks.gather(self._write_tensors(partial))
        if ranks.first:
            files = {name: facts for own in written for name, facts in sorted(own.items())}
            manifest = {"version": VERSION, "step": step, "identity": self.identity, CONTENTS: files, **facts}
            write_atomic(partial / MANIFEST, seal(manifest))
            _sync(partial)
            final = self.directory / partial.name[1:]
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            _sync(self.directory)
            for old in self.steps()[: -self.keep]:
                _remove(self.directory / f"step-{old:08d}")
            log.info(
                "saved the checkpoint of step %d: %s (%.1f MB)",
                step,
                final,
                sum(size for size, _ in files.values()) / 1e6,
            )
        ranks.barrier()

    def steps(self) -> list[int]:
        """Returns the steps of the existing checkpoints, in ascending order."""
        names = [_NAME.fullmatch(path.name) for path in self.directory.iterdir()]
        return sorted(int(name[1]) for name in names if name)

    def load(self) -> dict[str, Any] | None:
        """Loads the newest intact checkpoint into the engine and returns its manifest, or None if there is none.

        All ranks must call it. A damaged checkpoint is logged and the previous one is used. Raises CheckpointError if
        the newest belongs to a different job, if all checkpoints are damaged, or if the ranks see different ones.
        """
        steps = self.steps()
        seen = self.engine.ranks.gather(steps[-1] if steps else None)
        if len({str(step) for step in seen}) > 1:
            raise CheckpointError(
                f"the ranks see different checkpoints in {self.directory} (steps {seen}): the directory must be shared "
                "by all hosts; if it is, run again once every host lists the same checkpoints"
            )
        found = self._newest()
        if found is None:
            return None
        directory, manifest, index = found
        self._check_identity(directory, manifest)
        # AdamW counts only the steps that it took; checkpoints from before steps could be skipped lack the key.
        self._read_tensors(directory, index, manifest["step"] - manifest.get("skipped_steps", 0))
        return manifest

    def _newest(self) -> tuple[Path, dict[str, Any], dict[str, Path]] | None:
        """Returns the newest intact checkpoint, its manifest, and its index from tensor name to file. Each rank reads
        its share of the files to check them, and all come to the same result."""
        ranks, damages = self.engine.ranks, []
        for step in reversed(ranks.gather(self.steps())[0]):
            directory = self.directory / f"step-{step:08d}"
            problem, manifest, index = None, {}, {}
            try:
                manifest = _read_manifest(directory)
                _check_files(directory, manifest, ranks.rank, ranks.world)
                index = _index(directory, manifest)
            except CheckpointError as error:
                problem = str(error)
            problem = next(filter(None, ranks.gather(problem)), None)
            if problem is None:
                return directory, manifest, index
            damages.append(problem)
            log.warning("%s; falling back to the previous checkpoint", problem)
        if damages:
            raise CheckpointError(f"every checkpoint is damaged ({'; '.join(damages)}): remove {self.directory}")
        return None

    def check_space(self) -> None:
        """Raises CheckpointError if the disk has no space for one more checkpoint."""
        require_space(self.directory, self.num_bytes)

    def _check_identity(self, directory: Path, manifest: dict[str, Any]) -> None:
        if manifest["identity"] == self.identity:
            return
        changes = "; ".join(_differences(manifest["identity"], self.identity))
        raise CheckpointError(
            f"{directory} belongs to a different job ({changes}): use another work directory, or remove "
            f"{self.directory}"
        )

    def _write_tensors(self, directory: Path) -> dict[str, tuple[int, str]]:
        """Writes this rank's share of the parameters, balanced by size; returns its files, their sizes and SHA-256."""
        ranks = self.engine.ranks
        files: dict[str, tuple[int, str]] = {}
        loads = [0] * ranks.world
        held: dict[str, Tensor] = {}
        held_bytes = written = 0

        def flush() -> None:
            nonlocal held, held_bytes, written
            if held:
                path = directory / f"rank-{ranks.rank:05d}-{written:03d}.safetensors"
                with explain_full_disk(path):
                    save_file(held, path)
                    _sync(path)
                files[path.name] = path.stat().st_size, file_sha256(path)
                held, held_bytes, written = {}, 0, written + 1

        for name, parameter in self.engine.trained:
            owner = loads.index(min(loads))
            state = self.engine.full_state(parameter)
            loads[owner] += state["weight"].numel()
            if owner == ranks.rank:
                for key, tensor in state.items():
                    held[f"{name}:{key}"] = tensor.to("cpu", torch.float32).flatten().contiguous()
                    held_bytes += tensor.numel() * 4
                if held_bytes >= FILE_BYTES:
                    flush()
        flush()
        return files

    def _read_tensors(self, directory: Path, index: dict[str, Path], steps_taken: int) -> None:
        expected = {f"{name}:{key}" for name, _ in self.engine.trained for key in STATE}
        if set(index) != expected:
            raise CheckpointError(
                f"{directory} does not hold exactly the parameters that are trained (e.g. "
                f"{min(set(index) ^ expected)}): remove {self.directory}"
            )
        self.engine.set_steps(steps_taken)
        files: dict[Path, Any] = {}
        for name, parameter in self.engine.trained:
            state = {}
            for key in STATE:
                path = index[f"{name}:{key}"]
                if path not in files:
                    files[path] = safe_open(path, framework="pt")
                state[key] = files[path].get_tensor(f"{name}:{key}").view(_full_shape(parameter))
            self.engine.set_full_state(parameter, state)


def require_space(directory: Path, num_bytes: int) -> None:
    """Raises CheckpointError if the disk of `directory` has fewer than `num_bytes` free."""
    free = shutil.disk_usage(directory).free
    if free < num_bytes:
        raise CheckpointError(
            f"a checkpoint needs {num_bytes / 1e9:.2f} GB, but {directory} has {free / 1e9:.2f} GB free: "
            "free up space, then run again; training resumes from the last checkpoint"
        )


def _full_shape(parameter: nn.Parameter) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)  # ZeRO-3 partitions parameters and keeps their ds_shape


def _read_manifest(directory: Path) -> dict[str, Any]:
    """Raises CheckpointError if the checkpoint is damaged or of a different version."""
    path = directory / MANIFEST
    try:
        manifest = read_manifest(directory)
    except (FileNotFoundError, DamagedError) as error:
        raise CheckpointError(str(error)) from None
    lacking = [key for key, kind in _FACTS.items() if not isinstance(manifest.get(key), kind)]
    if lacking:
        raise CheckpointError(f"{path} is damaged: missing or invalid keys: {', '.join(lacking)}")
    if manifest["version"] != VERSION:
        raise CheckpointError(f"{path} has version {manifest['version']}, but this program reads version {VERSION}")
    return manifest


def _check_files(directory: Path, manifest: dict[str, Any], rank: int, world: int) -> None:
    """Raises CheckpointError unless all files have the right sizes, and this rank's share the right checksums."""
    for number, (name, (size, sha256)) in enumerate(manifest[CONTENTS].items()):
        found = (directory / name).stat().st_size if (directory / name).is_file() else None
        if found != size:
            raise CheckpointError(f"{directory / name} is damaged: found {found} bytes instead of {size}")
        if number % world == rank and file_sha256(directory / name) != sha256:
            raise CheckpointError(f"{directory / name} is damaged: its checksum has changed")


def _index(directory: Path, manifest: dict[str, Any]) -> dict[str, Path]:
    """Returns the file that holds each tensor, by tensor name."""
    index = {}
    for name in manifest[CONTENTS]:
        try:
            with safe_open(directory / name, framework="pt") as file:
                index.update(dict.fromkeys(file.keys(), directory / name))
        except SafetensorError as error:
            raise CheckpointError(f"{directory / name} is damaged: {error}") from None
    return index


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [line for key in keys for line in _differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))]
    return [] if old == new else [f"{path} was {old}, now {new}"]


def _sync(path: Path) -> None:
    """Waits until a file, or the entries of a directory, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(directory: Path) -> None:
    """Removes a checkpoint; it is renamed first, so that no reader sees a partially deleted one."""
    doomed = directory.with_name(f".{directory.name}.old")
    directory.rename(doomed)
    shutil.rmtree(doomed)
