"""The client against a real server, what it makes of answers, and the store that it keeps them in."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate

import pytest

from mu2llm.llm.client import Asking, Client, Unanswered, endpoint_url, retry_after
from mu2llm.llm.gate import Closed, Gate
from mu2llm.llm.reply import Unusable, read_reply, schema_fault
from mu2llm.llm.store import Store
from tests.llm_server import Server

SCHEMA = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}
QUICK = Asking(timeout=30.0, pause=0.01)


def asked(text):
    return [{"role": "system", "content": "Count."}, {"role": "user", "content": text}]


class Counts:
    def stage(self, messages):
        return "count"

    def reply(self, stage, user):
        return {"n": int(user)}


@pytest.fixture
def server():
    with Server(Counts()) as server:
        yield server


def test_an_overloaded_endpoint_is_asked_less(server):
    server.capacity, server.pace = 3, 0.02
    client = Client(server.url, "m", asking=QUICK, concurrency=24)
    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda n: client.complete(asked(str(n)), SCHEMA)["n"], range(200)))
    assert answers == list(range(200))
    assert set(server.paid.values()) == {1} and len(server.paid) == 200
    calls = [inside for _, inside in server.arrivals]
    assert max(calls) <= 24 and max(calls[len(calls) // 2 :]) <= 12
    assert server.told["429"] < 100  # with 24 at once all along, seven of eight calls would be turned away


def test_retry_after_holds_everybody_back(server):
    server.plan = lambda stage, digest, before: "429-after" if not sum(server.seen.values()) > 1 else ""
    client = Client(server.url, "m", asking=QUICK, concurrency=4)
    assert client.complete(asked("7"), SCHEMA) == {"n": 7}
    (first, _), (second, _) = server.arrivals
    assert second - first >= 0.99
    assert len(server.arrivals) == 2


def test_the_same_prompt_at_once_is_asked_once(server, tmp_path):
    server.pace = 0.1
    with Store(tmp_path / "answers.jsonl") as answers:
        client = Client(server.url, "m", asking=QUICK, answers=answers)
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(lambda _: client.complete(asked("7"), SCHEMA)["n"], range(16))) == {7}
        other = Client(server.url, "other", asking=QUICK, answers=answers)
        other.complete(asked("7"), SCHEMA)
    assert len(server.arrivals) == 2 and client.usage["prompt_tokens"] == 10


def test_an_answer_is_checked_and_asked_for_again(server):
    client = Client(server.url, "m", asking=QUICK)
    with pytest.raises(Unanswered, match="wrong: 7") as raised:
        client.complete(asked("7"), SCHEMA, lambda value: f"wrong: {value['n']}")
    assert not raised.value.passing
    assert sorted(seed for _, seed in server.paid) == [0, 1, 2]
    assert client.complete(asked("7")) == '{"n": 7}'  # without a schema: the text


@pytest.mark.parametrize(
    ("kind", "reason"), [("500", "HTTP 500"), ("reset", "Protocol"), ("late", "within 0.2")]
)
def test_a_request_is_given_up_after_its_tries(server, kind, reason):
    server.plan = lambda *_: kind
    timeout = 0.2 if kind == "late" else 30.0
    client = Client(server.url, "m", asking=Asking(timeout=timeout, pause=0.01, tries=3))
    with pytest.raises(Unanswered, match=reason) as raised:
        client.complete(asked("7"), SCHEMA)
    assert raised.value.passing and len(server.arrivals) == 3


def test_a_refusal_is_not_an_answer(server):
    server.plan = lambda *_: "422"
    with pytest.raises(Unanswered, match="refused: HTTP 422"):
        Client(server.url, "m", asking=QUICK).complete(asked("7"), SCHEMA)
    assert len(server.arrivals) == 2  # once more without response_format


def test_a_closed_gate_wakes_whoever_waits():
    gate = Gate(1)
    ended = []

    def wait():
        with pytest.raises(Closed):
            gate.sleep(60)
        ended.append(1)

    waiting = threading.Thread(target=wait)
    waiting.start()
    gate.close()
    waiting.join(10)
    with pytest.raises(Closed), gate:
        pass
    assert ended


def test_one_burst_slows_once():
    gate = Gate(8, pause=0.001)
    began = time.monotonic()
    for _ in range(8):
        gate.slow(began, None)
    assert gate.allowed == 4
    for _ in range(25 * 9):
        gate.ease()
    assert gate.allowed == 8


def test_urls_and_waits():
    assert endpoint_url("http://host:8000") == endpoint_url("http://host:8000/v1/") == "http://host:8000/v1"
    assert endpoint_url("https://host/api/v3") == "https://host/api/v3"
    for wrong in ("host:8000", "ftp://host", "http://", "http://host/v1?key=x"):
        with pytest.raises(ValueError, match="no endpoint"):
            endpoint_url(wrong)
    assert retry_after("2") == 2 and retry_after("-1") == 0
    assert retry_after(None) is retry_after("") is retry_after("soon") is retry_after("nan") is None
    assert 50 < retry_after(formatdate(time.time() + 60, usegmt=True)) <= 60
    with pytest.raises(ValueError, match="timeout=0"):
        Asking(timeout=0)


@pytest.mark.parametrize(
    "text",
    [
        '{"n": 1}',
        'Here you are: {"n": 1}. Anything else?',
        '```json\n{"n": 1}\n```',
        '<think>{"n": 5}</think>{"n": 1}',
        'hm {"n": 5} </think>\n{"n": 1}',
        '{"m": 2} or rather {"n": 1}',
        '{broken {"n": 1}',
    ],
)
def test_json_is_found_in_what_surrounds_it(text):
    assert read_reply(text, SCHEMA) == {"n": 1}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "empty"),
        ("<think>so", "empty"),
        ("no", "no JSON"),
        ('{"n": "1"}', "not of type integer"),
        ('{"n": true}', "not of type integer"),
        ('{"n": 1', "no JSON"),
        ("[1]", "no JSON"),
    ],
)
def test_what_is_unusable_says_why(text, named):
    with pytest.raises(Unusable, match=named):
        read_reply(text, SCHEMA)


def test_schema_faults():
    names = {"type": "array", "minItems": 1, "maxItems": 2, "items": {"type": "string", "minLength": 2}}
    assert schema_fault(["ab"], names) == ""
    assert "0 items" in schema_fault([], names) and "3 items" in schema_fault(["ab"] * 3, names)
    assert "is empty" in schema_fault(["ab", " "], names) and "string" in schema_fault([1], names)
    assert "none of a, b" in schema_fault("c", {"type": "string", "enum": ["a", "b"]})


def test_a_store_of_many_keys_finds_each_and_keeps_the_last(tmp_path, monkeypatch):
    monkeypatch.setattr("mu2llm.llm.store._FOLD", 10)
    path = tmp_path / "store.jsonl"
    keys = [f"{n * 2654435761 % 2**64:016x}{n:048x}" for n in range(57)]
    with Store(path) as store:
        for n, key in enumerate(keys):
            store.add(key, n)
        store.add(keys[3], "newer")
        assert keys[3] in store and "f" * 64 not in store
        with pytest.raises(ValueError, match="in use by another run"):
            Store(path)
    with path.open("ab") as file:
        file.write(b'{"key": "half')
    with Store(path) as store:
        assert [store[key] for key in keys] == [*range(3), "newer", *range(4, 57)]
        with pytest.raises(KeyError):
            store["f" * 64]


def test_an_address_where_nobody_answers_is_said_and_soon_given_up(caplog):
    with socket.socket() as taken:  # bound, and not listening
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        client = Client(url, "m", asking=Asking(timeout=1.0, pause=0.01, tries=3))
        with pytest.raises(ConnectionError, match=f"{url} cannot be reached .*no connection in 3 tries"):
            client.complete(asked("7"), SCHEMA)
    said = [record.message for record in caplog.records]
    assert len(said) == 2 and all(url in line and "trying again in" in line for line in said)
    assert "(1 of 3)" in said[0]


def test_an_endpoint_that_only_fails_is_given_up_after_a_while(server):
    server.plan = lambda *_: "500"
    client = Client(server.url, "m", asking=Asking(timeout=1.0, pause=0.001, tries=1))
    for _ in range(31):
        with pytest.raises(Unanswered, match="unavailable: HTTP 500"):
            client.complete(asked("7"), SCHEMA)
    with pytest.raises(ConnectionError, match="left 32 requests in a row without an answer"):
        client.complete(asked("7"), SCHEMA)
