# The four topics, with the settings of streaming/topics.py; one that is there already stays as it is.
# Needs BOOTSTRAP_SERVERS, PARTITIONS and REPLICATION_FACTOR; options for kafka-topics.sh may follow.
set -euo pipefail
PATH="$PATH:/opt/kafka/bin"
options=("$@")

create() {
  kafka-topics.sh --bootstrap-server "$BOOTSTRAP_SERVERS" ${options[@]+"${options[@]}"} --create --if-not-exists \
    --partitions "$PARTITIONS" --replication-factor "$REPLICATION_FACTOR" --topic "$@"
}

create smart-access.events --config cleanup.policy=delete --config retention.ms=604800000
create smart-access.health --config cleanup.policy=delete --config retention.ms=604800000
create smart-access.devices --config cleanup.policy=compact
create smart-access.households --config cleanup.policy=compact
