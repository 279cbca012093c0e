"""What telemetry may show of what users, models and tools say: nothing, unless it is asked for."""

from dataclasses import dataclass

__all__ = ["RuntimeTelemetryOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeTelemetryOptions:
    """
    What telemetry shows that is redacted by default.

    Credentials are never shown: resume tokens, answers to questions for a credential, members with a secret's name, and
    texts that look like a key.  A key that is split over two deltas is not recognised, and is shown with them.

    Attributes:
        include_inputs: A task's inputs.
        include_requirement_descriptions: Descriptions of requirements, and questions to users; never about secrets.
        include_evidence_ids: Ids of evidence, and URIs of artifacts.
        include_user_answers: Users' answers to the questions that the event has; never about secrets.
        include_control_payloads: What tools and models made: arguments, results, contents, titles, answers, actions.
        include_metadata: Metadata of tasks, sessions, artifacts and ends.
        include_eval_details: Why a check passed or failed.
        include_text: The answer and the model's reasoning, piece by piece and whole.
        include_reasons: Why something ended or failed, in words that are not chatturn's own: they may quote anything.
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
