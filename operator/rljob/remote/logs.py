"""The logs of a job's pods as one stream, each line with where it comes from."""

import difflib
import heapq
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rljob.api import ConfigurationError, InfrastructureError
from rljob.remote.cluster import Api
from rljob.remote.observe import PodState


@dataclass(frozen=True)
class Line:
    """One line of a log."""

    at: str
    """Time of the line, RFC 3339 with nanoseconds: sorts as text."""
    source: str
    """`worker-0/vllm`."""
    text: str


@dataclass(frozen=True)
class Source:
    """One container's log."""

    pod: PodState
    container: str

    @property
    def name(self) -> str:
        return f"{self.pod.short}/{self.container}"


@dataclass(frozen=True)
class Wanted:
    """Which lines a person asked for."""

    which: str | None = None
    """A role, a pod's short or full name, or POD/CONTAINER; None: all."""
    container: str | None = None
    tail: int | None = None
    previous: bool = False


def choose(job: str, pods: Sequence[PodState], wanted: Wanted) -> list[Source]:
    """The containers whose logs are wanted and exist.

    Raises:
        ConfigurationError: nothing has that name; lists what there is.
    """
    pod_name, _, of_pod = (wanted.which or "").partition("/")
    container = wanted.container or of_pod or None
    chosen = [p for p in pods if not pod_name or pod_name in (p.role, p.short, p.name)]
    if not chosen:
        names = list(dict.fromkeys([*(p.role for p in pods if p.role), *(p.short for p in pods)]))
        raise ConfigurationError(f"{job} has no pod or role {pod_name!r}{_hint(pod_name, names)}")
    found = [Source(p, c) for p in chosen for c in p.containers if container in (None, c)]
    if not found:
        names = list(dict.fromkeys(c for p in chosen for c in p.containers))
        raise ConfigurationError(
            f"{job} has no container {container!r} in {', '.join(p.short for p in chosen)}{_hint(str(container), names)}"
        )
    return [source for source in found if source.container in source.pod.started]


def _hint(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, 1, 0.6)
    return f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(names) or 'none yet'}"


def _stream(api: Api, source: Source, wanted: Wanted, follow: bool) -> Iterator[Line]:
    query = {"container": source.container, "timestamps": "true"}
    query |= {"tailLines": str(wanted.tail)} if wanted.tail is not None else {}
    query |= {"previous": "true"} if wanted.previous else {}
    query |= {"follow": "true"} if follow else {}
    for raw in api.lines(f"/api/v1/namespaces/{api.namespace}/pods/{source.pod.name}/log", query):
        at, _, text = raw.partition(" ")
        # A progress bar is one line for the cluster, which gives it one time.
        for part in [part for part in text.split("\r") if part] or [""]:
            yield Line(at, source.name, part)


def merged(api: Api, sources: Sequence[Source], wanted: Wanted) -> Iterator[Line]:
    """What the containers have written so far, in the order of time.

    Raises:
        ConfigurationError, InfrastructureError: the cluster refuses, or does not answer.
    """
    yield from heapq.merge(*(_stream(api, source, wanted, follow=False) for source in sources), key=lambda line: line.at)


def followed(
    api: Api,
    look: Callable[[], tuple[Sequence[Source], bool]],
    wanted: Wanted,
    look_every: float = 2.0,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Line]:
    """Lines as they are written, also of containers that start later or again, until the job has ended and nothing more comes.

    `look` says which containers have a log now, and whether the job goes on. One thread reads each log.

    Raises:
        ConfigurationError, InfrastructureError: `look` does, or the cluster stops answering.
    """
    lines: queue.Queue[Line | _Ended] = queue.Queue()
    reading: set[_Life] = set()
    done: set[_Life] = set()
    while True:
        sources, going_on = look()
        for source in sources:
            if (life := _life(source)) not in reading | done:
                reading.add(life)
                threading.Thread(target=_read, args=(api, source, wanted, lines), daemon=True).start()
        quiet = True
        for item in _for_a_while(lines, look_every, clock):
            quiet = False
            if isinstance(item, Line):
                yield item
                continue
            reading.discard(_life(item.source))
            if item.error is None or isinstance(item.error, ConfigurationError):
                # Read to its end, or gone before it was asked for.
                done.add(_life(item.source))
            else:
                raise item.error
        if not going_on and (quiet or not reading):
            return


_Life = tuple[str, str, int]
"""Pod, container, and how often it was started again: what one log belongs to."""


def _life(source: Source) -> _Life:
    return source.pod.uid, source.container, source.pod.started[source.container]


@dataclass(frozen=True)
class _Ended:
    """A log has been read to its end."""

    source: Source
    error: ConfigurationError | InfrastructureError | None


def _read(api: Api, source: Source, wanted: Wanted, lines: "queue.Queue[Line | _Ended]") -> None:
    error: ConfigurationError | InfrastructureError | None = None
    try:
        for line in _stream(api, source, wanted, follow=True):
            lines.put(line)
    except (ConfigurationError, InfrastructureError) as failure:
        error = failure
    lines.put(_Ended(source, error))


def _for_a_while(lines: "queue.Queue[Line | _Ended]", seconds: float, clock: Callable[[], float]) -> Iterator["Line | _Ended"]:
    """What comes within so many seconds; ends early when a log does, because its container may have started again."""
    end = clock() + seconds
    while (left := end - clock()) > 0:
        try:
            item = lines.get(timeout=left)
        except queue.Empty:
            return
        yield item
        if isinstance(item, _Ended) and lines.empty():
            return
