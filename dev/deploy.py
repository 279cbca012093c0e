"""
`make deploy PRODUCT=…` and `make deploy-check`.

Both look for what would fail later, and say for each problem what to type.  `deploy` then hands over to pywrangler, the
tool that Cloudflare has for Python Workers.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from dev import paths
from dev.config import Config, product_at_the_top, read_toml, table
from dev.deployment import (
    Problem,
    Target,
    account_problems,
    code_problems,
    configuration_problems,
    upload_problems,
)

__all__ = ["deploy", "main"]


def main(arguments: list[str]) -> int:
    """Check, and deploy unless only that was asked for; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        targets = _targets(options.config, options.product)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    problems = [str(problem) for problem in code_problems()]
    for target in targets:
        problems += [f"{target.environment or 'the top'}: {each}" for each in _problems(target, dry=options.dry_run)]
    if options.check:
        return tell(problems)
    [target] = targets
    return tell(problems) or deploy(target)


def tell(problems: Sequence[str]) -> int:
    """Print them; return the exit status."""
    for each in problems:
        print(each, file=sys.stderr)
    if any("\n    wrangler " in each for each in problems) and not shutil.which("wrangler"):
        print('export PATH="$PWD/.venv/bin:$PWD/dev/node_modules/.bin:$PATH"  # has wrangler', file=sys.stderr)
    return 1 if problems else 0


def deploy(target: Target) -> int:
    """Let pywrangler deploy it; return its exit status."""
    pywrangler = _pywrangler()
    if not pywrangler:
        return tell([str(Problem("pywrangler is not installed", "pip install uv workers-py"))])
    return subprocess.run(
        [*pywrangler, "deploy", "--config", str(target.file), f"--env={target.environment}"],
        cwd=target.file.parent,
        env=_environment(),
        check=False,
    ).returncode


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dev.deploy", description="Deploy a product.")
    parser.add_argument("--product", help="the one of [env.PRODUCT], or the one at the top of wrangler.toml")
    parser.add_argument("--check", action="store_true", help="upload nothing; without a product check them all")
    parser.add_argument("--dry-run", action="store_true", help="do not ask the account; placeholders of ids will do")
    parser.add_argument("--config", type=Path, default=paths.DEPLOYMENT_CONFIG, help="wrangler.toml")
    return parser


def _targets(file: Path, product: str | None) -> list[Target]:
    settings = read_toml(file)
    at_the_top = product_at_the_top(settings)
    names = [product] if product else [at_the_top, *table(settings, "env")]
    return [
        Target(
            config=Config.read(file, environment=name),
            environment="" if name is None or name == at_the_top else name,
            file=file,
        )
        for name in names
    ]


def _problems(target: Target, *, dry: bool) -> Iterator[Problem]:
    refused = list(upload_problems(target))
    yield from refused
    if refused:
        return  # What wrangler cannot read is of no form that the rest could look at.
    yield from configuration_problems(target)
    if not dry:
        yield from account_problems(target)


def _pywrangler() -> list[str]:
    """Return the command that is pywrangler here; none if there is none."""
    if found := shutil.which("pywrangler"):
        return [found]
    if found := shutil.which("uvx"):
        return [found, "--from", "workers-py", "pywrangler"]
    return []


def _environment() -> dict[str, str]:
    """Let pywrangler find Node and wrangler, which `make setup` has installed, behind those of its user."""
    own = (Path(sys.executable).parent, paths.NODE_MODULES / ".bin")
    return {**os.environ, "PATH": os.pathsep.join([os.environ.get("PATH", ""), *map(str, own)])}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
