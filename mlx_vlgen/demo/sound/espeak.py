"""espeak-ng through its C library: one process speaks hundreds of words a second and tells where each word begins."""

from __future__ import annotations

import ctypes
import ctypes.util
from dataclasses import dataclass

import numpy as np

_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: samples are handed to the callback
_CHARS_UTF8, _PHONEMES, _END_PAUSE = 1, 0x100, 0x1000
_RATE, _PITCH, _RANGE = 1, 3, 4  # espeak_PARAMETER
_WORD, _LIST_END = 1, 0  # espeak_EVENT_TYPE


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int), ("unique_identifier", ctypes.c_uint), ("text_position", ctypes.c_int),
        ("length", ctypes.c_int), ("audio_position", ctypes.c_int), ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p), ("id", ctypes.c_char * 8),
    ]  # fmt: skip


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass
class Speech:
    """Samples in int16 at `rate`, and the sample at which each word begins."""

    samples: np.ndarray
    starts: list[int]
    rate: int


class Espeak:
    """One a process: the library has global state."""

    def __init__(self) -> None:
        name = ctypes.util.find_library("espeak-ng")
        if name is None:
            raise RuntimeError("espeak-ng's library was not found: install espeak-ng")
        self._library = ctypes.CDLL(name)
        self.rate: int = self._library.espeak_Initialize(_SYNCHRONOUS, 0, None, 0)
        self._parts: list[np.ndarray] = []
        self._starts: list[int] = []
        self._callback = _Callback(self._receive)  # kept: the library holds only its address
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples: ctypes._Pointer[ctypes.c_short], count: int, events: ctypes._Pointer[_Event]) -> int:
        if count > 0:
            self._parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        i = 0
        while events[i].type != _LIST_END:
            if events[i].type == _WORD:
                self._starts.append(events[i].sample)
            i += 1
        return 0

    def say(self, text: str, voice: str, speed: int, pitch: int, intonation: int) -> Speech:
        """voice: "accent+variant". speed: words a minute. pitch, intonation: 0 to 100. Phonemes stand in [[ ]]."""
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}: see espeak-ng --voices and --voices=variant")
        for parameter, value in ((_RATE, speed), (_PITCH, pitch), (_RANGE, intonation)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._parts, self._starts = [], []
        data = text.encode() + b"\0"
        self._library.espeak_Synth(data, len(data), 0, 1, 0, _CHARS_UTF8 | _PHONEMES, None, None)
        self._library.espeak_Synchronize()
        samples = np.concatenate(self._parts) if self._parts else np.zeros(0, np.int16)
        return Speech(samples, self._starts, self.rate)
