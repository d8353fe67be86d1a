"""The official `ollama` package. Its client has no field for a key, so it goes as a header."""

import math

import ollama
import pytest
from pydantic import BaseModel

QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
GREEDY = {"temperature": 0, "num_predict": 32}


@pytest.fixture(scope="module")
def client(server):
    return ollama.Client(host=server.url, headers={"Authorization": f"Bearer {server.key}"})


@pytest.fixture(scope="module")
def model(client):
    return client.list().models[0].model


def test_the_model_is_shown(client, model):
    shown = client.show(model)
    assert shown.modelinfo["general.architecture"]
    assert "completion" in shown.capabilities
    assert [running.model for running in client.ps().models] == [model]


def test_a_chat_is_answered_whole_and_in_pieces(client, model):
    whole = client.chat(model=model, messages=QUESTION, options=GREEDY)
    assert "Paris" in whole.message.content
    assert whole.done and whole.done_reason == "stop"
    assert whole.prompt_eval_count > 0 and whole.eval_count > 0
    pieces = list(client.chat(model=model, messages=QUESTION, options=GREEDY, stream=True))
    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content
    assert [piece.done for piece in pieces].count(True) == 1 and pieces[-1].done


def test_a_text_is_generated(client, model):
    answer = client.generate(model=model, prompt="What is the capital of France?", options=GREEDY)
    assert "Paris" in answer.response
    raw = client.generate(model=model, prompt="One, two,", raw=True, options=GREEDY | {"num_predict": 4})
    assert raw.response and raw.eval_count == 4


class Capital(BaseModel):
    country: str


def test_a_schema_is_kept(client, model):
    options = {"temperature": 0, "num_predict": 200}
    answer = client.chat(model=model, messages=QUESTION, format=Capital.model_json_schema(), options=options)
    assert Capital.model_validate_json(answer.message.content)


def test_texts_are_embedded(client, model):
    vectors = client.embed(model=model, input=["The cat sleeps.", "Taxes are due."]).embeddings
    assert len(vectors) == 2
    assert all(math.isclose(math.hypot(*vector), 1, rel_tol=1e-3) for vector in vectors)


def test_another_model_is_not_found(client):
    with pytest.raises(ollama.ResponseError) as refused:
        client.chat(model="another", messages=QUESTION)
    assert refused.value.status_code == 404
