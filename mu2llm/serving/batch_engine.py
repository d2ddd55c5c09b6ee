"""The engine that writes drafts with the model's own decoder: all rows step together, in one thread."""

import threading
from collections import deque
from collections.abc import Callable, Iterable

import torch

from mu2llm.model.batch import Batch, Row, read
from mu2llm.serving.engine import Engine, Job


class BatchEngine(Engine):
    """Runs wherever torch does. Greedy drafts are those of `generate`, token by token."""

    def _start(self) -> None:
        self._batch = Batch(self.model, self.max_batch)
        self._rows: dict[Job, Row] = {}  # of the thread that writes, alone
        self._given = threading.Condition()  # guards what follows
        self._ready: deque[Job] = deque()
        self._stopped = False
        self._writing = threading.Thread(target=self._step_by_step, name="mu2-write", daemon=True)
        self._writing.start()

    def _write(self, job: Job) -> None:
        with self._given:
            self._ready.append(job)
            self._given.notify()

    def _stop(self) -> None:
        with self._given:
            self._stopped = True
            self._given.notify()
        self._writing.join()

    def _step_by_step(self) -> None:
        """Who is ready joins between two steps."""
        while True:
            with self._given:
                self._given.wait_for(lambda: self._ready or self._rows or self._stopped)
                if self._stopped:
                    return
                newcomers, self._ready = self._ready, deque()
            self._each(newcomers, self._join)
            self._each(self._rows, Job.check)
            if self._rows:
                try:
                    self._batch.step()
                except Exception as error:  # such as no memory left: all rows are lost, the engine is not
                    lost, self._rows = self._rows, {}
                    self._batch.clear()
                    for job in lost:
                        self._end(job, error)
            self._each(self._rows, self._add)

    def _each(self, jobs: Iterable[Job], act: Callable[[Job], None]) -> None:
        """Acts on every job; one that fails ends alone."""
        for job in list(jobs):
            try:
                act(job)
            except Exception as error:
                self._leave(job)
                self._end(job, error)

    def _join(self, job: Job) -> None:
        job.check()
        request, prepared = job.request, job.prepared
        assert prepared is not None
        row = Row(job.tokens, request.temperature, torch.Generator().manual_seed(request.seed))
        ids = prepared.input_ids
        (prompt,) = read(self.model, ids, torch.ones_like(ids), prepared.visual_tokens)
        self._batch.join(row, prompt, request.max_tokens)
        self._rows[job] = row
        self._add(job)

    def _add(self, job: Job) -> None:
        if self._take(job):
            self._leave(job)
            self._finish(job)

    def _leave(self, job: Job) -> None:
        if row := self._rows.pop(job, None):
            self._batch.leave(row)
