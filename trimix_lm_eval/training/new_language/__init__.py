"""``trimix new-language``: everything that a language needs, written from text in it.

Imported by `cli`; imports `training.cpt`, `tasklib`, `loading` and `utils`.

    recipe.py     steps, batch and learning rate that suit the size of the text and the model
    skeleton.py   the files, from templates
    command.py    the whole
"""

from trimix_lm_eval.training.new_language.command import NewLanguageArguments, main, write

__all__ = ["NewLanguageArguments", "main", "write"]
