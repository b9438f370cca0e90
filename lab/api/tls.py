"""The lab's certificate authority and the certificate of its API: made once for a lab, kept in its folder.

A node has the same: pve-root-ca.pem, which clients may trust, and pve-ssl.pem, whose SHA-256 is the fingerprint that
they may pin instead.
"""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

# As long as a node's own certificate is good for; a lab isn't kept longer.
_VALID = timedelta(days=2 * 365)


@dataclass(frozen=True)
class Certificates:
    """Where a lab's certificates lie."""

    folder: Path
    #: Where the authority's are: a cluster's nodes have one.
    of_authority: Path | None = None

    @property
    def authority(self) -> Path:
        """The authority's certificate, for clients to trust."""
        return (self.of_authority or self.folder) / "ca.pem"

    @property
    def server(self) -> Path:
        """The server's certificate."""
        return self.folder / "server.pem"

    @property
    def key(self) -> Path:
        """The server's private key."""
        return self.folder / "server.key"

    def make(self, node: str) -> None:
        """Make them, unless they are there.

        Args:
            node: a name that the certificate is for, besides localhost and 127.0.0.1.
        """
        if self.authority.exists() and self.server.exists() and self.key.exists():
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        authority_key, server_key = self._key_of_authority(), ec.generate_private_key(ec.SECP256R1())
        known = self.of_authority is not None and self.authority.exists()
        authority = x509.load_pem_x509_certificate(self.authority.read_bytes()) if known else _authority(authority_key)
        server = _server(node, server_key, authority, authority_key)
        _write_key(self.key, server_key)
        self.server.write_bytes(server.public_bytes(serialization.Encoding.PEM))
        # Last, so that a start that was killed before it makes all of them anew.
        self.authority.write_bytes(authority.public_bytes(serialization.Encoding.PEM))

    def _key_of_authority(self) -> ec.EllipticCurvePrivateKey:
        """A new one; a cluster keeps it for the nodes that join."""
        if self.of_authority is None:
            return ec.generate_private_key(ec.SECP256R1())
        kept = self.of_authority / "ca.key"
        if not kept.exists():
            self.of_authority.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write_key(kept, ec.generate_private_key(ec.SECP256R1()))
        key = serialization.load_pem_private_key(kept.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key

    @property
    def fingerprint(self) -> str:
        """The server certificate's SHA-256 as Proxmox VE shows it: `AB:CD:...`."""
        certificate = x509.load_pem_x509_certificate(self.server.read_bytes())
        return certificate.fingerprint(hashes.SHA256()).hex(":").upper()

    def context(self) -> ssl.SSLContext:
        """What the server needs for TLS."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.server, self.key)
        return context


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def _name(text: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "PVE Cluster Manager CA"),
            x509.NameAttribute(NameOID.COMMON_NAME, text),
        ]
    )


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    # Valid from yesterday on: clocks of a client may be behind.
    begin = datetime.now(UTC) - timedelta(days=1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + _VALID)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=False,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = _name("Proxmox Virtual Environment (lab)")
    builder = _builder(name, name, key)
    # None made before pve-cluster 9.1.2 says what its key is for, and a node keeps its authority for ten years.
    return builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(
        key, hashes.SHA256()
    )


def _server(
    node: str, key: ec.EllipticCurvePrivateKey, authority: x509.Certificate, authority_key: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in ("localhost", node, f"{node}.lan")]
    names += [x509.IPAddress(ipaddress.ip_address(text)) for text in ("127.0.0.1", "::1")]
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    return (
        _builder(_name(f"{node}.lan"), authority.subject, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(issuer, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
