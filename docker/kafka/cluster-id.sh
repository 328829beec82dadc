# One id for the brokers of a cluster, made once and kept in the volume that they share: cluster-id.sh FILE
set -euo pipefail
PATH="$PATH:/opt/kafka/bin"
[ -s "$1" ] && exit
kafka-storage.sh random-uuid > "$1.new"
mv "$1.new" "$1"
