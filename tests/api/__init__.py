"""`make api`: the running Worker is tried by what ``/openapi.json`` says of it."""
