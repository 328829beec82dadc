# A throw-away certificate authority and the broker's certificate, made once, all or nothing: certificates.sh FOLDER
#   ca.pem            what clients trust
#   broker.p12        the broker's key and certificate; opened by KEYSTORE_PASSWORD
#   broker.properties how kafka-*.sh come in as the broker itself, who may do everything
# The authority's own key is not kept, so nobody can make another broker. All is valid for ten years: a demo's.
set -euo pipefail
umask 077
cd "$1"
[ -e ca.pem ] && exit
rm -rf new
mkdir new
cd new

key() { keytool "$@" -keystore broker.p12 -storetype PKCS12 -storepass:env KEYSTORE_PASSWORD; }
pair() { key -genkeypair -keyalg EC -groupname secp256r1 -validity 3650 "$@"; }

pair -alias ca -dname "CN=smart-access demo authority" -ext bc:critical=ca:true -ext ku:critical=keyCertSign
pair -alias broker -dname CN=broker -signer ca -ext san=dns:kafka-secure,dns:localhost,ip:127.0.0.1 \
  -ext eku=serverAuth,clientAuth
key -exportcert -alias ca -rfc -file ca.pem
key -delete -alias ca

cat > broker.properties <<PROPERTIES
security.protocol=SSL
ssl.keystore.type=PKCS12
ssl.keystore.location=$1/broker.p12
ssl.keystore.password=$KEYSTORE_PASSWORD
ssl.truststore.type=PEM
ssl.truststore.location=$1/ca.pem
PROPERTIES
mv broker.p12 broker.properties ..
mv ca.pem ..
cd ..
rm -r new
