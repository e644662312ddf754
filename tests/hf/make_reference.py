"""Make the references of `model.generate` anew, with transformers.

    cd tests && python -m hf.make_reference [FAMILY ...]

What to install says parity/make_reference.py, whose checkpoints, prompts and pictures these cases use. A case is used
only where it is a clear test: no token that was chosen, and no beam that went on, is nearly as good as one that was
not; otherwise another question takes the place of its prompt's.
"""

import json
import sys
import tempfile
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parity import media
from parity.demo import DEMO, MODEL
from parity.layouts import family_tensors, write_checkpoint
from parity.make_reference import Unsuitable, load_model, load_processor, model_inputs, prompt_text, transformers
from parity.recipes import recipes
from parity.weights import fingerprint

from . import digest
from .plans import QUESTIONS, Kind, Pictures, Plan, Start, plans, rows

FAMILIES = ("qwen3_vl", "gemma3", "llava", "demo")
MARGIN = 1e-3
ORDER_MARGIN = 1e-4
"""Between beams that both go on: their order decides the numbers in beam_indices only."""
Tensors = dict[str, torch.Tensor]


@dataclass(eq=False)
class Family:
    """A checkpoint and its inputs."""

    name: str
    folder: Path
    used: dict[str, Any] = field(default_factory=dict)  # the record of every input that a case uses

    @cached_property
    def model(self) -> Any:
        return load_model(self.folder)

    @cached_property
    def recipe(self) -> Any:
        return DEMO if self.name == "demo" else recipes()[self.name]

    @cached_property
    def processor(self) -> Any:
        processor = load_processor(self.recipe)
        processor.tokenizer.padding_side = "left"
        return processor

    @property
    def pictures(self) -> Pictures:
        return Pictures("shapes.png", "hello.png", ("plain", "shapes.png")) if self.name == "demo" else Pictures()

    def ends(self, keywords: dict[str, Any]) -> list[int]:
        """The end tokens of a call."""
        ends = keywords.get("eos_token_id", self.model.generation_config.eos_token_id)
        return ends if isinstance(ends, list) else [ends]

    def pad(self, keywords: dict[str, Any]) -> int:
        """What follows a row's end."""
        return keywords.get("pad_token_id", self.model.generation_config.pad_token_id)

    @cache  # noqa: B019  it lives as long as the family
    def inputs(self, kind: Kind, variant: int) -> Tensors:
        """What a model takes, padded on the left."""
        if kind == "none":
            return {}
        if kind == "one":
            return {
                "input_ids": torch.tensor(
                    [[self.processor.tokenizer.bos_token_id or self.processor.tokenizer.pad_token_id]]
                )
            }
        return model_inputs(self.recipe, self.processor, rows(kind, variant, self.pictures))

    def record(self, kind: Kind, variant: int) -> str:
        """The name of an input, once it is among those used."""
        name = f"{kind}{variant}"
        tensors, cases = self.inputs(kind, variant), rows(kind, variant, self.pictures)
        ids = tensors["input_ids"] if tensors else torch.zeros(0, 0)
        mask = tensors.get("attention_mask", torch.ones_like(ids)).bool()
        self.used[name] = {
            "prompts": [[prompt_text(self.processor, case), list(case.images)] for case in cases],
            "ids": [row[row_mask].tolist() for row, row_mask in zip(ids, mask, strict=True)],
        }
        return name

    @cache  # noqa: B019
    def start(self, kind: Kind, variant: int) -> Start:
        """Greedy answers, and where beams may end."""
        inputs = self.inputs(kind, variant)
        width = inputs["input_ids"].shape[1] if inputs else 1
        plain = {"min_new_tokens": 12, "max_new_tokens": 12}
        greedy = self.model.generate(**inputs, **plain)[:, width:].tolist()
        beams = self.model.generate(**inputs, num_beams=4, num_return_sequences=4, min_new_tokens=7, max_new_tokens=7)
        ends = {beams[1, width + 2].item(), beams[0, width + 4].item()}
        eos = self.model.generation_config.eos_token_id
        return Start(
            tokens=greedy,
            word=inputs["input_ids"][0, -2:][0].item() if inputs else 0,
            width=width,
            eos=eos[0] if isinstance(eos, list) else eos,
            beams=sorted(ends),
            decode=self.processor.tokenizer.decode,
        )


# Margins


def gaps(values: torch.Tensor, count: int) -> torch.Tensor:
    """Differences (…, count) between the neighbours among the `count` + 1 best of the last axis."""
    best = values.double().sort(dim=-1, descending=True).values[..., : count + 1]
    return best[..., :-1] - best[..., 1:]


@contextmanager
def clear_beams(model: Any, beams: int) -> Iterator[None]:
    """Raise Unsuitable where the beam search inside decides by too little. Beams that have ended are not looked at."""
    live = [True]  # of each row of the batch

    def check(gap: torch.Tensor, margin: float, what: str) -> None:
        if gap.numel() and gap.min() < margin:
            raise Unsuitable(f"{what} {gap.min():.1e}")

    def running(self: Any, **arguments: Any) -> Any:
        values, ended = arguments["topk_log_probs"], arguments["next_token_hits_stopping_criteria"]
        for row, over, is_live in zip(values, ended, _spread(live, values), strict=True):
            if not is_live:
                continue
            if over[:beams].any():
                check(row[beams - 1] - row[beams], MARGIN, "the last beam that may end wins by")
            if not over.all():
                check(gaps(row[~over], beams)[beams - 1 :], MARGIN, "the last beam wins by")
                check(gaps(row[~over], beams - 1), ORDER_MARGIN, "beams lie apart by")
        return type(self)._get_running_beams_for_next_iteration(self, **arguments)

    def finished(self: Any, **arguments: Any) -> Any:
        scale = (arguments["cur_len"] + 1 - arguments["decoder_prompt_len"]) ** arguments["length_penalty"]
        ended = arguments["next_token_hits_stopping_criteria"] & arguments["top_num_beam_mask"][None]
        values, before = arguments["topk_log_probs"] / scale, arguments["beam_scores"]
        for row, over, old, is_live in zip(values, ended, before, _spread(live, values), strict=True):
            if is_live and over.any():
                merged = torch.cat([old[old > -1e8], row[over]])
                check(gaps(merged, beams), MARGIN / scale, "an ended beam wins by")
        return type(self)._update_finished_beams(self, **arguments)

    def heuristic(self: Any, **arguments: Any) -> Any:
        whole = arguments["early_stopping"] == "never" and arguments["length_penalty"] > 0
        length = (arguments["max_length"] if whole else arguments["cur_len"]) - arguments["decoder_prompt_len"]
        scale = length ** arguments["length_penalty"]
        best, worst = arguments["running_beam_scores"][:, 0] / scale, arguments["beam_scores"].min(dim=1).values
        complete = arguments["is_sent_finished"].all(dim=1)
        for high, low, full, is_live in zip(best, worst, complete, _spread(live, best), strict=True):
            if is_live and full:
                check((high - low).abs(), MARGIN / scale, "the search ends by")
        goes_on = type(self)._check_early_stop_heuristic(**arguments)
        live[:] = goes_on[:, 0].tolist()
        return goes_on

    patched = {
        "_get_running_beams_for_next_iteration": running,
        "_update_finished_beams": finished,
        "_check_early_stop_heuristic": heuristic,
    }
    for name, function in patched.items():
        setattr(model, name, types.MethodType(function, model))
    try:
        yield
    finally:
        for name in patched:
            delattr(model, name)


def _spread(live: list[bool], rows: torch.Tensor) -> list[bool]:
    return live if len(live) == len(rows) else live * len(rows)


def clear_steps(output: Any, new: torch.Tensor, ends: Sequence[int]) -> None:
    """Raise Unsuitable where a greedy token was chosen by too little; tokens after an end are padding."""
    over = torch.zeros(len(new), dtype=torch.bool)
    for step, scores in enumerate(output.scores):
        gap = gaps(scores, 1)[~over]
        if gap.numel() and gap.min() < MARGIN:
            raise Unsuitable(f"a token wins by {gap.min():.1e}")
        over |= torch.isin(new[:, step], torch.tensor(ends))


# Guidance


def guided(family: Family, plan: Plan, variant: int, keywords: dict[str, Any]) -> tuple[Any, Any]:
    """(tokens, scores) of each row by the definition: two whole forwards a token, every row alone, nothing cached.

    transformers' loop needs `use_cache=True`, and with Qwen's it fails: what these remember of a picture's
    positions (`rope_deltas`) meets the negative prompt.
    """
    scale, ends = keywords["guidance_scale"], family.ends(keywords)
    tokens, scores = list[Any](), list[Any]()
    against = rows(plan.negative, variant + 1, family.pictures) if plan.negative else []
    for row, case in enumerate(rows(plan.kind, variant, family.pictures)):
        prompt = model_inputs(family.recipe, family.processor, [case])
        negative_prompt = {"input_ids": prompt["input_ids"][:, -1:]}
        if against:
            negative_prompt = model_inputs(family.recipe, family.processor, [against[row]])
        answer, steps, over = list[int](), list[torch.Tensor](), False
        for _ in range(keywords["max_new_tokens"]):
            positive = next_log_probabilities(family.model, prompt, answer)
            negative = next_log_probabilities(family.model, negative_prompt, answer)
            steps.append(scale * (positive - negative) + negative)
            if not over and gaps(steps[-1], 1).min() < MARGIN:
                raise Unsuitable("a token wins by too little")
            answer.append(family.pad(keywords) if over else int(steps[-1].argmax()))
            over = over or answer[-1] in ends
        tokens.append(answer)
        scores.append(torch.stack(steps))
    longest = max(digest.lengths(tokens, ends))
    return torch.tensor(tokens)[:, :longest], torch.stack(scores, dim=1)[:longest]


def negative_prompts(family: Family, plan: Plan, variant: int) -> dict[str, Any]:
    """As transformers takes them."""
    if not plan.negative:
        return {"use_cache": True}
    inputs = family.inputs(plan.negative, variant + 1)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    return {"negative_prompt_ids": ids, "negative_prompt_attention_mask": mask, "use_cache": True}


def next_log_probabilities(model: Any, inputs: Tensors, answer: list[int]) -> torch.Tensor:
    """(V,) after an unpadded prompt and the tokens of an answer."""
    if hasattr(model.model, "rope_deltas"):
        model.model.rope_deltas = None
    ids = torch.cat([inputs["input_ids"], torch.tensor([answer], dtype=torch.long)], dim=1)
    more = {
        name: torch.nn.functional.pad(inputs[name], (0, len(answer)))
        for name in ("token_type_ids", "mm_token_type_ids")
        if name in inputs
    }
    whole = inputs | more | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return torch.log_softmax(model(**whole).logits[0, -1].float(), dim=-1)


# Cases


def run(family: Family, plan: Plan, variant: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The record of a case, for cases.json, and its arrays."""
    start, inputs = family.start(plan.kind, variant), family.inputs(plan.kind, variant)
    keywords = plan.keywords(start)
    if "" in keywords.get("stop_strings", ()):
        raise Unsuitable("no plain text to stop at")
    record: dict[str, Any] = {"inputs": family.record(plan.kind, variant), "keywords": keywords}
    if plan.negative:
        record["negative"] = family.record(plan.negative, variant + 1)
    if plan.assistant:
        record["assistant"] = plan.assistant
    if "guidance_scale" in keywords:
        new, scores = guided(family, plan, variant, keywords)
        output = transformers.generation.GenerateDecoderOnlyOutput(sequences=new, scores=tuple(scores))
        if not hasattr(family.model.model, "rope_deltas"):
            by_loop = generate(family, plan, inputs, keywords | negative_prompts(family, plan, variant))
            same = by_loop.sequences[:, start.width :].tolist() == new.tolist()
            if not same:
                print(f"{family.name} {plan.name}: transformers' loop answers otherwise")
    else:
        output = generate(family, plan, inputs, keywords)
        new = output.sequences[:, start.width :]
        if keywords.get("num_beams", 1) == 1 and not keywords.get("do_sample"):
            clear_steps(output, new, family.ends(keywords))
    if plan.differs and new[0].tolist() == list(start.tokens[0][: new.shape[1]]):
        raise Unsuitable("nothing has changed")
    if not keywords.get("do_sample"):
        record["new"] = new.tolist()
    if "num_beams" in keywords:
        record["sequences_scores"] = rounded(output.sequences_scores)
        record["beam_indices"] = output.beam_indices.tolist()
    arrays = stored(family, plan, keywords, inputs, output, new, record)
    if plan.by_row:
        lengths = digest.lengths(new.tolist(), family.ends(keywords))
        arrays["scores"] = digest.scores(rows_alone(family, plan, variant, keywords, new), lengths)
    return record, arrays


def generate(family: Family, plan: Plan, inputs: Tensors, keywords: dict[str, Any]) -> Any:
    """What transformers answers, with all that it can tell."""
    arguments = {name: value for name, value in keywords.items() if name != "seed"}
    if plan.kind != "text":  # look-up takes one row there, and breaks on placeholders; it changes no answer
        arguments = {
            name: value for name, value in arguments.items() if "lookup" not in name and "matching" not in name
        }
    # One that reads only text fails on what Qwen's get besides; it changes no answer.
    if plan.assistant and not hasattr(family.model.model, "rope_deltas"):
        arguments["assistant_model"] = assistant(plan.assistant)
    if "stop_strings" in keywords:
        arguments["tokenizer"] = family.processor.tokenizer
    outputs = {name: True for name in ("output_hidden_states", "output_attentions") if name[7:] in plan.stores}
    with clear_beams(family.model, keywords.get("num_beams", 1)):
        torch.manual_seed(0)
        return family.model.generate(
            **inputs, **arguments, **outputs, return_dict_in_generate=True, output_scores=True, output_logits=True
        )


@cache
def assistant(name: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return load_model(write_checkpoint(name, "v5", Path(folder)))


def stored(
    family: Family, plan: Plan, keywords: dict[str, Any], inputs: Tensors, output: Any, new: torch.Tensor, record: Any
) -> dict[str, np.ndarray]:
    """The arrays of the plan; digest.py says what is stored of each."""
    arrays: dict[str, np.ndarray] = {}
    lengths = digest.lengths(new.tolist(), family.ends(keywords)) if "num_beams" not in keywords else None
    mask = inputs["attention_mask"].numpy() if plan.stores and inputs and plan.kind != "one" else np.ones((1, 1))
    for name in ("scores", "logits"):
        if name in plan.stores:
            record["steps"] = len(output.scores)
            arrays[name] = digest.scores([step.numpy() for step in getattr(output, name)], lengths)
    for name, function in (("hidden_states", digest.hidden_states), ("attentions", digest.attentions)):
        if name in plan.stores:
            steps = [[layer.numpy() for layer in step] for step in getattr(output, name)]
            record[f"{name}_shapes"] = [[list(layer.shape) for layer in step] for step in steps]
            arrays[name] = function(steps, mask)
    if "transition_scores" in plan.stores:
        beams = {"beam_indices": output.beam_indices} if "num_beams" in keywords else {"normalize_logits": True}
        record["transition_scores"] = rounded(
            family.model.compute_transition_scores(output.sequences, output.scores, **beams)
        )
    if "probabilities" in plan.stores:
        arrays["probabilities"] = torch.softmax(output.scores[0].double(), dim=-1).float().numpy()
    return arrays


def rows_alone(
    family: Family, plan: Plan, variant: int, keywords: dict[str, Any], new: torch.Tensor
) -> list[np.ndarray]:
    """The first steps' scores (rows, V) of a batch whose rows run alone, and so without padding."""
    scores = []
    for row, case in enumerate(rows(plan.kind, variant, family.pictures)):
        output = generate(family, plan, model_inputs(family.recipe, family.processor, [case]), keywords)
        answer = output.sequences[0, -len(output.scores) :].tolist()
        if answer != new[row, : len(answer)].tolist():
            raise Unsuitable("the padding decides")
        steps = [output.scores[min(step, len(output.scores) - 1)][0].numpy() for step in range(digest.STORED_STEPS)]
        scores.append(np.stack(steps))
    return list(np.stack(scores, axis=1))


def rounded(values: torch.Tensor) -> Any:
    return np.round(values.double().numpy(), 7).tolist()


def settle(family: Family, plan: Plan) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """With the first question that makes the case a clear test."""
    reasons = []
    for variant in range(len(QUESTIONS) if plan.kind not in ("one", "none") else 1):
        try:
            return run(family, plan, variant)
        except Unsuitable as reason:
            reasons.append(str(reason))
    raise RuntimeError(f"{family.name} {plan.name}: no question is suitable: {reasons}")


def make(name: str, only: str = "") -> None:
    """Write reference/<name>/: cases.json and arrays.npz."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = MODEL if name == "demo" else write_checkpoint(name, "v5", Path(temporary))
        family = Family(name, folder)
        mark = media.file_hash(MODEL / "model.safetensors") if name == "demo" else fingerprint(family_tensors(name))
        cases, arrays = dict[str, Any](), dict[str, np.ndarray]()
        for plan in plans(name):
            if only in plan.name:
                cases[plan.name], case_arrays = settle(family, plan)
                arrays |= {f"{plan.name}.{key}": value for key, value in case_arrays.items()}
    target = digest.REFERENCE / name
    target.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(target / "arrays.npz", allow_pickle=False, **arrays)
    head = {"fingerprint": mark, "transformers": transformers.__version__}
    parts = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    for key, records in (("inputs", family.used), ("cases", cases)):
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in records.items())
        parts.append(f'"{key}": {{\n{lines}\n}}')
    (target / "cases.json").write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
    print(f"{name}: {len(cases)} cases")


def main(names: list[str]) -> None:
    """Make the families of `names`, or all."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in names or FAMILIES:
        make(*name.split(":"))


if __name__ == "__main__":
    main(sys.argv[1:])
