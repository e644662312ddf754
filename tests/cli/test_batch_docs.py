"""The commands of docs/batch.md, as they stand there."""

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from .test_batch import Batch, batch, draw, pytestmark  # noqa: F401

DOCUMENT = (Path(__file__).parents[2] / "docs" / "batch.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", DOCUMENT, re.DOTALL) for line in block.strip().splitlines()
]


@pytest.fixture
def files(tmp_path: Path) -> None:
    """What the commands name."""
    for number, name in enumerate(("beach", "hill")):
        draw(tmp_path / "photos" / f"{name}.jpg", number)
    Image.open(tmp_path / "photos" / "hill.jpg").save(tmp_path / "scan.pdf")
    (tmp_path / "scans").mkdir()
    (tmp_path / "scan.pdf").rename(tmp_path / "scans" / "scan.pdf")
    (tmp_path / "products.csv").write_text("file,product\nphotos/beach.jpg,beach\n")
    (tmp_path / "schema.json").write_text('{"enum": ["circle", "square"]}')
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (tmp_path / "requests.jsonl").write_text(json.dumps(line))


@pytest.mark.usefixtures("files")
def test_every_command_works(batch: Batch, tmp_path: Path) -> None:  # noqa: F811
    for command in COMMANDS:
        module, *arguments = shlex.split(command.removeprefix("python -m "))
        assert module == "mlx_vlgen.batch"
        assert batch(*arguments, "--max-tokens", "8")[0] == 0, command
    assert (tmp_path / "photos" / "beach.txt").read_text().startswith("a photo of photos, ")


def test_the_row_that_is_shown_has_the_fields_of_a_row(batch: Batch, tmp_path: Path) -> None:  # noqa: F811
    draw(tmp_path / "photos" / "beach.jpg", 1)
    batch("photos", "-o", "out.jsonl")
    (shown,) = re.findall(r"```json\n(.*?)```", DOCUMENT, re.DOTALL)
    row, real = json.loads(shown), json.loads((tmp_path / "out.jsonl").read_text())
    assert list(row) == list(real) and list(row["usage"]) == list(real["usage"])
