"""Runs an example as a user does, and says what its last line of output was."""

import json
import os
import subprocess
import sys

asked = json.loads(sys.argv[-1])
environment = {**os.environ, "CHATTURN_URL": asked["url"], "CHATTURN_TOKEN": asked["token"]}
done = subprocess.run(
    [*sys.argv[1:-1], asked["question"], asked["key"]], capture_output=True, env=environment, check=False
)
if done.returncode:
    raise SystemExit(done.stderr.decode())
text = done.stdout.decode().rpartition("\r")[2]
errors = [line for line in done.stderr.decode().splitlines() if line.strip()]
sys.stdout.write(json.dumps({"text": text, "errors": errors}) + "\n")
