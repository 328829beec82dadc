# Starts Alertmanager with a receiver of alerts, if ALERT_WEBHOOK_URL names one: alertmanager.sh alertmanager OPTIONS …
# The receiver's name ends monitoring/alertmanager.yml, and what is sent to it follows. In plain sh: the image has no bash.
set -eu
umask 077
configuration=/alertmanager/alertmanager.yml
cat /monitoring/alertmanager.yml > "$configuration"
if [ -n "$ALERT_WEBHOOK_URL" ]; then
  printf '    webhook_configs:\n      - url: "%s"\n' "$ALERT_WEBHOOK_URL" >> "$configuration"
fi
exec "$@" --config.file="$configuration"
