"""What a run was asked for, and everything up to models in memory: checked first, then loaded.

Imported by `tasklib`, `llm`, `training` and what is above them, never by `engine`; imports `fusion`
(names of sources and policies) and `utils`. It knows no request.

    settings.py      flat arguments -> `Settings`, each option declared once
    source_spec.py   the sources' part of them: `SourceSpec`, one per model
    run_config.py    run configs of lm-eval, read and checked before anything is run
    run_values.py    what each of their keys may be
    recorded.py      the arguments in a results file, and which of them may be used again
    hub.py           read from the Hub, and say why something cannot be had
    preflight/       what would stop a run, found before any weight is loaded
    models.py        one source: spec -> model in memory
    text_part.py     of a model that also sees or hears, how its text model alone is loaded
    rope.py          rotary embeddings that depend on the length of a text
    codec.py         text <-> token ids
    provenance.py    what the numbers of a run depend on, for results and caches
    demo/            the trio of tiny models that ``pretrained=demo`` names
"""
