"""Option accuracy: every clause of its rule."""

import pytest

from hpa_lightning.metrics import option_accuracy
from hpa_lightning.metrics.tasks.options import named_options, names_no_option

RIGHT = [
    "B",
    "b",
    " B ",
    "B.",
    "B)",
    "(B)",
    "(b)",
    "[B]",
    "**B**",
    "\uff08B\uff09",
    "B. a banana",
    "B) a banana",
    "(B) a banana",
    "B: a banana",
    "b. a banana",
    "B. something else",
    "B. George W. Bush",
    "B\nBecause it is yellow.",
    "It is yellow.\nB",
    "The answer is B.",
    "The answer is B",
    "the answer is b.",
    "The answer is (B).",
    "The answer is: B",
    "The answer is B. BECAUSE: option C is no fruit.",
    "The answer is option B.",
    "The correct answer is B. a banana",
    "Answer: B",
    "Answer:\nB",
    "ANSWER: (b)",
    "The correct option is B",
    "The right choice should be (B).",
    "B. The answer is B.",
    "I choose option B",
    "Option B is correct.",
    "Option: B",
    "B.    a banana",
    "The  answer\tis \n\n B",
    "It must be (B), not (C).",
    "a banana",
    "A Banana.",
    "The answer is a banana.",
    "Answer: a banana",
    # as reasoning and Chinese models write it
    r"$\boxed{B}$",
    r"\boxed{\text{B}}",
    r"The answer is \boxed{\mathrm{(B)}}.",
    r"We try A, then C. So \boxed{A} is wrong and the result is $\boxed{B}$.",
    r"\(B\)",
    "The answer is $B$.",
    # a box that holds no option, and headings
    r"So $\boxed{\langle H\rangle \ll \Delta E}$." + "\n\n**Answer: B**",
    r"The length is \boxed{42}. So the answer is (B).",
    r"The correct option is B, since $x = \boxed{42}$",
    "$\\boxed{42}$\n\nB",
    "#### Looking at the picture\nIt is yellow.\n\nThe answer is B.",
    "The answer is B.\n\n#### Why\nIt is yellow.",
    "## B",
    "<answer>B</answer>",
    "<answer> (B) </answer>",
    "<answer>B",
    "<think>A or C?</think><answer>B</answer>",
    "<|begin_of_box|>B<|end_of_box|>",
    "It is yellow.\n#### B",
    "<think>Maybe A. Or C?</think>\n\nB",
    "<think>The answer is A.</think>The answer is B.",
    "A is green.\n</think>\n**Answer:** B",
    "B is the correct answer.",
    "B is correct",
    "(B) is the right choice",
    "I think B is correct.",
    "Option (B) is correct; option (A) is not.",
    "B is the answer, because (A) is not yellow.",
    "Thus, (B) is the best answer.",
    "B - a banana",
    "B \u2013 a banana",
    "B because it is yellow",
    "B!",
    "- B",
    "'B'",
    "The answer is 'B'.",
    "Ans: B",
    "Ans. B",
    "ANS: (B)",
    "Answer - B",
    "Answer -> B",
    "Final answer: B",
    "The best choice is B",
    "option (B) because (A) is wrong",
    "The answer is (B), since (A) and (C) are incorrect.",
    "Not A. The answer is B.",
    "The answer is definitely B.",
    "The correct answer to the question is B.",
    "I choose B.",
    "I would go with B",
    "I'd pick option B.",
    "It is B.",
    "A. an apple\nB. a banana\nC. a cat\n\nThe answer is B.",
    "\uff22",
    "\u7b54\u6848\u662fB",
    "\u7b54\u6848\uff1aB\u3002",
    "\u6b63\u786e\u7b54\u6848\u4e3a\uff08B\uff09",
    "\u9009B",
    "\u6545\u9009B\u3002",
    "\u9009\u62e9B",
    "\u9009\u9879B",
    "B\u9009\u9879\u6b63\u786e",
    "\u3010B\u3011",
    "B\u3001\u4e00\u6839\u9999\u8549",
    "B.\u4e00\u6839\u9999\u8549",
    "\uff22\uff0e\u4e00\u6839\u9999\u8549",
    # without a space
    "B.a banana",
    "B.The banana",
    "B.No",
    "B.12",
    "B.3.5 cm",
    "B-a banana",
    "B a banana",
    "B, a banana",
    "\u300cB\u300d",
    "B\u9879",
    "option b",
    "So B.",
    "\u56de\u7b54\uff1aB",
    "\u6b63\u89e3\u306fB",
    "\uc815\ub2f5\uc740 B",
    "Antwort: B",
    "La r\u00e9ponse est B",
    "\u9009B\uff0c\u4e0d\u9009A\u3002",
]

#: Without a space: right where the text is known, since the letter alone could begin a sentence or a name.
LETTER_AND_TEXT = [
    ("B \u9999\u8549", "\u9999\u8549"),
    ("B\u9999\u8549", "\u9999\u8549"),
    ("B\uff0c\u9999\u8549", "\u9999\u8549"),
    ("B.banana", "Banana."),
    ("B.Smith", "Smith"),
    ("B -5", "-5"),
]

#: Name no option, though a capital or a word of the forms above is in them.
NO_OPTION = [
    "A banana split",
    "I think it is a big dog",
    "Neither A nor B",
    "Neither (A) nor (B)",
    "None of the options",
    "<think>The answer is B",
    "A banana is B-shaped",
    "Vitamin B is the right thing to eat",
    "Plan B is the best option",
    "B is not correct.",
    "B is not the correct answer",
    "B is wrong",
    "(B) is wrong",
    "B is a letter of the alphabet",
    "A is for apple",
    "Grade B meat",
    "The picture shows a letter B on a wall",
    "Select a dog",
    "I choose A good book",
    "It is A dog.",
    "<answer>none</answer> B",
    r"\boxed{42}",
    r"\boxed{42}, as B says",
    r"\boxed{a banana split} as in option B",
    r"<answer>none</answer> The answer is B. \boxed{42}",
    "\u7b54\u6848\u4e0d\u662fB",
    "\u4e0d\u9009B",
    "\u6392\u9664B",
    "E.coli is a bacterium",
    "B.subtilis",
    "J.Smith",
    "B.C. was long ago",
    "B.1.1.7",
    "B\u8d85\u68c0\u67e5",  # "ultrasound", with a space too:
    "B \u8d85\u68c0\u67e5",
    "B\u9879\u76ee\u5f88\u597d",  # "project B is good"
    "So I think",
]

WRONG = [
    *NO_OPTION,
    "A - B",
    "<answer>A</answer> but B is also correct",
    "<think>The answer is B.</think>A",
    # another option
    "A",
    "(C)",
    "A. a banana",
    "The answer is A.",
    "The answer is C. a banana",
    "option D",
    # several
    "A or B",
    "A, B",
    "B, C and D",
    "A/B",
    "(A) (B)",
    "(A) or (B)",
    "(B) and (C)",
    "B. or C.",
    "The answer is B or C.",
    "The answers are B and C.",
    "The answer is A, or option B",
    "The answer is B. The answer is C.",
    "B. a banana. The answer is C.",
    "A. an apple\nB. a banana\nC. a cat",
    "A. an apple B. a banana C. a cat",
    "B) a banana C) a cat",
    "B) a banana and D) a dog",
    "(A) an apple; (B) a banana",
    "A\nB",
    "Option A and option B",
    # none
    "",
    " ",
    ".",
    "()",
    "?",
    "banana",
    "a banana split",
    "I think B",
    "Bananas",
    "A banana is yellow",
    "The answer is not B.",
    "It is not (B).",
    "The answer is",
    "The answer is a cat.",
    "the answer is b or c",
    "B-side",
    "The answer is B-side",
    "I don't know.",
    "BB",
    "BANANA",
    "\u00bf",
]


@pytest.mark.parametrize("prediction", RIGHT)
def test_right(prediction: str) -> None:
    for references in [("B", "a banana"), ("a banana", "(B)"), ("B. a banana",), ("(b) a banana",)]:
        assert float(option_accuracy([prediction], [references])) == 1.0, references


@pytest.mark.parametrize(("prediction", "text"), LETTER_AND_TEXT)
def test_the_right_letter_and_the_right_text(prediction: str, text: str) -> None:
    for references, score in (("B", text), 1.0), ((f"B. {text}",), 1.0), (("C", text), 0.0), (("B", "a pear"), 0.0):
        assert float(option_accuracy([prediction], [references])) == score, references
        assert not names_no_option(prediction, references) or not score


@pytest.mark.parametrize("prediction", WRONG)
def test_wrong(prediction: str) -> None:
    for references in [("B", "a banana"), ("B",), ("a banana",), ("B. a banana",), ("", "B")]:
        text_only = references == ("a banana",)
        if text_only and prediction in ("A. a banana", "The answer is C. a banana"):
            continue  # the right text; that its letter is wrong cannot be known
        assert float(option_accuracy([prediction], [references])) == 0.0, references


@pytest.mark.parametrize(
    ("prediction", "references", "correct"),
    [
        # the letter alone is known: texts name nothing
        ("B. anything", ("B",), True),
        ("a banana", ("B",), False),
        # the text alone is known
        ("C. a banana", ("a banana",), True),
        ("B", ("a banana",), False),
        # texts that look like letters: equal texts come first
        ("E. coli", ("B", "E. coli"), True),
        ("The answer is E. coli.", ("B", "E. coli"), True),
        ("E", ("B", "E. coli"), False),
        ("F. coli", ("B", "E. coli"), False),
        ("vitamin (C)", ("B", "vitamin (C)"), True),
        ("A or B", ("C", "A or B"), True),
        ("The answer is A and B.", ("C", "A and B"), True),
        # several accepted options: naming one of them is right, naming both is not
        ("A", ("A", "B"), True),
        ("A and B", ("A", "B"), False),
        ("", ("", "B"), False),
        ("", ("",), False),
        # LaTeX in the reference, as in the prediction
        ("$x$", ("B", "$x$"), True),
        (r"The answer is $\frac{1}{2}$.", (r"$\frac{1}{2}$",), True),
        ("x", ("B", "$x$"), True),
        (r"\boxed{$5$ \text{cm}}", (r"$5$ \text{cm}",), True),
        ("$y$", ("B", "$x$"), False),
        # emphasis of the whole text
        ("**a cat**", ("a cat",), True),
        ("The answer is **a cat**.", ("B", "a cat"), True),
        ("_A cat_", ("`a cat`",), True),
        ("**$x$**", ("$x$",), True),
        ("2*3*4", ("234",), False),
        ("**a** or **b**", ("a or b",), False),
    ],
)
def test_what_the_references_tell(prediction: str, references: tuple[str, ...], correct: bool) -> None:
    assert float(option_accuracy([prediction], [references])) == float(correct)


@pytest.mark.parametrize("prediction", NO_OPTION)
def test_no_option_is_named(prediction: str) -> None:
    assert named_options(prediction) == set() and names_no_option(prediction, ("B", "a banana"))


@pytest.mark.parametrize(
    "unit", [" ", "\n", "$", "<answer>", r"\boxed{", "*", "_a", "A, ", "(A) or ", "not A ", "answer of "]
)
def test_long_and_odd_answers_take_no_time(unit: str) -> None:
    assert float(option_accuracy([unit * (20000 // len(unit))], [("B",)])) == 0.0
