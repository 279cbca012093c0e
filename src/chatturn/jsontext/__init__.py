"""JSON as text: its canonical form, its depth, and what a record may hold."""
