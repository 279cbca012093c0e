"""Servers of the Workers that are measured: of one JavaScript module, and of ours with something put in front of it."""

import json
import shutil
from pathlib import Path
from typing import Final

from dev.server import Server

__all__ = ["AwayJavaScriptServer", "AwayServer", "CountingServer", "JavaScriptServer"]

_HERE: Final = Path(__file__).parent
_COUNTED: Final = {
    "boot.mjs": {"WebAssembly.Instance(wasm, imports)": "WebAssembly.Instance(wasm, countedImports(imports))"},
    "pyodide.asm.js.mjs": {
        f'wasmExports["{name}"]': f'globalThis.countedCall(wasmExports["{name}"])'
        for name in ("_pyproxy_apply", "create_promise_handles_result_helper")
    },
}
"""What is counted: in which file of the host what is replaced by what."""


class JavaScriptServer(Server):
    """A Worker of one JavaScript module, instead of a folder of Python sources."""

    def assemble(self) -> None:
        """Write what wrangler is to run to `bundle`."""
        self.bundle.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.mounts[""], self.bundle / "main.mjs")
        (self.bundle / "wrangler.json").write_text(json.dumps(self.config.for_host(), indent=2))


class AwayJavaScriptServer(JavaScriptServer):
    """The same with a database that counts, and is as far away as ``BENCH_AWAY_MS`` says."""

    def assemble(self) -> None:
        """Write what wrangler is to run to `bundle`."""
        super().assemble()
        _put_in_front(self.bundle / "main.mjs", "database.mjs")


class AwayServer(Server):
    """Our Worker with such a database."""

    def assemble(self) -> None:
        """Write what wrangler is to run to `bundle`."""
        super().assemble()
        _put_in_front(self.bundle / "main.mjs", "database.mjs")


class CountingServer(AwayServer):
    """Our Worker, with its border to JavaScript counted as well."""

    def assemble(self) -> None:
        """Write what wrangler is to run to `bundle`."""
        super().assemble()
        for name, replaced in _COUNTED.items():
            module = self.bundle / name
            text = module.read_text("utf-8")
            for before, after in replaced.items():
                if before not in text:
                    raise AssertionError(f"{name} has no {before} any more")
                text = text.replace(before, after)
            module.write_text(text, "utf-8")
        _put_in_front(self.bundle / "boot.mjs", "border.mjs", "{ countedImports }")


def _put_in_front(module: Path, name: str, names: str = "") -> None:
    """Let *module* import another of this folder before all else."""
    shutil.copyfile(_HERE / name, module.parent / name)
    imported = f"{names} from " if names else ""
    module.write_text(f'import {imported}"./{name}";\n{module.read_text("utf-8")}', "utf-8")
