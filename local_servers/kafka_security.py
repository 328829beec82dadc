"""What a Kafka with SASL_SSL needs: a throw-away certificate authority, users with passwords, and who may do what.

Made once for a data folder and kept beside it, readable by its owner only. Clients log in with SCRAM-SHA-512 over TLS.
Brokers and controllers know each other by their certificate, so no password is in a server's configuration; the
authority's own key is not kept, so nobody can make another broker.
"""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from typing import Any

import trustme
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    KafkaAdminClient,
    ResourcePattern,
    ResourceType,
)

from contracts import CONTRACTS
from local_servers import LOOPBACK

ADMIN, PRODUCER, CONSUMER = "admin", "producer", "consumer"
USERS = (ADMIN, PRODUCER, CONSUMER)
BROKER = "broker"  # the name in the brokers' certificate
MECHANISM = "SCRAM-SHA-512"


class KafkaSecurity:
    """The files of one secured Kafka. folder: ca.pem, broker.pem, USER.password."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    @property
    def ca_file(self) -> Path:
        return self.folder / "ca.pem"

    def password_file(self, user: str) -> Path:
        return self.folder / f"{user}.password"

    def exists(self) -> bool:
        return self.folder.exists()

    def make(self) -> None:
        """Makes what is not there yet, all or nothing."""
        if self.exists():
            return
        fresh = self.folder.with_suffix(".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True, mode=0o700)
        authority = trustme.CA(organization_name="smart-access, a demo's own")
        broker = authority.issue_cert(LOOPBACK, "localhost", common_name=BROKER)
        # Java reads keys in PKCS #8 only
        key = load_pem_private_key(broker.private_key_pem.bytes(), password=None)
        parts = [key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())]
        parts += [pem.bytes() for pem in broker.cert_chain_pems]
        _write(fresh / "broker.pem", b"".join(parts))
        authority.cert_pem.write_to_path(fresh / "ca.pem")
        for user in USERS:
            _write(fresh / f"{user}.password", secrets.token_urlsafe(24).encode())
        fresh.rename(self.folder)

    def broker_settings(self) -> dict[str, str]:
        """For server.properties; the listeners' names are KafkaBroker's."""
        store = {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self.folder / "broker.pem"),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.ca_file),
        }
        return {
            **store,
            "listener.security.protocol.map": "CLIENT:SASL_SSL,INTERNAL:SSL,CONTROLLER:SSL",
            "sasl.enabled.mechanisms": MECHANISM,
            "listener.name.client.scram-sha-512.sasl.jaas.config": (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            ),
            "listener.name.internal.ssl.client.auth": "required",
            "listener.name.controller.ssl.client.auth": "required",
            # A certificate's name becomes a user's: CN=broker is User:broker
            "ssl.principal.mapping.rules": "RULE:^.*CN=([^,]+).*$/$1/,DEFAULT",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": f"User:{BROKER};User:{ADMIN}",
            "allow.everyone.if.no.acl.found": "false",
        }

    def scram_users(self) -> list[str]:
        """Arguments for `StorageTool format`. They hold passwords: not for a command line."""
        return [
            f"--add-scram={MECHANISM}=[name={user},password={self.password_file(user).read_text()}]" for user in USERS
        ]

    def connection(self, user: str) -> dict[str, Any]:
        """What a kafka-python client needs to log in as this user."""
        return {
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": MECHANISM,
            "sasl_plain_username": user,
            "sasl_plain_password": self.password_file(user).read_text(),
            "ssl_cafile": str(self.ca_file),
        }

    def client_environment(self, user: str) -> dict[str, str]:
        """The settings with which the scripts log in as this user."""
        return {
            "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "KAFKA_SASL_MECHANISM": MECHANISM,
            "KAFKA_CA_FILE": str(self.ca_file),
            "KAFKA_USERNAME": user,
            "KAFKA_PASSWORD_FILE": str(self.password_file(user)),
        }


def _write(file: Path, content: bytes) -> None:
    file.touch(mode=0o600)
    file.write_bytes(content)


def acls(group: str, transactional_id: str | None = None) -> list[ACL]:
    """The least that the two scripts need: the producer writes its topics, the consumer reads them with its group.

    Who may write or read a topic may also describe it. A transaction needs a right of its own, on its id.
    """
    topics = [(ResourceType.TOPIC, topic) for topic in CONTRACTS]
    grants = [(PRODUCER, ACLOperation.WRITE, *topic) for topic in topics]
    grants += [(CONSUMER, ACLOperation.READ, *topic) for topic in topics]
    grants += [(CONSUMER, ACLOperation.READ, ResourceType.GROUP, group)]
    if transactional_id:
        grants += [(PRODUCER, ACLOperation.WRITE, ResourceType.TRANSACTIONAL_ID, transactional_id)]
    return [
        ACL(
            principal=f"User:{user}",
            host="*",
            operation=operation,
            permission_type=ACLPermissionType.ALLOW,
            resource_pattern=ResourcePattern(kind, name, ACLResourcePatternType.LITERAL),
        )
        for user, operation, kind, name in grants
    ]


def grant(connection: dict[str, Any], wanted: list[ACL]) -> None:
    """Gives the rights; those that are there already stay. Raises KafkaError."""
    admin = KafkaAdminClient(**connection)
    try:
        made = admin.create_acls(wanted)
        for error in made["failed"]:
            raise error(f"KAFKA_USERNAME={connection.get('sasl_plain_username', 'unset')} may not give rights")
    finally:
        admin.close()
