"""A small model for a language that has none: `cpt` trains it, `new_language` writes what it needs.

Imported by `cli` only; imports `tasklib`, `loading` and `utils`, and nothing of the engine.
"""
