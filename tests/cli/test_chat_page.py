"""docs/chat.md: its lists are the program's."""

import re
from pathlib import Path

from mlx_vlgen.chat_lines import COMMANDS, context_warning

PAGE = (Path(__file__).parents[2] / "docs" / "chat.md").read_text(encoding="utf-8")


def test_its_list_of_commands_is_the_programs() -> None:
    for name, usage in COMMANDS.items():
        row = f"| `/{name} {usage.arguments}`".replace(" `", "`").replace("|`", "| `").replace("[open|", "[open\\|")
        assert f"{row} | {usage.help} |" in PAGE
    assert set(re.findall(r"`/([a-z]+)", PAGE)) == set(COMMANDS)
    assert all(len(usage.help) <= 58 for usage in COMMANDS.values())  # with the names, 80 columns


def test_what_it_says_of_a_full_context() -> None:
    warning = context_warning(80, 100)
    assert warning and all(name in warning for name in ("/clear", "/undo", "/set max_pixels", "/model NAME"))
