"""
The settings of one deployment, read once from its vars and secrets.

Every setting is one field of `Settings`: its name in the environment is the field's in upper case; its
default and its meaning stand beside it.  A value that cannot be read is a `ConfigurationError` that names
the setting.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, Self, cast, get_args

from chatturn.errors import ConfigurationError

__all__ = [
    "AuthMode",
    "BackendName",
    "DisconnectPolicy",
    "Flag",
    "Plan",
    "SessionOwner",
    "Settings",
    "Switch",
    "WhenBusy",
    "names_in",
    "setting_names",
]

BackendName = Literal["echo", "openai"]
DisconnectPolicy = Literal["continue", "cancel", "grace"]
Plan = Literal["paid", "free"]
AuthMode = Literal["jwt", "off"]
SessionOwner = Literal["tenant", "subject"]
WhenBusy = Literal["queue", "reject", "interrupt", "parallel"]
Switch = Literal["off", "on"]
Flag = Literal["false", "true"]


def _setting(default: Any, help_: str, **limits: Any) -> Any:
    """Declare one setting: its default, its meaning and its limits, for `Settings.from_env` and the manual."""
    return field(default=default, metadata={"help": help_, **limits})


_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
_LONGEST_MS: Final = 2**31 - 1
"""2**31 - 1 ms, about 25 days: the longest timer of JavaScript."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One deployment's settings."""

    product: str = _setting("assistant", "whose hooks run: a name in `src/products/__init__.py`")
    project_id: str = _setting("chatturn", "the product's id in manifests and traces; part of each turn's identity")
    domain: str = _setting("general", "the product's domain in manifests and traces")
    model: str = _setting(
        "", "the model asked for when a request names none; several, separated by commas, are a chain"
    )
    backend: BackendName = _setting("echo", "what answers", choices=get_args(BackendName))
    openai_base_url: str = _setting("https://api.openai.com/v1", "the chat completions API, without a trailing slash")
    openai_api_key: str = _setting("", "the key of that API; a secret", secret=True)
    providers: str = _setting("", "who answers instead of that API, as JSON; see the page Model APIs")
    fallback_midway: Switch = _setting(
        "off",
        "`on`: the next model of a chain answers also where one breaks off midway; what that had said is taken back",
        choices=get_args(Switch),
    )
    models: str = _setting("", "models, separated by commas, that a request may name; none: any")
    allow_parameters: str = _setting(
        "*", "parameters, separated by commas, that a request may say; `*` for all, `none` for none"
    )
    lease_ms: int = _setting(60_000, "how long a worker may be silent before its turn is taken over", least=1_000)
    body_timeout_ms: int = _setting(30_000, "wait for the whole body of a request; 0 waits for ever", least=0)
    request_timeout_ms: int = _setting(300_000, "wait for the model's headers, per try; 0 waits for ever", least=0)
    idle_timeout_ms: int = _setting(300_000, "wait between two chunks of the model's answer; 0 waits for ever", least=0)
    total_timeout_ms: int = _setting(900_000, "for one whole model call, tries and answer; 0 waits for ever", least=0)
    max_attempts: int = _setting(5, "tries to reach the model within one attempt of a turn", least=1)
    on_disconnect: DisconnectPolicy = _setting(
        "continue", "what a client's disconnect does to its turn", choices=get_args(DisconnectPolicy)
    )
    grace_ms: int = _setting(30_000, "with `grace`: how long a turn without readers goes on", least=0)
    turn_attempts: int = _setting(10, "attempts in which a turn comes no further, until it fails for good", least=1)
    threads: Switch = _setting(
        "off",
        "`on`: turns have versions, and new runs keys of their own; once no earlier version serves the database",
        choices=get_args(Switch),
    )
    when_busy: WhenBusy = _setting(
        "queue",
        "with `THREADS=on`: what a message does while another turn of its session is open; see One turn at a time",
        choices=get_args(WhenBusy),
    )
    queue_turns: int = _setting(20, "turns of a session that wait for their start, at most", least=1)
    log_every_ms: int = _setting(250, "how often a turn's lines are stored, at first; 0: only with its end", least=0)
    workers_plan: Plan = _setting("paid", "the plan whose limit of queries a turn keeps to", choices=get_args(Plan))
    continue_models: str = _setting(
        "", "models, separated by commas, whose server can continue an answer that broke off; `*` for all"
    )
    history_turns: int = _setting(20, "finished turns of the session that the model is shown, at most", least=0)
    history_characters: int = _setting(
        100_000,
        "characters of that history, at most; where it is longer, a turn of more than half is shortened in its middle",
        least=0,
    )
    compact_logs: Switch = _setting(
        "on",
        "`off`: logs of turns that are over stay as they were written; for an upgrade that may be taken back",
        choices=get_args(Switch),
    )
    retention_days: int = _setting(0, "days after its end a run is deleted, messages and all; 0 keeps it", least=0)
    log_retention_days: int = _setting(
        0, "days after its latest attempt began the log of a turn is given up for its answer; 0 keeps it", least=0
    )
    usage_retention_days: int = _setting(
        400, "days after a model call what it consumed is deleted; 0 keeps it", least=0
    )
    prices: str = _setting("", "what models cost, in dollars per million tokens, as JSON; see the page Bill")
    unpriced_ceiling: str = _setting(
        "", "for budgets: dollars per million tokens of a model without a price; none: under a budget it is not called"
    )
    budget_turn_micro_usd: int = _setting(0, "no model call once a turn has cost so much; 0: no limit", least=0)
    budget_session_micro_usd: int = _setting(0, "no model call once a session has cost so much; 0: no limit", least=0)
    budget_tenant_day_micro_usd: int = _setting(
        0, "no model call once a tenant has cost so much since midnight UTC; 0: no limit", least=0
    )
    legacy_run_ids: Switch = _setting(
        "off",
        "`on`: a turn may be one of agent-runtime's in this database; for one tenant only",
        choices=get_args(Switch),
    )
    session_owner: SessionOwner = _setting(
        "tenant",
        "whose a session is: `tenant`: ANY USER of a tenant may read and go on with ALL of its sessions;"
        " `subject`: only who began it, by the token's `sub`",
        choices=get_args(SessionOwner),
    )
    auth: AuthMode = _setting("jwt", "`off` lets everyone in: local development only", choices=get_args(AuthMode))
    auth_jwt_secret: str = _setting("", "the HS256 key of bearer tokens, at least 32 bytes; a secret", secret=True)
    auth_jwt_secret_previous: str = _setting(
        "", "the key before it, for tokens that are still in use; a secret", secret=True
    )
    auth_jwks_url: str = _setting("", "where an identity provider publishes the keys of its RS256 and ES256 tokens")
    auth_issuer: str = _setting("", "what a token's `iss` must be; none: anything")
    auth_audience: str = _setting("", "of which a token's `aud` must name one, separated by commas; none: anything")
    auth_tenant_claim: str = _setting("tenant", "the claim that says whose turns these are")
    auth_default_scope: str = _setting("", "the scope of a token that has none")
    auth_max_life_s: int = _setting(0, "from a token's `iat`, or from now, to its `exp`, at most; 0: no limit", least=0)
    ticket_secret: str = _setting(
        "",
        "signs the tickets of streams, at least 32 bytes; none: a key derived from `AUTH_JWT_SECRET`; a secret",
        secret=True,
    )
    cors_origins: str = _setting(
        "", "origins whose pages may call the Worker, separated by commas: `https://app.example.com`"
    )
    running_turns_subject: int = _setting(
        200, "turns of one user that run at once; 0: any number; see Limits of a user", least=0
    )
    running_turns_tenant: int = _setting(2_000, "likewise, of one tenant", least=0)
    turns_subject_per_day: int = _setting(10_000, "turns that one user begins on a day, UTC; 0: any number", least=0)
    turns_tenant_per_day: int = _setting(1_000_000, "likewise, of one tenant", least=0)
    bytes_subject_per_day: int = _setting(
        500_000_000, "about how much of one user is stored on a day, UTC; 0: any amount", least=0
    )
    bytes_tenant_per_day: int = _setting(5_000_000_000, "likewise, of one tenant", least=0)
    run_events: int = _setting(1_000, "events that one turn is sent, at most; 0: any number", least=0)
    rate_subject_per_minute: int = _setting(
        1_200, "requests of one user, a quarter of it at once; 0: any number; see Limits of a user", least=0
    )
    rate_tenant_per_minute: int = _setting(12_000, "likewise, of one tenant", least=0)
    otel_exporter_otlp_endpoint: str = _setting("", "where traces, metrics and logs go; none: nowhere")
    otel_exporter_otlp_headers: str = _setting("", "`name=value,…` sent with them; a secret", secret=True)
    otel_service_name: str = _setting("chatturn", "this service's name in telemetry")
    otel_traces_sampler_arg: str = _setting(
        "1", "the share of traces that is kept, from 0 to 1; a caller's own decision comes first, failures always stay"
    )
    otel_instrumentation_genai_capture_message_content: Flag = _setting(
        "false", "`true`: traces show what users, models and tools say", choices=get_args(Flag)
    )

    @classmethod
    def from_env(cls, env: Mapping[str, object]) -> Self:
        """
        Read the settings out of *env*; an absent or empty variable means the default.

        Raises:
            ConfigurationError: A value is no text, has the wrong type, is outside the setting's limits or is not one of
                its choices.
        """
        values: dict[str, Any] = {}
        for item in fields(cls):
            text = _text(item.name.upper(), env.get(item.name.upper(), ""))
            if text:
                values[item.name] = _read(item.name.upper(), text, item.default, item.metadata)
        return cls(**values)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):  # a number of wrangler.toml, for example
        raise ConfigurationError(name, "must be a text: put its value in quotes")
    if _SURROGATE.search(value):
        raise ConfigurationError(name, "is no Unicode text")
    return value.strip()


def _read(name: str, text: str, default: Any, limits: Mapping[str, Any]) -> str | int:
    choices = cast("tuple[str, ...]", limits.get("choices", ()))
    if choices and text not in choices:
        raise ConfigurationError(name, f"must be one of {', '.join(choices)}")
    if not isinstance(default, int):
        return text
    try:
        number = int(text)
    except ValueError:
        raise ConfigurationError(name, "must be a whole number") from None
    least = limits["least"]
    if number < least:
        raise ConfigurationError(name, f"must be at least {least}")
    if name.endswith("_MS") and number > _LONGEST_MS:
        raise ConfigurationError(name, f"must be at most {_LONGEST_MS}")
    return number


_NAMES: Final = tuple(item.name.upper() for item in fields(Settings))


def setting_names() -> tuple[str, ...]:
    """Return every setting's name in the environment."""
    return _NAMES


def names_in(text: str) -> list[str]:
    """Return the names in a comma-separated setting."""
    return [name for each in text.split(",") if (name := each.strip())]
