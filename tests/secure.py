"""A local Kafka with TLS, SASL (SCRAM and OAUTHBEARER) and ACLs, beside the plain listener, where the tests may do all."""

import json
import subprocess
from functools import cached_property
from pathlib import Path
from typing import Any

from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from eventflow.local.kafka import Kafka
from eventflow.local.place import data_folder, kept_port

PASSWORD = "s3cret-pw"  # noqa: S105
_PROPERTIES = """
listeners=PLAINTEXT://127.0.0.1:{port},SECURE://127.0.0.1:{secure},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},SECURE://127.0.0.1:{secure}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL
listener.name.secure.sasl.enabled.mechanisms=SCRAM-SHA-512,OAUTHBEARER
listener.name.secure.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.secure.oauthbearer.sasl.jaas.config=\\
  org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";
ssl.keystore.type=PEM
ssl.keystore.location={folder}/broker.pem
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
allow.everyone.if.no.acl.found=false
"""


def _openssl(*arguments: str, folder: Path) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)  # noqa: S603, S607


def make_certificates(folder: Path) -> None:
    """An authority, `ca.pem`, and the broker's certificate and key, `broker.pem`."""
    subject = ("-nodes", "-newkey", "rsa:2048", "-keyout")
    _openssl(
        "req",
        "-x509",
        *subject,
        "ca.key",
        "-out",
        "ca.pem",
        "-days",
        "2",
        "-subj",
        "/CN=eventflow tests",
        folder=folder,
    )
    _openssl("req", *subject, "broker.key", "-out", "broker.csr", "-subj", "/CN=127.0.0.1", folder=folder)
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
    _openssl("x509", "-req", "-in", "broker.csr", *signed, "-out", "broker.crt", folder=folder)
    (folder / "broker.pem").write_text((folder / "broker.key").read_text() + (folder / "broker.crt").read_text())


class SecureKafka:
    """The broker, its users and what they may do."""

    def __init__(self, root: Path, folder: Path) -> None:
        make_certificates(folder)
        self._folder = folder
        home = data_folder(root) / "kafka"
        home.mkdir(parents=True, exist_ok=True)
        plain, secure = kept_port(home / "port"), kept_port(folder / "secure-port")
        controller = kept_port(home / "controller-port")
        self.broker = Kafka(
            root,
            port=plain,
            properties=_PROPERTIES.format(port=plain, secure=secure, controller=controller, folder=folder),
        )
        self.secure_servers = f"127.0.0.1:{secure}"

    @cached_property
    def admin(self) -> Any:
        return AdminClient({"bootstrap.servers": self.broker.bootstrap_servers})

    def add_user(self, name: str) -> None:
        made = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        change = UserScramCredentialUpsertion(name, made, PASSWORD.encode())
        self.admin.alter_user_scram_credentials([change])[name].result(20)

    def allow(self, user: str, kind: str, name: str, *operations: str) -> None:
        """Allow operations on a resource, named in full; a name that ends with * is a prefix."""
        prefixed = name.endswith("*") and name != "*"
        pattern = ResourcePatternType.PREFIXED if prefixed else ResourcePatternType.LITERAL
        bindings = [
            AclBinding(
                ResourceType[kind], name.removesuffix("*") if prefixed else name, pattern, f"User:{user}", "*",
                AclOperation[operation], AclPermissionType.ALLOW,
            )
            for operation in operations
        ]  # fmt: skip
        for made in self.admin.create_acls(bindings).values():
            made.result(20)

    def allow_all(self, user: str) -> None:
        for kind, name in (("TOPIC", "*"), ("GROUP", "*"), ("TRANSACTIONAL_ID", "*"), ("BROKER", "kafka-cluster")):
            self.allow(user, kind, name, "ALL")

    def settings(self, user: str, **more: object) -> dict[str, str]:
        """What a worker is given: by SCRAM, or by what `more` says."""
        properties = {
            "session.timeout.ms": 2000, "security.protocol": "SASL_SSL", "ssl.ca.location": str(self._folder / "ca.pem"),
            "sasl.mechanism": "SCRAM-SHA-512", "sasl.username": user, "sasl.password": PASSWORD,
        }  # fmt: skip
        chosen = {name: value for name, value in (properties | more).items() if value is not None}
        return {"KAFKA_BOOTSTRAP_SERVERS": self.secure_servers, "EVENTFLOW_KAFKA": json.dumps(chosen)}
