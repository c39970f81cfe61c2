"""What the YAML files in `tasks/` call: data, and how answers are scored.

Imported by `harness`, `analysis`, `training`, `sweep` and `cli`; imports `loading` and `utils`.

    milic_eval.py  sib200.py  belebele.py   one benchmark each: its files -> lm-eval documents
    benchmarks.py                           the list of them, their tasks; whether data can be had
    languages.py                            the languages: codes, names in prompts, benchmarks
    flores.py  flores.tsv                   all languages of SIB-200 and Belebele, and their names
    answers.py                              one answer of a model -> numbers (`process_results`)
    metrics.py  rouge.py                    the numbers: chrF++, weighted F1, ROUGE-L, bootstrap
    rows.py                                 bytes -> rows, checked; the order of exemplars
    places.py  hub_files.py                 where files come from: Hub, local folder, zip
    catalog.py                              what the shipped YAML says

A prompt stands in the task's YAML, nowhere else.
"""
