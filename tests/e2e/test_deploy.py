"""`make deploy` and `make deploy-check`, with a stand-in for wrangler: what an account lacks is found before."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from dev import paths
from dev.config import Config
from dev.deploy import deploy
from dev.deployment import Problem, Target, account_problems, configuration_problems, upload_problems
from products import PRODUCTS

REAL_ID: Final = "4f0c1f5e-9d0e-4f07-8a56-0d6f0f2c9a11"

# A stand-in: prints what `answers.json` beside it has for the first words, and notes how it was called.
STAND_IN: Final = """\
#!{python}
import json, pathlib, sys
here = pathlib.Path(__file__).parent
with (here / "calls").open("a") as calls:
    calls.write(json.dumps([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]) + "\\n")
for words, (status, output) in json.loads((here / "answers.json").read_text()).items():
    if " ".join(sys.argv[1:]).startswith(words):
        print(output)
        sys.exit(status)
"""


@dataclass(frozen=True)
class Account:
    """The stand-in's folder, first on the PATH."""

    folder: Path

    def answer(self, words: str, output: str, status: int = 0) -> None:
        file = self.folder / "answers.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), words: [status, output]}))

    @property
    def calls(self) -> list[list[str]]:
        file = self.folder / "calls"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Account:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("wrangler", "pywrangler"):
        (folder / name).write_text(STAND_IN.format(python=sys.executable))
        (folder / name).chmod(0o755)
    (folder / "answers.json").write_text("{}")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    account = Account(folder)
    account.answer("d1 migrations list", "✅ No migrations to apply!")
    account.answer("secret list", json.dumps([{"name": name} for name in ("AUTH_JWT_SECRET", "OPENAI_API_KEY")]))
    return account


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A `wrangler.toml` whose databases have been made, beside the sources."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("src", "migrations", "python_modules"):
        (folder / name).symlink_to(paths.ROOT / name)
    text = paths.DEPLOYMENT_CONFIG.read_text()
    for number in range(4):
        text = text.replace(f"00000000-0000-0000-0000-{number:012}", REAL_ID)
    file = folder / "wrangler.toml"
    file.write_text(text)
    return file


def target(file: Path = paths.DEPLOYMENT_CONFIG, /, environment: str = "legal", **variables: str) -> Target:
    config = Config.read(file, environment=environment)
    settings = {**config.deployment, "vars": {**config.deployment["vars"], **variables}}
    return Target(config=Config(deployment=settings), environment=environment, file=file)


def test_an_account_that_has_everything_has_no_problems(account: Account, project: Path) -> None:
    """It is asked about the environment's own database and secrets."""
    assert [] == list(account_problems(target(project)))
    rest = ["--config", str(project), "--env=legal"]
    assert [
        ["wrangler", "d1", "migrations", "list", "DB", "--remote", *rest],
        ["wrangler", "secret", "list", "--format", "json", *rest],
    ] == account.calls


def test_a_placeholder_is_no_id(account: Account) -> None:
    """And nobody is asked about it."""
    [problem] = account_problems(target())

    assert "DB has no database: its database_id is a placeholder" == problem.what
    assert "wrangler d1 create chatturn-legal, and put the id that it prints into wrangler.toml" == problem.mend
    assert [["secret", "list"]] == [call[1:3] for call in account.calls]


def test_migrations_that_are_not_applied_are_named(account: Account, project: Path) -> None:
    """With the command that applies them."""
    account.answer("d1 migrations list", "│ 0009_attempts_and_keys.sql │\n├──┤\n│ 0010_parameters.sql │")

    assert [
        Problem(
            "DB lacks migrations: 0009_attempts_and_keys.sql, 0010_parameters.sql",
            "wrangler d1 migrations apply DB --remote --env legal",
        )
    ] == list(account_problems(target(project)))


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, ["AUTH_JWT_SECRET", "OPENAI_API_KEY"]),
        ({"BACKEND": "echo"}, ["AUTH_JWT_SECRET"]),
        ({"AUTH_JWKS_URL": "https://id.example.com/keys"}, ["OPENAI_API_KEY"]),
        ({"PROVIDERS": '[{"name": "groq", "kind": "groq"}]'}, ["AUTH_JWT_SECRET", "GROQ_API_KEY"]),
    ],
)
@pytest.mark.parametrize("status", [0, 1])
def test_secrets_that_are_not_set_are_named(
    account: Account, project: Path, variables: dict[str, str], wanted: Sequence[str], status: int
) -> None:
    """Those without which no turn is answered; also of a Worker that was never uploaded, which has none."""
    account.answer("secret list", "[]" if status == 0 else "This Worker does not exist on your account.", status)
    mends = [problem.mend for problem in account_problems(target(project, **variables))]

    assert [f"wrangler secret put {name} --env legal" for name in wanted] == mends


def test_whoever_is_not_logged_in_is_told(account: Account, project: Path) -> None:
    """Neither question is answered."""
    for words in ("d1 migrations list", "secret list"):
        account.answer(words, "You are not logged in.", 1)
    problems = list(account_problems(target(project)))

    assert {"wrangler login, or set CLOUDFLARE_API_TOKEN"} == {problem.mend for problem in problems}
    assert 2 == sum("You are not logged in." in problem.what for problem in problems)


@pytest.mark.parametrize(
    ("variables", "what"),
    [
        ({"MODEL": ""}, "MODEL is not set"),
        ({"PRODUCT": "contracts"}, "PRODUCT = contracts is no product"),
        ({"AUTH": "off"}, "AUTH is off"),
        ({"LEASE_MS": "soon"}, "LEASE_MS: must be a whole number"),
        ({"PROVIDERS": "[]"}, "PROVIDERS: must be an array of providers"),
    ],
)
def test_settings_that_would_fail_are_named(variables: dict[str, str], what: str) -> None:
    """With the place where they stand."""
    [problem] = configuration_problems(target(paths.DEPLOYMENT_CONFIG, **variables))

    assert problem.what.startswith(what)
    assert "[env.legal.vars] in wrangler.toml" in problem.mend


def test_the_settings_in_the_file_are_sound() -> None:
    """Those of every product."""
    for name in PRODUCTS:
        assert [] == list(configuration_problems(target(environment=name)))


def test_what_wrangler_refuses_is_shown(tmp_path: Path) -> None:
    """In its own words."""
    file = tmp_path / "wrangler.toml"
    file.write_text('name = "x"\nmain = "src/entry.py"\ncompatibility_date = "2026-08-01"\n')
    [problem] = upload_problems(Target(config=Config.read(file), environment="", file=file))

    assert "python_workers" in problem.what


def test_pywrangler_is_the_one_that_deploys(account: Account, project: Path) -> None:
    """Its status is the command's."""
    account.answer("deploy", "deployed", 3)

    assert 3 == deploy(target(project))
    assert [["pywrangler", "deploy", "--env=legal"]] == account.calls


def test_nothing_is_uploaded_while_something_is_missing(account: Account, project: Path) -> None:
    """Each problem is told with what to type."""
    account.answer("secret list", "[]")
    lacking = subprocess.run(
        [sys.executable, "-m", "dev.deploy", "--product", "legal", "--config", str(project)],
        cwd=paths.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert 1 == lacking.returncode
    assert "legal: the secret AUTH_JWT_SECRET is not set\n    wrangler secret put AUTH_JWT_SECRET" in lacking.stderr
    assert {"wrangler"} == {call[0] for call in account.calls}
