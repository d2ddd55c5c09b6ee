"""The real thing: a tritonserver with a tiny model, asked over gRPC and HTTP as clients do."""

import gzip
import hashlib
import json
import os
import queue
import re
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from mu2llm import NOTICE
from mu2llm.serving import server
from mu2llm.serving.client import RequestError, report, report_async
from mu2llm.serving.server import Server
from tests.dicom_series import write_series
from tests.volume.test_nifti import BAD

pytestmark = pytest.mark.slow


def processes_of(running: Server) -> list[psutil.Process]:
    """Living ones: an orphan that has ended is the init process's to bury."""
    living = (p for p in psutil.process_iter(["status"]) if p.info["status"] != psutil.STATUS_ZOMBIE)
    return [p for p in living if session(p) == running.pid]


def session(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return None


def test_a_draft_streams_in_pieces_and_ends_with_what_was_measured(
    endpoint: tuple[Server, Path], nifti: Path
) -> None:
    draft = report(nifti, url=endpoint[0].url, max_tokens=60, temperature=1.0, seed=5)
    pieces = list(draft)
    assert len(pieces) > 1
    assert draft.text == "".join(pieces)
    assert draft.finish_reason in ("stop", "length")
    assert draft.usage["seed"] == 5
    assert draft.usage["completion_tokens"] >= len(pieces)
    assert (draft.model_version, draft.notice) == ("3", NOTICE)


def test_temperature_zero_always_gives_the_same_draft(endpoint: tuple[Server, Path], nifti: Path) -> None:
    texts = {"".join(report(nifti.read_bytes(), url=endpoint[0].url, max_tokens=20)) for _ in range(3)}
    assert len(texts) == 1


def test_voxels_give_the_draft_of_their_file(endpoint: tuple[Server, Path], nifti: Path) -> None:
    import asyncio

    import nibabel as nib

    image = nib.load(nifti)
    voxels, spacing = np.asarray(image.dataobj), image.header.get_zooms()
    axes = "".join(nib.aff2axcodes(image.affine))
    asked = {"url": endpoint[0].url, "max_tokens": 20, "spacing": spacing, "axes": axes, "saliency": True}

    async def ask() -> str:
        return "".join([piece async for piece in report_async(voxels, **asked)])

    draft = report(voxels, **asked)
    assert "".join(draft) == "".join(report(nifti, url=endpoint[0].url, max_tokens=20)) == asyncio.run(ask())
    assert nib.Nifti1Image.from_bytes(gzip.decompress(draft.saliency)).shape == voxels.shape
    with pytest.raises(RequestError, match="VOLUME_AXES is 'up'"):
        list(report(voxels, **{**asked, "axes": "up"}))
    with pytest.raises(RequestError, match="every voxel is 0"):
        list(report(np.zeros_like(voxels), **asked))


def test_an_array_above_the_servers_limit_is_refused_by_size(endpoint: tuple[Server, Path]) -> None:
    with pytest.raises(RequestError, match="VOLUME_ARRAY has 250,880,000 bytes; this server takes at most"):
        list(report(np.zeros((512, 490, 500), np.int16), url=endpoint[0].url, spacing=(1, 1, 1), axes="LPS"))


@pytest.mark.parametrize("data", [b"garbage" * 1000, b"\x1f\x8b\x08\x00broken", b"PK\x03\x04broken"])
def test_garbage_is_refused_in_one_line(endpoint: tuple[Server, Path], data: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        list(report(data, url=endpoint[0].url))
    message = str(caught.value)
    assert "\n" not in message
    assert "Traceback" not in message
    assert "/" not in message  # no paths of the server


def test_a_value_out_of_bounds_is_refused_by_name(endpoint: tuple[Server, Path], nifti: Path) -> None:
    with pytest.raises(RequestError, match="MAX_TOKENS is 100000"):
        list(report(nifti, url=endpoint[0].url, max_tokens=100_000))
    with pytest.raises(RequestError, match="QUESTION has 100000 characters"):
        list(report(nifti, url=endpoint[0].url, question="x" * 100_000))


def generate_stream(running: Server, values: dict) -> list[dict]:
    """Server-sent events of the HTTP endpoint."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{running.http_port}/v2/models/mu2llm/generate_stream",
        data=json.dumps(values).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


def test_http_streams_a_draft_of_an_allowed_uri(endpoint: tuple[Server, Path], nifti: Path) -> None:
    events = generate_stream(endpoint[0], {"VOLUME_URI": str(nifti), "MAX_TOKENS": 20})
    assert events[-1]["FINISH_REASON"] in ("stop", "length")
    assert events[-1]["NOTICE"] == NOTICE
    text = "".join(event["TEXT"] for event in events)
    assert text == "".join(report(nifti, url=endpoint[0].url, max_tokens=20))


def test_http_takes_voxels_as_a_flat_list(endpoint: tuple[Server, Path], nifti: Path) -> None:
    import nibabel as nib

    voxels = np.asarray(nib.load(nifti).dataobj)
    values = {
        "VOLUME_ARRAY": voxels.ravel().tolist(),
        "VOLUME_SHAPE": voxels.shape,
        "VOLUME_SPACING": [5.0, 5.0, 5.0],
        "VOLUME_AXES": "RAS",
        "MAX_TOKENS": 20,
    }
    text = "".join(event["TEXT"] for event in generate_stream(endpoint[0], values))
    assert text == "".join(report(nifti, url=endpoint[0].url, max_tokens=20))
    with pytest.raises(urllib.error.HTTPError) as caught:
        generate_stream(endpoint[0], {**values, "VOLUME_SHAPE": [20, 20, 21]})
    assert (caught.value.code, b"VOLUME_ARRAY has 8000 voxels" in caught.value.read()) == (400, True)


def test_a_uri_elsewhere_is_refused(endpoint: tuple[Server, Path]) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        generate_stream(endpoint[0], {"VOLUME_URI": "/etc/passwd"})
    assert caught.value.code == 400
    assert "does not lie below a root" in caught.value.read().decode()


def tensor(name: str, datatype: str, value: np.ndarray) -> Any:
    from tritonclient import grpc

    made = grpc.InferInput(name, value.shape, datatype)
    made.set_data_from_numpy(value)
    return made


def test_tensors_of_another_type_shape_or_name_are_refused(
    endpoint: tuple[Server, Path], nifti: Path
) -> None:
    from tritonclient import grpc

    cube, three = np.zeros((4, 4, 4), np.int16), np.ones(3, np.float32)
    responses: queue.Queue = queue.Queue()
    client = grpc.InferenceServerClient(endpoint[0].url)
    client.start_stream(lambda result, error: responses.put(str(error)))
    for given, word in (
        (tensor("VOLUME_ARRAY", "FP32", cube.astype(np.float32)), "VOLUME_ARRAY"),
        (tensor("VOLUME_ARRAY", "INT16", cube[None]), "VOLUME_ARRAY"),
        (tensor("VOLUME_ARRAY", "INT16", cube[0]), "VOLUME_ARRAY"),
        (tensor("VOLUME_SPACING", "FP32", three[:2]), "VOLUME_SPACING"),
        (tensor("MAX_TOKENS", "INT64", np.array([3])), "MAX_TOKENS"),
        (tensor("COLOUR", "FP32", three), "COLOUR"),
        (tensor("VOLUME_ARRAY", "INT16", cube), "VOLUME_SPACING"),
        (tensor("VOLUME", "BYTES", np.array([b"a", b"b"], np.object_)), "VOLUME"),
    ):
        client.async_stream_infer("mu2llm", [given])
        said = responses.get(timeout=60)
        assert word in said and "\n" not in said and "Traceback" not in said
    client.stop_stream()
    client.close()
    assert list(report(nifti, url=endpoint[0].url, max_tokens=4))


@pytest.mark.parametrize("case", BAD)
def test_every_bad_nifti_is_refused_with_its_reason(endpoint: tuple[Server, Path], case: str) -> None:
    data, cause = BAD[case]
    with pytest.raises(RequestError, match="VOLUME.*" + re.escape(cause)) as caught:
        list(report(data, url=endpoint[0].url))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("left_out", "values", "cause"),
    [
        ({4}, {}, "missing slices"),
        (set(range(1, 8)), {}, "one slice is not a volume"),
        (set(), {"Modality": "MR"}, "modality MR"),
        (set(), {"PixelData": b"\0" * 10}, "do not decode"),
        (set(), {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "image orientation"),
        (set(), {"RescaleType": "MGML"}, "rescaled to MGML"),
    ],
)
def test_a_bad_dicom_series_is_refused_with_its_reason(
    endpoint: tuple[Server, Path], tmp_path: Path, left_out: set, values: dict, cause: str
) -> None:
    def change(i: int, dataset: Any) -> Any:
        for key, value in values.items():
            setattr(dataset, key, value)
        return None if i in left_out else dataset

    write_series(tmp_path / "SECRET-ID", change)
    with pytest.raises(RequestError, match=cause) as caught:
        list(report(tmp_path / "SECRET-ID", url=endpoint[0].url))
    told = str(caught.value).replace(str(tmp_path / "SECRET-ID"), "")  # the client's own name for it
    assert "\n" not in told and "secret" not in told.lower()


def test_a_client_that_leaves_frees_the_worker(endpoint: tuple[Server, Path], nifti: Path) -> None:
    from tritonclient import grpc

    responses: queue.Queue = queue.Queue()
    client = grpc.InferenceServerClient(endpoint[0].url)
    client.start_stream(lambda result, error: responses.put((result, error)))
    inputs = [
        tensor("VOLUME", "BYTES", np.array([nifti.read_bytes()], np.object_)),
        tensor("MAX_TOKENS", "INT32", np.array([400], np.int32)),
        tensor("TEMPERATURE", "FP32", np.array([1], np.float32)),
        tensor("SEED", "INT64", np.array([9])),
    ]
    client.async_stream_infer("mu2llm", inputs)
    responses.get(timeout=60)
    client.stop_stream(cancel_requests=True)
    client.close()
    assert report_usage(endpoint[0], nifti)["seconds_queued"] < 5
    # What it has been told until then is in the log: of which volume, and so many tokens.
    left = json.loads((endpoint[1] / "audit.jsonl").read_text().splitlines()[-2])
    assert left["outcome"] == "CANCELLED" and left["completion_tokens"] > 0
    assert left["volume_sha256"] == hashlib.sha256(nifti.read_bytes()).hexdigest()


def test_a_draft_that_is_closed_is_given_up_by_the_server(endpoint: tuple[Server, Path], nifti: Path) -> None:
    import asyncio

    options = {"url": endpoint[0].url, "max_tokens": 400, "temperature": 1.0, "seed": 9}

    def last() -> dict:
        report_usage(endpoint[0], nifti)  # one request is worked on at a time: the one before has ended
        return json.loads((endpoint[1] / "audit.jsonl").read_text().splitlines()[-2])

    async def ask() -> None:
        async with report_async(nifti, **options) as draft:
            await anext(draft)

    with report(nifti, **options) as draft:
        next(draft)
    assert last()["outcome"] == "CANCELLED"
    assert list(draft) == [] and not draft.finish_reason
    asyncio.run(ask())
    assert last()["outcome"] == "CANCELLED"


def report_usage(running: Server, nifti: Path) -> dict:
    draft = report(nifti, url=running.url, max_tokens=2)
    assert "".join(draft) == draft.text
    return draft.usage


def test_beyond_its_queue_the_server_refuses_and_loses_nothing(
    endpoint: tuple[Server, Path], nifti: Path
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def ask(seed: int) -> str:
        draft = report(nifti, url=endpoint[0].url, max_tokens=400, temperature=1.0, seed=seed)
        try:
            list(draft)
        except ConnectionError as error:
            assert "2 requests are waiting" in str(error)
            return "refused"
        return draft.finish_reason

    # Several rounds: what such a crowd does to the server's memory shows sooner or later, not at once.
    for _ in range(6):
        with ThreadPoolExecutor(8) as pool:
            outcomes = list(pool.map(ask, range(8)))
        assert set(outcomes) <= {"stop", "length", "refused"}
        assert 2 <= len([o for o in outcomes if o != "refused"]) < 8


def test_a_client_may_ask_a_busy_server_again(endpoint: tuple[Server, Path], nifti: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def ask(seed: int) -> str:
        options = {"max_tokens": 200, "temperature": 1.0, "seed": seed, "retries": 8}
        draft = report(nifti, url=endpoint[0].url, **options)
        return "".join(draft) and draft.finish_reason

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(8))) <= {"stop", "length"}


def test_a_refusal_names_the_file(endpoint: tuple[Server, Path], tmp_path: Path) -> None:
    (tmp_path / "broken.nii.gz").write_bytes(b"\x1f\x8b\x08\x00broken")
    with pytest.raises(RequestError, match=r"broken\.nii\.gz"):
        list(report(tmp_path / "broken.nii.gz", url=endpoint[0].url))


def test_the_command_writes_what_is_asked_for(
    endpoint: tuple[Server, Path], nifti: Path, tmp_path: Path
) -> None:
    from mu2llm.cli import main

    url, out = ("--url", endpoint[0].url, "--max-tokens", "8"), tmp_path / "fhir.json"
    assert main(["report", str(nifti), *url, "--format", "fhir", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["resourceType"] == "Bundle"
    assert main(["report", str(nifti), *url, "--saliency", str(tmp_path / "s.nii.gz")]) == 0
    assert (tmp_path / "s.nii.gz").stat().st_size > 0


def test_a_killed_worker_is_replaced(endpoint: tuple[Server, Path], nifti: Path) -> None:
    (worker,) = [p for p in processes_of(endpoint[0]) if "mu2llm.serving.worker" in p.cmdline()]
    worker.kill()
    deadline = time.monotonic() + 60
    while True:
        try:
            assert list(report(nifti, url=endpoint[0].url, max_tokens=4))
            break
        except ConnectionError:  # asked of the worker that was dying
            assert time.monotonic() < deadline
    assert [p for p in processes_of(endpoint[0]) if "mu2llm.serving.worker" in p.cmdline()] != [worker]


def test_200_mb_of_junk_are_refused(endpoint: tuple[Server, Path], nifti: Path) -> None:
    with pytest.raises(RequestError) as caught:
        list(report(os.urandom(1 << 20) * 200, url=endpoint[0].url))
    assert "\n" not in str(caught.value)
    assert list(report(nifti, url=endpoint[0].url, max_tokens=4))


def test_a_volume_above_the_servers_limit_is_refused_by_size(endpoint: tuple[Server, Path]) -> None:
    with pytest.raises(RequestError, match="has 300,000,000 bytes; this server takes at most 250,000,000"):
        list(report(bytes(300_000_000), url=endpoint[0].url))


@pytest.mark.parametrize(
    ("values", "code"),
    [
        # Triton 2.51 itself calls a JSON value of another type an internal error; the model does not see it.
        ({"VOLUME": ["x"], "MAX_TOKENS": "many"}, 500),
        ({"VOLUME": 3}, 500),
        ({"VOLUME": "x", "MAX_TOKENS": [1, 2]}, 400),
        ({"VOLUME": "x", "COLOUR": "red"}, 400),
        ({"QUESTION": "Any nodule?"}, 400),
        ({"VOLUME": "x", "VOLUME_URI": "y"}, 400),
        ({}, 400),
    ],
)
def test_wrong_types_shapes_and_fields_are_refused(
    endpoint: tuple[Server, Path], values: dict, code: int
) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        generate_stream(endpoint[0], values)
    assert caught.value.code == code
    answer = caught.value.read().decode()
    assert json.loads(answer.removeprefix("data: "))["error"]
    assert "Traceback" not in answer


def test_ways_out_of_the_allowed_root_are_refused(
    endpoint: tuple[Server, Path], nifti: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret.nii.gz").write_bytes(nifti.read_bytes())
    link = nifti.parent / "link.nii.gz"
    link.symlink_to(tmp_path / "secret.nii.gz")
    for uri in (
        str(link),
        f"{nifti.parent}/../{nifti.parent.name}/../../etc/passwd",
        f"{nifti.parent}/%2e%2e/secret",
        "file:///etc/passwd",
        "s3://bucket/key",
        f"{nifti.parent}\0/x",
        "~/x",
        str(nifti.parent) + "-elsewhere/ct.nii.gz",
    ):
        with pytest.raises(urllib.error.HTTPError) as caught:
            generate_stream(endpoint[0], {"VOLUME_URI": uri})
        assert caught.value.code == 400, uri
        assert str(tmp_path) not in caught.value.read().decode()


def test_an_asyncio_client_gets_what_the_plain_one_gets(endpoint: tuple[Server, Path], nifti: Path) -> None:
    import asyncio

    async def ask() -> tuple[str, dict]:
        draft = report_async(nifti, url=endpoint[0].url, max_tokens=20, retries=5)
        pieces = [piece async for piece in draft]
        assert draft.text == "".join(pieces)
        with pytest.raises(RequestError, match="MAX_TOKENS"):
            _ = [piece async for piece in report_async(nifti, url=endpoint[0].url, max_tokens=0)]
        return draft.text, draft.usage

    text, usage = asyncio.run(ask())
    assert text == "".join(report(nifti, url=endpoint[0].url, max_tokens=20))
    assert usage["completion_tokens"] <= 20


def test_the_saliency_comes_with_the_draft(endpoint: tuple[Server, Path], nifti: Path) -> None:
    import nibabel as nib

    draft = report(nifti, url=endpoint[0].url, max_tokens=8, saliency=True)
    assert list(draft)
    image = nib.Nifti1Image.from_bytes(gzip.decompress(draft.saliency))
    assert image.shape == nib.load(nifti).shape


def test_a_deadline_is_kept(endpoint: tuple[Server, Path], nifti: Path) -> None:
    with pytest.raises(TimeoutError, match=r"0\.02 s"):
        list(report(nifti, url=endpoint[0].url, max_tokens=400, temperature=1.0, seed=5, timeout=0.02))


def test_every_answer_leaves_a_line_without_text(endpoint: tuple[Server, Path], nifti: Path) -> None:
    draft = report(nifti, url=endpoint[0].url, question="Is Jane's heart large?", max_tokens=9)
    list(draft)
    lines = (endpoint[1] / "audit.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert last["volume_sha256"] == hashlib.sha256(nifti.read_bytes()).hexdigest()
    assert last["draft_sha256"] == hashlib.sha256(draft.text.encode()).hexdigest()
    assert (last["model_version"], last["max_tokens"], last["question"]) == ("3", 9, "own")
    assert "Jane" not in lines[-1] and draft.text.strip() not in lines[-1] and nifti.name not in lines[-1]
    with pytest.raises(RequestError):
        list(report(b"garbage", url=endpoint[0].url))
    assert json.loads((endpoint[1] / "audit.jsonl").read_text().splitlines()[-1])["outcome"] == "INVALID_ARG"


def test_it_listens_on_loopback_alone(endpoint: tuple[Server, Path]) -> None:
    listening = [c for c in psutil.Process(endpoint[0].pid).net_connections() if c.status == "LISTEN"]
    assert {c.laddr.ip.removeprefix("::ffff:") for c in listening} == {"127.0.0.1"}
    ports = {endpoint[0].grpc_port, endpoint[0].http_port, endpoint[0].metrics_port}
    assert {c.laddr.port for c in listening} == ports


def test_a_second_start_is_refused(endpoint: tuple[Server, Path], ports: dict[str, int]) -> None:
    running, state = endpoint
    with pytest.raises(server.ServerError, match=f"already runs .*{running.pid}"):
        server.start(running.repository, state_dir=state, **ports)


@pytest.mark.parametrize("how", ["stop", "killed before", "stop amid drafts", "stub killed", "model gone"])
def test_stop_leaves_no_process_and_no_shared_memory(
    model_folder: Path, nifti: Path, tmp_path: Path, ports: dict[str, int], how: str
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from mu2llm.serving.export import export_triton

    export_triton(model_folder, tmp_path / "repository", version=1, manifest={})
    running = server.start(tmp_path / "repository", state_dir=tmp_path / "state", **ports)
    assert len(processes_of(running)) == 3  # server, stub, worker
    if how == "killed before":
        os.kill(running.pid, signal.SIGKILL)
        while psutil.Process(running.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)  # not waited for: whoever started it may not look either
        while processes_of(running):  # they follow it by themselves
            time.sleep(0.05)
    elif how in ("stub killed", "model gone"):  # a Triton 2.51 would stay "ready" for ever
        tritonserver = psutil.Process(running.pid)
        (stub,) = [p for p in processes_of(running) if "python_backend_stub" in p.name()]
        (worker,) = [p for p in processes_of(running) if "mu2llm.serving.worker" in p.cmdline()]
        if how == "model gone":  # the worker dies, and no other can be started
            next((tmp_path / "repository").rglob("model.safetensors")).unlink()
        (stub if how == "stub killed" else worker).kill()
        tritonserver.wait(60)
        assert server.status(tmp_path / "state") is None
    elif how == "stop amid drafts":
        drafts = [report(nifti, url=running.url, max_tokens=200, temperature=1.0, seed=i) for i in range(4)]
        for draft in drafts:
            next(draft)
        with ThreadPoolExecutor(5) as pool:
            stopped = pool.submit(server.stop, tmp_path / "state")
            whole = [pool.submit(list, draft) for draft in drafts]
            assert all(isinstance(pieces.result(), list) for pieces in whole)
            assert stopped.result()
        assert all(draft.finish_reason in ("stop", "length") for draft in drafts)
    if how != "stop amid drafts":
        assert server.stop(tmp_path / "state") is (how == "stop")
    assert processes_of(running) == []
    assert not list(Path("/dev/shm").glob(f"mu2llm_{running.grpc_port}_*"))
    assert server.status(tmp_path / "state") is None
    assert server.stop(tmp_path / "state") is False


def test_the_metrics_tell_what_became_of_requests(endpoint: tuple[Server, Path], nifti: Path) -> None:
    running = endpoint[0]

    def metric(name: str, outcome: str = "") -> float:
        address = f"http://127.0.0.1:{running.metrics_port}/metrics"
        with urllib.request.urlopen(address) as answer:
            lines = answer.read().decode().splitlines()
        label = f'outcome="{outcome}"' if outcome else ""
        found = [line for line in lines if line.startswith(f"{name}{{") and label in line]
        assert len(found) == 1, found
        return float(found[0].rsplit(" ", 1)[1])

    finished, refused = (metric("mu2llm_requests_total", it) for it in ("FINISHED", "INVALID_ARG"))
    seconds = metric("mu2llm_request_seconds_total")
    list(report(nifti, url=running.url, max_tokens=10))
    with pytest.raises(RequestError):
        list(report(b"garbage", url=running.url))
    assert metric("mu2llm_requests_total", "FINISHED") == finished + 1
    assert metric("mu2llm_requests_total", "INVALID_ARG") == refused + 1
    assert metric("mu2llm_request_seconds_total") > seconds
    assert metric("mu2llm_requests_open") == 0
