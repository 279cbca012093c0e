"""What telemetry may show of what users, models and tools say: nothing, unless it is asked for."""

from dataclasses import dataclass

__all__ = ["RuntimeTelemetryOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeTelemetryOptions:
    """
    What is shown that is redacted otherwise.

    Credentials are never shown: resume tokens, answers to questions for a credential, what is called secret and what
    looks like a key.  What is cut into pieces cannot be recognised: a key in two deltas is shown with them.

    Attributes:
        include_inputs: A task's inputs.
        include_requirement_descriptions: What a task must know, in words, and what a user is asked; of secrets never.
        include_evidence_ids: Ids of evidence, and where artifacts are.
        include_user_answers: What users answered; to questions that the event has, and of secrets never.
        include_control_payloads: Arguments, results, contents, titles, answers, actions: what tools and models made.
        include_metadata: Metadata of tasks, sessions, artifacts and ends.
        include_eval_details: Why a check passed or failed.
        include_text: The answer and the model's reasoning, piece by piece and whole.
        include_reasons: Why things ended or failed, in words that are not ours: they may quote anything.
    """

    include_inputs: bool = False
    include_requirement_descriptions: bool = False
    include_evidence_ids: bool = False
    include_user_answers: bool = False
    include_control_payloads: bool = False
    include_metadata: bool = False
    include_eval_details: bool = False
    include_text: bool = False
    include_reasons: bool = False
