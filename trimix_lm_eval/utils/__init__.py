"""What all packages share: errors, checks of values, files, templates, progress, processes.

Imported by every other package; imports none of them. It knows no models and no lm-eval.

errors.py        `TrimixError`: one message that a user can fix
validation.py    checks of single values: numbers, truth values, words, texts
options.py       an option declared once: type, default, help and check
io.py            files written as a whole or not at all
yaml_files.py    YAML as people write it
outputs.py       what a command may write over
code_files.py    Python code by its content
columns.py       tables for a terminal
templates.py     the one jinja2 environment
paths.py         where the files are that ship with the package
progress.py      one bar on a terminal, one line elsewhere
log_filters.py   what other libraries say that tells the user nothing
windows.py       how a text longer than the context is cut
distributed.py   several processes that tell each other what they have
heartbeat.py     their signs of life: none waits for ever for one that is stopped or gone
"""
