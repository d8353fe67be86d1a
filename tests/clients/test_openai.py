"""The official `openai` package, as its documentation uses it."""

import json
import math
import time

import openai
import pytest
from pydantic import BaseModel, Field

QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key=server.key, max_retries=0, timeout=300)


@pytest.fixture(scope="module")
def model(client):
    return client.models.list().data[0].id


def chat(client, model, **options):
    options = {"messages": QUESTION, "max_tokens": 32, "temperature": 0} | options
    return client.chat.completions.create(model=model, **options)


def test_models_are_listed_and_retrieved(client, model):
    assert client.models.retrieve(model).id == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


def test_a_wrong_key_is_refused(server):
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=server.url + "/v1", api_key="wrong", max_retries=0).models.list()


def test_a_chat_is_answered(client, model):
    answer = chat(client, model)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_is_the_same_text(client, model):
    whole = chat(client, model)
    chunks = list(chat(client, model, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_limits_stops_and_seeds_are_kept(client, model):
    assert chat(client, model, max_tokens=3).choices[0].finish_reason == "length"
    assert chat(client, model, max_tokens=3).usage.completion_tokens == 3
    assert "Paris" not in (chat(client, model, stop=["Paris"]).choices[0].message.content or "")
    drawn = [chat(client, model, temperature=1.5, seed=7).choices[0].message.content for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_several_choices_come_with_their_index(client, model):
    choices = chat(client, model, n=3, temperature=1.5, seed=1).choices
    assert sorted(choice.index for choice in choices) == [0, 1, 2]
    assert len({choice.message.content for choice in choices}) > 1


def test_logprobs_are_probabilities(client, model):
    answer = chat(client, model, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert len(content) >= 3
    for token in content:
        assert len(token.top_logprobs) == 3
        assert math.isclose(token.logprob, max(top.logprob for top in token.top_logprobs), abs_tol=1e-4)
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1 + 1e-4


def test_a_biased_token_is_never_drawn(client, model):
    first = chat(client, model, max_tokens=1, logprobs=True, top_logprobs=1).choices[0].logprobs.content[0]
    ids = client.post("/../tokenize", body={"content": first.token}, cast_to=object)["tokens"]
    if len(ids) == 1:
        other = chat(client, model, max_tokens=1, logit_bias={str(ids[0]): -100})
        assert other.choices[0].message.content != first.token


def test_a_tool_that_is_required_is_called(client, model):
    answer = chat(client, model, tools=[WEATHER], tool_choice="required", max_tokens=100)
    call = answer.choices[0].message.tool_calls[0]
    assert answer.choices[0].finish_reason == "tool_calls"
    assert call.function.name == "get_weather"
    assert list(json.loads(call.function.arguments)) == ["city"]
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    turns = QUESTION + [answer.choices[0].message.model_dump(exclude_none=True), result]
    assert chat(client, model, messages=turns, tools=[WEATHER], tool_choice="none").choices[0].message.content


def test_a_call_streams_in_pieces(client, model):
    options = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 100}
    chunks = list(chat(client, model, stream=True, **options))
    calls = [call for chunk in chunks if chunk.choices for call in chunk.choices[0].delta.tool_calls or []]
    assert calls[0].function.name == "get_weather"
    assert list(json.loads("".join(call.function.arguments or "" for call in calls))) == ["city"]


class Capital(BaseModel):
    country: str = Field(max_length=20)
    population_in_millions: int = Field(ge=0, le=100)


def test_a_structured_answer_has_its_schema(client, model):
    answer = client.chat.completions.parse(
        model=model, messages=QUESTION, response_format=Capital, max_tokens=200, temperature=0
    )
    choice = answer.choices[0]
    if choice.finish_reason == "stop":
        assert isinstance(choice.message.parsed, Capital)
    else:
        pytest.fail(f"ended by {choice.finish_reason}: {choice.message.content!r}")


def test_a_schema_that_cannot_be_kept_is_refused(client, model):
    schema = {"name": "bad", "schema": {"type": "objekt"}}
    with pytest.raises(openai.BadRequestError):
        chat(client, model, response_format={"type": "json_schema", "json_schema": schema})


def test_what_is_too_long_is_refused_with_the_counts(client, model):
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, model, messages=[{"role": "user", "content": "many words " * 5000}])
    assert refused.value.code == "context_length_exceeded"


def test_texts_are_completed(client, model):
    answer = client.completions.create(model=model, prompt="The capital of France is", max_tokens=8, temperature=0)
    assert answer.choices[0].text.strip()
    both = client.completions.create(model=model, prompt=["One, two,", "A, B,"], max_tokens=4, temperature=0)
    assert [choice.index for choice in both.choices] == [0, 1]


def test_embeddings_of_like_texts_are_alike(client, model):
    texts = ["The cat sleeps.", "The cat is asleep.", "Quarterly tax returns are due in March."]
    vectors = [item.embedding for item in client.embeddings.create(model=model, input=texts).data]
    assert all(math.isclose(math.hypot(*vector), 1, rel_tol=1e-3) for vector in vectors)
    alone = client.embeddings.create(model=model, input=texts[0], encoding_format="float").data[0].embedding
    assert all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(alone, vectors[0]))


def test_a_response_is_made_streamed_and_found_again(client, model):
    made = client.responses.create(model=model, input="Say hello.", max_output_tokens=16, temperature=0)
    assert made.status in ("completed", "incomplete")
    assert client.responses.retrieve(made.id).output_text == made.output_text
    kinds = [event.type for event in client.responses.create(
        model=model, input="Say hello.", max_output_tokens=16, temperature=0, stream=True
    )]
    assert kinds[0] == "response.created"
    assert kinds[-1] in ("response.completed", "response.incomplete")


def test_a_response_in_the_background_comes_later(client, model):
    made = client.responses.create(
        model=model, input="Count to ten.", max_output_tokens=64, temperature=0, background=True
    )
    assert made.status in ("queued", "in_progress")
    while made.status in ("queued", "in_progress"):
        time.sleep(0.2)
        made = client.responses.retrieve(made.id)
    assert made.status in ("completed", "incomplete")
    assert made.output_text


def test_a_response_in_the_background_is_cancelled(client, model):
    made = client.responses.create(
        model=model, input="Count to a thousand.", max_output_tokens=3000, background=True,
        extra_body={"ignore_eos": True},
    )
    assert client.responses.cancel(made.id).status == "cancelled"
    assert client.responses.retrieve(made.id).status == "cancelled"


def test_an_unknown_value_names_its_field(client, model):
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, model, tool_choice="sometimes")
    assert refused.value.param == "tool_choice"
