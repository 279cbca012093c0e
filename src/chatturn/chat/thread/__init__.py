"""Whose session it is, which versions its turns have, which of them count, and what the model is shown of it."""
