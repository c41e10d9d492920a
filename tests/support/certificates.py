"""Certificates for servers that speak TLS in tests, made anew for every run and valid for a day."""

import datetime as dt
import ipaddress
import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

Key = ec.EllipticCurvePrivateKey


Made = tuple[x509.Certificate, Key]

LOOPBACK: list[x509.GeneralName] = [
    x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    x509.DNSName("localhost"),
]


def certificate(
    name: str,
    hosts: list[x509.GeneralName],
    issuer: Made | None = None,
    *,
    leaf: bool = False,
    expired: bool = False,
    until: dt.datetime | None = None,
) -> Made:
    """A certificate for these hosts, or for an authority if there are none and it is no leaf, and its key.

    `name` is the common name of its subject; "": the subject is empty.
    """
    is_authority = not hosts and not leaf
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)] if name else [])
    signing = issuer[1] if issuer else key
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(until or now + dt.timedelta(hours=-1 if expired else 24))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), critical=False)
    )
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
    if is_authority:
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        builder = builder.add_extension(usage, critical=True)
    return builder.sign(signing, hashes.SHA256()), key


def pem_of(made: Made) -> bytes:
    """The certificate, in PEM."""
    return made[0].public_bytes(serialization.Encoding.PEM)


def key_of(made: Made, password: bytes | None = None) -> bytes:
    """Its key, in PEM."""
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return made[1].private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def write_pair(folder: Path, name: str, made: Made) -> tuple[Path, Path]:
    """Write certificate and key. Returns the two files."""
    folder.mkdir(exist_ok=True)
    files = folder / f"{name}.crt", folder / f"{name}.key"
    files[0].write_bytes(pem_of(made))
    files[1].write_bytes(key_of(made))
    return files


def mount_secret(folder: Path, files: dict[str, bytes]) -> None:
    """Put these files into a folder as Kubernetes mounts a Secret: symlinks, all replaced by one rename."""
    folder.mkdir(exist_ok=True)
    version = folder / f"..{os.urandom(6).hex()}"
    version.mkdir()
    for name, content in files.items():
        (version / name).write_bytes(content)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    (folder / "..new").symlink_to(version.name)
    (folder / "..new").rename(folder / "..data")
