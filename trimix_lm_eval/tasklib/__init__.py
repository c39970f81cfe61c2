"""What the YAML files in `tasks/` call: data, and how answers are scored.

    milic_eval.py  sib200.py  belebele.py   one benchmark each: its files -> lm-eval documents
    benchmarks.py                           the list of them, and the tasks that each has
    languages.py                            the languages: codes, names in prompts, benchmarks
    answers.py                              one answer of a model -> numbers (`process_results`)
    metrics.py  rouge.py                    the numbers: chrF++, weighted F1, ROUGE-L, bootstrap
    rows.py                                 bytes -> rows, checked; never a silently shorter set
    places.py                               where files come from: Hub, local folder, zip

A prompt stands in the task's YAML, nowhere else.
"""
