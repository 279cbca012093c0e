"""`make deploy` and `make deploy-check`: what an account lacks is found before, by the installed wrangler."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from chatturn.chat.hooks.hooks import ChatTurnHooks
from dev import paths, wrangler
from dev.account import error_of
from dev.config import Config
from dev.deploy import deploy, main
from dev.deployment import Problem, Target, account_problems, configuration_problems, upload_problems
from products import PRODUCTS
from tests.support.cloudflare import Cloudflare, Refusal
from tests.support.private_settings import GOOD, PRIVATE, settings_with

pytestmark = pytest.mark.slow

REAL_ID: Final = "4f0c1f5e-9d0e-4f07-8a56-0d6f0f2c9a11"
ALL_MIGRATIONS: Final = sorted(path.name for path in (paths.ROOT / "migrations").glob("*.sql"))
LOG_IN: Final = "wrangler login, or set CLOUDFLARE_API_TOKEN"

# On the PATH: the wrangler of this project.
WRANGLER: Final = """\
#!/bin/sh
{first}
exec {command} "$@"
"""

# Nobody can have pywrangler deploy from here: it notes how it was called.
PYWRANGLER: Final = """\
#!/bin/sh
echo "$@" > {calls}
exit 3
"""


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloudflare]:
    """One that has everything, and whoever asks is logged in."""
    with Cloudflare(secrets=["AUTH_JWT_SECRET", "OPENAI_API_KEY"], applied=ALL_MIGRATIONS) as account:
        install(tmp_path, "wrangler", WRANGLER.format(first="", command=" ".join(wrangler.command())))
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
        environment = wrangler.environment(tmp_path / "wrangler")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("CLOUDFLARE_API_BASE_URL", account.url)
        monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "a-token-of-the-tests")
        monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", "acc0")
        yield account


def install(folder: Path, name: str, script: str) -> None:
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / name).write_text(script)
    (folder / "bin" / name).chmod(0o755)


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


def target(file: Path = paths.DEPLOYMENT_CONFIG, /, environment: str = "legal", **variables: Any) -> Target:
    """Return an environment with other vars; None takes one out."""
    config = Config.read(file, environment=environment)
    changed = {**config.deployment["vars"], **variables}
    settings = {**config.deployment, "vars": {name: value for name, value in changed.items() if value is not None}}
    return Target(config=Config(deployment=settings), environment=environment, file=file)


def without(file: Path, *lines: str) -> Target:
    """Return the environment without the lines that begin so."""
    head, mark, tail = file.read_text().partition("[env.legal.vars]")
    kept = [line for line in tail.splitlines(keepends=True) if not line.startswith(lines)]
    file.write_text(head + mark + "".join(kept))
    return target(file)


def secret_problems(**variables: Any) -> list[Problem]:
    """Return what lacks beside the database, which is a placeholder, and about which nobody is asked."""
    placeholder, *others = account_problems(target(**variables))
    assert "placeholder" in placeholder.what
    return others


# What the account says


def test_an_account_that_has_everything_has_no_problems(account: Cloudflare, project: Path) -> None:
    """It is asked about the environment's own database and secrets."""
    assert [] == list(account_problems(target(project)))
    assert {
        f"POST /client/v4/accounts/acc0/d1/database/{REAL_ID}/query",
        "GET /client/v4/accounts/acc0/workers/scripts/chatturn-legal/secrets",
    } == set(account.asked)


@pytest.mark.parametrize("environment", ["", "legal"])
def test_a_worker_that_was_never_uploaded_lacks_its_secrets(
    account: Cloudflare, project: Path, environment: str
) -> None:
    """Which is no reason to log in: its first secret makes it."""
    account.secrets, account.applied = None, ALL_MIGRATIONS[:-2]
    option = f" --env {environment}" if environment else ""
    config = Config.read(project, environment=environment or None)

    assert [
        Problem(
            f"DB lacks migrations: {', '.join(ALL_MIGRATIONS[-2:])}",
            f"wrangler d1 migrations apply DB --remote{option}",
        ),
        Problem("the secret OPENAI_API_KEY is not set", f"wrangler secret put OPENAI_API_KEY{option}"),
        Problem("the secret AUTH_JWT_SECRET is not set", f"wrangler secret put AUTH_JWT_SECRET{option}"),
    ] == list(account_problems(Target(config=config, environment=environment, file=project)))


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({"BACKEND": "echo"}, ["AUTH_JWT_SECRET"]),
        ({"BACKEND": "echo", "AUTH_JWKS_URL": "https://id.example.com/keys", "AUTH_ISSUER": "x"}, []),
        ({"PROVIDERS": '[{"kind": "groq"}, {"kind": "xai", "headers": {"x": "${X_KEY}"}}]'}, ["GROQ_API_KEY", "X_KEY"]),
    ],
)
def test_only_secrets_that_are_needed_are_asked_for(
    account: Cloudflare, variables: dict[str, str], wanted: Sequence[str]
) -> None:
    """Those without which no turn is answered; a product that needs none is asked for none."""
    account.secrets = None if variables.get("BACKEND") == "echo" else ["AUTH_JWT_SECRET", "XAI_API_KEY"]
    mends = [problem.mend for problem in secret_problems(**variables)]

    assert sorted(f"wrangler secret put {name} --env legal" for name in wanted) == sorted(mends)


@pytest.mark.parametrize(
    ("answer", "said", "mend"),
    [
        (Refusal(401, 10_000, "Authentication error"), "Authentication error [code: 10000]", LOG_IN),
        (Refusal(403, 9_109, "Invalid access token"), "Invalid access token [code: 9109]", LOG_IN),
        (Refusal(500, 10_013, "An unknown error has occurred"), "[code: 10013]", "try again"),
        ("<html>a gateway</html>", "Received a malformed response from the API", "look at the network"),
    ],
)
def test_what_wrangler_could_not_find_out_is_told_in_its_words(
    account: Cloudflare, project: Path, answer: Refusal | str, said: str, mend: str
) -> None:
    """The error, and no warning that stands before it; and what to do."""
    account.answer = answer
    problems = list(account_problems(target(project)))

    assert ["migrations are applied", "secrets are set"] == [
        problem.what.partition(":")[0].rpartition("which ")[2] for problem in problems
    ]
    for problem in problems:
        assert said in problem.what
        assert problem.mend.startswith(mend)
        assert "LEASE_MS" not in problem.what  # which the warning about vars names
        assert len(problem.what.splitlines()) <= 5


def test_a_database_that_is_not_the_accounts_is_told(account: Cloudflare, project: Path) -> None:
    """Its id is another account's, or was mistyped."""
    account.answer = Refusal(404, 7_404, f"The database {REAL_ID} could not be found")
    [problem, *_] = account_problems(target(project))

    assert "could not be found [code: 7404]" in problem.what
    assert problem.mend.startswith("wrangler d1 create")


@pytest.mark.parametrize(
    ("name", "value", "said", "mend"),
    [
        ("CLOUDFLARE_API_TOKEN", "", "it's necessary to set a CLOUDFLARE_API_TOKEN", LOG_IN),
        ("CLOUDFLARE_ACCOUNT_ID", "", "Failed to automatically retrieve account IDs", "set CLOUDFLARE_ACCOUNT_ID"),
        ("CLOUDFLARE_API_BASE_URL", "http://127.0.0.1:9", "fetch failed", "look at the network"),
    ],
)
def test_what_wrangler_lacks_is_told(
    account: Cloudflare, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str, mend: str
) -> None:
    """Nobody is logged in, the account is not known, or there is no network."""
    assert account
    monkeypatch.setenv(name, value)
    [problem] = secret_problems()

    assert said in problem.what
    assert problem.mend.startswith(mend)


def test_a_wrangler_that_does_not_answer_is_not_waited_for(
    account: Cloudflare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is ended."""
    account.hangs = True
    monkeypatch.setattr("dev.account._ANSWER_SECONDS", 4)
    problems = list(account_problems(target()))[1:]

    assert ["it does not answer within 4 s"] == [problem.what.splitlines()[-1] for problem in problems]


def test_what_stands_before_the_list_is_left_out(account: Cloudflare, tmp_path: Path) -> None:
    """A wrangler of before printed its name there; one that prints no list at all has not answered."""
    command = " ".join(wrangler.command())
    install(tmp_path, "wrangler", WRANGLER.format(first='echo "[update] 4.0 is there\n[1]"', command=command))
    assert [] == secret_problems()

    install(tmp_path, "wrangler", WRANGLER.format(first='echo "it is well"; exit 0', command=command))
    assert ["wrangler does not say which secrets are set:\nno list of secrets:\nit is well"] == [
        problem.what for problem in secret_problems()
    ]
    install(tmp_path, "wrangler", "\0no program")
    assert ["cannot be run: Exec format error"] == [problem.what[-32:] for problem in secret_problems()]
    assert account


# What the file says


@pytest.mark.parametrize("line", ['database_id = ""\n', "", 'database_id = "00000000-0000-0000-0000-000000000001"\n'])
def test_a_database_without_an_id_is_no_database(account: Cloudflare, project: Path, line: str) -> None:
    """A placeholder, an empty one, or none; and nobody is asked about it."""
    project.write_text(project.read_text().replace(f'database_id = "{REAL_ID}"\n', line))
    [problem] = account_problems(target(project))

    assert "DB has no database: its database_id is a placeholder" == problem.what
    assert "wrangler d1 create chatturn-legal, and put the id that it prints into wrangler.toml" == problem.mend
    assert not [each for each in account.asked if "d1" in each]


def test_an_environment_without_a_database_is_told(project: Path) -> None:
    """Wrangler inherits none from the top of the file."""
    [problem] = configuration_problems(without(project, "[[env.legal.d1", "binding", "database", "migrations_dir"))

    assert "DB: is not bound: there is no D1 database" == problem.what
    assert 'declare [[env.legal.d1_databases]] with binding = "DB" in wrangler.toml' == problem.mend


@pytest.mark.parametrize(
    ("variables", "what"),
    [
        ({"MODEL": ""}, "MODEL is not set"),
        ({"PRODUCT": "contracts"}, "PRODUCT: must be one of agent, assistant, gtm, legal"),
        ({"AUTH": "off"}, "AUTH is off"),
        ({"LEASE_MS": "soon"}, "LEASE_MS: must be a whole number"),
        ({"LEASE_MS": 60_000}, "LEASE_MS: must be a text: put its value in quotes"),
        ({"PROVIDERS": "[]"}, "PROVIDERS: must be an array of providers"),
        ({"PROVIDERS": '[{"kind": []}]'}, "PROVIDERS[0].kind: must be one of"),
        ({"PROVIDERS": '[{"kind": "workers-ai"}]'}, "AI: is not bound"),
        ({"PROVIDERS": '[{"kind": "groq", "models": ["x"]}]'}, "PROVIDERS: has nobody with the model"),
        ({"PRICES": "nonsense"}, "PRICES: is not JSON"),
        ({"CORS_ORIGINS": "nonsense"}, "CORS_ORIGINS: entry 1 is no origin"),
        ({"ALLOW_PARAMETERS": "nonsense"}, "ALLOW_PARAMETERS: may have these names only"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "nonsense"}, "OTEL_EXPORTER_OTLP_ENDPOINT: must be an address"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://otel.example.com", "OTEL_TRACES_SAMPLER_ARG": "x"},
            "OTEL_TRACES_SAMPLER_ARG: must be a number from 0 to 1",
        ),
        ({"OPENAI_BASE_URL": "nonsense"}, "OPENAI_BASE_URL: must be an address"),
        ({"AUTH_JWKS_URL": "http://id.example.com", "AUTH_ISSUER": "x"}, "AUTH_JWKS_URL: must be an https address"),
        ({"AUTH_JWKS_URL": "https://id.example.com"}, "AUTH_ISSUER: or AUTH_AUDIENCE must be set"),
        ({"AUTH_JWT_SECRET": "short"}, "AUTH_JWT_SECRET: has 5 bytes"),
        ({"TICKET_SECRET": "short"}, "TICKET_SECRET: has 5 bytes"),
    ],
)
def test_settings_that_would_fail_are_named(variables: dict[str, Any], what: str) -> None:
    """With the place where they stand."""
    [problem] = configuration_problems(target(paths.DEPLOYMENT_CONFIG, **variables))

    assert problem.what.startswith(what)
    assert "wrangler.toml" in problem.mend
    assert "env.legal." in problem.mend


def test_all_settings_that_are_wrong_are_told_at_once() -> None:
    """And each once."""
    wrong = {"LEASE_MS": "soon", "PRICES": "x", "CORS_ORIGINS": "x", "PRODUCT": "x", "OPENAI_BASE_URL": "x"}
    problems = list(configuration_problems(target(paths.DEPLOYMENT_CONFIG, **wrong)))

    assert set(wrong) == {problem.what.partition(":")[0] for problem in problems}
    assert len(wrong) == len(problems)


def test_nothing_that_stands_in_a_setting_is_told() -> None:
    """A terminal is looked at by others, too, and what it shows is kept by whatever runs the command."""
    private = PRIVATE[0]
    base, count = target(), 0
    for variables in settings_with(private):
        count += 1
        settings = {**base.config.deployment, "vars": {**GOOD, "PRODUCT": "legal", **variables}}
        problems = list(configuration_problems(replace(base, config=Config(deployment=settings))))

        assert private not in "\n".join(map(str, problems)), variables

    assert count > 1_000


def test_an_environment_without_vars_is_told(project: Path) -> None:
    """It would be the default product that repeats what is said: wrangler inherits no vars."""
    names = ("PRODUCT", "PROJECT_ID", "DOMAIN", "BACKEND", "OPENAI_BASE_URL", "MODEL", "ON_DISCONNECT", "OTEL")

    assert ["PRODUCT is not set, which means assistant", "BACKEND is not set, which means echo"] == [
        problem.what for problem in configuration_problems(without(project, *names))
    ]


class _Demanding(ChatTurnHooks):
    def __init__(self, variables: Any) -> None:
        super().__init__(variables)
        int(variables["NOTES_LIMIT"])


def test_a_product_that_cannot_be_made_is_told(account: Cloudflare, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it is known what it lacks: it may be a secret, and a secret's value is not known here."""
    monkeypatch.setitem(PRODUCTS, "legal", _Demanding)
    [lacking] = secret_problems()
    account.secrets = [*(account.secrets or ()), "NOTES_LIMIT"]

    assert "PRODUCT: its hooks cannot be made: KeyError; they ask for NOTES_LIMIT, which is not set" == lacking.what
    assert [] == secret_problems()
    assert [] == list(configuration_problems(target()))
    assert [] == list(configuration_problems(target(NOTES_LIMIT="3")))
    [wrong] = configuration_problems(target(NOTES_LIMIT="sk-many"))
    assert "PRODUCT: its hooks cannot be made: ValueError" == wrong.what


def test_the_settings_in_the_file_are_sound() -> None:
    """Those of every product."""
    for name in PRODUCTS:
        assert [] == list(configuration_problems(target(environment=name)))


def test_what_wrangler_refuses_is_shown(tmp_path: Path) -> None:
    """Its error, whatever warnings stand before it."""
    file = tmp_path / "wrangler.toml"
    file.write_text(
        'name = "x"\nmain = "src/entry.py"\ncompatibility_date = "2026-08-01"\n'
        '[vars]\nA = "1"\nB = "2"\n[env.legal]\nname = "y"\n'
    )
    [problem] = upload_problems(Target(config=Config.read(file), environment="legal", file=file))

    assert "python_workers" in problem.what
    assert "WARNING" not in problem.what


def test_a_wrangler_that_says_no_size_or_nothing_at_all(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The size is only for the reader; a check that does not end is a problem."""

    def hang(*_: object) -> None:
        raise subprocess.TimeoutExpired("wrangler", 300)

    monkeypatch.setattr("dev.deployment._dry_run", lambda *_: subprocess.CompletedProcess([], 0, stdout="done"))
    assert [] == list(upload_problems(target()))
    monkeypatch.setattr("dev.deployment._dry_run", hang)
    assert [Problem("wrangler does not check the upload within 300 s", "try again")] == list(upload_problems(target()))
    assert "" == capfd.readouterr().out


def test_an_error_is_found_in_what_wrangler_says() -> None:
    """The first; where there is none, the last lines."""
    assert "one\n  more" == error_of(
        "▲ [WARNING] x\n\n  y\n\n✘ [ERROR] one\n\n  more\n\n\n✘ [ERROR] two\n\nAPIError: x\n    at y"
    )
    assert "a\nb" == error_of("\x1b[31ma\x1b[0m\n    at here\n\nb\n🪵  Logs were written to x")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('name = "chatturn-legal"\n', 'name = "chatturn-legal"\nai = "AI"\n'),
        ("[[env.legal.d1_databases]]", "[env.legal.d1_databases]"),
        ('[env.legal.vars]\nPRODUCT = "legal"', '[env.legal]\nvars = "x"\n[env.legal.x]\nPRODUCT = "legal"'),
        ('binding = "DB"', ""),
    ],
)
def test_a_file_of_another_form_is_refused_by_wrangler(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], before: str, after: str
) -> None:
    """In its words, and nothing else is looked at."""
    text = project.read_text()
    if before.startswith("[env.legal.vars]"):
        text = text.replace('[env.legal]\nname = "chatturn-legal"\n', "")
    project.write_text(text.replace(before, after))
    monkeypatch.setattr("dev.deploy.code_problems", lambda: iter(()))

    assert 1 == main(["--check", "--dry-run", "--product", "legal", "--config", str(project)])
    assert capfd.readouterr().err.startswith("legal: wrangler refuses the configuration:\n")


# The commands


def test_a_product_that_only_a_worker_can_import_is_looked_at_in_one(tmp_path: Path) -> None:
    """What it holds and cannot be stored is named, with module, attribute and reason."""
    for name in ("dev", "migrations", "python_modules", ".venv", "wrangler.toml", "schema.sql"):
        (tmp_path / name).symlink_to(paths.ROOT / name)
    shutil.copytree(paths.SOURCES, tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "src" / "products" / "legal.py").open("a") as file:
        file.write("\n\nimport js\n\n_CALL = js.Function.prototype.call\n")
    script = (
        "import sys; from pathlib import Path; import dev.paths as paths\n"
        "paths.ROOT = Path.cwd(); paths.SOURCES = paths.ROOT / 'src'\n"
        "from dev.deploy import main; sys.exit(main(['--check', '--dry-run', '--product', 'legal', '--config', 'wrangler.toml']))"
    )
    checked = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{tmp_path / 'src'}"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert 1 == checked.returncode, checked.stderr
    assert "products.legal._CALL holds a JavaScript function call that has no path from globalThis" in checked.stderr
    assert "Traceback" not in checked.stderr


def test_pywrangler_is_the_one_that_deploys(account: Cloudflare, project: Path, tmp_path: Path) -> None:
    """Its status is the command's, and it is told which file."""
    assert account
    install(tmp_path, "pywrangler", PYWRANGLER.format(calls=tmp_path / "calls"))

    assert 3 == deploy(target(project))
    assert f"deploy --config {project} --env=legal\n" == (tmp_path / "calls").read_text()


def test_nothing_is_uploaded_while_something_is_missing(account: Cloudflare, project: Path, tmp_path: Path) -> None:
    """Each problem is told with what to type."""
    install(tmp_path, "pywrangler", PYWRANGLER.format(calls=tmp_path / "calls"))
    account.secrets = None
    lacking = subprocess.run(
        [sys.executable, "-m", "dev.deploy", "--product", "legal", "--config", str(project)],
        cwd=paths.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert 1 == lacking.returncode
    assert "legal: the secret AUTH_JWT_SECRET is not set\n    wrangler secret put AUTH_JWT_SECRET" in lacking.stderr
    assert not (tmp_path / "calls").exists()


@pytest.mark.parametrize("text", ["[[[", '[vars]\nPRODUCT = "assistant"\n'])
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, text: str, capfd: pytest.CaptureFixture[str]) -> None:
    """In a sentence."""
    file = tmp_path / "wrangler.toml"
    file.write_text(text)

    assert 1 == main(["--check", "--product", "legal", "--config", str(file)])
    assert "wrangler.toml" in capfd.readouterr().err
