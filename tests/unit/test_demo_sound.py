"""The lessons of the built-in ear: what is asked and answered about a clip, and how both become arrays."""

import numpy as np

from mlx_vlgen.demo.sound import checkpoint, words
from mlx_vlgen.demo.sound.clips import HIGH, RATE, Clip, Span, tone
from mlx_vlgen.demo.sound.lessons import IGNORE, SoundEncoder, collate, feature_count, moments
from mlx_vlgen.demo.sound.tasks import STRANGER, Lesson, corpus, turns
from mlx_vlgen.demo.tasks import Dialogue, Turn


def two_beeps() -> Clip:
    beep = tone(2000.0, 0.2, "sine", 0.01)  # 5 features
    rest = np.zeros(RATE // 5, np.float32)
    spans = [Span(3200, 6400, HIGH), Span(9600, 12800, HIGH)]
    return Clip("tones", np.concatenate([rest, beep, rest, beep]), beeps=2, pitch="high", spans=spans)


def test_answers_are_what_the_clip_is() -> None:
    table = {task: answer for task, (_, answer) in turns(two_beeps()).items()}
    assert table == {"say": "I hear beeps, not words.", "hear": "two high beeps", "beeps": "two", "pitch": "high"}
    voice = Clip("voice", np.zeros(0, np.float32), ["seven", words.UNKNOWN, "A"])
    answers = {task: answer for task, (_, answer) in turns(voice).items()}
    assert (answers["say"], answers["count"], answers["first"], answers["last"]) == ("seven ? A", "three", "seven", "A")
    assert turns(Clip("voice", voice.samples, [words.UNKNOWN]))["say"][1] == STRANGER


def test_each_known_word_is_one_token() -> None:
    tokenizer = checkpoint.train_tokenizer(corpus())
    assert all(len(tokenizer.encode(f" {word}").ids) == 1 for word in (*words.KNOWN, words.UNKNOWN))
    assert len(set(words.KNOWN)) == 90 and not {*words.STRANGE, *words.FOREIGN} & {*words.KNOWN}
    assert not set(words.STRANGE) & set(words.FOREIGN)


def test_moments_are_labelled_with_what_sounds() -> None:
    labels = moments(two_beeps(), 20)
    assert labels[:, 0].tolist() == 5 * [0] + 5 * [HIGH] + 5 * [0] + 5 * [HIGH]
    assert labels[5:10, 1].tolist() == [0, 0, 1, 2, 2] and (labels[:5, 1] == IGNORE).all()
    assert (labels[:, 2:] == IGNORE).all()  # a beep has no phonemes


def test_a_row_has_one_token_a_feature_and_learns_its_answers() -> None:
    tokenizer = checkpoint.train_tokenizer(corpus())
    dialogues = [
        Dialogue([Turn("What is said?", "I hear beeps, not words.")]),
        Dialogue([Turn("High or low?", "high")]),
    ]
    encoder = SoundEncoder(tokenizer)
    row = encoder.sound_row(Lesson(dialogues, two_beeps()))
    count = feature_count(len(row.mel))
    assert len(row.mel) == 80 and count == 20
    assert [row.tokens[i] for i in row.feature_positions] == count * [encoder.audio_token]
    learnt = tokenizer.decode([label for label in row.labels if label != IGNORE], skip_special_tokens=False)
    assert learnt == "I hear beeps, not words.<|im_end|>high<|im_end|>"
    batch = collate([row, row])
    assert batch["mel"].shape == (2, 80, 128) and batch["moments"].shape == (2, 20, 4)
    assert batch["feature_positions"].shape == (40,)
