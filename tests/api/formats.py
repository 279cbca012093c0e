"""Text of the formats that are this service's own; Schemathesis knows only those of JSON Schema."""

import schemathesis
from hypothesis import strategies as st

from chatturn.chat.thread.identity import turn_of_run
from chatturn.http.user_messages import FILE_TYPES

_WHOLE = st.characters(codec="utf-8", exclude_characters="\0")

schemathesis.openapi.format("storable", st.text(_WHOLE, min_size=1).filter(lambda text: bool(text.strip())))
schemathesis.openapi.format("printable", st.text(_WHOLE.filter(str.isprintable), min_size=1))
_PRINTABLE = st.text(_WHOLE.filter(str.isprintable), min_size=1)
schemathesis.openapi.format(
    "session-id", _PRINTABLE.filter(lambda text: not text.isspace() and turn_of_run(text) is None)
)
# Only the service makes these; one that it made is followed by the calls in sequence.
schemathesis.openapi.format("cursor", st.nothing())
schemathesis.openapi.format("ticket", st.nothing())

# What is in a file is nobody's business but the model's; that of JSON is made as any JSON is.
for _media_type in FILE_TYPES:
    if _media_type != "application/json":
        schemathesis.openapi.media_type(_media_type, st.binary(min_size=1, max_size=1_000))
