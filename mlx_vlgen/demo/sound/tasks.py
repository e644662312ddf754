"""The built-in ear's tasks: questions in several wordings, and one canonical answer for each true fact about a clip."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from ..tasks import Dialogue, Turn
from ..wording import SYSTEM
from . import words
from .clips import Clip, Studio

SAID = (
    "What is said?", "What is said?", "What was said?", "What does the voice say?", "What do they say?",
    "What words do you hear?", "Which words are said?", "What is being said?", "Transcribe this.",
    "Transcribe the audio.", "Transcribe the speech.", "Transcribe this audio clip.", "Write down what is said.",
    "Write down the words.", "What did I say?", "What am I saying?",
)  # fmt: skip
HEARD = (
    "What do you hear?", "What do you hear?", "Describe the sound.", "Describe this sound.", "Describe the audio.",
    "What is this?", "What is in this clip?", "What kind of sound is this?", "What can you hear?",
    "Describe what you hear.",
)  # fmt: skip
BEEPS = (
    "How many beeps do you hear?", "How many beeps are there?", "How many beeps?", "Count the beeps.",
    "How many tones are there?", "How many tones do you hear?", "How often does it beep?",
)  # fmt: skip
PITCH = (
    "Is the tone high or low?", "Is it high or low?", "High or low?", "Is this tone high or low?",
    "Are the beeps high or low?", "Is the beep high or low?", "Is the sound high or low?",
)  # fmt: skip
COUNT = ("How many words are said?", "How many words do you hear?", "Count the words.", "How many words are there?")
FIRST = ("What is the first word?", "Which word comes first?", "What is the first word that is said?")
LAST = ("What is the last word?", "Which word comes last?", "What is the last word that is said?")

ABOUT = "I am a small built-in model. I know digits, letters, some fifty words, beeps and tones."
TEXT_ONLY: dict[str, tuple[str, ...]] = {
    "Hello! Let me hear something.": ("Hello", "Hello!", "Hi", "Hi!", "Good morning!", "Hey there"),
    ABOUT: (
        "Who are you?", "What can you do?", "What are you?", "Which words do you know?", "What do you know?",
        "Help", "Tell me about yourself.",
    ),
    "There is no sound yet. Let me hear something.": (*SAID, *HEARD, *BEEPS, *PITCH, *COUNT),
    "I am only a small model: I know some words, beeps and tones. Choose another model with --model.": (
        "Tell me a joke.", "Write a poem.", "What is two plus two?", "Who won the game?", "How is the weather?",
        "What is the capital of France?", "Translate this to German.", "Write a program.", "What time is it?", "Why?",
    ),
}  # fmt: skip

STRANGER = "I do not know these words."
NO_WORDS = {
    "tones": "I hear beeps, not words.",
    "noise": "I hear noise, not words.",
    "music": "I hear music, not words.",
    "silence": "I hear nothing.",
}


# ---- answers


def said(clip: Clip) -> str:
    """The words, with UNKNOWN where one is not known; or what is heard in their place."""
    if clip.kind != "voice":
        return NO_WORDS[clip.kind]
    if all(word == words.UNKNOWN for word in clip.transcript):
        return STRANGER
    return " ".join(clip.transcript)


def heard(clip: Clip) -> str:
    if clip.kind == "tones":
        beep = f"{clip.pitch} beep".strip()
        return f"{words.ONES[clip.beeps]} {beep}{'s' if clip.beeps > 1 else ''}"
    if clip.kind == "voice":
        return "a voice that says: " + said(clip) if said(clip) != STRANGER else "a voice whose words I do not know"
    return {"noise": "noise", "music": "music", "silence": "nothing"}[clip.kind]


def turns(clip: Clip) -> dict[str, tuple[tuple[str, ...], str]]:
    """Task -> its questions and their answer, of what can be asked about a clip."""
    table = {
        "say": (SAID, said(clip)),
        "hear": (HEARD, heard(clip)),
        "beeps": (BEEPS, words.ONES[clip.beeps] or "none"),
    }
    if clip.pitch:
        table["pitch"] = (PITCH, clip.pitch)
    if clip.kind == "voice":
        table["count"] = (COUNT, words.ONES[len(clip.transcript)])
        for task, questions, word in (("first", FIRST, clip.transcript[0]), ("last", LAST, clip.transcript[-1])):
            table[task] = (questions, "I do not know this word." if word == words.UNKNOWN else word)
    return table


# ---- lessons


@dataclass
class Lesson:
    """One clip, or none, with dialogues about it."""

    dialogues: list[Dialogue]
    clip: Clip | None = None
    system: str | None = None


@dataclass
class Example:
    """One question about one clip, in a user's words."""

    task: str
    question: str
    answer: str
    clip: Clip


def vary(rng: random.Random, question: str) -> str:
    """As people type it: now and then without a capital or without the mark at its end."""
    if rng.random() < 0.15:
        question = question[0].lower() + question[1:]
    return question.rstrip("?.") if rng.random() < 0.15 else question


def make_lesson(studio: Studio, kind: str, seed: int) -> Lesson:
    """A clip of that kind (see Studio.clip; "text" for none) with one to three questions."""
    rng = random.Random(seed)
    system = SYSTEM if rng.random() < 0.1 else None
    if kind == "text":
        answers = rng.choices(list(TEXT_ONLY), k=4)
        asked = [Turn(vary(rng, rng.choice(TEXT_ONLY[answer])), answer) for answer in answers]
        return Lesson([Dialogue([turn]) for turn in asked], None, system)
    clip = studio.clip(kind, np.random.default_rng(seed))
    table = turns(clip)
    others = [task for task in table if task != "say"]
    tasks = ["say", *rng.sample(others, min(len(others), rng.choice([0, 1, 1])))]
    if clip.kind == "tones" and "beeps" not in tasks:
        tasks.append("beeps")
    asked = [Turn(vary(rng, rng.choice(table[task][0])), table[task][1]) for task in tasks]
    dialogues = [Dialogue([turn]) for turn in asked]
    if len(asked) > 1 and rng.random() < 0.15:
        dialogues[-1].turns.insert(0, asked[0])  # a second question, after the first one's answer
    return Lesson(dialogues, clip, system)


# ---- single examples

TASKS = ("words", "phrase", "mixed", "strange", "beeps", "pitch", "count", "hear", "other")


def sample(studio: Studio, task: str, seed: int) -> Example:
    """One fresh example. words: 1 or 2, phrase: 3 to 6, mixed: with unknown ones, strange: only those; other: no
    voice and no tones."""
    rng = np.random.default_rng([seed, TASKS.index(task), 7])
    if task in ("words", "phrase", "mixed", "strange", "count"):
        least, most = {"words": (1, 2), "phrase": (3, 6), "mixed": (2, 6)}.get(task, (1, 6))
        clip = studio.voice(rng, least, most, {"mixed": 0.3, "strange": 1.0}.get(task, 0.0))
    elif task == "other":
        clip = studio.clip(str(rng.choice(["noise", "music", "silence"])), rng)
    elif task == "hear":
        clip = studio.clip(str(rng.choice(["word", "tones", "noise", "music"])), rng)
    else:
        clip = studio.tones(rng)
        while task == "pitch" and not clip.pitch:
            clip = studio.tones(rng)
    table = turns(clip)
    questions, answer = table[task if task in table else "say"]
    return Example(task, questions[0], answer, clip)


def corpus() -> list[str]:
    """Every text that the tokenizer must know."""
    sentences = [*SAID, *HEARD, *BEEPS, *PITCH, *COUNT, *FIRST, *LAST, STRANGER, *NO_WORDS.values(), *TEXT_ONLY]
    sentences += [question for questions in TEXT_ONLY.values() for question in questions]
    sentences += [SYSTEM, "system\n", "user\n", "assistant\n", "I do not know this word.", "none"]
    sentences += ["a voice whose words I do not know", "a voice that says: ", "noise", "music", "nothing"]
    sentences += [f"{n} {pitch} {beep}" for n in words.ONES for pitch in ("low", "high") for beep in ("beep", "beeps")]
    known = [*words.KNOWN, words.UNKNOWN]
    return 20 * [*sentences, *known, *(" " + word for word in known), " ".join(known)]
