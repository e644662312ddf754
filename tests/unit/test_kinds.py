"""The table of kinds of media: a family with sound needs no more than a loader and a placeholder."""

import base64
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hostile.sounds import tone, wav
from invariants.family import Family

from mlx_vlgen.errors import PromptError, UnsupportedError
from mlx_vlgen.inputs.audio import load_audio
from mlx_vlgen.inputs.expansions import Expansion, Expansions
from mlx_vlgen.inputs.kinds import KINDS, Kind
from mlx_vlgen.inputs.processor import Processor
from mlx_vlgen.inputs.prompt import MediaInputs

LoadFamily = Callable[[str], Family]

MARK = "<|video_pad|>"
TEMPLATE = (
    "{% for m in messages %}{% for p in m.content %}{% if p.type == 'audio' %}" + MARK + "{% else %}{{ p.text }}"
    "{% endif %}{% endfor %}{% endfor %}"
)


class Hearing(Processor):
    """One feature for a tenth of a second."""

    placeholders: ClassVar[Mapping[Kind, str]] = {"audio": MARK}

    def expand(self, kind: Kind, source: Any, media: MediaInputs) -> Expansion:
        samples = load_audio(source, 16_000)
        count = len(samples) // 1600
        return Expansion(MARK * count, (count,), samples[: count * 1600].reshape(count, 1600), (), (0, 0))


@pytest.fixture(scope="module")
def hearing(load_family: LoadFamily) -> Hearing:
    return Hearing(load_family("qwen3_vl").processor.tokenizer, TEMPLATE)


def test_sound_is_placed_as_pictures_are(hearing: Hearing, tmp_path: Path) -> None:
    clips = [wav(tone(0.2).tobytes()), tmp_path / "b.wav"]
    clips[1].write_bytes(wav(tone(0.3, 8000).tobytes(), rate=8000))
    parts = [{"type": "audio", "audio": clips[0]}, "and", {"type": "audio", "audio": clips[1]}, "?"]
    held = Expansions(1 << 20)
    beside = hearing.prepare(f"{MARK}and{MARK}?", MediaInputs(audios=clips), expansions=held)
    inside = hearing.prepare([{"role": "user", "content": parts}], expansions=held)
    data = {"data": base64.b64encode(clips[0]).decode(), "format": "wav"}
    openai = hearing.prepare([{"role": "user", "content": [{"type": "input_audio", "input_audio": data}]}])
    assert np.array_equal(openai.media[0].pixels, inside.media[0].pixels)
    bare = hearing.prepare([{"role": "user", "content": "?"}], MediaInputs(audios=clips), expansions=held)
    for prompt in (beside, inside):
        assert [media.spans for media in prompt.media] == [((0, 2),), ((4, 7),)]  # "and" between them
    assert [media.spans for media in bare.media] == [((0, 2),), ((2, 5),)]
    assert inside.media[1].pixels is beside.media[1].pixels is bare.media[1].pixels
    clips[1].write_bytes(wav(tone(0.5).tobytes()))
    assert hearing.prepare(MARK, MediaInputs(audios=clips[1:]), expansions=held).media[0].spans == ((0, 5),)


def test_refusals_name_the_kind(hearing: Hearing, load_family: LoadFamily) -> None:
    clip = wav(tone().tobytes())
    with pytest.raises(PromptError, match=r"has 1 placeholder <.video_pad.> and 2 audio clips were given"):
        hearing.prepare(MARK, MediaInputs(audios=[clip, clip]))
    with pytest.raises(
        UnsupportedError, match=r"^a picture was given, and this model takes only text and audio clips$"
    ):
        hearing.prepare([{"role": "user", "content": [{"type": "image"}]}])
    deaf = load_family("qwen3_vl").processor
    for prompt in ("?", [{"role": "user", "content": "?"}]):
        with pytest.raises(UnsupportedError, match=r"^audio was given, and this model takes only text, pic"):
            deaf.prepare(prompt, MediaInputs(audios=[clip]))


def test_media_and_their_settings_come_apart_and_together() -> None:
    media = MediaInputs(["a"], ["b"], ["c"], max_frames=3)
    assert media.sources == {"image": ["a"], "video": ["b"], "audio": ["c"]} and media.sources.keys() == KINDS.keys()
    assert media.with_sources({"audio": [1]}) == MediaInputs((), (), (1,), max_frames=3)
    assert np.unique([kind.token_type for kind in KINDS.values()]).tolist() == [1, 2, 3]
