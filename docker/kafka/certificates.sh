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

key() { keytool "$@" -storetype PKCS12 -storepass:env KEYSTORE_PASSWORD; }

key -genkeypair -keystore authority.p12 -alias ca -keyalg EC -groupname secp256r1 -validity 3650 \
  -dname "CN=smart-access, a demo's own" -ext bc:critical=ca:true -ext ku:critical=keyCertSign
key -exportcert -keystore authority.p12 -alias ca -rfc -file ca.pem
key -genkeypair -keystore broker.p12 -alias broker -keyalg EC -groupname secp256r1 -dname CN=broker
key -certreq -keystore broker.p12 -alias broker -file broker.csr
key -gencert -keystore authority.p12 -alias ca -infile broker.csr -outfile broker.pem -rfc -validity 3650 \
  -ext san=dns:kafka-secure,dns:localhost,ip:127.0.0.1 -ext eku=serverAuth,clientAuth
key -importcert -keystore broker.p12 -alias ca -file ca.pem -noprompt
key -importcert -keystore broker.p12 -alias broker -file broker.pem

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
