"""The built-in model's tasks: questions in many wordings, and one canonical sentence for each true answer.

A `Lesson` is one picture (or two, or a clip, or none) with several dialogues about it; training reads the picture once
and learns from all of them. `sample(task, seed)` gives one question with its answer, for evaluation and tests.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from . import scenes, wording
from .drawing import COLOURS, SHAPES, BoxLabel, Scene, Thing
from .photographs import photo_scene
from .scenes import Clip


@dataclass(frozen=True)
class Turn:
    """One question and its answer; `thought` is what goes between <think> and </think> when the model thinks."""

    question: str
    answer: str
    thought: str | None = None


@dataclass
class Dialogue:
    """Turns about one picture. thinking_opened: the template has opened <think> already (enable_thinking)."""

    turns: list[Turn]
    thinking_opened: bool = False


@dataclass
class Lesson:
    """Media, dialogues about them, and the labelled boxes of each picture or pair of frames."""

    dialogues: list[Dialogue]
    images: list[Image.Image] = field(default_factory=list)
    video: list[Image.Image] | None = None
    system: str | None = None
    box_labels: list[list[BoxLabel]] = field(default_factory=list)


@dataclass
class Example:
    """One question about one lesson's media, in a user's words."""

    task: str
    question: str
    answer: str
    images: list[Image.Image] = field(default_factory=list)
    video: list[Image.Image] | None = None
    thinking: str | None = None

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Chat messages with media placeholders, for a chat template."""
        media: list[dict[str, Any]] = [{"type": "image"} for _ in self.images]
        media += [{"type": "video"}] if self.video is not None else []
        return [{"role": "user", "content": [*media, {"type": "text", "text": self.question}]}]


# ---- sentences


def article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def plural(name: str, count: int) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def kinds(things: list[Thing]) -> list[tuple[str, int]]:
    """(name, how many) of each kind, colours in their order, then shapes."""
    counts = Counter(thing.name for thing in things)
    names = (f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
    return [(name, counts[name]) for name in names if counts[name]]


def describe(scene: Scene) -> str:
    """Places while there are at most four shapes with one each; beyond that, how many of each kind."""
    if scene.photo:
        return wording.PHOTO
    sentences = []
    if scene.things and len(scene.things) <= 4 and all(thing.cell for thing in scene.things):
        sentences.append(f"There is {join([f'{article(t.name)} {t.place}' for t in scene.things])}.")
    elif scene.things:
        listed = join([plural(name, count) for name, count in kinds(scene.things)])
        verb = "is" if len(scene.things) == 1 else "are"
        sentences.append(f"There {verb} {plural('shape', len(scene.things))}: {listed}.")
    if scene.text:
        sentences.append(f'The text says "{scene.text}".')
    return " ".join(sentences) or "The picture is empty."


def read(scene: Scene) -> str:
    if scene.photo:
        return wording.PHOTO
    return f'The text says "{scene.text}".' if scene.text else "There is no text."


def count(scene: Scene, name: str) -> str:
    """`name`: "shape", "circle", "red shape" or "red circle"."""
    if scene.photo:
        return wording.PHOTO
    number = count_of(scene, name)
    return f"There {'is' if number == 1 else 'are'} {plural(name, number)}."


def count_of(scene: Scene, name: str) -> int:
    *colour, shape = name.split()
    return sum(shape in ("shape", thing.shape) and (not colour or colour[0] == thing.colour) for thing in scene.things)


def make_thought(scene: Scene) -> str:
    """The text between <think> and </think>: everything in the picture, so that its length grows with the picture."""
    if scene.photo:
        return "This is no drawing of simple shapes and no print."
    lines = []
    if scene.things and all(thing.cell for thing in scene.things):
        lines.append(f"I see {plural('shape', len(scene.things))}.")
        lines += [f"{i}. {article(t.name)} {t.place}" for i, t in enumerate(scene.things, 1)]
    elif scene.things:
        lines.append(f"I see {plural('shape', len(scene.things))}.")
        lines += [f"- {plural(name, number)}" for name, number in kinds(scene.things)]
    if scene.text:
        spelled = ", ".join(f'"{character}"' for character in scene.text)
        lines.append(f"I see print with {plural('character', len(scene.text))}: {spelled}")
    return "\n".join(lines) or "I see no shapes and no print."


# ---- turns


def _vary(rng: random.Random, question: str) -> str:
    """As users type: small letters, no full stop, a please."""
    chance = rng.random()
    if chance < 0.12:
        question = question.lower()
    elif chance < 0.2:
        question = question.rstrip(".?")
    elif chance < 0.28:
        question = question.lower().rstrip(".?")
    elif chance < 0.31:
        question = "Please " + question[0].lower() + question[1:]
    return question


def _choose_wording(rng: random.Random, questions: tuple[str, ...]) -> str:
    """The first wording, the one in the documentation, a little more often."""
    return questions[0] if rng.random() < 0.15 else rng.choice(questions)


def _countable_name(rng: random.Random, scene: Scene) -> str:
    chance = rng.random()
    if chance < 0.35:
        return "shape"
    present = rng.choice(scene.things) if scene.things and rng.random() < 0.8 else None
    shape = present.shape if present else rng.choice(SHAPES)
    colour = present.colour if present else rng.choice(list(COLOURS))
    if chance < 0.7:
        return f"{colour} {shape}"
    return shape if chance < 0.9 else f"{colour} shape"


def count_turn(rng: random.Random, scene: Scene) -> Turn:
    name = _countable_name(rng, scene)
    plural_name = name + "s"
    if name == "shape" and rng.random() < 0.3:
        plural_name = rng.choice(["objects", "things", "figures"])
    thought = make_thought(scene) + ("" if scene.photo else f"\n{name}s: {count_of(scene, name)}")
    return Turn(_choose_wording(rng, wording.COUNT).format(plural_name), count(scene, name), thought)


def describe_turn(rng: random.Random, scene: Scene) -> Turn:
    return Turn(_choose_wording(rng, wording.DESCRIBE), describe(scene), make_thought(scene))


def read_turn(rng: random.Random, scene: Scene) -> Turn:
    return Turn(_choose_wording(rng, wording.READ), read(scene), make_thought(scene))


def detail_turn(rng: random.Random, scene: Scene) -> Turn:
    """Colour, place or presence of one shape, where the question has one true answer."""
    if scene.photo or not scene.things:
        return read_turn(rng, scene) if rng.random() < 0.5 else count_turn(rng, scene)
    thing = rng.choice(scene.things)
    thought = make_thought(scene)
    alone = sum(other.shape == thing.shape for other in scene.things) == 1
    chance = rng.random()
    if len(scene.things) == 1 and chance < 0.25:
        return Turn(rng.choice(wording.SHAPE), f"It is {article(thing.shape)}.", thought)
    if chance < 0.45 and alone:
        return Turn(rng.choice(wording.COLOUR).format(thing.shape), f"The {thing.shape} is {thing.colour}.", thought)
    twins = sum(other.name == thing.name for other in scene.things)
    if chance < 0.75 and thing.cell and twins == 1:
        return Turn(rng.choice(wording.WHERE).format(thing.name), f"The {thing.name} is {thing.place}.", thought)
    name = thing.name if rng.random() < 0.5 else f"{rng.choice(list(COLOURS))} {rng.choice(SHAPES)}"
    here = count_of(scene, name) > 0
    question = rng.choice(wording.EXISTS).format(name).replace("a orange", "an orange")
    return Turn(question, f"{'Yes' if here else 'No'}, there is {article(name) if here else 'no ' + name}.", thought)


def _dialogue(rng: random.Random, turns: list[Turn], thinking: float = 0.22) -> Dialogue:
    """Mostly without thoughts; else the last turn thinks, as the template or the question demands."""
    turns = [
        Turn(_vary(rng, t.question), t.answer, None if i < len(turns) - 1 else t.thought) for i, t in enumerate(turns)
    ]
    last = turns[-1]
    chance = rng.random()
    if last.thought is None or chance > thinking:
        turns[-1] = Turn(last.question, last.answer)
        return Dialogue(turns)
    if chance < 0.55 * thinking:
        if rng.random() < 0.15:
            turns[-1] = Turn(rng.choice(wording.STEPS).format(last.question), last.answer, last.thought)
        return Dialogue(turns, thinking_opened=True)
    turns[-1] = Turn(rng.choice(wording.STEPS).format(last.question), last.answer, last.thought)
    return Dialogue(turns)


# ---- lessons

TurnMaker = Callable[[random.Random, Scene], Turn]


def _scene_lesson(rng: random.Random, scene: Scene, makers: Sequence[TurnMaker]) -> Lesson:
    dialogues = []
    for maker in makers:
        turns = [maker(rng, scene)]
        if rng.random() < 0.12:  # a second question in the same chat
            turns.append(rng.choice(makers)(rng, scene))
        dialogues.append(_dialogue(rng, turns))
    return Lesson(dialogues, [scene.image], box_labels=[scene.box_labels])


def shapes_lesson(rng: random.Random) -> Lesson:
    other = rng.choices([count_turn, detail_turn, read_turn], [0.4, 0.5, 0.1])[0]
    makers = [describe_turn, other] + ([detail_turn] if rng.random() < 0.4 else [])
    return _scene_lesson(rng, scenes.shapes_scene(rng), makers)


def crowd_lesson(rng: random.Random) -> Lesson:
    scene = scenes.crowd_scene(rng)
    listed = len(scene.things) > 4 or not scene.things
    makers = [count_turn] * 5  # questions are cheap beside the picture
    return _scene_lesson(rng, scene, [*makers, describe_turn if listed and rng.random() < 0.6 else count_turn])


def print_lesson(rng: random.Random) -> Lesson:
    other = rng.choices([describe_turn, count_turn], [0.8, 0.2])[0]
    return _scene_lesson(rng, scenes.print_scene(rng), [read_turn, other] if rng.random() < 0.5 else [read_turn])


def mixed_lesson(rng: random.Random) -> Lesson:
    return _scene_lesson(rng, scenes.mixed_scene(rng), [describe_turn, rng.choice([read_turn, read_turn, count_turn])])


def photo_lesson(rng: random.Random) -> Lesson:
    makers = [describe_turn, rng.choice([count_turn, read_turn, detail_turn])]
    return _scene_lesson(rng, photo_scene(rng), makers)


def glyph_lesson(rng: random.Random) -> Lesson:
    """Dense labels only."""
    scene = scenes.glyph_scene(rng)
    return Lesson([], [scene.image], box_labels=[scene.box_labels])


def compare_lesson(rng: random.Random) -> Lesson:
    first, second = scenes.shapes_scene(rng, 1), scenes.shapes_scene(rng, 1)
    if rng.random() < 0.12:
        state = rng.getrandbits(32)
        first, second = (scenes.shapes_scene(random.Random(state), 1) for _ in range(2))
    one, two = article(first.things[0].name), article(second.things[0].name)
    answer = f"The first image has {one}; the second has {two}."
    turn = Turn(_choose_wording(rng, wording.COMPARE), answer, f"First image: {one}\nSecond image: {two}")
    return Lesson(
        [_dialogue(rng, [turn])], [first.image, second.image], box_labels=[first.box_labels, second.box_labels]
    )


def video_lesson(rng: random.Random) -> Lesson:
    clip = scenes.clip(rng)
    turn = Turn(_choose_wording(rng, wording.MOVE), moves(clip), _motion(clip))
    return Lesson([_dialogue(rng, [turn])], video=clip.frames, box_labels=clip.box_labels)


def moves(clip: Clip) -> str:
    subject = article(clip.thing.name).capitalize()
    return f"{subject} stays still." if clip.direction == "still" else f"{subject} moves {clip.direction}."


def _motion(clip: Clip) -> str:
    start, end = {
        "to the right": ("further left", "further right"),
        "to the left": ("further right", "further left"),
        "up": ("further down", "further up"),
        "down": ("further up", "further down"),
        "still": ("here", "in the same place"),
    }[clip.direction]
    return f"I see {article(clip.thing.name)}.\nFirst frame: it is {start}.\nLast frame: it is {end}."


def text_lesson(rng: random.Random) -> Lesson:
    dialogues = []
    for _ in range(3):
        answer = rng.choice(list(wording.TEXT_ONLY))
        question = rng.choice(wording.TEXT_ONLY[answer])
        thought = (
            "I have no picture to look at." if answer == wording.NO_PICTURE else "This question is not about a picture."
        )
        dialogues.append(_dialogue(rng, [Turn(question, answer, thought)]))
    return Lesson(dialogues)


LESSONS: dict[str, Callable[[random.Random], Lesson]] = {
    "shapes": shapes_lesson, "crowd": crowd_lesson, "print": print_lesson, "mixed": mixed_lesson,
    "photo": photo_lesson, "glyph": glyph_lesson, "compare": compare_lesson, "video": video_lesson,
    "text": text_lesson,
}  # fmt: skip


def make_lesson(kind: str, seed: int) -> Lesson:
    """A lesson of one of LESSONS; the same seed gives the same lesson."""
    rng = random.Random(f"{kind}/{seed}")
    lesson = LESSONS[kind](rng)
    lesson.system = wording.SYSTEM if rng.random() < 0.15 else None
    return lesson


# ---- single examples

TASKS = ("describe", "count", "read", "mixed", "detail", "compare", "video", "photo", "thinking", "steps", "text")


def sample(task: str, seed: int) -> Example:
    """One fresh example of a task, in a seed space that training never visits."""
    rng = random.Random(f"sample/{task}/{seed}")
    if task in ("compare", "video", "text"):
        lesson = LESSONS[task](rng)
        turn = lesson.dialogues[0].turns[-1]
        while turn.thought is not None:  # these three tasks have no thought
            lesson = LESSONS[task](rng)
            turn = lesson.dialogues[0].turns[-1]
        return Example(task, turn.question, turn.answer, lesson.images, lesson.video)
    if task in ("thinking", "steps"):
        scene, maker = rng.choice([
            (scenes.shapes_scene(rng), describe_turn), (scenes.shapes_scene(rng), count_turn),
            (scenes.crowd_scene(rng), count_turn), (scenes.print_scene(rng), read_turn),
        ])  # fmt: skip
        turn = maker(rng, scene)
        question = _vary(rng, turn.question)
        question = wording.STEPS[0].format(question) if task == "steps" else question
        return Example(task, question, turn.answer, [scene.image], thinking=turn.thought)
    draw, maker = {
        "describe": (scenes.shapes_scene, describe_turn), "count": (scenes.crowd_scene, count_turn),
        "read": (scenes.print_scene, read_turn), "mixed": (scenes.mixed_scene, describe_turn),
        "detail": (scenes.shapes_scene, detail_turn), "photo": (photo_scene, describe_turn),
    }[task]  # fmt: skip
    scene = draw(rng)
    turn = maker(rng, scene)
    return Example(task, _vary(rng, turn.question), turn.answer, [scene.image])
