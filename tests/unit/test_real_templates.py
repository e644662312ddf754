"""Published chat templates, rendered as transformers renders them: the tree's copies, on its own small tokenizers.

`benchmarks/templates.py` does the same with a folder of published files, and with real vocabularies.
"""

from collections.abc import Callable
from typing import Any

import pytest
from invariants.family import Family
from parity.templates import CONVERSATIONS, difference, fitting, ids_difference, ours, text_part, turn

from mlx_vlgen import apply_chat_template
from mlx_vlgen.errors import PromptError
from mlx_vlgen.inputs.processor import Processor

LoadFamily = Callable[[str], Family]
PUBLISHED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v")
"""References whose tokenizer has the published template."""


@pytest.fixture(scope="module")
def qwen(load_family: LoadFamily) -> Any:
    return load_family("qwen3_vl").processor


@pytest.mark.parametrize("family", PUBLISHED)
def test_every_conversation_is_rendered_and_tokenized_as_by_transformers(load_family: LoadFamily, family: str) -> None:
    processor = load_family(family).processor
    said = {name: difference(processor, conversation) for name, conversation in fitting(processor)}
    assert not {name: one for name, one in said.items() if one}
    assert len(said) >= 13
    ids = {name: ids_difference(processor, conversation) for name, conversation in fitting(processor)}
    assert not {name: one for name, one in ids.items() if one}
    assert sum(one is not None for one in ids.values()) >= 11


def test_thinking_turned_on_and_off_are_two_prompts(load_family: LoadFamily) -> None:
    processor = load_family("qwen3_5").processor
    on, off = (ours(processor, CONVERSATIONS[name]) for name in ("thinking", "no thinking"))
    assert on.endswith("<think>\n")
    assert off.endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.role + ': ' + m.content }};{% endfor %}",  # refuses lists
        "{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}",  # writes them down as they are
    ],
)
def test_templates_made_for_strings_get_lists_of_words_as_strings(qwen: Any, template: str) -> None:
    processor = Processor(qwen.tokenizer, template)
    processor.placeholders = qwen.placeholders
    messages = [turn(text_part("Be "), text_part("brief."), role="system"), {"role": "user", "content": "Hi"}]
    assert apply_chat_template(processor, {}, messages) == "system: Be brief.;user: Hi;"


def test_what_a_template_for_strings_says_of_a_picture_is_passed_on(qwen: Any) -> None:
    processor = Processor(qwen.tokenizer, "{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %}")
    processor.placeholders = qwen.placeholders
    with pytest.raises(PromptError, match="the chat template refuses these messages"):
        apply_chat_template(processor, {}, [turn(text_part("Hi")), turn({"type": "image"}, text_part("Hi"))])
