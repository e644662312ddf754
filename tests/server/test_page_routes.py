"""What the server has for its page: files without a key, under a strict policy, and the marks in an answer."""

import json
from typing import Any

import httpx
import pytest

from mlx_vlgen.server.models import Source
from mlx_vlgen.server.static import FILES

from .serving import Loaded, Running, running


def test_files_need_no_key_and_allow_nothing_from_elsewhere(loaded: Loaded) -> None:
    with running({"demo": Source(lambda: loaded)}, api_key="key") as server, httpx.Client() as client:
        for path in FILES:
            response = client.get(server.url + path)
            assert response.status_code == 200 and response.content
            assert response.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
            assert response.headers["x-content-type-options"] == "nosniff"
        for path in (
            "/page/",
            "/page/../static.py",
            "/page/%2e%2e/static.py",
            "/page/index.html/",
            "/static.py",
            "/v1/marks",
        ):
            assert client.get(server.url + path).status_code == 401


def marks(server: Running, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/marks", json=body)


def test_marks(served: Running) -> None:
    answer = json.dumps([{"bbox_2d": [100, 200, 300, 400], "label": "a"}, {"point_2d": [500, 500]}])
    found = marks(served, model="demo", text=answer, sizes=[[1000, 500], [10, 10]]).json()["marks"]
    assert found[0] == [
        {"type": "box", "points": [[100, 100], [300, 200]], "label": "a"},
        {"type": "point", "points": [[500, 250]], "label": ""},
    ]
    assert found[1][1]["points"] == [[5, 5]]
    assert marks(served, model="demo", text="none", sizes=[[9, 9]]).json() == {"marks": [[]]}


@pytest.mark.parametrize(
    "wrong", [{"sizes": [[0, 1]]}, {"sizes": [3]}, {"sizes": [[9, 9]] * 65}, {"text": 7}, {"size": []}]
)
def test_wrong_marks_are_named(served: Running, wrong: dict[str, Any]) -> None:
    response = marks(served, **{"model": "demo", "text": "", "sizes": []} | wrong)
    assert response.status_code == 400 and next(iter(wrong)) in response.json()["error"]["message"]
    assert marks(served, model="demo", text="x" * 100_001, sizes=[]).status_code == 413


def test_marks_belong_to_the_picture_that_the_answer_names(served: Running) -> None:
    answer = '<points coords="2 1 100 200 2 500 500" alt="a">a</points> and {"point_2d": [500, 500]}'
    first, second = marks(served, model="demo", text=answer, sizes=[[1000, 500], [10, 10]]).json()["marks"]
    unnamed = {"type": "point", "points": [[5, 5]], "label": ""}
    assert first == [{**unnamed, "points": [[500, 250]]}]
    named = {"type": "point", "label": "a", "picture": 1}
    assert second == [{**named, "points": [[1, 2]]}, {**named, "points": [[5, 5]]}, unnamed]


def test_marks_are_counted_and_logged(served: Running, capfd: pytest.CaptureFixture[str]) -> None:
    marks(served, model="demo", text="none", sizes=[])
    marks(served, model="demo", text=7)
    page = httpx.get(f"{served.url}/metrics").text
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if "/v1/marks" in line]
    assert [(line["event"], line["status"]) for line in lines] == [("request", 200), ("request", 400)]
    for status in (200, 400):
        assert f'mlx_vlgen_requests_total{{endpoint="/v1/marks",status="{status}"}}' in page
