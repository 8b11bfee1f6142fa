"""What processes that tune together tell each other, through a store of keys and values."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from dwr_rewrite.errors import DwrError
from dwr_rewrite.timing import Clock
from dwr_rewrite.tuning import rows
from dwr_rewrite.tuning.bench import Answer, Device, Question
from dwr_rewrite.workload import Workload

START = 600.0
"""Seconds for which a worker waits to be told what there is to do."""

POLL = 0.2
"""Seconds between two looks at the store."""

PARTS_EACH = 4
"""Parts that each worker takes, at least; the last ones to finish then wait for no more than a
fourth of a worker's share."""

LARGEST_PART = 8
"""Questions of one part; they are asked in one call, whose start costs seconds on a GPU."""


class Store(Protocol):
    """What the processes have in common; a ``torch.distributed.Store`` is one."""

    def add(self, key: str, amount: int, /) -> int:
        """Adds to a counter, which begins at 0, and gives what it then is; atomic."""
        ...

    def set(self, key: str, value: str, /) -> object:
        """Sets a value."""
        ...

    def get(self, key: str, /) -> bytes:
        """A value that is there."""
        ...

    def check(self, keys: list[str], /) -> bool:
        """Whether they are all there."""
        ...


@dataclass(frozen=True)
class Board:
    """What the processes tell each other about one list of questions."""

    store: Store
    device: Device
    questions: Sequence[Question]
    clock: Clock
    sleep: Callable[[float], object]

    def elect(self, rank: int) -> bool:
        """Whether this process is the head of its group."""
        if rank == 0:
            self._set("head", self._group)
            return True
        return self._waited_for("head").decode() != self._group and self.count("heads", 1) == 1

    def open(self, places: Iterable[int]) -> None:
        """Tells the group which questions there is no answer to."""
        self._set(f"{self._group}/todo", json.dumps(list(places)))

    def todo(self) -> Sequence[Question]:
        """What the head has told."""
        places = json.loads(self._waited_for(f"{self._group}/todo"))
        return [self.questions[place] for place in places]

    def take(self, todo: Sequence[Question], workers: int) -> Sequence[Question]:
        """Questions that nobody else is given; empty at the end."""
        size = min(max(len(todo) // (PARTS_EACH * workers), 1), LARGEST_PART)
        start = (self.count("parts", 1) - 1) * size
        return todo[start : start + size]

    def tell(self, answer: Answer) -> None:
        """Gives an answer to the head."""
        self._set(self._key(answer.workload), json.dumps(rows.answer_row(answer)))
        self.count("answered", 1)

    def answers(self, todo: Sequence[Question]) -> Iterator[tuple[Question, Answer]]:
        """What the group has told."""
        for question in todo:
            key = self._key(question.workload)
            if self._is_there(key):
                yield question, rows.read_answer(json.loads(self._waited_for(key)))

    @contextmanager
    def working(self) -> Generator[None]:
        """Tells when this process has finished, in whatever way."""
        try:
            yield
        finally:
            with suppress(DwrError):  # without a store there is nobody to tell
                self._add("finished", 1)

    def wait(self, workers: int, patience: float) -> None:
        """Until all workers have finished, or none has answered for so many seconds."""
        seen, since = -1, self.clock()
        while self._add("finished", 0) < workers:
            if (answered := self.count("answered")) != seen:
                seen, since = answered, self.clock()
            elif self.clock() - since >= patience:
                return
            self.sleep(POLL)

    def count(self, what: str, more: int = 0) -> int:
        """A counter of the group."""
        return self._add(f"{self._group}/{what}", more)

    @cached_property
    def _group(self) -> str:
        """Those who ask the same of an equal device."""
        asked = [[question.workload.to_dict(), question.forms] for question in self.questions]
        return rows.key([rows.device_key(self.device), asked])

    def _key(self, workload: Workload) -> str:
        return f"{self._group}/{rows.key(workload.to_dict())}"

    def _add(self, key: str, more: int) -> int:
        with _reached():
            return self.store.add(key, more)

    def _set(self, key: str, value: str) -> None:
        with _reached():
            self.store.set(key, value)

    def _is_there(self, key: str) -> bool:
        with _reached():
            return self.store.check([key])

    def _waited_for(self, key: str) -> bytes:
        began = self.clock()
        while not self._is_there(key):
            if self.clock() - began >= START:
                raise DwrError(f"the worker that leads the others has told nothing for {START:g} "
                               f"s; look at its messages, and start again")  # fmt: skip
            self.sleep(POLL)
        with _reached():
            return self.store.get(key)


@contextmanager
def _reached() -> Generator[None]:
    """Says what it means that the store cannot be reached.

    Raises:
        DwrError: that; torch raises RuntimeError for it.
    """
    try:
        yield
    except RuntimeError as error:
        raise DwrError(f"the other workers cannot be reached any more: {error}; what was measured "
                       f"is stored, and the next run goes on from there") from error  # fmt: skip
