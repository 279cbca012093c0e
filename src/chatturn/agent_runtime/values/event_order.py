"""
The order of a task's events: which event may follow which.

::

    task_start ─▶ readiness_start ─▶ (questions_*) ─▶ (acquisition_*) ─▶ (readiness_start) ─▶ readiness_end
        │ no gate                                                                         ready │    │ blocked, or no
        ▼                                                                                       │    │ session: with a
    session_* ◀─────────────────────────────────────────────────────────────────────────────────┘    │ backend_error
      │     ▲                                                                                        │
      │     └──(another attempt)── backend_error ──────────────────┐                                 │
      ▼                                 ▲ fails                    ▼                                 │
    backend_start ─▶ what the backend says ─▶ backend_end ─▶ task_end ─▶ final                       │
                                                                ▲                                    │
                                                                └────────────────────────────────────┘

A task without a readiness gate, as a chat turn is, leaves the gate's events out.  A turn whose worker is lost goes on
in the same stream: `backend_error`, then `session_resumed`, and everything that the backend said before is void.
A hook of the gate that fails, or an abort during a hook, ends the task at once with `task_end`.
If the backend cannot open a session, or an abort comes meanwhile, `backend_error` comes without a session before it.

Source:
    docs/reference/agent-runtime.md, Stream events; what the paragraph above allows is chatturn's own.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final

from chatturn.agent_runtime.values.events import EVENT_CLASSES, BackendMadeEvent, RuntimeStreamEvent

__all__ = ["PHASES", "Phase", "first_out_of_order"]


class Phase(StrEnum):
    """The state of a task's stream, which its latest event decides."""

    NEW = "new"
    BEGUN = "begun"
    ASSESSING = "assessing"
    ASKING = "asking"
    ASKED = "asked"
    ACQUIRING = "acquiring"
    ACQUIRED = "acquired"
    REASSESSING = "reassessing"
    ASSESSED = "assessed"
    UNOPENED = "unopened"
    OPEN = "open"
    RUNNING = "running"
    BROKEN = "broken"
    STOPPED = "stopped"
    ENDED = "ended"
    OVER = "over"


_SESSION: Final = {"session_created": Phase.OPEN, "session_resumed": Phase.OPEN}
_CUT_OFF: Final = {"task_end": Phase.ENDED}  # an end before the gate has decided
_SAID: Final = {kind: Phase.RUNNING for kind, cls in EVENT_CLASSES.items() if issubclass(cls, BackendMadeEvent)}

PHASES: Final[Mapping[Phase, Mapping[str, Phase]]] = {
    Phase.NEW: {"task_start": Phase.BEGUN},
    Phase.BEGUN: {"readiness_start": Phase.ASSESSING, **_SESSION, **_CUT_OFF},
    Phase.ASSESSING: {
        "questions_start": Phase.ASKING,
        "acquisition_start": Phase.ACQUIRING,
        "readiness_end": Phase.ASSESSED,
        **_CUT_OFF,
    },
    Phase.ASKING: {"questions_end": Phase.ASKED, **_CUT_OFF},
    Phase.ASKED: {
        "acquisition_start": Phase.ACQUIRING,
        "readiness_start": Phase.REASSESSING,
        "readiness_end": Phase.ASSESSED,
        **_CUT_OFF,
    },
    Phase.ACQUIRING: {"acquisition_end": Phase.ACQUIRED, **_CUT_OFF},
    Phase.ACQUIRED: {"readiness_start": Phase.REASSESSING, "readiness_end": Phase.ASSESSED, **_CUT_OFF},
    Phase.REASSESSING: {"readiness_end": Phase.ASSESSED, **_CUT_OFF},
    Phase.ASSESSED: {"task_end": Phase.ENDED, "backend_error": Phase.UNOPENED, **_SESSION},
    Phase.UNOPENED: {"task_end": Phase.ENDED},
    Phase.OPEN: {"backend_start": Phase.RUNNING},
    Phase.RUNNING: {"backend_error": Phase.BROKEN, "backend_end": Phase.STOPPED, **_SAID},
    # A backend may report an error and go on.
    Phase.BROKEN: {
        "backend_error": Phase.BROKEN,
        "backend_end": Phase.STOPPED,
        "session_resumed": Phase.OPEN,
        "task_end": Phase.ENDED,
        **_SAID,
    },
    Phase.STOPPED: {"task_end": Phase.ENDED},
    Phase.ENDED: {"final": Phase.OVER},
    Phase.OVER: {},
}
"""Every legal move: for each phase, the types of events that may come, and the phase that each type leads to."""


def first_out_of_order(events: Iterable[RuntimeStreamEvent]) -> RuntimeStreamEvent | None:
    """Return the first of one task's *events* that is out of order; None if none is."""
    phase = Phase.NEW
    for event in events:
        following = PHASES[phase].get(event.type)
        if following is None:
            return event
        phase = following
    return None
