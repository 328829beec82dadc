# The agent that tells a broker's metrics: fetched once by Maven, and used only if it is the one that was tested, byte for
# byte. kafka-agent.sh FOLDER, with COORDINATES and SHA256
set -euo pipefail
cd "$1"
[ -e jmx_prometheus_javaagent.jar ] && exit
rm -rf new
mvn --batch-mode --quiet org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy \
  -Dartifact="$COORDINATES" -Dmdep.stripVersion=true -DoutputDirectory="$PWD/new"
echo "$SHA256  new/jmx_prometheus_javaagent.jar" | sha256sum -c
mv new/jmx_prometheus_javaagent.jar .
