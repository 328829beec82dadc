# Starts the image's broker with a cluster id of its own: start.sh [FILE WITH THE ID]
# The image's is the same everywhere, and logs that were wiped must not pass for those that the offsets in the database
# speak of. Storage that has an id keeps it: with another one the image refuses to start.
set -euo pipefail
PATH="$PATH:/opt/kafka/bin"
formatted="$KAFKA_LOG_DIRS/meta.properties"
if [ $# -gt 0 ]; then
  CLUSTER_ID=$(cat "$1")
elif [ -s "$formatted" ]; then
  CLUSTER_ID=$(sed -n 's/^cluster\.id=//p' "$formatted")
else
  CLUSTER_ID=$(kafka-storage.sh random-uuid)
fi
export CLUSTER_ID
# Its own metrics, where the profile monitoring has fetched the agent
agent=/mnt/agent/jmx_prometheus_javaagent.jar
if [ -n "${METRICS_ADDRESS:-}" ] && [ -s "$agent" ]; then
  export KAFKA_OPTS="-javaagent:$agent=$METRICS_ADDRESS:/monitoring/kafka_jmx.yml"
fi
exec /etc/kafka/docker/run
