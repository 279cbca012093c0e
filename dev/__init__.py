"""The embedded local runtime: `src/` in the real workerd, started by the real `wrangler dev`."""
