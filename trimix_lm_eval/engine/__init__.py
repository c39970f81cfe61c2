"""Token ids in, numbers or token ids out: fused scoring and generation, without text or lm-eval.

Imported by `llm`, `harness`, `analysis`, `sweep` and `cli`, never by `training`; imports `fusion`
and `utils`. docs/engine.md shows its use on its own.

request.py       what is asked and answered, as data: Prompt, ScoringRequest, Score
scorer.py        log-likelihoods of continuations, by question
options.py       what follows the contexts of questions, as trees: nothing they share runs twice
rolling.py       log-likelihoods of whole texts, in windows
logprobs.py      log-probabilities of given tokens under all fusion configs at once
scheduler.py     generation: sequences that run, wait, fork and finish
sequence.py      a text in the making, and when it stops
thinking.py      where the thinking of a text ends and its answer begins
spec_decode.py   drafts by the small model: propose, verify, draft length
sampler.py       the next token of each row
prefill.py       prompts through all sources, shared prefixes once; policies look on and choose
kept.py          prompts that were run for a choice, kept until they are asked for again
memory.py        what happens when memory runs out
input_batch.py   a batch of running sequences: token table, masks, caches in step
kv_cache.py      keys and values of one source, and attention over shared prefixes
model_runner.py  the sources: forward passes, logits on demand, fusion
probe.py         how a model is to be run, found out by trial when it is loaded
"""
