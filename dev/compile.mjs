// Compiles a zip of Python sources with the interpreter that will run them: Pyodide, here in Node.
//
//     node compile.mjs SOURCE.zip TARGET.zip ROOT
//
// The target holds every file of the source and, beside each .py, its .pyc. ROOT is the folder or archive that the
// sources will be in, as tracebacks name it.

import { readFileSync, writeFileSync } from "node:fs";
import { loadPyodide } from "pyodide";

const [source, target, root] = process.argv.slice(2);
const python = await loadPyodide();
python.FS.writeFile("/source.zip", readFileSync(source));
python.globals.set("root", root);
python.runPython(`
import importlib.util
import warnings
import zipfile
from importlib._bootstrap_external import _code_to_hash_pyc

# What does not compile without a word is left to the interpreter that meets it: the word is for its user.
warnings.simplefilter("error")
with zipfile.ZipFile("/source.zip") as source, zipfile.ZipFile("/target.zip", "w", zipfile.ZIP_DEFLATED) as target:
    for name in source.namelist():
        if name.endswith("/"):
            continue
        content = source.read(name)
        target.writestr(name, content)
        if not name.endswith(".py"):
            continue
        try:
            code = compile(content, f"{root}/{name}", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, Warning):
            continue
        # Unchecked: the source beside it is the one it was made of.
        target.writestr(name + "c", _code_to_hash_pyc(code, importlib.util.source_hash(content), checked=False))
`);
writeFileSync(target, python.FS.readFile("/target.zip"));
