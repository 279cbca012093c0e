"""
`make token`: a token, signed with the secret of `.dev.vars`, or of the environment variable AUTH_JWT_SECRET.

The second is for a Worker that is deployed.
"""

import argparse
import os
import sys

from chatturn.http.auth import SCOPES
from dev import paths, secrets_file

__all__ = ["main"]

_LEAST_BYTES = 32
_MOST_DAYS = 36_500


def main(arguments: list[str]) -> int:
    """Print it; return the exit status."""
    options = _parser().parse_args(arguments)
    unknown = sorted(set(options.scope.split()) - set(SCOPES))
    if unknown:
        print(f"no such scope: {', '.join(unknown)}; there are {', '.join(sorted(SCOPES))}", file=sys.stderr)
        return 1
    if not 0 < options.days <= _MOST_DAYS:  # NaN is neither
        print(f"DAYS must be a number above 0, and at most {_MOST_DAYS}", file=sys.stderr)
        return 1
    secret = os.environ.get(secrets_file.SIGNING_SECRET) or secrets_file.ensure_signing_secret(paths.ROOT / ".dev.vars")
    if len(secret.encode()) < _LEAST_BYTES:
        print(f"{secrets_file.SIGNING_SECRET} must have at least {_LEAST_BYTES} bytes", file=sys.stderr)
        return 1
    print(secrets_file.token(secret, tenant=options.tenant, sub=options.sub, scope=options.scope, days=options.days))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dev.local_token", description="Print a bearer token.")
    parser.add_argument("--scope", default="turns", help="one or more, separated by spaces")
    parser.add_argument("--tenant", default="local")
    parser.add_argument("--sub", default="dev", help="the user")
    parser.add_argument("--days", type=float, default=7.0, help="how long it is good")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
