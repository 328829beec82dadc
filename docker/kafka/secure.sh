# Users, topics and rights of the secured broker: secure.sh BROKER_PROPERTIES
# Again, it changes nothing but the passwords, to what the variables say.
set -euo pipefail
PATH="$PATH:/opt/kafka/bin"
umask 077
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT

user() {
  # in a file of properties: everybody on the machine can read a command line
  printf 'SCRAM-SHA-512=password=%s\n' "${2//\\/\\\\}" > "$work/$1"
  kafka-configs.sh --bootstrap-server "$BOOTSTRAP_SERVERS" --command-config "$properties" \
    --alter --entity-type users --entity-name "$1" --add-config-file "$work/$1"
}

allow() {
  kafka-acls.sh --bootstrap-server "$BOOTSTRAP_SERVERS" --command-config "$properties" \
    --add --allow-principal "User:$1" --operation "$2" "${@:3}"
}

properties=$1
topics=(--topic smart-access.events --topic smart-access.health --topic smart-access.devices
  --topic smart-access.households)

user admin "$ADMIN_PASSWORD"
user producer "$PRODUCER_PASSWORD"
user consumer "$CONSUMER_PASSWORD"

bash "$(dirname "$0")/create-topics.sh" --command-config "$properties"

# Who may write or read a topic may also describe it. Nobody else may do anything, admin and the broker apart.
allow producer Write "${topics[@]}"
allow consumer Read "${topics[@]}"
allow consumer Read --group "$GROUP"
