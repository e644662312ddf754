"""What every family keeps: the contract between a model and the engine."""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, overload

import numpy as np

from .._runtime import mx, nn, tree_flatten
from ..errors import UnsupportedError
from ..inputs.prompt import Media, Prompt
from .config_dict import Config
from .configuration import max_positions
from .deepstack import Deepstack

if TYPE_CHECKING:
    from ..inputs.processor import Processor


@dataclass(frozen=True)
class Full:
    """A layer that attends to every earlier position."""


@dataclass(frozen=True)
class Sliding:
    """A layer that attends to the last `window` positions.

    chunked: to those in its chunk of `window` positions instead, which are counted from the first one.
    """

    window: int
    chunked: bool = False


@dataclass(frozen=True)
class PromptWindow:
    """A layer that attends to the whole prompt, and of what comes after it to the last `window` positions."""

    window: int


@dataclass(frozen=True)
class Recurrent:
    """A layer that keeps `size` state arrays and no positions (convolution, linear attention)."""

    size: int


@dataclass(frozen=True)
class CrossAttention:
    """A layer that attends to the row's pictures (`Embedded.cross`), and to none of its positions."""


@dataclass(frozen=True)
class Whole:
    """A layer that needs what it stores of every position as it is: its cache is never quantized, and has no bound. So
    is that of a layer's indexer; these come after those of the layers."""


@dataclass(frozen=True)
class Opaque:
    """A layer whose cache only its model knows: `make` gives an empty one. Such rows run one at a time."""

    make: Callable[[], Any]


@dataclass(frozen=True)
class Followed:
    """No layer, but what stands after all of them where other ranks repeat each operation on the caches: `make` gives
    what takes part in these in a cache's place, of the arguments of `engine.cache.make_cache` but the first. fullest:
    how many times this rank's caches take as much on the rank that has most."""

    make: Callable[..., Any]
    fullest: float = 1.0


LayerKind = Full | Sliding | PromptWindow | Recurrent | CrossAttention | Whole | Opaque | Followed


@dataclass
class Capture:
    """What one forward records.

    attentions: whether to compute attention weights; they are computed apart from the kernels, and slowly.
    hidden_states: the embeddings (B, L, d), then each layer's output, before the last norm.
    weights: attention weights (B, H, L, T) of each layer.
    """

    attentions: bool = False
    hidden_states: list[mx.array] = field(default_factory=list)
    weights: list[mx.array] = field(default_factory=list)


@dataclass
class CrossStates:
    """What cross-attention layers attend to, for B rows of K states at most.

    states: (B, K, d).
    groups: (B, K) int32, which of the row's pictures each is of, from 1 on; 0 for padding that belongs to none, -1 for
    what only fills a row up.
    """

    states: mx.array
    groups: mx.array

    @staticmethod
    def stack(rows: Sequence["CrossStates | None"]) -> "CrossStates | None":
        """Of single rows, some without any, as one batch; None where no row has any."""
        known = [row for row in rows if row is not None]
        if not known:
            return None
        longest = max(row.states.shape[1] for row in known)
        states, groups = [], []
        for row in rows:
            row = row or CrossStates(mx.zeros_like(known[0].states[:, :0]), mx.zeros((1, 0), mx.int32))
            missing = longest - row.states.shape[1]
            states.append(mx.pad(row.states, [(0, 0), (0, missing), (0, 0)]))
            groups.append(mx.pad(row.groups, [(0, 0), (0, missing)], constant_values=-1))
        return CrossStates(mx.concatenate(states), mx.concatenate(groups))


@dataclass
class Embedded:
    """All that a forward takes per token, for B rows of L positions, so that a chunk cannot forget a part.

    tokens: (B, L) int32.
    embeds: (B, L, d), or None for the tokens' rows of the embedding table.
    positions: (3, B, L) int32, rotary positions (time, row, column), or None where they run on from the cache.
    delta: a number or (B,), a row's rotary position minus its cache position after the prompt.
    Both are float32 where a video's times are not whole positions.
    deepstack: what is added to the output of each of the first text layers, or of those that the family names.
    two_way: (B, L) int32, tokens of a row with the same number other than 0 attend to each other both ways; or None.
    token_types: (B, L) int32, on the host, where they decide the shapes of a forward: other than 0 for tokens of a
    prompt that go to the experts for media; or None, where all are text.
    per_layer: (B, L, layers, n), what each layer takes beside the states, where that is known before the forward.
    cross: what cross-attention layers attend to; it goes with the first positions, and caches hold it from there on.
    variant: which of the family's ways of computing a row all of these take, `Model.variant` of their prompts.
    capture: what the forward records, or None. paced: whether it waits for layers (`layers.pace`). Parts have neither.
    """

    tokens: mx.array
    embeds: mx.array | None = None
    positions: mx.array | None = None
    delta: float | mx.array = 0
    deepstack: Deepstack | None = None
    two_way: mx.array | None = None
    token_types: np.ndarray | None = None
    per_layer: mx.array | None = None
    cross: CrossStates | None = None
    variant: int = 0
    capture: Capture | None = None
    paced: bool = False

    def __len__(self) -> int:
        return self.tokens.shape[1]

    @property
    def row_delta(self) -> float:
        """Of a single row; an int wherever it is whole, for which positions are rotated by MLX's kernel."""
        delta = float(self.delta)
        return int(delta) if delta.is_integer() else delta

    def __getitem__(self, span: slice) -> "Embedded":
        """The positions of `span`, of every part."""

        def cut(part: mx.array | None) -> mx.array | None:
            return None if part is None else part[:, span]

        return Embedded(
            tokens=self.tokens[:, span],
            embeds=cut(self.embeds),
            positions=None if self.positions is None else self.positions[:, :, span],
            delta=self.delta,
            deepstack=None if self.deepstack is None else self.deepstack[span],
            two_way=cut(self.two_way),
            token_types=None if self.token_types is None else self.token_types[:, span],
            per_layer=cut(self.per_layer),
            cross=None if span.start else self.cross,
            variant=self.variant,
        )

    @staticmethod
    def stack(rows: Sequence["Embedded"], unit: int = 1) -> "Embedded":
        """Single rows of one variant as one batch, padded on the right with zeros to the longest or the next multiple
        of `unit`. All have embeds or none has."""
        length = -(-max(map(len, rows)) // unit) * unit

        def pad(parts: Sequence[mx.array], axis: int = 1) -> mx.array:
            after = [[(0, length - p.shape[axis]) if i == axis else (0, 0) for i in range(p.ndim)] for p in parts]
            padded = [mx.pad(p, widths) for p, widths in zip(parts, after, strict=True)]
            return mx.concatenate(padded, axis=axis - 1)

        embeds = [row.embeds for row in rows if row.embeds is not None]
        if embeds and len(embeds) < len(rows):
            raise ValueError("either all rows come with embeddings, or none")
        positions = two_way = None
        if any(row.positions is not None for row in rows):
            running = [mx.broadcast_to(mx.arange(len(row), dtype=mx.int32), (3, 1, len(row))) for row in rows]
            parts = [x if row.positions is None else row.positions for row, x in zip(rows, running, strict=True)]
            positions = pad(parts, axis=2)
        if any(row.two_way is not None for row in rows):
            two_way = pad([mx.zeros_like(row.tokens) if row.two_way is None else row.two_way for row in rows])
        token_types = None
        if any(row.token_types is not None for row in rows):
            token_types = np.zeros((len(rows), length), np.int32)
            for types, row in zip(token_types, rows, strict=True):
                types[: len(row)] = 0 if row.token_types is None else row.token_types[0]
        return Embedded(
            tokens=pad([row.tokens for row in rows]),
            embeds=pad(embeds) if embeds else None,
            positions=positions,
            deepstack=Deepstack.stack([row.deepstack for row in rows], length),
            two_way=two_way,
            token_types=token_types,
            cross=CrossStates.stack([row.cross for row in rows]),
            variant=rows[0].variant,
        )


@dataclass
class Features:
    """What a tower gives for one picture, video or clip of sound: (n, d), and the same for each deepstack layer, of
    which there may be none."""

    embeds: mx.array
    deepstack: Sequence[mx.array] = ()


class Model(nn.Module):
    """A family's network. It holds weights and configuration, and nothing about any request."""

    text_prefix: ClassVar[str] = "language_model."
    """Prefix of the names of the text decoder's parameters, which `load(quantization=…)` quantizes."""

    packed: ClassVar[Container[str]] = ()
    """Kinds of media that `encode` takes of any sizes together."""

    duplicated_layers: ClassVar[Mapping[str, str]] = {}
    """Layers that quantized conversions for MLX hold once more, which mlx-vlm needs: the copy's name -> the layer's."""

    switch: int | None = None
    """Up to how many positions its text decoder computes a row in one way, and beyond them in another; None for one."""

    processor: "Processor"
    """What makes this model's inputs, once it is loaded; it holds nothing about any request either."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        # Underscores: MLX takes a module's public dictionaries and lists for parameters.
        self._config, self._generation_config = Config(config), Config()

    @property
    def config(self) -> Config:
        """The checkpoint's config.json."""
        return self._config

    @property
    def generation_config(self) -> Config:
        """The checkpoint's generation_config.json; empty where it has none."""
        return self._generation_config

    @cached_property
    def vocab_size(self) -> int:
        """The number of token ids that can be written: rows of the output layer, or of the embedding table where there
        is none. The tokenizer may know fewer."""
        layers = [(name, layer) for name, layer in self.text_decoder().named_modules() if "weight" in layer]
        tables = [layer for name, layer in layers if isinstance(layer, nn.Embedding | nn.QuantizedEmbedding)]
        heads = [layer for name, layer in layers if "lm_head" in name.split(".")]
        return max(layer.weight.shape[0] for layer in heads or tables)

    @cached_property
    def embedding_rows(self) -> int:
        """How many token ids can be read: some models read marks around pictures that they never write."""
        embeddings = {
            path: module
            for path, module in self.text_decoder().named_modules()
            if isinstance(module, nn.Embedding | nn.QuantizedEmbedding)
        }
        tables = {path: int(module.weight.shape[0]) for path, module in embeddings.items()}
        # Beside them some decoders have a table of positions, or one of each layer's.
        tokens = [rows for path, rows in tables.items() if path.rpartition(".")[2] == "embed_tokens"]
        return max(tokens or tables.values())

    @property
    def dtype(self) -> mx.Dtype:
        """Of the floating-point parameters."""
        dtypes = (parameter.dtype for _, parameter in tree_flatten(self.parameters()))
        return next(dtype for dtype in dtypes if mx.issubdtype(dtype, mx.floating))

    @property
    def max_positions(self) -> int | None:
        """How many tokens the text decoder was made for; None where config.json does not say."""
        return max_positions(self._config)

    @property
    def device(self) -> mx.Device:
        """Where this model runs: MLX's default device."""
        return mx.default_device()

    @property
    def left_out(self) -> str | None:
        """What of the checkpoint is passed over, a sentence for who loads it."""
        return None

    def rename(self, key: str) -> str | None:
        """A tensor's name in any published layout -> the parameter's name here; other names come back as they are.
        None for one that is of no use here (buffers that some releases saved)."""
        return key

    def published(self, name: str) -> tuple[str, ...]:
        """What conversions for MLX call the parameter or layer `name`, or the equal parts that they cut its rows into;
        `sanitize` turns it back."""
        return (name,)

    def sanitize(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Weights of any published layout -> this module's names and shapes."""
        raise NotImplementedError

    def text_decoder(self) -> nn.Module:
        """mlx-lm's decoder inside: its rules of quantizing and of dtypes hold here too."""
        return self.language_model

    def cache_layout(self) -> list[LayerKind]:
        """The kind of cache of each text layer, in order, and then of each indexer; the engine makes the caches."""
        raise NotImplementedError

    def encode(self, media: Sequence[Media]) -> list[Features]:
        """Features of media of one form, or of one layout where their kind is `packed`; computed as one batch."""
        raise NotImplementedError

    def embed(self, prompt: Prompt, features: Sequence[Features]) -> Embedded:
        """One row (B = 1): the prompt's embeddings with `features` (one per `prompt.media`) in their places."""
        raise NotImplementedError

    def move(self, inputs: Embedded, prompt: Prompt, length: int, delta: float) -> None:
        """Give what `embed` made of `prompt.after(length)` the variant and rotary positions that it has in the whole
        prompt; those after the first `length` tokens are `delta` ahead of plain ones."""
        inputs.delta, inputs.variant = inputs.delta + delta, self.variant(prompt)
        if inputs.positions is not None:
            inputs.positions = inputs.positions + (length + delta)

    def position_delta(self, prompt: Prompt) -> float:
        """How far the rotary position after a prompt is ahead of its number of tokens."""
        return 0

    def variant(self, prompt: Prompt) -> int:
        """How a row with this prompt is computed, where a family has several ways: a number below 16, odd beyond the
        `switch`. Rows of one run together, and begin with what others of it have computed. 0: a plain short text."""
        return int(self.switch is not None and len(prompt.tokens) > self.switch)

    def reach(self, variant: int) -> int | None:
        """How many positions a row of a variant may come to have, where that is less than `max_positions`."""
        return None if variant & 1 else self.switch

    def last_norm(self, h: mx.array) -> mx.array:
        """h (B, L, d) of the last layer -> the same after the last norm, for what `Capture` records.
        UnsupportedError for a family whose forward records nothing."""
        raise UnsupportedError(
            f"hidden states and attention weights: {self.config['model_type']} does not show them; leave "
            "output_hidden_states and output_attentions out"
        )

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' `generate`: see `mlx_vlgen.hf.generate`. With the methods below the one door upwards: this room
        imports none above it, and code written for transformers calls methods of the model."""
        return import_module("mlx_vlgen.hf.generate").generate(self, *args, **kwargs)

    def compute_transition_scores(self, *args: Any, **kwargs: Any) -> mx.array:
        """transformers' method of that name: see `mlx_vlgen.hf.outputs.compute_transition_scores`."""
        scores: mx.array = import_module("mlx_vlgen.hf.outputs").compute_transition_scores(*args, **kwargs)
        return scores

    @overload
    def __call__(self, inputs: Embedded, cache: Sequence[Any], at: mx.array | None = None) -> mx.array: ...

    @overload
    def __call__(self, inputs: Any = None, cache: None = None, at: None = None, **tensors: Any) -> Any: ...

    def __call__(self, inputs: Any = None, cache: Any = None, at: mx.array | None = None, **tensors: Any) -> Any:
        """`forward`; of named tensors, or token ids, what a model of transformers gives: see `mlx_vlgen.hf.forward`."""
        if isinstance(inputs, Embedded):
            return self.forward(inputs, cache, at)
        if cache is not None or at is not None:
            raise TypeError("a model takes token ids by position, and what belongs to them by name: model(**inputs)")
        return import_module("mlx_vlgen.hf.forward").forward(self, inputs, **tensors)

    def forward(self, inputs: Embedded, cache: Sequence[Any], at: mx.array | None = None) -> mx.array:
        """Logits (B, L, V) of `inputs`, which are added to `cache`; (B, V) where `at` is given.

        cache: one for each of `cache_layout`, with the earlier tokens.
        at: (B,) int32, the position of each row whose logits are returned.
        A caller that drops the logits pays nothing: MLX never computes them.
        """
        raise NotImplementedError
