"""Answers of the built-in model, by schemas drawn at random: every whole one is valid. `-m slow` draws two hundred."""

import json
import random

import pytest
from json_schemas import draw_schema
from jsonschema import Draft202012Validator

from mlx_vlgen import batch_generate, load

SEED, ENOUGH = 7, 0.75


@pytest.mark.parametrize("count", [16, pytest.param(200, marks=pytest.mark.slow)])
def test_answers_are_valid_by_the_schemas_they_were_asked_for(count: int) -> None:
    draw = random.Random(SEED)
    schemas = [draw_schema(draw) for _ in range(count)]
    for schema in schemas:
        Draft202012Validator.check_schema(schema)
    results = batch_generate(
        *load("demo"),
        prompts=[f"Describe thing {index}." for index in range(count)],
        max_tokens=200,
        json_schema=schemas,
        temperature=[draw.choice([0.0, 1.0]) for _ in schemas],
        seed=3,
        max_batch_size=64,
    ).results
    assert {result.finish_reason for result in results} <= {"stop", "length"}
    whole = [
        (schema, result.text) for schema, result in zip(schemas, results, strict=True) if result.finish_reason == "stop"
    ]
    for schema, text in whole:
        Draft202012Validator(schema).validate(json.loads(text))
    assert len(whole) >= ENOUGH * count
