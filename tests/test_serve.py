"""The server of a product: what it answers, what it refuses, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
from commands import PROGRAM, ROOT, assert_refused, invoke
from products import untrained

from gpta_local.downstream.product import Prediction, Product
from gpta_local.serving.app import MOST_BYTES, MOST_TEXTS, make_app
from gpta_local.serving.batching import BATCH, MOST_WAITING, Batcher, Full

TEXTS = ["the soup was cold", "best bread in town", "word " * 300, "Ünïcödé"]
Talk = Callable[[httpx2.AsyncClient], Coroutine[Any, Any, Any]]


@pytest.fixture(scope="module")
def product(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Product:
    return untrained(tmp_path_factory.mktemp("served"), bert)


@pytest.fixture(scope="module")
def app(product: Product) -> Any:
    return make_app(product)


def talk(app: Any, conversation: Talk) -> Any:
    """What a conversation with the application gives, which runs as long as that."""

    async def run() -> Any:
        transport = httpx2.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
        ):
            return await conversation(client)

    return asyncio.run(run())


def post(app: Any, **content: Any) -> httpx2.Response:
    return talk(app, lambda client: client.post("/predict", **content))


def get(app: Any, path: str, **options: Any) -> httpx2.Response:
    return talk(app, lambda client: client.get(path, **options))


class TestAnswers:
    def test_are_those_of_predict_in_the_order_of_the_texts(self, app: Any, product: Product) -> None:
        response = post(app, json={"texts": TEXTS})
        assert response.status_code == 200, response.text
        found, wanted = response.json()["predictions"], list(product.predict([(text,) for text in TEXTS]))
        assert [row["label"] for row in found] == [row.label for row in wanted]
        for row, other in zip(found, wanted, strict=True):
            assert row["probabilities"] == pytest.approx(other.probabilities, abs=1e-5)

    def test_pairs_are_asked_for_as_pairs(self, bert: Path, tmp_path: Path) -> None:
        app = make_app(untrained(tmp_path, bert, pair=True))
        assert len(post(app, json={"texts": [["a", "b"], ["c", "d"]]}).json()["predictions"]) == 2
        assert post(app, json={"texts": ["a"]}).status_code == 422

    def test_many_clients_at_once_each_get_their_own(self, app: Any, product: Product) -> None:
        async def together(client: httpx2.AsyncClient) -> list[Any]:
            asked = [client.post("/predict", json={"texts": [text]}) for text in TEXTS * 8]
            return [response.json()["predictions"][0]["label"] for response in await asyncio.gather(*asked)]

        assert talk(app, together) == [row.label for row in product.predict([(text,) for text in TEXTS * 8])]

    def test_health_names_the_labels(self, app: Any) -> None:
        assert get(app, "/health").json()["labels"] == ["bad", "good"]

    def test_page_loads_nothing_from_outside(self, app: Any) -> None:
        page = get(app, "/docs").text
        assert not re.search(r"""["'(](https?:)?//""", page)
        for path in re.findall(r'(?:src|href)="([^"]+)"', page):
            assert get(app, path).status_code == 200
        assert {"/predict", "/health"} <= set(get(app, "/openapi.json").json()["paths"])


class TestRefusals:
    @pytest.mark.parametrize(
        ("body", "where", "words"),
        [
            ('{"texts": []}', "texts", "at least 1"),
            ('{"texts": ["a", " \\n"]}', "texts[1]", "is empty"),
            ('{"texts": [3]}', "texts[0]", "valid string"),
            ('{"texts": ["\\ud800"]}', "texts[0]", "unicode"),
            ('{"text": "secret"}', "texts", "is missing"),
            ('{"texts": "secret"}', "texts", "valid list"),
            ("secret", "body", "is no JSON"),
            ("[]", "body", "must be a JSON object"),
            (json.dumps({"texts": ["a"] * (MOST_TEXTS + 1)}), "texts", f"at most {MOST_TEXTS}"),
        ],
    )
    def test_what_is_wrong_is_told_and_not_repeated(self, app: Any, body: str, where: str, words: str) -> None:
        response = post(app, content=body, headers={"content-type": "application/json"})
        assert response.status_code == 422
        problem = response.json()["detail"][0]
        assert problem["where"] == where
        assert words in problem["what"]
        assert "secret" not in response.text

    @pytest.mark.parametrize("said", [True, False], ids=["said", "only sent"])
    def test_large_body_is_refused(self, app: Any, said: bool) -> None:
        body = b"x" * (MOST_BYTES + 1)

        async def parts() -> Any:
            yield body[: MOST_BYTES // 2]
            yield body[MOST_BYTES // 2 :]

        headers = {"content-type": "application/json"}
        assert post(app, content=body if said else parts(), headers=headers).status_code == 413

    def test_other_name_of_the_host_is_refused(self, app: Any) -> None:
        assert get(app, "/health", headers={"host": "evil.example"}).status_code == 400


class TestBatcher:
    def test_what_waits_together_is_computed_together(self) -> None:
        sizes: list[int] = []

        def predict(rows: Sequence[tuple[str, ...]]) -> list[Prediction]:
            sizes.append(len(rows))
            return [Prediction(row[0], {}) for row in rows]

        async def run() -> list[list[Prediction]]:
            batcher = Batcher(predict)
            asked = [asyncio.create_task(batcher.predict([(str(number),)])) for number in range(BATCH + 6)]
            await asyncio.sleep(0)
            worker = asyncio.create_task(batcher.work())
            found = await asyncio.gather(*asked)
            worker.cancel()
            return found

        assert [row.label for (row,) in asyncio.run(run())] == [str(number) for number in range(BATCH + 6)]
        assert sizes == [BATCH, 6]

    def test_failure_is_told_to_who_asked_and_the_next_is_answered(self) -> None:
        def predict(rows: Sequence[tuple[str, ...]]) -> list[Prediction]:
            if rows[0] == ("bad",):
                raise RuntimeError("broken")
            return [Prediction("good", {})]

        async def run() -> str:
            batcher = Batcher(predict)
            worker = asyncio.create_task(batcher.work())
            with pytest.raises(RuntimeError, match="broken"):
                await batcher.predict([("bad",)])
            ((answer),) = await batcher.predict([("a",)])
            worker.cancel()
            return answer.label

        assert asyncio.run(run()) == "good"

    def test_too_many_are_turned_away(self) -> None:
        async def run() -> None:
            with pytest.raises(Full):
                await Batcher(lambda rows: []).predict([("a",)] * (MOST_WAITING + 1))

        asyncio.run(run())


class TestCommand:
    def test_answers_until_it_is_interrupted_and_ends_in_order(self, product: Product) -> None:
        command = [*PROGRAM, "serve", str(product.folder), "--port", "0"]
        with subprocess.Popen(command, cwd=ROOT, env=os.environ.copy(), stderr=subprocess.PIPE, text=True) as server:
            assert server.stderr is not None
            told = server.stderr.readline()
            url = re.search(r"http://127\.0\.0\.1:\d+", told)
            assert url, told
            answer = httpx2.post(f"{url[0]}/predict", json={"texts": TEXTS}, timeout=60)
            assert len(answer.json()["predictions"]) == len(TEXTS)
            port = url[0].rpartition(":")[2]
            assert_refused(invoke("serve", product.folder, "--port", port), f"port {port} cannot be used")
            server.send_signal(signal.SIGINT)
            assert server.stderr.read() == "stopped\n"
        assert server.returncode == 0

    def test_folder_without_a_model_is_told(self, tmp_path: Path) -> None:
        assert_refused(invoke("serve", tmp_path), "no trained model here")
