"""The text that lies in the benchmark's folder: what it was put together from, and under which licences."""

from __future__ import annotations

from collections.abc import Sequence

from hpa_lightning.smol.inputs import licences
from hpa_lightning.smol.xstest_file import without_xstest

_XSTEST = """\
the prompts of Roettger et al., NAACL 2024, for tests of safety and over-refusal, typeset in pictures too, out of the
  authors' file (inputs/xstest_prompts.csv)
  licence: CC BY 4.0"""


def licence_list(inputs: Sequence[str], with_xstest: bool) -> str:
    """Return what each part of the benchmark comes from, with its licence.

    Args:
        inputs: names of packages.
        with_xstest: whether XSTest's prompts are in it.
    """
    return f"""\
What this folder was put together from, and under which licence each part is.

{licences(inputs)}
XSTest
  {_XSTEST if with_xstest else without_xstest()}

hpa-lightning
  refusals, harmless requests, questions, drawn charts and words; handwritten digits of scikit-learn
  licence: Apache-2.0; BSD-3-Clause (scikit-learn), CC BY 4.0 (the digits, UCI)
  the answers to harmless requests are SmolLM2-135M-Instruct's (Apache-2.0)

Pictures of Tux Paint (pictures/) are under the GPL 2: whoever passes them on does so under its terms.
"""
