"""Messages as spans carry them."""

import json

from chatturn.telemetry.content import content_text


def test_images_and_files_are_told_by_their_addresses_or_by_what_they_are() -> None:
    """Never with their content, which may be a megabyte."""
    data = "data:image/png;base64," + "A" * 700_000
    paper = {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"}
    content = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": data}},
        {"type": "image_url", "image_url": {"url": "https://a.test/b.png"}},
        {"type": "file", "file": paper},
    ]
    [message] = json.loads(content_text([{"role": "user", "content": content}]))

    assert message["parts"] == [
        {"type": "text", "content": "look"},
        {"type": "blob", "modality": "image", "mime_type": "image/png"},
        {"type": "uri", "modality": "image", "uri": "https://a.test/b.png"},
        {"type": "blob", "modality": "file", "mime_type": "application/pdf"},
    ]
