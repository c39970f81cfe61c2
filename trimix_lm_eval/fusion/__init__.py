"""What is made of the sources' logits, and who chooses the weights: tensors in, tensors out.

Imported by every other package but `utils`; imports `utils` only. It knows no model, no text
(but for the answers of exemplars that `exemplars.py` finds) and no lm-eval.

    weights.py      a point of the fusion, the paper's grid; numbers only
    logits.py       the arithmetic: fuse, mask, log-probabilities, entropies, a whole grid at once
    quadratic.py    the lowest point between those of a grid
    collectors.py   what a policy may see of a prompt, and how it is shown
    exemplars.py    where the answers stand in a few-shot prompt, for policies that see them alone
    config.py       one way to make a distribution: a policy, and perhaps a mask
    policies/       who gets which weight, one policy a file

`weights` and `policies` are imported without torch, so that what reads results opens at once.
"""
