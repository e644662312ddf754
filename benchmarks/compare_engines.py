"""One engine on one checkpoint: the process that `compare.py` starts for each, in that engine's own Python.

    python compare_engines.py ours|mlx-vlm|transformers CHECKPOINT|- FOLDER

A line of JSON for each question and each answer, over stdin and stdout; what libraries print goes to stderr. The first
line comes when the imports are done, the second when the checkpoint is loaded; "-" loads none. FOLDER is where
pictures that are files lie. Each engine is called in the way that its documentation shows first.
"""

import contextlib
import ctypes
import gc
import importlib.metadata
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from compare_workloads import pictures, text

Drawn = tuple[float, int]
"""When a token came, by `time.perf_counter`, and its id."""

AGAIN = "And what else is there?"
"""The second question of a talk."""

PACKAGES = ("mlx", "mlx-lm", "mlx-vlm", "torch", "transformers")


def messages(words: str, images: list[Any]) -> list[dict[str, Any]]:
    """One user message, its pictures first."""
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": words}]
    return [{"role": "user", "content": content}]


class Mlx:
    """What both engines on MLX have."""

    api: Any
    mx: Any

    def load(self, checkpoint: str) -> None:
        self.model, self.processor = self.api.load(checkpoint)

    def device(self) -> str:
        return "cpu" if self.mx.default_device().type == self.mx.DeviceType.cpu else "gpu"

    def device_name(self) -> str | None:
        return None if self.device() == "cpu" else str(self.mx.device_info().get("device_name", "GPU"))

    def weights(self) -> int:
        self.mx.clear_cache()
        return self.mx.get_active_memory()

    def reset_peak(self) -> None:
        self.mx.clear_cache()
        self.mx.reset_peak_memory()

    def peak(self) -> int | None:
        return self.mx.get_peak_memory()


class Ours(Mlx):
    """`stream_generate` for one prompt, `batch_generate` for many."""

    def __init__(self) -> None:
        import mlx_vlgen
        from mlx_vlgen import batch_generate, load, stream_generate  # noqa: F401  names are imported when first used
        from mlx_vlgen._runtime import mx

        self.api, self.mx = mlx_vlgen, mx

    def stream(self, words: str, images: list[Any], new: int) -> Iterator[Drawn]:
        for result in self.api.stream_generate(self.model, self.processor, messages(words, images), max_tokens=new):
            if result.token is not None:
                self.prompt_tokens = result.prompt_tokens
                yield time.perf_counter(), result.token

    def batch(self, words: str, images: list[Any], rows: int, new: int, together: int, grouped: bool) -> int:
        """One picture a row, or none; the number of tokens in all."""
        response = self.api.batch_generate(
            self.model, self.processor, images=images or None, prompts=[text_message(words, images)] * rows,
            max_tokens=new, max_batch_size=together,
        )  # fmt: skip
        return response.stats.generation_tokens

    def turn(self, words: str, images: list[Any], new: int, later: int, resumed: bool) -> float:
        """Seconds to the first token of a second question, after an answer to a first one."""
        count = len(images) - later
        with tempfile.TemporaryDirectory() as folder:
            cache = self.api.PrefixCache(disk=folder if resumed else None)
            asked = messages(words, images[:count])
            answer = self.api.generate(self.model, self.processor, asked, max_tokens=new, prompt_cache=cache)
            cache.flush()
            if resumed:
                cache = self.api.PrefixCache(disk=folder)  # which has nothing in memory
            talk = [*asked, {"role": "assistant", "content": answer.text}, *messages(AGAIN, images[count:])]
            begun = time.perf_counter()
            stream = self.api.stream_generate(self.model, self.processor, talk, max_tokens=1, prompt_cache=cache)
            next(stream)
            seconds = time.perf_counter() - begun
            stream.close()
            cache.flush()
            return seconds

    def questions(self, words: str, images: list[Any], rows: int, new: int) -> int:
        asked = [text_message(f"{words} {row}", images) for row in range(rows)]
        response = self.api.batch_generate(
            self.model, self.processor, images=images * rows, prompts=asked, max_tokens=new
        )
        return response.stats.generation_tokens

    def gap(self, words: str, images: list[Any], new: int) -> tuple[float, float]:
        """The longest wait of a row of text while a long prompt and one with pictures come; the median one before."""
        times, waiting = [], set()

        def request(content: list[dict[str, Any]], new: int) -> Any:
            return self.api.Request(content, sampling=self.api.SamplingParams(max_tokens=new))

        with self.api.TokenIterator(self.model, self.processor) as iterator:
            live = iterator.add(request(messages(text(3), []), new))
            for id, result in iterator:
                if result.error:
                    raise result.error
                if id != live:
                    waiting.discard(id)
                    continue
                times.append(time.perf_counter())
                if len(times) == 16:
                    others = messages(words, []), messages(text(3), images)
                    waiting = {iterator.add(request(content, 1)) for content in others}
                elif len(times) > 16 and not waiting:
                    break
        if waiting:
            raise RuntimeError(f"the row ended after {len(times)} tokens, before the others had begun")
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        return max(gaps[15:]), statistics.median(gaps[:15])

    def rows(self, words: str, images: list[Any]) -> dict[str, Any]:
        """What a prompt takes: its tokens, and the patches of each picture or tile."""
        prompt = self.processor.prepare(messages(words, images))
        patch = self.model.config["vision_config"]["patch_size"]
        patches: list[int] = []
        for media in prompt.media:
            if media.pixels.ndim == 4:
                tiles, _, height, width = media.pixels.shape
                patches += [height // patch * (width // patch)] * tiles
            else:
                patches.append(math.prod(media.grid))
        return {"tokens": len(prompt.tokens), "patches": patches}

    def rates(self, dtype: str) -> dict[str, float]:
        """Bytes and operations a second, the best of some runs."""
        mx = self.mx
        size, large = (1024, 8192) if self.device() == "cpu" else (4096, 16384)
        square = mx.random.normal((size, size)).astype(getattr(mx, dtype))  # of equal numbers a GPU is faster
        matrix, vector = mx.ones((large, large), square.dtype), mx.ones((large, 1), square.dtype)
        mx.eval(square, matrix, vector)

        def best(compute: Callable[[], Any]) -> float:
            mx.eval(compute())
            seconds: list[float] = []
            while len(seconds) < 2 or sum(seconds) < 1:
                begun = time.perf_counter()
                mx.eval(compute())
                seconds.append(time.perf_counter() - begun)
            return min(seconds)

        products = [lambda: matrix @ vector]
        if self.device() == "cpu":  # where MLX's product with a vector brings the matrix into another order first
            on_host = np.array(matrix.astype(mx.float32)), np.ones(large, np.float32)
            products.append(lambda: mx.array(on_host[1] @ on_host[0]))
        read = max(2 * matrix.nbytes / best(lambda: matrix + 1), *(matrix.nbytes / best(each) for each in products))
        return {"bandwidth": read, "flops": 2 * size**3 / best(lambda: square @ square)}


def text_message(words: str, images: list[Any]) -> list[dict[str, Any]]:
    """A message with a place for a picture that is given beside it."""
    return [{"role": "user", "content": [{"type": "image"}] * bool(images) + [{"type": "text", "text": words}]}]


class MlxVlm(Mlx):
    """`stream_generate` for one prompt, `batch_generate` for many."""

    def __init__(self) -> None:
        # MLX's wheel for Linux has a slow BLAS; the one that ours preloads is loaded here in the same way.
        if (blas := os.environ.get("MLX_VLGEN_BLAS", "off")) != "off":
            ctypes.CDLL(blas, mode=ctypes.RTLD_GLOBAL)
        import mlx.core as mx
        import mlx_vlm
        from mlx_vlm.prompt_utils import apply_chat_template

        self.api, self.mx, self.apply_chat_template = mlx_vlm, mx, apply_chat_template

    def stream(self, words: str, images: list[Any], new: int) -> Iterator[Drawn]:
        prompt = self.apply_chat_template(self.processor, self.model.config, words, num_images=len(images))
        drawn = 0
        for result in self.api.stream_generate(
            self.model, self.processor, prompt, image=images or None, max_tokens=new, temperature=0.0
        ):
            self.prompt_tokens = result.prompt_tokens
            if result.token is not None and result.generation_tokens > drawn:  # the last result repeats a token
                drawn = result.generation_tokens
                yield time.perf_counter(), int(result.token)

    def batch(self, words: str, images: list[Any], rows: int, new: int, together: int, grouped: bool) -> int:
        tokens = 0
        for begin in range(0, rows, together):
            count = min(together, rows - begin)
            response = self.api.batch_generate(
                self.model, self.processor, images=images[begin : begin + count] or None, prompts=[words] * count,
                max_tokens=new, group_by_shape=grouped,
            )  # fmt: skip
            tokens += response.stats.generation_tokens
        return tokens

    def turn(self, words: str, images: list[Any], new: int, later: int, resumed: bool) -> float:
        """As its chat asks."""
        if later or resumed:
            raise NotImplementedError("its chat has one picture, and nothing on disk")
        from mlx_vlm.vision_cache import VisionFeatureCache

        kept = {"vision_cache": VisionFeatureCache(), "prompt_cache_state": self.api.PromptCacheState()}
        talk: list[dict[str, Any]] = []
        for question in (words, AGAIN):
            talk.append({"role": "user", "content": [{"type": "text", "text": question}]})
            begun, answer = time.perf_counter(), ""
            prompt = self.apply_chat_template(self.processor, self.model.config, talk, num_images=len(images))
            for result in self.api.stream_generate(
                self.model, self.processor, prompt, image=images, max_tokens=new, temperature=0.0, **kept
            ):
                if not answer:
                    seconds = time.perf_counter() - begun
                answer += result.text or " "
            talk.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return seconds

    def questions(self, words: str, images: list[Any], rows: int, new: int) -> int:
        asked = [f"{words} {row}" for row in range(rows)]
        response = self.api.batch_generate(
            self.model, self.processor, images=images * rows, prompts=asked, max_tokens=new
        )
        return response.stats.generation_tokens

    def gap(self, words: str, images: list[Any], new: int) -> tuple[float, float]:
        raise NotImplementedError("neither `stream_generate` nor `batch_generate` takes a prompt while it runs")


class Transformers:
    """`model.generate`, with a streamer for one prompt and a left-padded batch for many."""

    def __init__(self) -> None:
        import torch
        import transformers
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.torch, self.api, self.classes = torch, transformers, (AutoModelForImageTextToText, AutoProcessor)

    def load(self, checkpoint: str) -> None:
        model, processor = self.classes
        self.model = model.from_pretrained(checkpoint, dtype="auto", attn_implementation="sdpa").to(self._place())
        try:
            self.processor = processor.from_pretrained(checkpoint)
        except ImportError as error:
            if "torchvision" not in str(error).lower():
                raise
            self.processor = self._without_video(checkpoint)
        self.processor.tokenizer.padding_side = "left"

    def _place(self) -> str:
        if self.torch.cuda.is_available():
            return "cuda"
        return "mps" if self.torch.backends.mps.is_available() else "cpu"

    def _without_video(self, checkpoint: str) -> Any:
        """Without torchvision there are no video processors: the family's processor, whose pictures Pillow resizes."""
        settings = json.loads(Path(checkpoint, "preprocessor_config.json").read_text(encoding="utf-8"))
        family = getattr(self.api, settings["processor_class"])
        name = type(self).__name__
        lenient = type(name, (family,), {"check_argument_for_proper_class": lambda self, name, argument: None})
        tokenizer = self.api.AutoTokenizer.from_pretrained(checkpoint)
        template = tokenizer.chat_template
        if not template:
            file = Path(checkpoint, "chat_template.json")
            template = json.loads(file.read_text(encoding="utf-8"))["chat_template"]
        images = self.api.AutoImageProcessor.from_pretrained(checkpoint)
        return lenient(image_processor=images, tokenizer=tokenizer, video_processor=None, chat_template=template)

    def _inputs(self, conversations: list[Any]) -> Any:
        inputs = self.processor.apply_chat_template(
            conversations, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt",
            processor_kwargs={"padding": True},
        )  # fmt: skip
        self.prompt_tokens = inputs["input_ids"].shape[1]
        return inputs.to(self.model.device)

    def stream(self, words: str, images: list[Any], new: int) -> Iterator[Drawn]:
        came: list[tuple[float, list[int]]] = []

        class Streamer:
            """`generate` hands it the prompt first, then each token."""

            def put(self, tokens: Any) -> None:
                came.append((time.perf_counter(), tokens.flatten().tolist()))

            def end(self) -> None:
                pass

        inputs = self._inputs([messages(words, images)])
        self.model.generate(**inputs, max_new_tokens=new, do_sample=False, streamer=Streamer())
        yield from ((when, token) for when, [token] in came[1:])

    def batch(self, words: str, images: list[Any], rows: int, new: int, together: int, grouped: bool) -> int:
        if not grouped:
            raise NotImplementedError("groups nothing")
        tokens = 0
        for begin in range(0, rows, together):
            count = min(together, rows - begin)
            pictures = [[image] for image in images[begin : begin + count]] or [[]] * count
            inputs = self._inputs([messages(words, one) for one in pictures])
            out = self.model.generate(**inputs, max_new_tokens=new, do_sample=False)
            tokens += count * (out.shape[1] - inputs["input_ids"].shape[1])
        return tokens

    def turn(self, words: str, images: list[Any], new: int, later: int, resumed: bool) -> float:
        raise NotImplementedError("the caller keeps what is reused")

    def questions(self, words: str, images: list[Any], rows: int, new: int) -> int:
        inputs = self._inputs([messages(f"{words} {row}", images) for row in range(rows)])
        out = self.model.generate(**inputs, max_new_tokens=new, do_sample=False)
        return rows * (out.shape[1] - inputs["input_ids"].shape[1])

    def gap(self, words: str, images: list[Any], new: int) -> tuple[float, float]:
        raise NotImplementedError("`model.generate` takes no prompt while it runs")

    def device(self) -> str:
        return "cpu" if self._place() == "cpu" else "gpu"

    def device_name(self) -> str | None:
        return self.torch.cuda.get_device_name() if self.torch.cuda.is_available() else None

    def weights(self) -> int:
        return sum(value.nbytes for value in self.model.parameters())

    def reset_peak(self) -> None:
        if self.torch.cuda.is_available():
            self.torch.cuda.empty_cache()
            self.torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int | None:
        return self.torch.cuda.max_memory_allocated() if self.torch.cuda.is_available() else None


ENGINES: dict[str, Any] = {"ours": Ours, "mlx-vlm": MlxVlm, "transformers": Transformers}


def start_resident_peak() -> None:
    with contextlib.suppress(OSError):  # where the system has no such file, none is read below
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew (proc(5))


def resident_peak() -> int | None:
    """The most bytes that the process has had in memory; None where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


def versions() -> dict[str, str]:
    out = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            out[package] = importlib.metadata.version(package)
    return out


def run(engine: Any, workload: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The answer to a workload: seconds, and the tokens that came in them."""
    images, words, new = pictures(workload, folder), text(workload["words"]), workload["new"]
    begun = time.perf_counter()
    if workload["kind"] == "batch":
        tokens = engine.batch(words, images, workload["rows"], new, workload["together"], workload["grouped"])
        return {"seconds": time.perf_counter() - begun, "tokens": tokens}
    if workload["kind"] == "questions":
        tokens = engine.questions(words, images, workload["rows"], new)
        return {"seconds": time.perf_counter() - begun, "tokens": tokens}
    if workload["kind"] == "turn":
        return {"seconds": engine.turn(words, images, new, workload["later"], workload["resumed"]), "tokens": 1}
    if workload["kind"] == "gap":
        longest, median = engine.gap(words, images, new)
        return {"seconds": longest, "tokens": 1, "median": median}
    times, drawn = zip(*engine.stream(words, images, new), strict=True)
    first, after = times[0] - begun, times[-1] - times[0]
    seconds, tokens = (after, len(drawn) - 1) if workload["kind"] == "decode" else (first, len(drawn))
    return {"seconds": seconds, "tokens": tokens, "drawn": drawn, "prompt_tokens": engine.prompt_tokens}


def with_memory(engine: Any, weights: int, answer: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The answer, and the peaks above the weights meanwhile; of a GPU's weights none are resident. Caches of freed
    memory are emptied before."""
    gc.collect()
    engine.reset_peak()
    start_resident_peak()
    result = answer()
    peak, resident = engine.peak(), resident_peak()
    if resident is not None and engine.device() == "cpu":
        resident -= weights
    return result | {"peak": None if peak is None else peak - weights, "resident": resident}


def main(name: str, checkpoint: str, folder: Path) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(**answer: Any) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    engine = ENGINES[name]()
    say(versions=versions())
    if checkpoint == "-":
        return
    begun = time.perf_counter()
    engine.load(checkpoint)
    weights = engine.weights()
    say(
        load_seconds=time.perf_counter() - begun, weights=weights, device=engine.device(),
        device_name=engine.device_name(),
    )  # fmt: skip
    for line in sys.stdin:
        try:
            say(**reply(engine, weights, json.loads(line), folder))
        except NotImplementedError as error:
            say(error=str(error))
        except Exception as error:
            say(error=f"{type(error).__name__}: {' '.join(str(error).split())}"[:300])


def reply(engine: Any, weights: int, question: dict[str, Any], folder: Path) -> dict[str, Any]:
    """do: "rates", "rest" (free what is kept for the next call), or with a workload "rows" or "run"."""
    workload = question.get("workload", {})
    match question["do"]:
        case "rates":
            return engine.rates(question["dtype"])
        case "rest":
            engine.reset_peak()
            return {}
        case "rows":
            return engine.rows(text(workload["words"]), pictures(workload, folder))
    if question["memory"]:
        return with_memory(engine, weights, lambda: run(engine, workload, folder))
    return run(engine, workload, folder)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
