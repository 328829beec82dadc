"""The only way into PostgreSQL: rows, dead letters and the ledger's advance, in one transaction.

`Sink.write` stores a Batch exactly once:

- the ledger advances by compare-and-set, so that of two consumers that both believe they own a partition one is refused
  (Fenced) and has written nothing;
- rows go by COPY straight into the table; if a key is there already, the batch is done again through a temporary table
  (row_store.py), where duplicates are absorbed and counted;
- what belongs to an erased household or device (suppression.py) is neither stored nor made a dead letter, and counted;
- an outage is raised as it is (`is_outage` tells), nothing is written, and the same batch may be written again. When
  the connection broke during COMMIT, the second attempt finds the ledger at the batch's end and knows that it was done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg2
from psycopg2.extras import execute_values

from batch import Batch, Chunk, DeadLetter, TopicPartition, Written
from contracts import CONTRACTS, Contract
from row_store import copy_dead_letters, copy_straight, is_refused_row, merge
from suppression import Suppressions

CAREFUL_BATCHES = 32  # after a duplicate, so many batches go through the temporary table before COPY is tried again
TRANSACTION_TIMEOUT_S = 60  # no write is open for longer; the incremental models re-read that much
SESSION = f"-c transaction_timeout={TRANSACTION_TIMEOUT_S}s -c idle_in_transaction_session_timeout=30s -c timezone=UTC"

Store = Callable[[Any, Contract, list[Chunk], list[DeadLetter]], Counter[int]]


class Fenced(Exception):
    """Another consumer has advanced the ledger of a partition of this batch: nothing of the batch was written."""


def is_outage(error: BaseException) -> bool:
    """True for what passes by itself: connection loss, deadlock, disk full, shutdown, a standby, a timeout."""
    if isinstance(error, psycopg2.InterfaceError):
        return True
    state = getattr(error, "pgcode", None)
    if state is None:  # libpq's own; where a write failed and a read did not, psycopg2 has no better class for it
        return isinstance(error, psycopg2.OperationalError) or type(error) is psycopg2.DatabaseError
    return state[:2] in ("08", "25", "40", "53", "55", "57", "58")


# The fence: a row that another consumer has moved does not match, and waits for that consumer's transaction first.
# An erasure lays down its list while it keeps everybody from this table: whoever comes after sees it here.
ADVANCE = """BEGIN;
UPDATE ingest_offsets AS l SET next_offset = m.high, updated_at = now()
FROM (VALUES {moves}) AS m (topic, partition, low, high)
WHERE l.cluster_id = %s AND l.consumer_group = %s AND l.topic = m.topic AND l.partition = m.partition
  AND l.next_offset = m.low
RETURNING coalesce((SELECT version FROM suppression_list), 0)"""

# The counts once for the ledger and once for their minute.
COUNT_AND_COMMIT = """
UPDATE ingest_offsets AS l
SET stored = l.stored + c.stored, duplicates = l.duplicates + c.duplicates,
    dead = l.dead + c.dead, gaps = l.gaps + c.gaps, suppressed = l.suppressed + c.suppressed
FROM (VALUES {counts}) AS c (topic, partition, stored, duplicates, dead, gaps, suppressed)
WHERE l.cluster_id = %s AND l.consumer_group = %s AND l.topic = c.topic AND l.partition = c.partition;
INSERT INTO ingest_minutes AS m
    (cluster_id, consumer_group, topic, partition, minute_starts_at, stored, duplicates, dead, suppressed)
SELECT %s, %s, c.topic, c.partition, date_trunc('minute', now()), c.stored, c.duplicates, c.dead, c.suppressed
FROM (VALUES {counts}) AS c (topic, partition, stored, duplicates, dead, gaps, suppressed)
WHERE c.stored + c.duplicates + c.dead + c.suppressed > 0
ON CONFLICT (cluster_id, consumer_group, topic, partition, minute_starts_at) DO UPDATE
SET stored = m.stored + excluded.stored, duplicates = m.duplicates + excluded.duplicates, dead = m.dead + excluded.dead,
    suppressed = m.suppressed + excluded.suppressed;
COMMIT"""


class Sink:
    """Writes batches for one consumer group of one Kafka cluster, over a connection that it makes anew when it broke.

    connect: gives a psycopg2 connection; called with the session's options.
    """

    def __init__(self, connect: Callable[..., Any], cluster_id: str, group: str):
        self._connect = connect
        self._ledger_key = (cluster_id, group)
        self._connection: Any = None
        self._careful = 0
        self._suppressions = Suppressions()
        self._unsure: Written | None = None  # what a COMMIT whose answer never came would have written

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def positions(self, beginnings: dict[TopicPartition, int]) -> dict[TopicPartition, int]:
        """Where the ledger says that each partition goes on; one not seen before starts at its beginning.

        beginnings: the first offset that Kafka still has, by partition.
        """
        rows = [(*self._ledger_key, topic, partition, at, at) for (topic, partition), at in beginnings.items()]
        with self._cursor() as cursor:
            execute_values(
                cursor,
                "INSERT INTO ingest_offsets (cluster_id, consumer_group, topic, partition, start_offset, next_offset)"
                " VALUES %s ON CONFLICT DO NOTHING",
                rows,
            )
            ledger = self._ledger(cursor)
        return {partition: ledger[partition] for partition in beginnings}

    def write(self, batch: Batch) -> Written:
        """Stores the batch or nothing of it.

        Raises Fenced, or psycopg2.Error: if `is_outage`, the same batch may be written again.
        """
        if not self._careful:
            try:
                return self._transaction(batch, copy_straight)
            except psycopg2.Error as error:
                if not is_refused_row(error):
                    raise
            self._careful = CAREFUL_BATCHES
        self._careful -= 1
        return self._transaction(batch, merge)

    def _transaction(self, batch: Batch, store: Store) -> Written:
        try:
            with self._cursor() as cursor:
                version = self._advance(cursor, batch)
                if version is None:
                    cursor.execute("ROLLBACK")
                    return self._done_before(cursor, batch)
                self._suppressions.update(cursor, version)
                wanted, dead, suppressed = self._suppressions.sift(batch)
                written = Written(dead=dead, suppressed=suppressed)
                for topic, chunks in wanted.items():
                    for partition, count in store(cursor, CONTRACTS[topic], chunks, written.dead).items():
                        written.stored[topic, partition] += count
                copy_dead_letters(cursor, written.dead, self._place)
                self._unsure = written
                self._count_and_commit(cursor, batch, written)
                self._unsure = None
                return written
        except psycopg2.Error as error:
            self._roll_back(error)
            raise

    def _advance(self, cursor: Any, batch: Batch) -> int | None:
        """Begins the transaction and moves the ledger from each span's low to its high; None if it stood elsewhere.

        Returns the version of the suppression list.
        """
        moves = ",".join(
            cursor.mogrify("(%s,%s,%s,%s)", (topic, partition, span.low, span.high)).decode()
            for (topic, partition), span in batch.spans.items()
        )
        cursor.execute(ADVANCE.replace("{moves}", moves), self._ledger_key)
        return cursor.fetchone()[0] if cursor.rowcount == len(batch.spans) else None

    def _done_before(self, cursor: Any, batch: Batch) -> Written:
        """The answer to a COMMIT that was lost with its connection: the ledger stands at the batch's end.

        Raises Fenced if it stands anywhere else.
        """
        unsure, self._unsure = self._unsure, None
        ledger = self._ledger(cursor)
        if unsure is not None and all(ledger.get(partition) == span.high for partition, span in batch.spans.items()):
            return unsure
        moved = [
            f"{t}[{p}] at {ledger.get((t, p))}" for (t, p), s in batch.spans.items() if ledger.get((t, p)) != s.low
        ]
        raise Fenced(", ".join(moved))

    def _place(self, letter: DeadLetter) -> dict[str, Any]:
        cluster_id, group = self._ledger_key
        place = {"cluster_id": cluster_id, "consumer_group": group}
        return {**place, "partition": letter.partition, "offset": letter.record.offset}

    def _count_and_commit(self, cursor: Any, batch: Batch, written: Written) -> None:
        duplicates = written.duplicates(batch)
        dead = Counter((letter.topic, letter.partition) for letter in written.dead)
        counts = ",".join(
            cursor.mogrify(
                "(%s,%s,%s,%s,%s,%s,%s)",
                (topic, partition, written.stored[topic, partition], duplicates[topic, partition],
                 dead[topic, partition], span.gaps, written.suppressed[topic, partition]),
            ).decode()
            for (topic, partition), span in batch.spans.items()
        )  # fmt: skip
        cursor.execute(COUNT_AND_COMMIT.replace("{counts}", counts), self._ledger_key * 2)

    def _ledger(self, cursor: Any) -> dict[TopicPartition, int]:
        cursor.execute(
            "SELECT topic, partition, next_offset FROM ingest_offsets WHERE (cluster_id, consumer_group) = (%s, %s)",
            self._ledger_key,
        )
        return {(topic, partition): at for topic, partition, at in cursor.fetchall()}

    def _cursor(self) -> Any:
        if self._connection is None or self._connection.closed:
            self._connection = self._connect(options=SESSION)
            self._connection.autocommit = True  # BEGIN and COMMIT are ours, sent together with their neighbours
        return self._connection.cursor()

    def _roll_back(self, error: psycopg2.Error) -> None:
        """Leaves the connection fit for the next transaction; one that cannot even roll back is given up."""
        if self._connection is None:
            return
        try:
            with self._connection.cursor() as cursor:
                cursor.execute("ROLLBACK")
        except psycopg2.Error:
            self._connection.close()  # `error` is raised on; this one only says that the connection broke
