// Put in front of the Python host: what crosses the border between Python and JavaScript is counted.
//
// Python's way out is Pyodide's: an import of its WebAssembly for each thing that it does with an object of
// JavaScript's.  Its way in are two exports: of a function's proxy, and of one that waits for a promise.  Timers are JavaScript's own.

const OUT = {
  calls: /^Jsv(Function_Call|Function_Construct|Object_CallMethod)/,
  members: /^Js(Proxy_(Get|Set|Del)Attr|Proxy_subscript|Array_|vArray_(Get|Set)|vObject_SetAttr)/,
  bytes: /^JsvBuffer_assign|^_python2js_(buffer|ucs)/,
  functions: /^(pyproxy_new_ex|create_once_callable|create_promise_handles)$/,
  clock: /^clock_time_get$/,
};

const counts = (globalThis.borderCounts = { into: 0, calls: 0, members: 0, bytes: 0, functions: 0, clock: 0, timers: 0 });

function counting(name, target) {
  return function (...given) {
    counts[name]++;
    return Reflect.apply(target, this, given);
  };
}

/** What Pyodide's WebAssembly imports, counted. */
export function countedImports(imports) {
  const counted = { ...imports };
  for (const module of ["env", "wasi_snapshot_preview1"]) {
    counted[module] = { ...imports[module] };
    for (const [name, target] of Object.entries(imports[module])) {
      const kind = Object.keys(OUT).find((kind) => OUT[kind].test(name));
      if (kind && typeof target === "function") counted[module][name] = counting(kind, target);
    }
  }
  return counted;
}

/** One of Pyodide's ways to call a Python function, counted. */
globalThis.countedCall = (call) => counting("into", call);

globalThis.setTimeout = counting("timers", globalThis.setTimeout);
