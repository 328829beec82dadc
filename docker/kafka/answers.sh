# Does the broker on this port of this container answer? It asks for the API versions, as every client does first, in
# plain bash: kafka-broker-api-versions.sh would start a Java each time, a tenth of a core for a check every ten seconds.
#   answers.sh PORT
set -euo pipefail
exec 3<>"/dev/tcp/127.0.0.1/$1"
# 12 bytes follow: API 18, version 0, correlation 0, client id "hc"
printf '\0\0\0\014\0\022\0\0\0\0\0\0\0\002hc' >&3
[ "$(head -c 8 <&3 | wc -c)" -eq 8 ]
