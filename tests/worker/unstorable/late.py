"""A module that the entry imports."""

import js

kept = js.AbortController.new()
