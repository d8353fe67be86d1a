"""Requests made from the server's own OpenAPI document: whatever they say, the server is not to break.

Values are drawn from the document's types and against them. `NIGHTMONK_EXAMPLES` is how many for each operation.
"""

import os

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings

# What is well-formed may rightly ask for thousands of tokens.
PATIENCE_SECONDS = 20
EXAMPLES = int(os.environ.get("NIGHTMONK_EXAMPLES", "50"))


@pytest.fixture(scope="session")
def api(server):
    return schemathesis.openapi.from_url(server.url + "/openapi.json", headers={"Authorization": f"Bearer {server.key}"})


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_request_breaks_the_server(case, server):
    try:
        answer = case.call(headers={"Authorization": f"Bearer {server.key}"}, timeout=PATIENCE_SECONDS)
    except requests.Timeout:
        return
    assert answer.status_code < 500, f"{answer.status_code}: {answer.text[:500]}"
