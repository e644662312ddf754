"""What a quantized or bounded KV cache costs in answers, on the built-in model.

    python benchmarks/kv_loss.py [--count 40]

For each setting, against the whole cache: the Kullback-Leibler divergence of the next token's distribution (mean and
99th percentile over all positions of the answers, in nats, both caches fed with the whole cache's answer), and how many
texts stay the same. "short" are the built-in model's tasks; "long" puts a dozen other questions with their answers
about the same picture before the question.
"""

import argparse

import numpy as np

from mlx_vlgen import generate, load
from mlx_vlgen._runtime import mx
from mlx_vlgen.demo.tasks import sample
from mlx_vlgen.engine.cache import make_cache
from mlx_vlgen.engine.kv_settings import KVSettings
from mlx_vlgen.inputs.prompt import MediaInputs
from mlx_vlgen.models.base import Embedded

SETTINGS = {
    **{f"kv_bits={bits}": KVSettings(bits=bits) for bits in (8, 6, 4, 3, 2)},
    "kv_bits=4, kv_group_size=32": KVSettings(bits=4, group_size=32),
    "kv_bits=4, quantized_kv_start=64": KVSettings(bits=4, start=64),
    "kv_bits=2, quantized_kv_start=64": KVSettings(bits=2, start=64),
    "max_kv_size=256": KVSettings(max_size=256),
    "max_kv_size=64": KVSettings(max_size=64),
}
KEYWORDS = {"bits": "kv_bits", "group_size": "kv_group_size", "start": "quantized_kv_start", "max_size": "max_kv_size"}
TASKS = ("describe", "count", "read")


def conversation(task: str, seed: int, turns: int) -> tuple[list[dict], list]:
    """Messages about one picture: `turns` questions that are answered, and one that is not."""
    example = sample(task, seed)
    others = [sample(TASKS[i % len(TASKS)], 1000 * seed + i) for i in range(turns)]
    messages: list[dict] = []
    for other in others:
        messages += [{"role": "user", "content": other.question}, {"role": "assistant", "content": other.answer}]
    image_part = {"type": "image"}
    messages.append({"role": "user", "content": [image_part, {"type": "text", "text": example.question}]})
    return messages, list(example.images)


def log_probabilities(model, prompt, features, tokens: list[int], settings: KVSettings) -> np.ndarray:
    """(n, V): the distribution that each of `tokens` is drawn from."""
    inputs, cache = model.embed(prompt, features), make_cache(model.cache_layout(), settings)
    scores = [model(inputs, cache, at=mx.array([len(inputs) - 1]))[0]]
    for token in tokens[:-1]:
        scores.append(model(Embedded(mx.array([[token]]), delta=inputs.delta), cache)[0, 0])
    stacked = mx.stack(scores).astype(mx.float32)
    return np.array(stacked - mx.logsumexp(stacked, axis=-1, keepdims=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40, help="questions of each length")
    args = parser.parse_args()
    model, processor = load("demo")
    print("| setting | prompt | KL, mean | KL, 99% | same text |\n|---|---|---:|---:|---:|")
    for length, turns in (("short", 0), ("long", 12)):
        cases = []
        for seed in range(args.count):
            messages, images = conversation(TASKS[seed % len(TASKS)], seed, turns)
            prompt = processor.prepare(messages, MediaInputs(images=images))
            features = [model.encode([media])[0] for media in prompt.media]
            whole = generate(model, processor, messages, image=images, max_tokens=64)
            cases.append((messages, images, prompt, features, whole))
        tokens = int(np.mean([len(prompt.tokens) for _, _, prompt, _, _ in cases]))
        full = [log_probabilities(model, p, f, w.tokens, KVSettings()) for _, _, p, f, w in cases]
        for name, settings in SETTINGS.items():
            keywords = {KEYWORDS[key]: value for key, value in vars(settings).items()}
            divergence, same = [], 0
            for (messages, images, prompt, features, whole), p in zip(cases, full, strict=True):
                q = log_probabilities(model, prompt, features, whole.tokens, settings)
                divergence.append((np.exp(p) * (p - q)).sum(axis=-1))
                text = generate(model, processor, messages, image=images, max_tokens=64, **keywords).text
                same += text == whole.text
            kl = np.concatenate(divergence)
            print(
                f"| {name} | {length}, {tokens} tokens | {kl.mean():.1e} | {np.quantile(kl, 0.99):.1e} "
                f"| {same / args.count:.0%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
