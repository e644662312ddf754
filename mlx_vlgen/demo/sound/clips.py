"""Clips of sound whose content is known: spoken words, beeps, noise, chords, silence; 16 kHz mono.

A voice is one of espeak-ng's accents with one of its variants, at a random speed and pitch. What it says is then
stretched, filtered, echoed and laid over noise, so that a few dozen voices sound like many more.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from . import words
from .espeak import PHONEMES, Espeak

RATE = 16_000
GRID = 5120  # samples
ACCENTS = ("en", "en-US", "en-GB-scotland", "en-029", "en-GB-x-rp", "en-GB-x-gbcwmd", "en-GB-x-gbclan", "en-US-nyc")
VARIANTS = (
    "", "", "", "Alex", "Alicia", "Andrea", "Andy", "Denis", "Diogo", "Gene", "Gene2", "Henrique", "Hugo", "Jacky",
    "Lee", "Marco", "Mario", "Michael", "Mike", "Nguyen", "adam", "anika", "announcer", "antonio", "aunty", "belinda",
    "boris", "caleb", "david", "ed", "edward", "f1", "f2", "f4", "f5", "grandma", "grandpa", "gustave", "iven",
    "iven2", "iven4", "john", "kaukovalta", "klatt", "klatt2", "klatt4", "m1", "m2", "m3", "m5", "m6", "m7", "m8",
    "marcelo", "max", "michel", "miguel", "norbert", "pablo", "paul", "pedro", "quincy", "rob", "robert", "sandro",
    "shelby", "steph", "steph2", "steph3", "travis", "victor", "zac",
)  # fmt: skip
HELD_OUT = ("Annie", "benjamin", "f3", "linda", "m4")  # variants that training never hears

BACKGROUND = 0  # classes of the labels of a moment; words.KNOWN follow from 1
STRANGE = len(words.KNOWN) + 1
LOW, MIDDLE, HIGH, MUSIC = STRANGE + 1, STRANGE + 2, STRANGE + 3, STRANGE + 4
CLASSES = MUSIC + 1
LOW_HZ, HIGH_HZ = (150.0, 500.0), (1100.0, 3500.0)
_PHONEME_CLASS = {name: max(0, i - 1) for i, name in enumerate(PHONEMES)}  # 0 for pauses
PHONEME_CLASSES = len(PHONEMES) - 1
WORD_CLASS = {word: i + 1 for i, word in enumerate(words.KNOWN)}


@dataclass(frozen=True)
class Span:
    """From start to end (samples) one word, tone or phoneme of that class sounds."""

    start: int
    end: int
    label: int


@dataclass
class Clip:
    """(n,) float32 samples at RATE, and what they are. kind: voice, tones, noise, music or silence.

    transcript: of a voice, words.UNKNOWN for each word that is not known.
    beeps: how many; pitch: "low", "high", or "" in between. spans: words and tones; None where it is not
    known what sounds when. phonemes: of a voice.
    """

    kind: str
    samples: np.ndarray
    transcript: list[str] = field(default_factory=list)
    beeps: int = 0
    pitch: str = ""
    spans: list[Span] | None = field(default_factory=list)
    phonemes: list[Span] = field(default_factory=list)


class Studio:
    """Makes clips. voices: the variants that speak; strange: the words they say that are not known."""

    def __init__(self, variants: tuple[str, ...] = VARIANTS, strange: tuple[str, ...] = words.STRANGE):
        self.espeak = Espeak()
        self.variants, self.strange = variants, strange
        self.rest = 0  # samples: every clip is some steps of GRID and these, so that many have one length
        rng = np.random.default_rng(0)
        self.noises = [colour(rng, 30 * RATE, slope) for slope in (0.0, 0.5, 1.0)]
        self.noises.append(self._babble(rng, 30 * RATE))

    def _length(self, count: int) -> int:
        return count + (self.rest - count) % GRID

    def _fit(self, samples: np.ndarray) -> np.ndarray:
        return np.pad(samples, (0, self._length(len(samples)) - len(samples)))

    # ---- voices

    def voice(self, rng: np.random.Generator, least: int = 1, most: int = 6, unknown: float | None = None) -> Clip:
        """One voice that says `least` to `most` words. unknown: the share of words that are not known, else drawn."""
        if unknown is None:
            unknown = float(rng.choice([0.0, 0.25, 1.0], p=[0.72, 0.2, 0.08]))
        said = [self._word(rng, unknown) for _ in range(rng.integers(least, most + 1))]
        speech, spans, phonemes = self._speak(rng, said)
        samples, ratio = perform(rng, speech, self.espeak.rate)
        lead, tail = (int(rng.uniform(0.0, 0.4) * RATE) for _ in range(2))
        samples = self._fit(np.pad(samples, (lead, tail)))
        samples = self._over_noise(rng, samples)
        words_at, phonemes_at = (
            [Span(lead + int(s.start * ratio), lead + int(s.end * ratio), s.label) for s in part]
            for part in (spans or [], phonemes)
        )
        transcript = [word if word in WORD_CLASS else words.UNKNOWN for word in said]
        return Clip("voice", samples, transcript, spans=words_at or None, phonemes=phonemes_at)

    def _word(self, rng: np.random.Generator, unknown: float) -> str:
        if rng.random() < unknown:
            return str(rng.choice(self.strange))
        kind = (words.DIGITS, words.LETTERS, words.NAMES)[rng.choice(3, p=[0.23, 0.27, 0.5])]
        return str(rng.choice(kind))

    def _speak(self, rng: np.random.Generator, said: list[str]) -> tuple[np.ndarray, list[Span] | None, list[Span]]:
        """In one breath, with commas, or word by word. Samples in [-1, 1] at espeak's rate; words; phonemes."""
        rate = self.espeak.rate
        variant = str(rng.choice(self.variants))
        voice = f"gmw/{rng.choice(ACCENTS)}" + (f"+{variant}" if variant else "")
        speed, pitch, intonation = int(rng.integers(110, 200)), int(rng.integers(20, 85)), int(rng.integers(10, 80))
        manner = rng.random()
        separator = " " if manner < 0.5 else ", "
        phrases = [[word] for word in said] if manner > 0.7 else [said]
        parts: list[np.ndarray] = []
        spans: list[Span] = []
        phonemes: list[Span] = []
        at, exact = 0, True
        for phrase in phrases:
            text = separator.join("[['eI]]" if word == "A" else word for word in phrase)
            speech = self.espeak.say(text, voice, speed, pitch, intonation)
            samples = speech.samples.astype(np.float32) / 32768
            loud = np.flatnonzero(np.abs(samples) > 0.01)
            end = int(loud[-1]) + 1 if len(loud) else len(samples)
            samples = samples[: end + int(0.02 * rate)]
            exact &= len(speech.starts) >= len(phrase)
            starts = speech.starts[: len(phrase)]  # the end of a phrase can count as a word, too
            for word, start, stop in zip(phrase, starts, [*starts[1:], end], strict=False):
                spans.append(Span(at + start, at + min(stop, end), WORD_CLASS.get(word, STRANGE)))
            names = [(start, _PHONEME_CLASS.get(name, 0)) for start, name in speech.phonemes]
            for (start, label), (stop, _) in zip(names, [*names[1:], (end, 0)], strict=True):
                phonemes.append(Span(at + start, at + min(stop, end), label))
            gap = np.zeros(int(rng.uniform(0.0, 0.35) * rate), np.float32)
            parts += [samples, gap]
            at += len(samples) + len(gap)
        return np.concatenate(parts[:-1]), spans if exact else None, phonemes

    def _over_noise(self, rng: np.random.Generator, samples: np.ndarray) -> np.ndarray:
        """Two clips of three with noise behind them, 10 to 45 dB below; all of them at a random level."""
        power = float((samples**2).mean()) + 1e-12
        if rng.random() < 0.67:
            noise = self._slice(rng, len(samples))
            ratio = rng.uniform(10, 45)
            samples = samples + noise * np.sqrt(power / 10 ** (ratio / 10) / ((noise**2).mean() + 1e-12))
        return level(rng, samples)

    def _slice(self, rng: np.random.Generator, count: int) -> np.ndarray:
        noise = self.noises[rng.integers(len(self.noises))]
        start = int(rng.integers(0, len(noise) - count))
        return noise[start : start + count]

    def _babble(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Several voices at once, none to be understood."""
        babble = np.zeros(count, np.float32)
        for _ in range(8):
            at = 0
            while at < count:
                said = [self._word(rng, 0.5) for _ in range(8)]
                speech, _, _ = self._speak(rng, said)
                speech, _ = perform(rng, speech, self.espeak.rate)
                speech = speech[: count - at]
                babble[at : at + len(speech)] += speech
                at += len(speech)
        return babble

    # ---- other sounds

    def tones(self, rng: np.random.Generator) -> Clip:
        """One to six beeps of one pitch."""
        beeps = int(rng.integers(1, 7))
        pitch = str(rng.choice(["low", "high", ""], p=[0.4, 0.4, 0.2]))
        low, high = {"low": LOW_HZ, "high": HIGH_HZ, "": (LOW_HZ[1] * 1.1, HIGH_HZ[0] / 1.1)}[pitch]
        hz = low * (high / low) ** rng.random()
        longest = 1.2 if beeps == 1 else 0.35
        duration, gap = rng.uniform(0.07, longest), rng.uniform(0.08, 0.4)
        shape = rng.choice(["sine", "square", "two"], p=[0.6, 0.2, 0.2])
        label = {"low": LOW, "high": HIGH, "": MIDDLE}[pitch]
        parts, spans = [np.zeros(int(rng.uniform(0.0, 0.4) * RATE), np.float32)], []
        at = len(parts[0])
        for i in range(beeps):
            beep = tone(hz, duration * rng.uniform(0.9, 1.1), shape, rng.uniform(0.003, 0.02))
            rest = gap * rng.uniform(0.85, 1.15) if i < beeps - 1 else rng.uniform(0.0, 0.4)
            parts += [beep, np.zeros(int(rest * RATE), np.float32)]
            spans.append(Span(at, at + len(beep), label))
            at += len(beep) + len(parts[-1])
        samples = self._over_noise(rng, self._fit(np.concatenate(parts)))
        return Clip("tones", samples, beeps=beeps, pitch=pitch, spans=spans)

    def noise(self, rng: np.random.Generator) -> Clip:
        """Hiss, rumble or hum, steady or in waves."""
        count = self._length(int(rng.uniform(0.4, 3.2) * RATE))
        samples = self.noises[rng.integers(3)]
        start = int(rng.integers(0, len(samples) - count))
        samples = samples[start : start + count].copy()
        time = np.arange(count, dtype=np.float32) / RATE
        if rng.random() < 0.4:
            samples *= 1 + 0.9 * np.sin(2 * np.pi * rng.uniform(0.5, 6) * time + rng.uniform(0, 6))
        if rng.random() < 0.4:
            samples = equalize(rng, samples)
        if rng.random() < 0.2:
            samples *= np.exp(-time * rng.uniform(0.5, 3))
        return Clip("noise", level(rng, samples), spans=None)

    def music(self, rng: np.random.Generator) -> Clip:
        """A few chords or a tune, of notes with overtones that fade."""
        parts, spans, at = [], [], 0
        chords = rng.random() < 0.7
        root, beat, overtones = rng.integers(45, 70), rng.uniform(0.2, 0.7), rng.uniform(0.2, 0.7)
        for _ in range(rng.integers(2, 7)):
            base = root + rng.choice([0, 2, 4, 5, 7, 9, 12])
            notes = base + np.array([0, rng.choice([3, 4]), 7, 12])[: rng.integers(3, 5)] if chords else [base]
            time = np.arange(int(beat * rng.choice([1, 1, 2]) * RATE), dtype=np.float32) / RATE
            sound = np.zeros(len(time), np.float32)
            for note in notes:
                hz = 440 * 2 ** ((note - 69) / 12)
                for k in range(1, 6):
                    sound += overtones ** (k - 1) * np.sin(2 * np.pi * hz * k * time + k)
            sound *= np.exp(-time * rng.uniform(0.5, 4)) * np.minimum(1, time / 0.01) * np.minimum(1, time[::-1] / 0.02)
            parts.append(sound)
            spans.append(Span(at, at + len(sound), MUSIC))
            at += len(sound)
        return Clip("music", self._over_noise(rng, self._fit(np.concatenate(parts)[: 4 * RATE])), spans=spans)

    def silence(self, rng: np.random.Generator) -> Clip:
        count = self._length(int(rng.uniform(0.3, 2.5) * RATE))
        loudness = 10 ** rng.uniform(-5, -3.7) if rng.random() < 0.6 else 0.0
        return Clip("silence", (rng.standard_normal(count) * loudness).astype(np.float32))

    def clip(self, kind: str, rng: np.random.Generator) -> Clip:
        makers = {"voice": self.voice, "word": self.word, "tones": self.tones, "noise": self.noise,
                  "music": self.music, "silence": self.silence}  # fmt: skip
        return makers[kind](rng)

    def word(self, rng: np.random.Generator) -> Clip:
        return self.voice(rng, 1, 2)


# ---- signals


def perform(rng: np.random.Generator, samples: np.ndarray, rate: int) -> tuple[np.ndarray, float]:
    """From `rate` to RATE, faster or slower (with the pitch of it), through a random filter and some through a room.
    Also how many samples come out for one."""
    echo = rng.random() < 0.25
    count = smooth(len(samples) + (int(0.2 * rate) if echo else 0))
    out = smooth(int(count * RATE / rate / rng.uniform(0.88, 1.2)))
    spectrum = np.fft.rfft(samples, count)
    if echo:
        decay = np.arange(int(0.2 * rate)) / rate
        room = rng.standard_normal(len(decay)) * np.exp(-decay / rng.uniform(0.01, 0.06)) * rng.uniform(0.02, 0.12)
        room[0] = 1
        spectrum = spectrum * np.fft.rfft(room.astype(np.float32), count)
    keep = min(len(spectrum), out // 2 + 1)
    hz = np.arange(keep) * (rate / count)
    spectrum = spectrum[:keep]
    if rng.random() < 0.6:
        spectrum = spectrum * response(rng, hz)
    return np.fft.irfft(spectrum, out).astype(np.float32) * np.float32(out / count), out / count


def response(rng: np.random.Generator, hz: np.ndarray) -> np.ndarray:
    """A gentle random curve of up to 6 dB either way; at times also a narrow band, like a telephone's."""
    knots = np.array([0, 150, 400, 1000, 2000, 4000, 8000])
    gain = 10 ** (np.interp(hz, knots, rng.uniform(-6, 6, len(knots))) / 20)
    if rng.random() < 0.2:
        low, high = rng.uniform(80, 350), rng.uniform(3000, 6000)
        gain /= np.sqrt(1 + (low / np.maximum(hz, 1)) ** 4) * np.sqrt(1 + (hz / high) ** 8)
    return gain


def equalize(rng: np.random.Generator, samples: np.ndarray) -> np.ndarray:
    count = smooth(len(samples))
    spectrum = np.fft.rfft(samples, count)
    return np.fft.irfft(spectrum * response(rng, np.arange(len(spectrum)) * (RATE / count)), count)[: len(samples)]


def smooth(count: int) -> int:
    """A length of at least `count` that an FFT likes."""
    unit = 1 << max(0, count.bit_length() - 5)
    return -(-count // unit) * unit


def colour(rng: np.random.Generator, count: int, slope: float) -> np.ndarray:
    """Noise of unit power whose magnitude falls with frequency ** slope."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    spectrum /= np.maximum(np.arange(len(spectrum)), 20 * count / RATE) ** slope
    samples = np.fft.irfft(spectrum, count)
    return (samples / samples.std()).astype(np.float32)


def level(rng: np.random.Generator, samples: np.ndarray) -> np.ndarray:
    """The peak anywhere from 0.02 to 0.95; 8-bit steps are not modelled."""
    peak = float(np.abs(samples).max()) + 1e-9
    return (samples * (0.95 * 10 ** (-rng.uniform(0, 33) / 20) / peak)).astype(np.float32)


def tone(hz: float, seconds: float, shape: str, attack: float) -> np.ndarray:
    time = np.arange(int(seconds * RATE), dtype=np.float32) / RATE
    sound = np.sin(2 * np.pi * hz * time)
    if shape == "square":
        sound = np.tanh(4 * sound)
    elif shape == "two":
        sound = sound + 0.4 * np.sin(4 * np.pi * hz * time)
    envelope = np.minimum(1, np.minimum(time, time[::-1]) / attack)
    return (sound * envelope).astype(np.float32)
