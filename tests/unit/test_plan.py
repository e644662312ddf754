"""`mlx_vlgen.plan`: machines as they are written, costs by shapes, ways beside each other; docs/scaling.md."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from test_hub import cache, write_cached  # noqa: F401

from mlx_vlgen import cli
from mlx_vlgen.demo import MODEL as DEMO
from mlx_vlgen.errors import UnsupportedError
from mlx_vlgen.loading.footprint import Footprint
from mlx_vlgen.plan.costs import Layer, costs_of, rank_costs
from mlx_vlgen.plan.estimate import MARGIN, SHARE, Load, Seconds, pipeline, step_seconds, tensor, whole
from mlx_vlgen.plan.machines import LINKS, parse
from mlx_vlgen.plan.picture import Picture
from mlx_vlgen.plan.planning import make_plan, what_would_fit
from mlx_vlgen.plan.source import model_of

ROOT = Path(__file__).parents[2]
CONFIGS = json.loads((ROOT / "tests/published/configs.json").read_text(encoding="utf-8"))
TINY = {
    "model_type": "qwen3", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "head_dim": 16,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip
REMEDY = "make them with `python benchmarks/scaling.py --write`"


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/scaling.py."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import scaling

    return scaling


@pytest.mark.parametrize(
    ("text", "count", "chip", "gigabytes", "link"),
    [
        ("2x M3 Ultra 192GB, thunderbolt", 2, "M3 Ultra", 192, "thunderbolt 5"),
        ("4 x m1 max 64 gb", 4, "M1 Max", 64, "thunderbolt 4"),
        ("2x Apple M4-Max 128GB, RDMA", 2, "M4 Max", 128, "thunderbolt 5 rdma"),
        ("12× M4 Max 32-core 36GB, 10 GbE", 12, "M4 Max 32-core", 36, "10gbe"),
        ("H100", 1, "H100", 80, "nvlink"),
        ("8x A100 40GB, infiniband", 8, "A100 40GB", 40, "infiniband"),
        ("2x box=819GB/s,28.5TFLOPS,144GB, 1gbe", 2, "box", 144, "1gbe"),
        ("box=819,28,144", 1, "box", 144, "10gbe"),
    ],
)
def test_machines_as_they_are_written(text: str, count: int, chip: str, gigabytes: int, link: str) -> None:
    machines = parse(text)
    assert (machines.count, machines.chip.name, machines.link.name) == (count, chip, link)
    assert machines.memory == gigabytes * 10**9
    assert 0.6 * machines.memory < machines.usable <= machines.memory


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "2x M3 Ultra 192GB, thunderbolt"),
        ("2x", "M3 Ultra"),
        ("two M3 Ultras, thunderbolt", "M3 Ultra"),
        ("2x M3 Ultra", "64GB"),
        ("2x M9 Ultra 64GB", "name=bandwidthGB/s,TFLOPS,memoryGB"),
        ("2x M3 Ultra 64GB, carrier pigeon", "infiniband"),
        ("2x box=819,28", "name=bandwidthGB/s,TFLOPS,memoryGB"),
        ("0x H100", "above zero"),
        ("2x box=0,28,144", "above zero"),
        ("2x H100, nvlink, nvlink", "2x M3 Ultra 192GB, thunderbolt"),
    ],
)
def test_what_is_not_understood_is_told_with_what_is(text: str, said: str) -> None:
    with pytest.raises(UnsupportedError, match="machines") as raised:
        parse(text)
    assert said in str(raised.value)


def test_a_model_costs_what_its_arrays_take() -> None:
    model = model_of(TINY)
    footprint, costs = Footprint.of(model), costs_of(model)
    assert costs.stored == footprint.weights
    assert costs.cache(100) == footprint.cache(100) == 4 * 2 * 2 * 16 * 100 * 2
    weights = 4 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    assert sum(layer.flops for layer in costs.layers) == 2 * weights
    assert sum(layer.pair_flops for layer in costs.layers) == 4 * 4 * 16 * 4
    assert (costs.head, costs.head_flops, costs.width, costs.vocabulary) == (256 * 64 * 2, 2 * 256 * 64, 64, 256)
    stages = list(costs.stages(2))
    assert sum(stage.stored for stage in stages) == costs.stored
    assert sum(stage.cache(100) for stage in stages) == costs.cache(100)


def test_ranks_have_what_the_cut_leaves_them(capsys: pytest.CaptureFixture[str]) -> None:
    whole = costs_of(model_of(TINY))
    two, four = (rank_costs(model_of(TINY), whole, 0, ranks) for ranks in (2, 4))
    other = rank_costs(model_of(TINY), whole, 1, 2)
    assert two.sums == four.sums == 8
    assert two.cache(100) == four.cache(100) == whole.cache(100) / 2, "two heads of keys and values for four ranks"
    assert sum(layer.flops for layer in two.layers) == sum(layer.flops for layer in whole.layers) / 2
    assert two.stored - other.stored == 256 * 64 * 2, "the embeddings are on rank 0"
    assert not capsys.readouterr().err
    three = rank_costs(model_of(TINY), whole, 0, 3)
    assert three.sums == 0 and three.cache(100) == whole.cache(100)
    assert "3 ranks do not divide it" in capsys.readouterr().err


def test_experts_are_read_as_they_are_chosen() -> None:
    layer = Layer(dense=100, experts=1280, chosen=8, of=128)
    assert layer.read(1) == pytest.approx(100 + 80)
    assert layer.read(8) == pytest.approx(100 + 1280 * (1 - (15 / 16) ** 8))
    assert layer.read(10_000) == pytest.approx(1380)
    assert Layer(flops=10, pair_flops=1, window=4).prompt_flops(100) == 100 * (10 + 4)


def test_a_token_takes_bytes_over_bandwidth_and_sums_over_the_link() -> None:
    machines, load = parse("2x box=1,1000,4, local"), Load(context=100, prompt=10, batch=4)
    costs = costs_of(model_of(TINY))
    alone = step_seconds(costs, machines.chip, 2, 100)
    read = costs.stored - 256 * 64 * 2 - 64 * 2 + 2 * costs.cache(100)  # no embeddings, no last norm
    assert alone.memory == pytest.approx(read / (1e9 * SHARE), rel=0.01)
    assert (alone.matmul, alone.link, alone.bound) == (0, 0, "memory")
    part = rank_costs(model_of(TINY), costs, 0, 2)
    cut, stages, both = (
        tensor(part, machines, load),
        pipeline(costs, machines, load),
        whole("data", costs, machines, load),
    )
    link = LINKS["local"]
    sums = 9 * link.sum_seconds(64 * 2, 2) + link.send_seconds(1024) + link.gather_seconds(256 * 2, 2)
    assert cut.row.link == pytest.approx(sums)
    assert cut.needed == part.stored + part.cache(100) + MARGIN < both.needed
    assert both.batch_rate == pytest.approx(4 / step_seconds(costs, machines.chip, 2, 100).total)
    assert stages.row.total > both.row.total > stages.row.total / 1.5
    assert (Seconds(memory=1, link=2) + Seconds(link=3) * 2).total == 9


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("Qwen3-VL-4B-Instruct", 1024), ("Qwen2.5-VL-7B-Instruct", 37 * 37), ("gemma-3-4b-it", 256),
        ("InternVL3-1B", 256), ("llava-1.5-7b-hf", 576), ("SmolVLM-256M-Instruct", 64),
        ("Llama-4-Scout-17B-16E-Instruct", 144), ("Mistral-Small-3.2-24B-Instruct-2506", 37 * 37), ("Kimi-K2.5", None),
    ],
)  # fmt: skip
def test_what_a_picture_becomes(name: str, tokens: int | None) -> None:
    picture = Picture.of(CONFIGS[name], 1024, 1024)
    assert (picture and picture.tokens) == tokens


def test_what_would_fit_is_said() -> None:
    wide = {"hidden_size": 4096, "intermediate_size": 65536, "num_attention_heads": 64, "num_key_value_heads": 8}

    def build(bits: int | None) -> Any:
        return model_of(TINY | wide, bits)

    size = 1024, 1024
    plan = make_plan(build, parse("M1 8GB"), Load(), None, size)
    assert [way.way for way in plan.ways] == ["alone"] and not plan.possible and plan.best_row is None
    assert list(what_would_fit(build, plan, None, size)) == [
        "2x M1 8GB, thunderbolt 4", "1x M1 16GB", "1x M1 8GB with its text layers at 8 bits (--quantize 8)",
    ]  # fmt: skip
    fitting = make_plan(build, parse("2x M1 8GB"), Load(), None, size)
    assert fitting.best_row is not None and fitting.best_row.way == "tensor"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["plan", *arguments])
    return (code, *capsys.readouterr())


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY), encoding="utf-8")
    code, out, err = run(capsys, str(tmp_path), "--machines", "2x M2 8GB, 1gbe", "--batch", "4", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert [way["way"] for way in found["ways"]] == ["alone", "tensor", "pipeline", "data"]
    assert found["best"] == {"row": "alone", "batch": "data"} and found["would_fit"] == []
    alone = found["ways"][0]
    assert alone["tokens_per_second"] == pytest.approx(1 / sum(alone["seconds"].values()))
    code, out, _ = run(capsys, "demo", "--machines", "2x M2 8GB, 1gbe")
    assert code == 0 and "Best for one row: alone" in out and "pipeline " in out
    code, out, _ = run(capsys, str(DEMO / "config.json"), "--machines", "2x box=100,10,0.5")
    assert code == 0 and "does not fit" in out and "on no number of these machines" in out


def test_a_cached_configuration_is_enough(capsys: pytest.CaptureFixture[str], cache: Path) -> None:  # noqa: F811
    folder = write_cached(cache, "owner/model")
    whole = run(capsys, "owner/model", "--machines", "M1 8GB", "--quantize", "4")
    for path in folder.iterdir():
        if path.name != "config.json":
            path.unlink()
    alone = run(capsys, "owner/model", "--machines", "M1 8GB", "--quantize", "4")
    for code, out, err in (whole, alone):
        assert (code, err) == (0, "") and out.startswith("owner/model on 1x M1 8GB: ")
    code, _, err = run(capsys, "owner/other", "--machines", "M1 8GB")
    assert code == 1 and "owner/other has no whole copy in the cache" in err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["demo", "--machines", "2x M9"], 2, "Known are M1,"),
        (["demo", "--machines", "M1 8GB", "--picture", "big"], 2, "1024x768"),
        (["demo", "--machines", "M1 8GB", "--batch", "0"], 2, "at least 1"),
        (["demo"], 2, "--machines"),
        (["no/such/folder", "--machines", "M1 8GB"], 1, "does not exist"),
        ([str(ROOT / "docs"), "--machines", "M1 8GB"], 1, "holds no config.json"),
    ],
)
def test_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str) -> None:
    try:
        found, out, err = run(capsys, *arguments)
    except SystemExit as ended:
        found, (out, err) = int(ended.code or 0), capsys.readouterr()
    assert (found, out) == (code, "") and said in err


def test_the_page_has_the_errors(scaling: ModuleType) -> None:
    page = scaling.PAGE.read_text(encoding="utf-8")
    for lines in (scaling.cpu_lines(), scaling.local_lines(), scaling.h100_lines()):
        assert all(row in page for row in scaling.rows(lines)), REMEDY


@pytest.mark.slow
def test_the_page_has_all_tables(scaling: ModuleType) -> None:
    page = scaling.PAGE.read_text(encoding="utf-8")
    for table in (scaling.example(), scaling.error_table(), scaling.simulation()):
        assert "\n".join(table) in page, REMEDY


@pytest.mark.parametrize("name", ["10gbe", "nvlink"])
def test_twelve_equal_processes_take_what_the_formula_says(scaling: ModuleType, name: str) -> None:
    from scaling_simulation import World, simulate

    link = LINKS[name]
    expected = 0.01 + 40 * link.sum_seconds(8192, 12)
    assert simulate(0.01, 40, 8192, link, 12, World()) == pytest.approx(expected)
    assert simulate(0.01, 0, 8192, link, 12, World()) == pytest.approx(0.01)
    for world in (World(jitter=0.3), World(slow=0.25), World(stall=0.05, stalled=0.002)):
        assert simulate(0.01, 40, 8192, link, 12, world) > expected


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONFIGS if "," not in name])
def test_every_published_configuration_is_planned(name: str) -> None:
    def build(bits: int | None) -> Any:
        return model_of(CONFIGS[name], 4)

    plan = make_plan(build, parse("4x M3 Ultra 512GB, rdma"), Load(), 4, (1024, 1024))
    assert any(way.fits for way in plan.ways)
    assert all(0.5 < way.row_rate < 2000 for way in plan.ways if way.fits)
