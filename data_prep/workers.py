"""One shard plan -> one shard, and processes that make shards side by side."""

import concurrent.futures
import contextlib
import hashlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool

from data_prep.clips import Rejected, make_record
from data_prep.plan import ShardPlan
from synchformer_jax.data.records import ShardWriter
from synchformer_jax.errors import UserError
from synchformer_jax.files import write_json


class Stopped(Exception):
    """The work was asked to stop."""


class Board:
    """What processes tell each other while they work: clips done, clips rejected, and whether to stop."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.done, self.rejected, self.stop = context.Value("q", 0), context.Value("q", 0), context.Event()

    def count(self, done: int, rejected: int) -> None:
        for value, more in ((self.done, done), (self.rejected, rejected)):
            with value.get_lock():
                value.value += more


_board: Board | None = None  # of this process; None on a distributed runner


@contextlib.contextmanager
def reporting_to(board: Board) -> Iterator[None]:
    """Within the block, `prepare_shard` and `prepare_shards` in this process count on `board`."""
    global _board
    _board = board
    try:
        yield
    finally:
        _board = None


def prepare_shard(plan: ShardPlan) -> dict:
    """Writes a shard whole or not at all, then the file that says it is done.

    Returns:
        That file's content: fingerprint, sha256, bytes, records, and `rejected`, a list of [clip, reason].

    Raises:
        UserError: the shard cannot be written.
        Stopped: before the end.
    """
    rejected = []
    with ShardWriter(plan.path) as writer:
        for source in plan.sources:
            if _board is not None and _board.stop.is_set():
                raise Stopped
            reason = ""
            try:
                record = make_record(source, plan.options)
            except Rejected as error:
                reason = str(error)
            except (ValueError, RuntimeError, ArithmeticError, LookupError, TypeError) as error:
                # One odd file must not end the preparation of millions.
                reason = f"unexpected {type(error).__name__}: {error}"
            if reason:
                rejected.append([source.clip_id, reason])
            else:
                writer.write(record)
            if _board is not None:
                _board.count(1, int(bool(reason)))
    with open(plan.path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    done = {
        "fingerprint": plan.fingerprint(),
        "sha256": digest,
        "bytes": plan.path.stat().st_size,
        "records": len(writer),
        "rejected": rejected,
    }
    write_json(plan.done_path, done, ensure_ascii=False)
    return done


def _start_worker(*board) -> None:
    """Prepares a worker process: it stops when the board says so or its parent is gone, not at ctrl-C."""
    global _board
    _board = Board.__new__(Board)
    _board.done, _board.rejected, _board.stop = board
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process().sentinel

    def follow() -> None:
        multiprocessing.connection.wait([parent])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[concurrent.futures.Executor]:
    """Worker processes; with one worker, this very thread."""
    if workers == 1:
        yield _Inline()
        return
    context = multiprocessing.get_context("spawn")  # forking would copy Beam's and libav's threads
    board = (_board.done, _board.rejected, _board.stop)
    with concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, board) as pool:
        yield pool


class _Inline(concurrent.futures.Executor):
    def submit(self, function, /, *args):
        future = concurrent.futures.Future()
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return future


def prepare_shards(plans: list[ShardPlan], workers: int) -> Iterator[dict]:
    """Makes shards side by side, in any order.

    Args:
        plans: the shards.
        workers: how many processes; one works in this thread.

    Yields:
        What `prepare_shard` returns.

    Raises:
        UserError: the first error, after the others were stopped; or a worker was killed.
        Stopped: by the board.
    """
    with _pool(min(workers, len(plans))) as pool:
        futures = [pool.submit(prepare_shard, plan) for plan in plans]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "A worker process was killed, perhaps for want of memory. Start again with fewer --workers; "
                "finished shards are kept."
            ) from error
        finally:
            # After the last result this changes nothing.
            if _board is not None and not all(future.done() for future in futures):
                _board.stop.set()
            for future in futures:
                future.cancel()
