"""quixstreams' PostgreSQLSink as its documentation has it, for the interpreter that quixstreams is installed in.

python benchmarks/sinks/quix_sink.py KAFKA_SERVERS GROUP TOPIC COMMIT_EVERY
"""

from __future__ import annotations

import os
import sys

from quixstreams import Application
from quixstreams.sinks.community.postgresql import PostgreSQLSink


def main() -> None:
    servers, group, topic, commit_every = sys.argv[1:]
    application = Application(
        broker_address=servers,
        consumer_group=group,
        auto_offset_reset="earliest",
        commit_every=int(commit_every),
        commit_interval=1.0,
        consumer_extra_config={"session.timeout.ms": 6000, "heartbeat.interval.ms": 2000},
        auto_create_topics=False,
    )
    sink = PostgreSQLSink(
        host=os.environ["PGHOST"],
        port=int(os.environ["PGPORT"]),
        dbname=os.environ["PGDATABASE"],
        user=os.environ["PGUSER"],
        password=os.environ["PGPASSWORD"],
        table_name="raw_access_events",
        schema_auto_update=False,
        on_conflict_do_nothing=True,
        include_metadata=False,
    )
    application.dataframe(application.topic(topic, value_deserializer="json")).sink(sink)
    application.run()


if __name__ == "__main__":
    main()
