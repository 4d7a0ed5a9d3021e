"""Several processes as one run: finding each other, starting with the same config, ending together.

TPU pods, Slurm and Open MPI tell each process its place, and `jax.distributed` reads it there. Elsewhere three values
say it, as flags or in the environment: JAX_COORDINATOR_ADDRESS (process 0, as HOST:PORT), JAX_NUM_PROCESSES and
JAX_PROCESS_ID. The index of a Kubernetes Indexed Job (JOB_COMPLETION_INDEX) and the rank and size of MPICH and Intel
MPI (PMI_RANK, PMI_SIZE) serve too. The work folder and the data lie where all hosts see them.
"""

import hashlib
import json
import os
import sys
import threading
import traceback

import jax
from absl import flags
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from synchformer_jax.errors import UserError
from synchformer_jax.train import config as configs

PROCESSES = ("JAX_NUM_PROCESSES", "PMI_SIZE")
PROCESS = ("JAX_PROCESS_ID", "JOB_COMPLETION_INDEX", "PMI_RANK")


def define_flags() -> None:
    """The flags that `join_by_flags` reads."""
    flags.DEFINE_bool("distributed", False, "One of several processes, on TPU pods, Slurm, Open MPI or Kubernetes.")
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where the environment does not tell it.")
    flags.DEFINE_integer("processes", None, "How many processes there are.", lower_bound=1)
    flags.DEFINE_integer("process", None, "Which of them this one is, from 0.", lower_bound=0)
    flags.DEFINE_integer("join_timeout", 300, "Seconds to wait for the other processes.", lower_bound=1)


def join_by_flags() -> None:
    """Joins the other processes if the flags say that there are some.

    Raises:
        UserError: the flags do not fit together, or as `join`.
    """
    given = flags.FLAGS
    if given.distributed:
        join(given.coordinator, given.processes, given.process, timeout=given.join_timeout)
    elif given.coordinator or given.processes or given.process is not None:
        raise UserError("--coordinator, --processes and --process serve several processes. Add --distributed.")


def join(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None, *, timeout: int = 300
) -> None:
    """Joins the other processes of a run; before anything else of JAX.

    Where one of them cannot be reached in time, this process ends with a message and status 2: the coordination service
    of JAX would end it without one.

    Args:
        coordinator: HOST:PORT of process 0; from the environment if None, like the others.
        processes: how many there are.
        process: which one this is.
        timeout: in seconds.

    Raises:
        UserError: neither arguments nor environment tell all of it, or what they tell is impossible.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    processes = _from_environment(PROCESSES) if processes is None else processes
    process = _from_environment(PROCESS) if process is None else process
    if coordinator and not coordinator.rpartition(":")[2].isdigit():
        raise UserError(f"--coordinator={coordinator} has no port. Give HOST:PORT, such as {coordinator}:1234.")
    if processes is not None and process is not None and not process < processes:
        raise UserError(f"--process={process} is not one of --processes={processes}. Give 0 to {processes - 1}.")
    where = f"the coordinator at {coordinator}" if coordinator else "the coordinator that the scheduler names"

    def give_up() -> None:
        cause = f"not all {processes or 'the'} processes" if process == 0 else "no answer"
        fix = "Start all of them, " if process == 0 else "See that process 0 runs and that its port can be reached, "
        print(
            f"Error: {cause} came to {where} within {timeout} s (this is process {process} of {processes}). {fix}or "
            "give more time with --join_timeout=SECONDS.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    timer = threading.Timer(timeout, give_up)
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(coordinator, processes, process, initialization_timeout=timeout + 60)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"The processes cannot join: {error} Give --coordinator HOST:PORT --processes N --process I, or start them "
            "by a scheduler that jax.distributed knows (TPU, Slurm, Open MPI)."
        ) from error
    finally:
        timer.cancel()


def _from_environment(names: tuple[str, ...]) -> int | None:
    for name in names:
        value = os.environ.get(name)
        if value is not None:
            if not value.isdigit():
                raise UserError(
                    f"The environment variable {name}={value} is no number. Set it to one, or leave it out."
                )
            return int(value)
    return None


def require_same_config(config: ConfigDict) -> None:
    """Checks that all processes have the same config: otherwise they would wait for each other for ever.

    Raises:
        UserError: they have not.
    """
    if jax.process_count() == 1:
        return
    digest = hashlib.sha256(json.dumps(configs.to_dict(config), sort_keys=True).encode()).digest()[:4]
    mine = int.from_bytes(digest, "little") >> 1
    if len(set(multihost_utils.process_allgather(jax.numpy.int32(mine)).tolist())) > 1:
        raise UserError(
            "The processes were started with different configs. Give every process the same --config and fields."
        )


def end_all(error: Exception) -> None:
    """Tells the error and ends this process at once if it is one of several, so that the others notice and end, too.

    An orderly exit would first wait for them, while they wait for this one's part of the next step.
    """
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return
    known = isinstance(error, UserError)
    if known:
        print(f"Error in process {jax.process_index()}: {error}", file=sys.stderr)
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2 if known else 1)
