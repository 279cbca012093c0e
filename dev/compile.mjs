// Compiles a zip of Python sources with the interpreter that will run them: Pyodide, here in Node.
//
//     node compile.mjs SOURCE.zip TARGET.zip
//
// The target holds every file of the source and, beside each .py, its .pyc.

import { readFileSync, writeFileSync } from "node:fs";
import { loadPyodide } from "pyodide";

const [source, target] = process.argv.slice(2);
const python = await loadPyodide();
python.FS.writeFile("/source.zip", readFileSync(source));
python.runPython(`
import importlib.util
import zipfile
from importlib._bootstrap_external import _code_to_hash_pyc

with zipfile.ZipFile("/source.zip") as source, zipfile.ZipFile("/target.zip", "w", zipfile.ZIP_DEFLATED) as target:
    for name in source.namelist():
        if name.endswith("/"):
            continue
        content = source.read(name)
        target.writestr(name, content)
        if name.endswith(".py"):
            code = compile(content, "/lib/python313.zip/" + name, "exec", dont_inherit=True)
            # Unchecked: the source beside it is the one it was made of.
            byte_code = _code_to_hash_pyc(code, importlib.util.source_hash(content), checked=False)
            target.writestr(name + "c", byte_code)
`);
writeFileSync(target, python.FS.readFile("/target.zip"));
