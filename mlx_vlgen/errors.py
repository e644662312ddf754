"""The errors that a person sees. Each message says what was given, what was expected and what to do."""


class VlgenError(Exception):
    """Base of every error that this package raises on purpose; the command line prints it without a traceback."""


class MediaError(VlgenError, ValueError):
    """A picture or video that cannot be read: missing, foreign, truncated, too large or not allowed."""


class PromptError(VlgenError, ValueError):
    """A prompt that does not fit its media or its model: placeholders, roles, length."""


class LoadError(VlgenError, OSError):
    """A checkpoint that cannot be loaded: missing, gated, unknown, damaged or in a format that is refused."""


class UnreachableError(LoadError):
    """A checkpoint that is not on this machine, while the Hub cannot be asked."""


class UnsupportedError(VlgenError, ValueError):
    """An option that is known but that this model, cache or version cannot honour."""
