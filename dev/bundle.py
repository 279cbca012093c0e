"""
Assembles the Worker that wrangler runs: Pyodide, the host modules and the packed sources.

Every running Worker has a folder of its own, so that tests can run several at once and an edit
re-packs one archive. wrangler watches the folder and restarts workerd when a file in it changes.
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from dev import byte_code, paths
from dev.config import Config
from dev.interpreter import compiled_stdlib, memory_snapshot

SOURCES_ARCHIVE: Final = "sources.tar"
DIGEST_CHARACTERS: Final = 16
"""What the archive ends with; `host/sources.mjs` knows it, too."""

# Never part of a Worker: byte code of another Python, and what installers leave behind.
_SKIPPED_FOLDERS: Final = {"__pycache__", "bin"}
_SKIPPED_SUFFIXES: Final = {".pyc", ".pth~"}

Mounts = Mapping[str, Path]
"""Folder or file below /session/metadata ("" is the root of it) -> the one on this machine."""


def assemble(folder: Path, *, mounts: Mounts, entry: str, config: Config, checks_snapshot: bool = False) -> None:
    """
    Write a complete Worker to *folder*; `folder / "wrangler.json"` is its configuration.

    With *checks_snapshot* it answers every request with what an upload could not store of it (see `dev.snapshot`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    _link(paths.PYODIDE / "pyodide.asm.wasm", folder / "pyodide.asm.wasm")
    _link(paths.PYODIDE / "pyodide.mjs", folder / "pyodide.mjs")
    _link(compiled_stdlib(), folder / "python_stdlib.zip")
    _link(memory_snapshot(), folder / "snapshot.bin")
    # A script for browsers, which wrangler uploads as a module if it looks like one.
    script = (paths.PYODIDE / "pyodide.asm.js").read_text("utf-8")
    (folder / "pyodide.asm.js.mjs").write_text("var __filename = undefined;\n" + script, "utf-8")
    (folder / "pyodide-lock.txt").write_text(_lock_without_packages(), "utf-8")

    for module in paths.HOST.glob("*.mjs"):
        shutil.copyfile(module, folder / module.name)
    shutil.copyfile(paths.HOST / "bootstrap.py", folder / "bootstrap.txt")
    settings = {"ENTRY": entry, "CHECKS_SNAPSHOT": checks_snapshot}
    exports = [f"export const {name} = {json.dumps(value)};\n" for name, value in settings.items()]
    (folder / "settings.mjs").write_text("".join(exports))
    (folder / "main.mjs").write_text(_main_module(config))
    _copy_sdk_javascript(mounts, folder)

    byte_code.prepare(_contents(mounts))
    pack(folder, mounts)
    (folder / "wrangler.json").write_text(json.dumps(config.for_host(), indent=2))


def pack(folder: Path, mounts: Mounts) -> str:
    """Pack the sources again, if they have changed; return the digest that a Worker with them prints at its start."""
    archive = folder / SOURCES_ARCHIVE
    content = _archive(mounts)
    digest = hashlib.sha256(content).hexdigest()[:DIGEST_CHARACTERS]
    packed = content + digest.encode()
    if not archive.exists() or archive.read_bytes() != packed:
        # Replaced in one step: wrangler must never read half an archive.
        fresh = folder.parent / f"{folder.name}.{SOURCES_ARCHIVE}"
        fresh.write_bytes(packed)
        fresh.replace(archive)
    return digest


def source_files(mounts: Mounts) -> Iterator[tuple[str, Path]]:
    """Yield every file to mount, as its path below /session/metadata and on this machine."""
    for prefix, root in mounts.items():
        if root.is_file():
            yield prefix, root
        for directory, folders, names in os.walk(root):
            folders[:] = sorted(set(folders) - _SKIPPED_FOLDERS)
            for name in sorted(names):
                path = Path(directory, name)
                if path.suffix not in _SKIPPED_SUFFIXES:
                    yield (Path(prefix) / path.relative_to(root)).as_posix(), path


def _contents(mounts: Mounts) -> dict[str, bytes]:
    contents = {}
    for name, path in source_files(mounts):
        with suppress(FileNotFoundError):  # An editor's temporary file, gone again.
            contents[name] = path.read_bytes()
    return contents


def _archive(mounts: Mounts) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in _contents(mounts).items():
            for path, stored in filter(None, ((name, content), byte_code.look_up(name, content))):
                member = tarfile.TarInfo(path)
                member.size = len(stored)
                archive.addfile(member, io.BytesIO(stored))
    return buffer.getvalue()


def _main_module(config: Config) -> str:
    """Return the module whose exports are the classes wrangler and workerd look for."""
    lines = [
        'import { entrypoint } from "./entrypoints.mjs";',
        'export default entrypoint("Default", "WorkerEntrypoint");',
    ]
    lines += [
        f'export const {name} = entrypoint("{name}", "{kind}");' for name, kind in config.exported_classes().items()
    ]
    return "\n".join(lines) + "\n"


def _copy_sdk_javascript(mounts: Mounts, folder: Path) -> None:
    """The SDK imports JavaScript of its own by its path in the deployed bundle."""
    for name, path in source_files(mounts):
        if name.startswith("python_modules/workers/") and path.suffix in {".js", ".mjs"}:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def _lock_without_packages() -> str:
    """Pyodide's lock file, saying that nothing can be loaded from its servers."""
    lock = json.loads((paths.PYODIDE / "pyodide-lock.json").read_text("utf-8"))
    return json.dumps({**lock, "packages": {}})


def _link(source: Path, target: Path) -> None:
    """Hard-link 36 MB instead of copying them, where the file systems allow it."""
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
