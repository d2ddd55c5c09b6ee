"""The engine that has vLLM write the drafts, on machines where vLLM is installed beside this package.

vLLM gets the decoder alone, in a process of its own, and a prompt as token ids among which the rows of the
visual tokens come as embeddings (`EmbedsPrompt` with a mask, vLLM 0.24 or newer). Volumes are read, encoded
and explained here, by the whole model: the decoder stands twice in memory.
"""

import asyncio
import contextlib
import itertools
import json
import logging
import os
import tempfile
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import torch

from mu2llm.serving.engine import Cancelled, Engine, Job

log = logging.getLogger(__name__)

SETTINGS = "MU2_VLLM"  # the environment variable with more of vLLM's engine arguments, as a JSON object
WATCH_SECONDS = 0.02  # how often clients are asked whether they still want their answer
SHARE = 0.8  # of the GPU memory that is free beside the model, for vLLM; the rest is for encoding


class VllmEngine(Engine):
    """Greedy drafts are those of `generate` but for rounding; a seed draws others than the batch engine's."""

    def __init__(self, folder: str | Path, **limits: int):
        _import()  # what is missing is told before a large model is loaded
        super().__init__(folder, **limits)

    def _start(self) -> None:
        self._numbers = itertools.count(1)
        self._drafts: dict[Job, asyncio.Task[None]] = {}  # of the loop's thread, alone
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mu2-write", daemon=True)
        self._thread.start()
        self._decoder = tempfile.TemporaryDirectory(prefix="mu2-decoder-")
        try:
            export_decoder(self.model, self.processor, self._decoder.name)
            self._run(self._load())
        except BaseException:
            self._end_loop()
            raise
        context = self._llm.model_config.max_model_len
        self._preparation.context = min(self._preparation.context, context)

    def _write(self, job: Job) -> None:
        def begin() -> None:
            self._drafts[job] = self._loop.create_task(self._draft(job))

        self._loop.call_soon_threadsafe(begin)

    def _stop(self) -> None:
        self._run(self._shut())
        self._end_loop()

    async def _load(self) -> None:
        vllm = _import()
        ours = {
            "model": self._decoder.name,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "max_num_seqs": self.max_batch,
            "enable_prompt_embeds": True,
            "skip_tokenizer_init": True,
            "generation_config": "vllm",  # none but what each request says
            "disable_log_stats": True,
        }
        arguments = arguments_for(ours)
        try:
            arguments = vllm.AsyncEngineArgs(**arguments)
        except TypeError as error:
            raise ValueError(f"{SETTINGS}: {error}") from error
        self._llm = vllm.AsyncLLMEngine.from_engine_args(arguments)
        self._watching = self._loop.create_task(self._watch())

    async def _shut(self) -> None:
        self._watching.cancel()
        self._llm.shutdown()

    async def _draft(self, job: Job) -> None:
        try:
            job.check()
            prompt, settings = self._prompt(job), self._sampling(job)
            outputs = self._llm.generate(prompt, settings, f"draft-{next(self._numbers)}")
            async with contextlib.aclosing(outputs):  # closed amid a draft, it frees the place
                async for output in outputs:
                    job.check()
                    for token in output.outputs[0].token_ids:
                        job.tokens.append(token)
                        if self._take(job):
                            self._finish(job)
                            return
            raise RuntimeError("vLLM ended a draft that is not whole")
        except asyncio.CancelledError:
            self._end(job, job.unwanted() or Cancelled())
        except Exception as error:
            if self._llm.errored:
                log.critical("vLLM's process is gone: ending, so that a new one is started", exc_info=error)
                os._exit(1)
            self._end(job, error)
        finally:
            del self._drafts[job]

    async def _watch(self) -> None:
        """Ends drafts that nobody wants any more, whether or not they go on."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            for job, draft in list(self._drafts.items()):
                if not draft.cancelling() and job.unwanted():
                    draft.cancel()

    def _prompt(self, job: Job) -> dict[str, Any]:
        assert job.prepared is not None
        ids, visual = job.prepared.input_ids[0].cpu(), job.prepared.visual_tokens[0].cpu()
        words = ids != self.model.config.image_token_id
        embeds = visual.new_zeros(len(ids), visual.shape[1])
        embeds[~words] = visual
        return {
            "prompt_embeds": embeds,
            "prompt_token_ids": ids.tolist(),
            "prompt_is_token_ids": words.tolist(),
        }

    def _sampling(self, job: Job) -> Any:
        request = job.request
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        return SamplingParams(
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            seed=request.seed,
            stop_token_ids=sorted(self._ends),
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._decoder.cleanup()


def export_decoder(model: Any, processor: Any, folder: str | Path) -> None:
    """Writes a model's decoder as a folder that `AutoModelForCausalLM` and vLLM load: weights, tokenizer."""
    model.language_model.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)


def arguments_for(ours: dict[str, Any]) -> dict[str, Any]:
    """vLLM's arguments: ours and the environment's; `ValueError` where these are none or touch ours."""
    text = os.environ.get(SETTINGS, "{}")
    try:
        theirs = json.loads(text)
    except ValueError:
        theirs = None
    if not isinstance(theirs, dict):
        raise ValueError(f'{SETTINGS} is {text!r}: give a JSON object, such as {{"max_model_len": 4096}}')
    if taken := sorted(theirs.keys() & ours.keys()):
        raise ValueError(f"{SETTINGS} sets {', '.join(taken)}, which the engine sets itself")
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        theirs.setdefault("gpu_memory_utilization", round(SHARE * free / total, 3))
    return {**theirs, **ours}


def _import() -> Any:
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # or it tells its makers about this machine
    try:
        import vllm
    except ImportError as error:
        raise ImportError(
            f"the engine vllm needs the package vllm ({error}): install it, or export with --engine batch"
        ) from error
    return vllm
