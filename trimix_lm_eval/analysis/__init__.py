"""What comes after a run: JSON in, pages and files out.

Imported by `sweep` and `cli`; imports `llm`, `engine`, `tasklib`, `loading`, `fusion` and `utils`,
never `harness`, whose results it reads from files. Only `explain` loads models and uses `engine`.

    results/       results files, read back; what to call a run
    report/        ``trimix report``: a page, Markdown and CSV that compare runs
    compare/       ``trimix compare``: policies by tasks in one table, for a paper
    explain/       ``trimix explain``: which source each token owes its place to
    export/        ``trimix export``: results as files to submit
    leaderboard/   ``trimix leaderboard``: a page of what was submitted
"""
