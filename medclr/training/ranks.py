"""Several processes that train one model: which one this is, how they meet, and how they end together.

torchrun and SLURM's srun start the same command several times, and the environment says who is who.
"""

import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from medclr.errors import Elsewhere, Interrupted, MedclrError, UsageError

# torch is imported by what needs it: the command line asks who it is before that.
if TYPE_CHECKING:
    import torch
    from torch.distributed.distributed_c10d import Store

MEETING = timedelta(minutes=10)  # until all processes are there
LONGEST = timedelta(days=1)  # that one may measure or save while the others wait; one that dies is noticed at once
_POLL_S = 0.2
_REQUEUE_S = 20.0  # for the first, where all stop together, to ask for a requeue before a launcher ends it
_GOODBYE_S = 5.0  # for the others to hear how it ended, before the process goes that they hear it through
_PIECE = 1 << 22  # bytes; torch's store takes values of up to 8 MiB


@dataclass(frozen=True)
class Place:
    """One process among those of a run.

    Attributes:
        rank: its number, from 0; world: how many there are.
        local: its number on its machine; neighbours: how many are there, itself among them.
        address, port: where they meet.
        hosts: whether it keeps what they meet at; torchrun does that itself.
        by_srun: whether SLURM started it; cpus: how many SLURM gave it, where the job says.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    neighbours: int = 1
    address: str = ""
    port: int = 0
    hosts: bool = False
    by_srun: bool = False
    cpus: int | None = None

    @property
    def first(self) -> bool:
        """Whether this is the one that prepares, measures, speaks and writes."""
        return self.rank == 0

    def cores(self, seen: int) -> int:
        """Its share of the cores that it may run on; where SLURM binds a task to its own, that is all of them."""
        return seen // self.neighbours if self.cpus is None else min(self.cpus, seen)


def place(environment: Mapping[str, str] = os.environ) -> Place:
    """Who this process is, by what torchrun or srun set; without either, the only one.

    A SLURM job of several tasks whose script does without srun is one process: it has no job step.
    """
    env = environment
    if "TORCHELASTIC_RUN_ID" in env and int(env["WORLD_SIZE"]) > 1:
        numbers = (int(env[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"))
        rank, world, local, neighbours, port = numbers
        hosts = rank == 0 and env.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        return Place(rank, world, local, neighbours, env["MASTER_ADDR"], port, hosts)
    if "TORCHELASTIC_RUN_ID" not in env and int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        rank, world, local = (int(env[name]) for name in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"))
        neighbours = len(env.get("SLURM_GTIDS", "0").split(","))
        # Steps of one job may run side by side.
        port = 15000 + (int(env["SLURM_JOB_ID"]) + int(env["SLURM_STEP_ID"])) % 10000
        address = env.get("MASTER_ADDR") or _first_host(env["SLURM_STEP_NODELIST"])
        port, cpus = int(env.get("MASTER_PORT", port)), env.get("SLURM_CPUS_PER_TASK")
        return Place(rank, world, local, neighbours, address, port, rank == 0, True, int(cpus) if cpus else None)
    return Place()


class Ranks:
    """The processes of a run, as one of them sees the others.

    Attributes:
        place: of this one.
    """

    def __init__(self, place: Place | None = None, store: "Store | None" = None) -> None:
        self.place = place or Place()
        self._store = store
        self._device: torch.device | None = None

    def tell(self, name: str, data: bytes) -> None:
        """Give the others what they ask for by `hear`."""
        if self._store is not None:
            pieces = [data[start : start + _PIECE] for start in range(0, len(data), _PIECE)]
            for number, piece in enumerate(pieces):
                self._store.set(f"{name}/{number}", piece)  # type: ignore[arg-type]  # it takes bytes too
            self._store.set(name, str(len(pieces)))

    def hear(self, name: str) -> bytes:
        """Wait, however long, for what the first process tells.

        Raises:
            Elsewhere: another process has failed.
        """
        assert self._store is not None
        store = self._store
        self._await(lambda: store.check([name]))
        return b"".join(self._store.get(f"{name}/{number}") for number in range(int(self._store.get(name))))

    def check_same(self, config: Any) -> None:
        """Raise UsageError where this process was started with other settings than the first."""
        if self._store is None:
            return
        digest = hashlib.blake2b(repr(config).encode(), digest_size=16).digest()
        if self.place.first:
            self.tell("config", digest)
        elif self.hear("config") != digest:
            raise UsageError(
                f"process {self.place.rank} of {self.place.world} has other settings than the first; all of one srun "
                "or torchrun train one model. Start each run of its own with its own srun --ntasks 1"
            )
        self._assemble("same")

    def join(self, device: "torch.device") -> None:
        """Connect this process's device with those of the others, for training; all of them call this.

        Raises:
            Elsewhere: another process has failed.
        """
        if self._store is None:
            return
        # To wait for each other in here would be to wait for one that failed before, too.
        self._assemble("joining")
        import torch
        import torch.distributed as dist

        self._device = device
        on_gpu = device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(device)
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=self._store,
            rank=self.place.rank,
            world_size=self.place.world,
            timeout=LONGEST,
            device_id=device if on_gpu else None,
        )

    def largest(self, *numbers: int) -> list[int]:
        """Of each number the largest that any process has; all of them call this."""
        if self._device is None:
            return list(numbers)
        import torch
        import torch.distributed as dist

        found = torch.tensor(numbers, device=self._device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return [int(number) for number in found.tolist()]

    def _assemble(self, name: str) -> None:
        """Wait until all processes have come to this place."""
        assert self._store is not None
        store = self._store
        store.add(name, 1)
        self._await(lambda: store.add(name, 0) == self.place.world)

    def _await(self, done: Callable[[], bool]) -> None:
        assert self._store is not None
        while not done():
            if self._store.check(["failed"]):
                raise Elsewhere(int(self._store.get("failed")))
            time.sleep(_POLL_S)


@contextmanager
def together() -> Iterator[Ranks]:
    """The processes that were started for one run. Where one of them fails, all end, with its code and its one line.

    Raises:
        Elsewhere: another process failed first, and says why.
        MedclrError: the others did not come, or one has gone without a word.
    """
    here = place()
    if here.world == 1:
        yield Ranks()
        return
    store = _meet(here)
    try:
        yield Ranks(here, store)
    except BaseException as error:
        # A launcher that sees one process end tells the others to, which are about to.
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                signal.signal(signum, signal.SIG_IGN)
        verdict = _verdict(error, here, store)
        if verdict is error:
            raise
        raise verdict from error
    else:
        _part(here, store, orderly=True)


def _verdict(error: BaseException, here: Place, store: "Store") -> BaseException:
    """What this process ends with: its own error where it is the first to have one."""
    import torch.distributed as dist

    if isinstance(error, Elsewhere):
        verdict: BaseException = error
    else:
        code = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)
        try:
            if store.add("failures", 1) == 1:
                store.set("failed", str(code))
                verdict = error
            else:
                verdict = Elsewhere(int(store.get("failed")))
        except dist.DistError:  # the process that kept it is gone
            verdict = Elsewhere(code)
    if verdict is error and _of_others(error):
        verdict = MedclrError(
            "another process of this run has gone without a word: killed, or out of memory? Run the same command again "
            "to continue"
        )
    _part(here, store, orderly=isinstance(error, Interrupted))
    return verdict


def _part(here: Place, store: "Store", orderly: bool) -> None:
    """Leave the others; where all have stopped after the same step, the first leaves first, since it has more to do.

    Of a process that failed in the midst of a step NCCL cannot be asked to take leave: it would wait for the others.
    """
    import torch.distributed as dist

    if dist.is_initialized() and (orderly or dist.get_backend() == "gloo"):
        dist.destroy_process_group()
    with suppress(dist.DistError):
        if here.first:
            store.set("first left", "1")
        elif orderly:
            _wait(lambda: store.check(["first left"]), _REQUEUE_S)
        left = store.add("left", 1)
        if here.hosts and left < here.world:
            _wait(lambda: store.add("left", 0) == here.world, _GOODBYE_S)


def _of_others(error: BaseException) -> bool:
    """Whether an error is only that a connection to another process broke."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _wait(done: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(_POLL_S / 4)


def _meet(here: Place) -> "Store":
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    at = f"tcp://{here.address}:{here.port}"
    try:
        store = next(rendezvous(at, here.rank, here.world, timeout=MEETING))[0]
    except dist.DistError as error:
        if here.hosts and "EADDRINUSE" in str(error):
            raise MedclrError(f"port {here.port} of {here.address} is taken; set MASTER_PORT to another") from error
        raise MedclrError(
            f"process {here.rank} of {here.world} did not meet the others at {here.address}:{here.port} within "
            f"{MEETING.seconds // 60} minutes; did all start, and can they reach that address?"
        ) from error
    return PrefixStore("medclr", store)


def _first_host(nodes: str) -> str:
    """The first of a SLURM node list, such as gpu[07-09,12]."""
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

    return SLURMEnvironment.resolve_root_node_address(nodes)
