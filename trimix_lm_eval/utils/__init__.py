"""What every package may import, and what imports none of them: no models, no text, no lm-eval.

errors.py        `TrimixError`: one message that a user can mend
validation.py    checks of single values: numbers, truth values, words, texts
options.py       an option declared once: type, default, help and check
io.py            files read, or written as a whole or not at all
templates.py     the one jinja2 environment
paths.py         where the files are that ship with the package
progress.py      one bar on a terminal, one line elsewhere
log_filters.py   what other libraries say that tells the user nothing
distributed.py   several processes that tell each other what they have
"""
