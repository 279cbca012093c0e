"""agent-runtime's 115 names: all of them here, from one place, and on the page that says so, in both directions."""

import ast
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import chatturn.agent_runtime as wing
from chatturn.errors import AgentEvalError, ChatTurnError

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "reference" / "agent-runtime-names.md").read_text("utf-8")
SOURCE = ast.parse(Path(inspect.getfile(wing)).read_text("utf-8"))

# What version 0.14.1 exports.
EXPORTED = """
AgentBackendContext AgentBackendInput AgentExecutionBackend AgentRuntimeEvent AgentTaskRunResult AgentTaskRunSummary
AgentTaskSpec AgentTaskStatus BackendRetryPolicy BackendTransportError ChatStreamEvent ChatTurnError ChatTurnHooks
ChatTurnIdentity ChatTurnMessage ChatTurnOverlay ChatTurnResult ChatTurnSandbox ClassifyIntentOptions
ClassifyIntentResult ConformanceIssue ConformanceOptions ConformanceResult D1DatabaseLike D1DurableRunStore
D1PreparedStatementLike DURABLE_SCHEMA_SQL DURABLE_SCHEMA_VERSION DurableAwaitEventTimeoutError DurableChatTurnEngine
DurableContext DurableRunDivergenceError DurableRunError DurableRunInputMismatchError DurableRunLeaseHeldError
DurableRunManifest DurableRunStore DurableTurnHandle DurableTurnProducer EventRecord FileSystemDurableRunStore
InMemoryDurableRunStore InMemoryRuntimeSessionStore KnowledgeReadinessDecision RunAgentTaskOptions
RunAgentTaskStreamOptions RunChatTurnInput RunChatTurnOptions RunDurableInput RunDurableResult RunDurableTurnOptions
RunOnWorkflowStepInput RunOutcome RunStatus RuntimeEventCollector RuntimeRunCompleteInput RuntimeRunCost
RuntimeRunHandle RuntimeRunOptions RuntimeRunPersistenceAdapter RuntimeRunRow RuntimeRunStateError RuntimeRunStatus
RuntimeSession RuntimeSessionStore RuntimeStreamEvent RuntimeStreamEventCollector RuntimeStreamEventSink
RuntimeStreamEventSummary RuntimeTelemetryOptions SanitizedKnowledgeReadinessReport SanitizedKnowledgeRequirement
ServerSentEventOptions SessionMismatchError StepError StepKind StepRecord StepStatus SubagentMatcher TraceBridge
TraceBridgeOptions WorkflowStepConfig WorkflowStepLike assertProfileConformance canonicalHash canonicalJson
classifyIntent composeTurnProfile createIterableBackend createOpenAICompatibleBackend createRuntimeEventCollector
createRuntimeStreamEventCollector createSandboxPromptBackend createTraceBridge decideKnowledgeReadiness deriveWorkerId
durableChatTurnEngine encodeServerSentEvent manifestHash readinessServerSentEvent runAgentTask runAgentTaskStream
runChatTurn runDurable runDurableTurn runOnWorkflowStep runtimeStreamServerSentEvent sandboxAsChatTurnTarget
sanitizeAgentRuntimeEvent sanitizeKnowledgeReadinessReport sanitizeRuntimeStreamEvent startRuntimeRun stepId
summarizeAgentTaskRun toAgentEvalTrace
""".split()  # noqa: SIM905 - as the package's own last line has them

# Only where the platform is.
ELSEWHERE = {"D1DurableRunStore"}
STORES_OF_ONE_PLATFORM = {*ELSEWHERE, "FileSystemDurableRunStore", "InMemoryDurableRunStore"}
# Values and types that are no class or function, and so have no docstring of their own.
PLAIN = {
    "DURABLE_SCHEMA_SQL",
    "DURABLE_SCHEMA_VERSION",
    "RuntimeStreamEvent",
    "RuntimeStreamEventSink",
    "durable_chat_turn_engine",
}


def in_python(name: str) -> str:
    """Return what *name* is called here: class names stay."""
    if name[0].isupper():
        return name
    return re.sub(r"([A-Z])", lambda found: "_" + found[1].lower(), name.replace("OpenAI", "Openai"))


def section(heading: str) -> str:
    """Return what stands below *heading*."""
    return PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def rows(text: str, columns: int) -> list[list[str]]:
    """Return the cells of every row with so many columns of the tables in *text*, without their heads."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    heads = {"agent-runtime", "Name", "It tests"}
    return [row for row in cells if len(row) == columns and row[0] not in heads and not set(row[0]) <= {"-"}]


def homes() -> dict[str, str]:
    """Return the module of each name, as the table has it that is used at run time."""
    found: dict[str, str] = wing._HOME
    return found


def test_the_package_exports_115_names() -> None:
    assert 115 == len(set(EXPORTED)) == len(EXPORTED)


def test_every_name_is_on_the_page_and_no_other() -> None:
    """In both directions, with what it is called here and where it is."""
    listed = {row[0].strip("`"): (row[1].strip("`"), row[2].strip("`")) for row in rows(PAGE, 5)}

    assert {name: (in_python(name), homes()[in_python(name)]) for name in EXPORTED} == listed


def test_no_cell_is_empty_and_each_row_names_a_test() -> None:
    assert 115 == len(rows(PAGE, 5))
    for row in rows(PAGE, 5):
        assert all(row), row
        assert re.fullmatch(r"`tests/[\w/]+\.py::test_\w+`", row[4]), row


def test_what_is_beside_them_is_on_the_page_and_no_other() -> None:
    listed = {row[0].strip("`"): row[1] for row in rows(section("Beside them"), 2)}

    assert set(homes()) - {*map(in_python, EXPORTED)} == set(listed)
    assert all(listed.values())


def test_its_own_tests_are_all_named_each_with_one_of_its_own() -> None:
    """That the tests exist, the tests of the manual find out; what is not built says why."""
    shown = [row[1] for row in rows(section("Its own tests"), 2)]
    tests = [cell for cell in shown if re.fullmatch(r"`tests/[\w/]+\.py::test_\w+`", cell)]
    not_built = [cell for cell in shown if re.fullmatch(r"not built: .{40,}", cell)]

    assert (179, 177, 2) == (len(shown), len(set(tests)), len(not_built))
    assert len(shown) == len(tests) + len(not_built)


@pytest.mark.parametrize("name", sorted(set(homes()) - ELSEWHERE))
def test_every_name_is_imported_from_one_place_and_says_its_promise(name: str) -> None:
    """The same object as in its module; its docstring is its own, and not its base's."""
    found: Any = getattr(wing, name)

    assert found is getattr(importlib.import_module(homes()[name]), name)
    if name not in PLAIN:
        assert found.__doc__, name
        assert found.__doc__.strip(), name
        assert not found.__doc__.startswith(f"{name}("), name  # what dataclasses write where nobody did


def test_type_checkers_read_the_same_table() -> None:
    [block] = [node for node in SOURCE.body if isinstance(node, ast.If)]
    for_types = {
        alias.asname: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }

    assert homes() == for_types
    assert sorted(set(homes()) - STORES_OF_ONE_PLATFORM) == wing.__all__
    assert set(homes()) <= set(dir(wing))


def test_a_name_that_is_none_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="run_everything"):
        _ = wing.run_everything


def test_a_store_of_another_platform_says_where_it_is() -> None:
    """And what there is here instead; everything else is imported at once."""
    with pytest.raises(ImportError, match="only inside the Worker; elsewhere there are FileSystemDurableRunStore"):
        _ = wing.D1DurableRunStore

    everything: dict[str, Any] = {}
    exec("from chatturn.agent_runtime import *", everything)  # noqa: S102 - it is no statement of a function's
    assert set(wing.__all__) <= set(everything)


def test_all_errors_are_of_one_tree() -> None:
    """With stable codes; the validation errors are ValueErrors as well."""
    errors = [
        found
        for name in set(homes()) - ELSEWHERE
        if inspect.isclass(found := getattr(wing, name)) and issubclass(found, Exception)
    ]

    assert 10 < len(errors)
    assert all(issubclass(error, ChatTurnError) for error in errors)
    assert issubclass(wing.SessionMismatchError, AgentEvalError)
    assert issubclass(wing.ValidationError, ValueError)
