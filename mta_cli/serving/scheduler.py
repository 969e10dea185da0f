"""Continuous batching: answers of many users in one batch, which they join and leave between two steps.

One thread owns the model. Between two decoding steps it reads at most `PIECE_TOKENS` tokens of waiting prompts, in at
most `PIECE_TOKENS / PASS_TOKENS` passes, which limits the delay of running answers. An error in one answer ends only
that answer; an error in a decoding step ends all running answers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mta_cli.engine.generation.decoding_batch import DecodingBatch, PromptPass, PromptText
from mta_cli.engine.generation.request import common_prefix_length
from mta_cli.engine.model.device_memory import is_out_of_memory
from mta_cli.errors import MtaError
from mta_cli.serving.answer import AnswerRequest, Failed, Finished
from mta_cli.serving.byte_cache import ByteCache
from mta_cli.serving.engine import QueueFull, Stopping
from mta_cli.serving.metrics import Metrics

if TYPE_CHECKING:
    from torch import Tensor

    from mta_cli.engine.lora.row_factors import UserFactors
    from mta_cli.engine.model.load import LoadedBase

log = logging.getLogger("mta.serve")
STEPS_PER_ROW = 64  # steps until the batch may grow by a row again after memory ran out
PIECE_TOKENS = 256  # prompt tokens that are read between two decoding steps
PASS_TOKENS = 64  # a shorter pass counts as this many tokens, because it reads all weights too
MIN_KEPT_TOKENS = 16  # shorter prefixes are not cached
PrefixKey = tuple[int | None, "UserFactors"]  # the user's id and the model
LocalAnswer = AnswerRequest["UserFactors"]
Prefix = tuple[list[int], "Tensor"]  # token ids, and their keys and values


@dataclass
class _Row:
    answer: LocalAnswer
    stepped: float  # when its last token was chosen, in seconds of `time.monotonic`


class Scheduler:
    """The engine of this process: a thread that decodes all answers. Other threads may call `submit` and `cancel`."""

    def __init__(
        self, base: LoadedBase, *, max_batch: int, max_waiting: int, prefix_bytes: int, metrics: Metrics, cores: int
    ) -> None:
        self._decoder, self._metrics = base.decoder, metrics
        self._max_batch, self._max_waiting, self._cores = max_batch, max_waiting, cores
        self._room, self._steps_since_shrink = max_batch, 0  # `_room` is the number of rows that fit into memory
        self._batch, self._rows = DecodingBatch(self._decoder), list[_Row]()
        self._reading: tuple[LocalAnswer, PromptPass] | None = None
        self._prefixes: ByteCache[PrefixKey, Prefix] = ByteCache(prefix_bytes, lambda prefix: prefix[1].nbytes)
        self._waiting: deque[LocalAnswer] = deque()
        self._changed, self._stop, self._drained = threading.Condition(), False, threading.Event()
        self._calls: deque[tuple[Callable[[], None], threading.Event]] = deque()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    def start(self) -> None:
        """Start the engine's thread."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def require_reachable(self) -> None:
        """See `AnswerEngine`. Never raises, because no other server is needed."""

    def submit(self, answers: Sequence[LocalAnswer]) -> None:
        """Queue these answers. Raises QueueFull if too many wait, and Stopping after `stop`."""
        with self._changed:
            if self._stop:
                raise Stopping("The server is stopping.")
            if len(self._waiting) + len(answers) > self._max_waiting:
                raise QueueFull(
                    f"{len(self._waiting)} answers are waiting, and the most is {self._max_waiting}: try again later."
                )
            self._waiting.extend(answers)
            self._changed.notify()

    def cancel(self, answers: Sequence[LocalAnswer]) -> None:
        """Cancel these answers without emitting anything; their rows are freed after the current step."""
        with self._changed:
            for answer in answers:
                answer.cancelled = True
            self._changed.notify()

    def known_owners(self) -> set[int]:
        """The ids of users with waiting or running answers or with cached conversations."""
        found: set[int] = set()

        def work() -> None:
            found.update(answer.owner for answer in self._answers() if answer.owner is not None)
            found.update(owner for owner, _ in self._prefixes if owner is not None)

        self._call(work)
        return found

    def forget(self, gone: Sequence[UserFactors], owners: Sequence[int]) -> None:
        """See `AnswerEngine`."""
        missing = MtaError("The user was removed while their model answered.")

        def work() -> None:
            for answer in self._answers():
                if answer.owner in owners and not answer.cancelled:
                    answer.cancelled = True
                    answer.emit(Failed(missing))
                if answer.model in gone or answer.owner in owners:
                    answer.keeps_prefix = False
            self._drop_cancelled()
            for owner, user in self._prefixes:
                if owner in owners or user in gone:
                    self._prefixes.drop((owner, user))

        self._call(work)

    def _answers(self) -> list[LocalAnswer]:
        """All waiting and running answers. For the engine's thread only."""
        with self._changed:
            waiting = list(self._waiting)
        reading = [self._reading[0]] if self._reading is not None else []
        return [*waiting, *reading, *(row.answer for row in self._rows)]

    def stop(self, *, drain_seconds: float) -> None:
        """See `AnswerEngine`. Also ends the thread."""
        with self._changed:
            self._stop = True
            self._changed.notify()
        self._drained.wait(drain_seconds)
        self._call(self._end_answers)
        self._thread.join(drain_seconds + 10)

    def _call(self, work: Callable[[], None]) -> None:
        """Run `work` in the engine's thread between two steps, and wait for it."""
        done = threading.Event()
        with self._changed:
            self._calls.append((work, done))
            self._changed.notify()
        while not done.wait(0.1):
            if not self._thread.is_alive():
                return

    def _run(self) -> None:
        try:
            torch.set_num_threads(self._cores)
            self._decoder.pack_weights()
            while self._wait_for_work():
                try:
                    self._drop_cancelled()
                    self._read_piece_of_prompts()
                    self._decode()
                    self._update_gauges()
                except Exception as error:  # unexpected: start again with an empty batch
                    log.error("the batch failed", exc_info=error)
                    self._fail_all(error)
        finally:
            with self._changed:
                self._stop = True
            self._end_answers()
            self._drained.set()

    def _end_answers(self) -> None:
        """Emit `Failed(Stopping)` to all waiting and running answers, and cancel them."""
        for answer in self._answers():
            if not answer.cancelled:
                answer.cancelled = True
                answer.emit(Failed(Stopping("The server has stopped.")))

    def _wait_for_work(self) -> bool:
        """Run the queued calls, and sleep until there are answers to compute. Returns False if the thread shall end."""
        while True:
            with self._changed:
                calls, self._calls = self._calls, deque()
            for work, done in calls:
                try:
                    work()
                except Exception as error:
                    log.error("a call failed", exc_info=error)
                finally:
                    done.set()
            with self._changed:
                if self._calls:
                    continue
                if self._waiting or self._rows or self._reading is not None:
                    return True
                if self._stop:
                    return False
                self._changed.wait()

    def _update_gauges(self) -> None:
        self._metrics.batch_size.set(len(self._rows))
        self._metrics.waiting.set(len(self._waiting))
        self._metrics.prefix_bytes.set(self._prefixes.num_bytes)

    def _drop_cancelled(self) -> None:
        with self._changed:
            self._waiting = deque(answer for answer in self._waiting if not answer.cancelled)
        if self._reading is not None and self._reading[0].cancelled:
            self._reading = None
        self._leave([r for r, row in enumerate(self._rows) if row.answer.cancelled])

    def _leave(self, rows: Sequence[int]) -> None:
        """Remove rows from the batch, and cache their prefixes for the next turn of the conversation."""
        if not rows:
            return
        for r in rows:
            if self._rows[r].answer.keeps_prefix:
                self._keep_prefix(r)
        kept = [r for r in range(len(self._rows)) if r not in rows]
        self._rows = [self._rows[r] for r in self._batch.keep_rows(kept)]

    def _keep_prefix(self, row: int) -> None:
        answer = self._rows[row].answer
        # Only the prompt's states are kept. The answer's were computed one token at a time, which in 16 bits rounds
        # differently from reading a whole text, so a later answer would depend on whether they were kept.
        ids = list(answer.prompt)
        clean = answer.model.reusable_length(len(ids), len(ids))
        if clean < MIN_KEPT_TOKENS:
            return
        try:
            self._prefixes.put((answer.owner, answer.model), (ids[:clean], self._batch.row_block(row, clean)))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._prefixes.clear()  # the cache only saves time

    def _read_piece_of_prompts(self) -> None:
        """Compute up to `PIECE_TOKENS` tokens of prompts. Complete prompts join the batch, or get label scores."""
        budget = PIECE_TOKENS
        while budget > 0 and (self._reading is not None or self._begin_reading()):
            assert self._reading is not None
            answer, text = self._reading
            try:
                read = min(budget, text.remaining)
                logits = text.read(read)
                budget -= max(read, PASS_TOKENS)
                if logits is None:
                    continue
                self._reading = None
                self._end_reading(answer, text, logits[0])
            except Exception as error:
                self._reading = None
                if is_out_of_memory(error) and self._rows:
                    self._halve_batch([answer])
                else:
                    answer.emit(Failed(error))

    def _begin_reading(self) -> bool:
        """Take the first waiting request, if there is room for another row."""
        with self._changed:
            if not self._waiting or len(self._rows) >= self._room:
                return False
            answer = self._waiting.popleft()
        ids, prefix = answer.ids, None
        if (known := self._prefixes.get((answer.owner, answer.model))) is not None:
            shared = common_prefix_length([known[0], ids[:-1]])
            shared = answer.model.reusable_length(len(answer.prompt), shared)
            prefix = known[1][..., :shared, :] if shared >= MIN_KEPT_TOKENS else None
        try:
            text = PromptPass(self._decoder, [PromptText(answer.model, ids, len(answer.prompt))], prefix)
        except Exception as error:
            if is_out_of_memory(error) and self._rows:
                self._halve_batch([answer])
                return False
            answer.emit(Failed(error))
            return self._begin_reading()
        self._metrics.prompt_tokens.inc(text.remaining)
        self._reading = (answer, text)
        return True

    def _end_reading(self, answer: LocalAnswer, text: PromptPass, logits: Tensor) -> None:
        if answer.labels:
            scores = text.completion_log_likelihoods(logits, answer.labels)
            answer.emit(Finished("stop", 0, tuple(scores)))
            return
        if answer.max_tokens <= 0:
            answer.emit(Finished("length", 0))
            return
        if not answer.add(answer.sampler.choose(logits)):
            self._batch.join(text)
            self._rows.append(_Row(answer, time.monotonic()))
        self._metrics.tokens.inc()

    def _decode(self) -> None:
        """Decode one token for every row."""
        if not self._rows:
            return
        try:
            logits = self._batch.decode_step([row.answer.tokens[-1] for row in self._rows])
        except Exception as error:
            if is_out_of_memory(error) and len(self._rows) > 1:
                self._halve_batch([])
            else:
                self._fail_all(error)
            return
        self._grow_again()
        now, ended = time.monotonic(), []
        for r, row in enumerate(self._rows):
            try:
                if row.answer.add(row.answer.sampler.choose(logits[r])):
                    ended.append(r)
            except Exception as error:
                row.answer.emit(Failed(error))
                ended.append(r)
            self._metrics.token_gap.observe(now - row.stepped)
            row.stepped = now
        self._metrics.tokens.inc(len(self._rows))
        self._leave(ended)

    def _halve_batch(self, also: Sequence[LocalAnswer]) -> None:
        """After running out of memory, halve the batch for a while; the newest answers wait and continue later."""
        self._room, self._steps_since_shrink = max(1, len(self._rows) // 2), 0
        self._metrics.shrinks.inc()
        self._prefixes.clear()
        aside = [row.answer for row in self._rows[self._room :]]
        with self._changed:
            self._waiting.extendleft(reversed([*aside, *also]))
        self._rows = [self._rows[r] for r in self._batch.keep_rows(range(self._room))]
        self._batch.trim()

    def _grow_again(self) -> None:
        """After `STEPS_PER_ROW` successful steps, allow one more row, up to the configured limit."""
        self._steps_since_shrink += 1
        if self._room < self._max_batch and self._steps_since_shrink >= STEPS_PER_ROW:
            self._room, self._steps_since_shrink = self._room + 1, 0

    def _fail_all(self, error: Exception) -> None:
        """End every running answer with the error, and start again with an empty batch."""
        running = [*(row.answer for row in self._rows), *([self._reading[0]] if self._reading is not None else [])]
        self._reading, self._rows = None, []
        for answer in running:
            answer.emit(Failed(error))
        self._prefixes.clear()
        self._batch = DecodingBatch(self._decoder)
