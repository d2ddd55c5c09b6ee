"""Asks an OpenAI-compatible chat endpoint (vLLM, a hosted model): bounded, patient, never twice the same.

It logs no prompt, no answer and no key.
"""

import email.utils
import hashlib
import json
import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

import urllib3

from mu2llm.llm.gate import Gate
from mu2llm.llm.reply import Unusable, read_reply

log = logging.getLogger("mu2llm")

Messages = list[dict[str, str]]

_PASSING = (408, 409, 425, 500, 502, 503, 504, 520, 522, 524, 529)
_BUSY_TRIES = 20  # times that one request lets itself be sent away with "too many requests"
_LONGEST_WAIT = 3600.0  # seconds; an endpoint that asks for more is out of quota, not busy
_COUNTED = ("prompt_tokens", "completion_tokens")
_NO_CONNECTION = "unavailable: no connection"
_LOST_IN_A_ROW = 32  # requests given up with no answer between them: the endpoint is down


class Unanswered(Exception):
    """No usable answer. `reason` begins with one word: late, unavailable, refused, empty, unparsable …

    `passing`: the endpoint failed, not the model; asking another time may help.
    """

    def __init__(self, reason: str, passing: bool = False):
        super().__init__(reason)
        self.reason, self.passing = reason, passing


@dataclass(frozen=True)
class Asking:
    """How an endpoint is asked."""

    temperature: float = 0.7
    top_p: float = 0.8
    max_tokens: int = 4096
    seed: int = 0
    attempts: int = 3  # for a usable answer; each with the next seed
    timeout: float = 300.0  # seconds until an answer is late
    tries: int = 6  # of a request that is lost on its way
    pause: float = 1.0  # seconds before the second try; doubles from try to try

    def __post_init__(self) -> None:
        for name in ("max_tokens", "attempts", "tries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        for name in ("timeout", "pause"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be above 0 seconds")

    def content(self) -> dict[str, Any]:
        """What an answer depends on; how long we wait for it does not count."""
        return {k: v for k, v in asdict(self).items() if k not in ("timeout", "tries", "pause")}


class Answers(Protocol):
    """Where answers are kept: `mu2llm.llm.store.Store`."""

    def __contains__(self, key: str) -> bool: ...
    def __getitem__(self, key: str) -> Any: ...
    def add(self, key: str, value: Any) -> None: ...


class Client:
    """One model at one endpoint, for any number of threads.

    `url` is the API's base ("http://host:8000/v1"; /v1 is added to a bare host). With `answers`, an answer is
    kept before it is used, and what is kept is not asked again. Clients of one endpoint share a `gate`.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str | None = None,
        asking: Asking | None = None,
        answers: Answers | None = None,
        gate: Gate | None = None,
        concurrency: int = 16,
    ):
        self.url, self.model, self.asking = endpoint_url(url), model, asking or Asking()
        if not model:
            raise ValueError(f"no model named for {self.url}: name one that it serves")
        self.gate = gate or Gate(concurrency, self.asking.pause)
        self._answers = answers
        self._headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {key}"} if key else {}
        )
        self._pool = urllib3.PoolManager(
            maxsize=concurrency,
            retries=False,
            timeout=urllib3.Timeout(connect=10.0, read=self.asking.timeout),
        )
        self._asked: dict[str, Future[dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self._structured = True  # until the endpoint turns response_format down
        self._lost = 0
        self._silent_until = 0.0
        self.usage = {"calls": 0} | dict.fromkeys(_COUNTED, 0)

    def complete(
        self,
        messages: Messages,
        schema: dict[str, Any] | None = None,
        check: Callable[[Any], str] | None = None,
    ) -> Any:
        """The model's answer: its text, or with a JSON schema the value that keeps to it.

        `check` returns what is wrong with an answer, "" if nothing. What cannot be used is asked for again
        with the next seed, `Asking.attempts` times in all. Raises `Unanswered` where that gives nothing, and
        ValueError or ConnectionError where this endpoint can give nothing.
        """
        fault = ""
        for attempt in range(self.asking.attempts):
            reply = self.reply(messages, schema, attempt)
            if reply["finish"] in ("content_filter", "refusal"):
                fault = "refused: by the model or its filter"
                continue
            try:
                value = read_reply(reply["text"], schema)
            except Unusable as error:
                cut = reply["finish"] == "length"
                fault = f"unparsable: cut at {self.asking.max_tokens} tokens" if cut else str(error)
                continue
            fault = check(value) if check else ""
            if not fault:
                return value
        raise Unanswered(fault)

    def reply(
        self,
        messages: Messages,
        schema: dict[str, Any] | None = None,
        attempt: int = 0,
        asking: Asking | None = None,
    ) -> dict[str, Any]:
        """The raw answer {"text", "finish", "usage"} of one attempt; equal requests at once are sent once.

        `asking` says otherwise than the client's what an answer depends on. Raises as `complete`.
        """
        asking = asking or self.asking
        settings = {k: v for k, v in asking.content().items() if k != "attempts"}
        body = {"model": self.model, "messages": messages, **settings, "seed": asking.seed + attempt}
        known = json.dumps([body, schema], sort_keys=True, ensure_ascii=False).encode()
        key = hashlib.sha256(known).hexdigest()
        with self._lock:
            if self._answers is not None and key in self._answers:
                return self._answers[key]
            others = self._asked.get(key)
            mine: Future[dict[str, Any]] = Future()
            if others is None:
                self._asked[key] = mine
        if others is not None:
            return others.result()
        try:
            reply = self._ask(body, schema)
            if self._answers is not None:
                self._answers.add(key, reply)
            mine.set_result(reply)
        except BaseException as error:
            mine.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._asked[key]
        return reply

    def _ask(self, body: dict[str, Any], schema: dict[str, Any] | None) -> dict[str, Any]:
        structured = schema is not None and self._structured
        lost = busy = 0
        fault = ""
        while lost < self.asking.tries and busy < _BUSY_TRIES:
            began, status, wait, reply = self._post(body | _format(schema) if structured else body)
            if isinstance(reply, dict):
                if schema is not None and not structured:
                    self._structured = False
                return reply
            if status == 429 or (status == 503 and wait is not None):
                if wait is not None and wait > _LONGEST_WAIT:
                    raise self._given_up(f"unavailable: the endpoint asks to wait {wait:.0f} s")
                self.gate.slow(began, wait)
                busy, fault = busy + 1, f"unavailable: HTTP {status} {busy + 1} times"
                continue
            if status in (400, 413, 422):
                if not structured:
                    raise Unanswered(f"refused: HTTP {status}")
                structured = False  # perhaps only the form was refused
                continue
            _stop_at(status, self.url, self.model)
            lost, fault = lost + 1, f"{reply} in {lost + 1} tries"
            if lost < self.asking.tries:
                pause = self.asking.pause * 2 ** (lost - 1) * random.uniform(0.5, 1.5)
                self._warn(reply, pause, lost)
                self.gate.sleep(pause)
        raise self._given_up(fault)

    def _post(self, body: dict[str, Any]) -> tuple[float, int, float | None, dict[str, Any] | str]:
        """When it was sent, HTTP status (0 for none), Retry-After in s, and the answer or what went wrong."""
        data = json.dumps(body, ensure_ascii=False).encode()
        with self.gate:
            began = time.monotonic()
            try:
                got = self._pool.request(
                    "POST", f"{self.url}/chat/completions", body=data, headers=self._headers, redirect=False
                )
            except urllib3.exceptions.ConnectTimeoutError:  # a refused connection is one of these to urllib3
                return began, 0, None, _NO_CONNECTION
            except urllib3.exceptions.TimeoutError:
                return began, 0, None, f"late: no answer within {self.asking.timeout:g} s"
            except urllib3.exceptions.HTTPError as error:
                return began, 0, None, f"unavailable: {type(error).__name__}"
        if got.status != 200:
            return (
                began,
                got.status,
                retry_after(got.headers.get("Retry-After")),
                f"unavailable: HTTP {got.status}",
            )
        answer = _read_completion(got.data)
        if answer is None:
            return began, 200, None, "unavailable: what came is no chat completion"
        usage = answer["usage"]
        self.gate.ease()
        with self._lock:
            self._lost = 0
            self.usage["calls"] += 1
            for name in _COUNTED:
                self.usage[name] += usage.get(name, 0)
        return began, 200, None, answer

    def _warn(self, what: str, pause: float, lost: int) -> None:
        """Says what is tried again and when; of many requests at once, one speaks for all."""
        with self._lock:
            if time.monotonic() < self._silent_until:
                return
            self._silent_until = time.monotonic() + pause
        log.warning(
            "%s: %s; trying again in %.1f s (%d of %d)", self.url, what, pause, lost, self.asking.tries
        )

    def _given_up(self, reason: str) -> Exception:
        """The error for a request that is given up; another one when it is the endpoint that is gone."""
        with self._lock:
            self._lost += 1
            if not self.usage["calls"] and reason.startswith(_NO_CONNECTION):
                return ConnectionError(
                    f"{self.url} cannot be reached ({reason}): see that it runs and the address is right"
                )
            if self._lost < _LOST_IN_A_ROW:
                return Unanswered(reason, passing=True)
        return ConnectionError(
            f"{self.url} left {_LOST_IN_A_ROW} requests in a row without an answer ({reason}): "
            "see that it runs, and run this again to go on"
        )


def endpoint_url(url: str) -> str:
    """The API's base of a URL; a key in the URL is refused, because URLs are logged."""
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError(
            "the endpoint's URL carries a user or password: give the key in the environment instead"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
        raise ValueError(f"{url!r} is no endpoint: give a URL such as http://host:8000/v1")
    return url.rstrip("/") if parts.path.strip("/") else f"{parts.scheme}://{parts.netloc}/v1"


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date; None when it says nothing."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(seconds, 0.0) if seconds == seconds else None


def _format(schema: dict[str, Any] | None) -> dict[str, Any]:
    named = {"name": "answer", "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def _read_completion(data: bytes) -> dict[str, Any] | None:
    """Text, finish reason and usage of a chat completion; None when it is none."""
    try:
        body = json.loads(data)
        choice = body["choices"][0]
        message = choice["message"]
        text = message.get("content") or ""
        finish = "refusal" if message.get("refusal") else choice.get("finish_reason") or ""
        usage = body.get("usage") or {}
        if not isinstance(text, str):
            return None
        counted = {k: usage[k] for k in _COUNTED if isinstance(usage.get(k), int)}
        return {"text": text, "finish": finish, "usage": counted}
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None


def _stop_at(status: int, url: str, model: str) -> None:
    """Raises for what no repetition mends; returns for what passes."""
    if status in (401, 403):
        raise ValueError(f"{url} refuses the key (HTTP {status}): set the right one in the environment")
    if status == 404:
        raise ValueError(f"{url} has no model {model!r} or is no OpenAI-compatible API (HTTP 404)")
    if status not in (0, 200, *_PASSING):
        raise ValueError(f"{url} answers HTTP {status}: it is no OpenAI-compatible API")
