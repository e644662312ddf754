"""espeak-ng through its C library: one process speaks hundreds of words a second, and tells where each word and
phoneme begins."""

from __future__ import annotations

import ctypes
import ctypes.util
from dataclasses import dataclass

import numpy as np

_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: samples are handed to the callback
_PHONEME_EVENTS = 1  # espeakINITIALIZE_PHONEME_EVENTS
_CHARS_UTF8, _PHONEMES, _END_PAUSE = 1, 0x100, 0x1000
_RATE, _PITCH, _RANGE = 1, 3, 4  # espeak_PARAMETER
_LIST_END, _WORD, _PHONEME = 0, 1, 7  # espeak_EVENT_TYPE

# Names of phonemes in espeak-ng's accents of English; the first two are pauses.
PHONEMES = (
    "_", "_:", "n", "t", "I", "s", "l", "k", "r", "d", "b", "3", "p", "m", "E", "@", "a", "i:", "eI", "oU", "V", "f",
    "N", "w", "aI", "0", "i", "g", "tS", "I2", "@L", "a#", "dZ", "u:", "z", "v", "aU", "h", "j", "aa", "A@", "T", "S",
    "3:", "U", "O:", "O@", "i@", "aI@", "D", "o@", "A:", "t#", "e@", "I#", ";", "@-", "OI", "Z", "t[", "aI2", "O2",
    "t2", "IR", "VR", "?", "n-", "w#", "aI3", "r-",
)  # fmt: skip


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int), ("unique_identifier", ctypes.c_uint), ("text_position", ctypes.c_int),
        ("length", ctypes.c_int), ("audio_position", ctypes.c_int), ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p), ("id", ctypes.c_char * 8),
    ]  # fmt: skip


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass
class Speech:
    """Samples in int16 at `rate`, the sample at which each word begins, and (sample, name) of each phoneme."""

    samples: np.ndarray
    starts: list[int]
    phonemes: list[tuple[int, str]]
    rate: int


class Espeak:
    """One a process: the library has global state."""

    def __init__(self) -> None:
        name = ctypes.util.find_library("espeak-ng")
        if name is None:
            raise RuntimeError("espeak-ng's library was not found: install espeak-ng")
        self._library = ctypes.CDLL(name)
        self.rate: int = self._library.espeak_Initialize(_SYNCHRONOUS, 0, None, _PHONEME_EVENTS)
        self._parts: list[np.ndarray] = []
        self._starts: list[int] = []
        self._phonemes: list[tuple[int, str]] = []
        self._callback = _Callback(self._receive)  # kept: the library holds only its address
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples: ctypes._Pointer[ctypes.c_short], count: int, events: ctypes._Pointer[_Event]) -> int:
        if count > 0:
            self._parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        i = 0
        while events[i].type != _LIST_END:
            if events[i].type == _WORD:
                self._starts.append(events[i].sample)
            elif events[i].type == _PHONEME:
                self._phonemes.append((events[i].sample, events[i].id.decode(errors="replace")))
            i += 1
        return 0

    def say(self, text: str, voice: str, speed: int, pitch: int, intonation: int) -> Speech:
        """voice: "accent+variant". speed: words a minute. pitch, intonation: 0 to 100. Phonemes stand in [[ ]]."""
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}: see espeak-ng --voices and --voices=variant")
        for parameter, value in ((_RATE, speed), (_PITCH, pitch), (_RANGE, intonation)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._parts, self._starts, self._phonemes = [], [], []
        data = text.encode() + b"\0"
        self._library.espeak_Synth(data, len(data), 0, 1, 0, _CHARS_UTF8 | _PHONEMES, None, None)
        self._library.espeak_Synchronize()
        samples = np.concatenate(self._parts) if self._parts else np.zeros(0, np.int16)
        return Speech(samples, self._starts, self._phonemes, self.rate)
