// Makes of the packages what a page without a build imports, and takes the Workflow transport out of its package, whose
// index needs the whole framework. esbuild is wrangler's.
import { copyFileSync } from "node:fs";
import { createRequire } from "node:module";

const { build } = createRequire(new URL("../../dev/package.json", import.meta.url))("esbuild");
const shared = { bundle: true, format: "esm", outdir: ".build", logLevel: "error", outExtension: { ".js": ".mjs" } };

await build({
  ...shared,
  platform: "node",
  external: ["ai", "@ai-sdk/*"],
  entryPoints: { workflow: "node_modules/@ai-sdk/workflow/src/workflow-chat-transport.ts" },
});
// An example stands where no package is installed: beside them its imports are found.
copyFileSync("../../examples/openai_sdk.mjs", ".build/openai_sdk.mjs");
await build({
  ...shared,
  platform: "browser",
  define: { "process.env.NODE_ENV": '"production"' },
  splitting: true,
  entryPoints: { react: "pages/react.js", "react-dom": "pages/react-dom.js", chat: "pages/chat.js" },
});
