"""`langchain-openai`, which sends more fields than its users know."""

import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

QUESTION = [SystemMessage("You answer in one sentence."), HumanMessage("What is the capital of France?")]


@pytest.fixture(scope="module")
def chat(server):
    return ChatOpenAI(
        base_url=server.url + "/v1", api_key=server.key, model=server.model, temperature=0, max_tokens=100,
        max_retries=0, timeout=300,
    )


def test_a_chat_is_answered(chat):
    answer = chat.invoke(QUESTION)
    assert "Paris" in answer.content
    assert answer.usage_metadata["output_tokens"] > 0


def test_a_stream_is_the_same_text(chat):
    assert "".join(chunk.content for chunk in chat.stream(QUESTION)) == chat.invoke(QUESTION).content


def test_a_batch_keeps_its_order(chat):
    answers = chat.batch([[HumanMessage(f"Repeat this number: {number}")] for number in range(4)])
    assert [answer.content for answer in answers] == [
        chat.invoke([HumanMessage(f"Repeat this number: {number}")]).content for number in range(4)
    ]


class Capital(BaseModel):
    """The capital of a country."""

    country: str = Field(max_length=20)


def test_structured_output_is_an_object(chat):
    for method in ("json_schema", "function_calling"):
        answer = chat.with_structured_output(Capital, method=method).invoke(QUESTION)
        assert isinstance(answer, Capital)


def test_texts_are_embedded(server):
    embeddings = OpenAIEmbeddings(
        base_url=server.url + "/v1", api_key=server.key, model=server.model, check_embedding_ctx_length=False
    )
    assert len(embeddings.embed_documents(["The cat sleeps.", "Taxes are due."])) == 2
