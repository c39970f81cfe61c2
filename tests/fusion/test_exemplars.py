"""Exact answer spans in the prompts of PROTOCOL.md section 3, of lm-eval, and of chat templates.

Prompts are written with the answers between ⟦ and ⟧; the spans are where the marks were.
"""

import re

import pytest

from trimix_lm_eval.fusion.exemplars import answer_spans


def check(marked: str, ends=()):
    """The marked answers, and nothing else, are found."""
    prompt, expected, open_at = "", [], 0
    for piece in re.split("([⟦⟧])", marked):
        if piece == "⟦":
            open_at = len(prompt)
        elif piece == "⟧":
            expected.append((open_at, len(prompt)))
        else:
            prompt += piece
    found = answer_spans(prompt, ends)
    texts = [prompt[a:b] for a, b in found]
    assert found == expected, texts


SELECTION = (
    "Please select an appropriate response for the following Tibetan dialogue.\n"
    "Context:\nA: {0} བོད་སྐད།\nB: {0} Answer: no\nOptions:\nA. {0} ལེགས།\nB. སོང་།\nAnswer:"
)
COMPREHENSION = (
    "Please read the following Uyghur dialogue and answer the question.\nContext:\nئا: {0} سالام\n"
    "ب: ياخشىمۇسىز\nQuestion: {0} نېمە؟\nOptions:\nA. بىر\nB. ئىككى\nC. ئۈچ\nAnswer:"
)
CLASSIFICATION = (
    "Please classify the following Mongolian text.\nText: {0} ᠮᠣᠩᠭᠣᠯ ᠪᠢᠴᠢᠭ\n"
    "Candidate labels: education, health, politics, technology\nAnswer:"
)


@pytest.mark.parametrize("template", [SELECTION, COMPREHENSION, CLASSIFICATION])
@pytest.mark.parametrize("tail", ["", " "])
def test_choice_tasks(template, tail):
    shots = "".join(template.format(i) + f"⟦ {a}⟧\n\n" for i, a in enumerate(["B", "A", "health"]))
    check(shots + template.format("test") + tail)


def test_title_generation():
    shot = (
        "Please write a title for the following article in Tibetan.\nArticle: {0}\nTitle:⟦ {1}⟧\n\n"
    )
    last = "Please write a title for the following article in Tibetan.\nArticle: ལྷ་ས།\nTitle: "
    check(shot.format("བོད་ཡིག", "མགོ་བརྗོད།") + shot.format("གཉིས། Title: x", "ཤོག") + last)


def test_math_with_a_solution_of_several_lines():
    shot = (
        "Please solve the following Uyghur math problem step by step.\nProblem: {0}\n"
        "Step-by-step solution:⟦ {1}⟧\n\n"
    )
    last = (
        "Please solve the following Uyghur math problem step by step.\nProblem: قانچە؟\n"
        "Step-by-step solution: "
    )
    cot = "First, 3 + 4 = 7.\nThen 7 * 2 = 14.\nThe answer is 14."
    check(shot.format("بىر", cot) + shot.format("ئىككى", "It is 2.") + last)


@pytest.mark.parametrize(("source", "target"), [("Tibetan", "English"), ("English", "Tibetan")])
def test_translation_both_ways(source, target):
    lines = {"Tibetan": "ཁྱེད་རང་སྐུ་གཟུགས་བདེ་པོ་ཡིན་ནས།", "English": "How are you, English: sir?"}
    head = f"Please translate the following {source} text into {target}.\n"
    shot = f"{head}{source}: {lines[source]}\n{target}:⟦ {lines[target]}⟧\n\n"
    check(shot * 3 + f"{head}{source}: {lines[source]}\n{target}: ")


def test_the_default_format_of_lm_eval():
    shot = "Question: {0}\nAnswer:⟦ {1}⟧\n\n"
    check(shot.format("why", "so") + shot.format("who", "me\nand you") + "Question: when\nAnswer:")


def test_a_description_is_not_an_answer():
    check(
        "The following are questions. Give the Answer: a letter.\n\n"
        "Question: a\nAnswer:⟦ A⟧\n\nQuestion: b\nAnswer:"
    )


def test_a_cue_in_the_middle_of_the_line():
    check("Q: a? A:⟦ one⟧\n\nQ: b? A:⟦ two⟧\n\nQ: c? A:")
    check("a བོད་ =>:⟦ x⟧\n\nb =>:⟦ y⟧\n\nc =>:")


def test_an_answer_on_the_line_after_its_cue():
    check("Question: a\nAnswer:\n⟦B⟧\n\nQuestion: b\nAnswer:\n⟦C⟧\n\nQuestion: c\nAnswer:\n")


def test_blank_lines_with_white_space_end_an_answer():
    check("Q: a\nA:⟦ x⟧\n \t\nQ: b\nA:⟦ y⟧\n\n\nQ: c\nA:")


def test_the_cue_inside_the_text_of_an_exemplar():
    check(
        "Text: they wrote Answer: yes, then left\nAnswer:⟦ B⟧\n\n"
        "Text: more Answer: text\nAnswer:⟦ A⟧\n\nText: Answer: none\nAnswer:"
    )


def test_the_cue_inside_the_test_input_is_not_an_answer():
    check("Q: a\nAnswer:⟦ B⟧\n\nContext:\nAnswer: not this\nmore\nAnswer:")


def test_an_empty_answer_does_not_swallow_the_next_exemplar():
    check("Q: a\nAnswer:\n\nQ: b\nAnswer:⟦ x⟧\n\nQ: c\nAnswer:")


@pytest.mark.parametrize(
    "prompt",
    ["", " \n\n ", "Question: a\nAnswer:", "Answer:", "Once upon a time", "བོད་ཡིག\nལན།"],
)
def test_no_exemplars(prompt):
    assert answer_spans(prompt) == []


def test_a_last_line_that_is_no_cue():
    assert answer_spans("One story.\n\nAnother story.\n\nOnce upon a time") == []


# -------------------------------------------------------------------------------- chat


def test_chat_template_with_turns_on_their_own_lines():
    shot = "<|im_start|>user\nQuestion {0}?<|im_end|>\n<|im_start|>assistant\n⟦{1}⟧<|im_end|>\n"
    head = "<|im_start|>system\nYou are helpful.<|im_end|>\n"
    last = "<|im_start|>user\nQuestion 3?<|im_end|>\n<|im_start|>assistant\n"
    check(head + shot.format(1, "ལན།") + shot.format(2, "two\nlines") + last, ["<|im_end|>"])


def test_gemma_template():
    shot = "<start_of_turn>user\n{0}<end_of_turn>\n<start_of_turn>model\n⟦{1}⟧<end_of_turn>\n"
    last = "<start_of_turn>user\nc<end_of_turn>\n<start_of_turn>model\n"
    check("<bos>" + shot.format("a", "x") + shot.format("b", "y") + last, ["<end_of_turn>"])


HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"


@pytest.mark.parametrize("question", ["Which {0}?\nAnswer:", "Which {0}?"])
def test_llama_3_template(question):
    user, assistant = HEADER.format("user"), HEADER.format("assistant")
    shot = user + "{0}<|eot_id|>" + assistant + "⟦{1}⟧<|eot_id|>"
    prompt = "<|begin_of_text|>" + "".join(
        shot.format(question.format(i), answer) for i, answer in enumerate(["ལན།", "x"])
    )
    check(
        prompt + user + question.format("c") + "<|eot_id|>" + assistant,
        ["<|begin_of_text|>", "<|eot_id|>"],
    )


def test_ends_may_be_empty_strings():
    check("Q: a\nA:⟦ x⟧\n\nQ: b\nA:", ["", "</s>"])
