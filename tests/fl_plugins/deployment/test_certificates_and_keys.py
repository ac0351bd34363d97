import ipaddress
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from flwr.cli.supernode.register import try_load_public_key
from flwr.supercore.primitives.asymmetric import uses_nist_ec_curve

from fl_plugins.deployment.certificates import general_name, issue_server, make_authority
from fl_plugins.deployment.node_keys import make_node_key, public_key_for_flower
from fl_plugins.errors import ConfigError

AUTHORITY = make_authority()


def verify(issued, name, *, authority=AUTHORITY, at=None):
    """Verify with cryptography's own path validation (RFC 5280 and the web's profile of it)."""
    builder = PolicyBuilder().store(Store([authority.certificate])).time(at or datetime.now(UTC))
    return builder.build_server_verifier(name).verify(issued.certificate, [])


@pytest.mark.parametrize(
    ("host", "subject"),
    [
        ("fl.example.org", x509.DNSName("fl.example.org")),
        ("10.1.2.3", x509.IPAddress(ipaddress.ip_address("10.1.2.3"))),
        ("2001:db8::7", x509.IPAddress(ipaddress.ip_address("2001:db8::7"))),
    ],
)
def test_the_chain_verifies_for_the_host_and_loopback_and_for_nobody_else(host, subject):
    server = issue_server(AUTHORITY, host=host)
    loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    for name in (subject, loopback, x509.DNSName("localhost")):
        assert len(verify(server, name)) == 2
    with pytest.raises(VerificationError):
        verify(server, x509.DNSName("evil.example.org"))
    with pytest.raises(VerificationError):
        verify(server, subject, authority=make_authority())


def test_a_certificate_holds_for_its_days_and_a_clock_that_is_an_hour_behind():
    now = datetime.now(UTC)
    server = issue_server(AUTHORITY, host="a.org", days=30, now=now)
    name = x509.DNSName("a.org")
    verify(server, name, at=now - timedelta(minutes=50))
    verify(server, name, at=now + timedelta(days=29))
    for outside in (-timedelta(hours=2), timedelta(days=31)):
        with pytest.raises(VerificationError):
            verify(server, name, at=now + outside)


def test_the_servers_certificate_can_sign_no_other():
    server = issue_server(AUTHORITY, host="a.org")
    forged = issue_server(server, host="bank.example.org")
    policy = PolicyBuilder().store(Store([AUTHORITY.certificate]))
    verifier = policy.build_server_verifier(x509.DNSName("bank.example.org"))
    with pytest.raises(VerificationError):
        verifier.verify(forged.certificate, [server.certificate])


@pytest.mark.parametrize(
    "host", ["", "a b", "http://a.org", "a.org:80", "1.2.3", "256.1.1.1", "-a.org", "a..b"]
)
def test_a_host_that_is_no_name_is_refused(host):
    with pytest.raises(ConfigError, match="neither an IP address nor a DNS name"):
        general_name(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "224.0.0.1", "ff02::1"])
def test_a_host_that_nobody_can_connect_to_is_refused(host):
    with pytest.raises(ConfigError, match="no address that a node could connect to"):
        general_name(host)


def test_flower_reads_both_halves_of_a_node_key(tmp_path):
    key = make_node_key("node-0")
    (tmp_path / "k.pub").write_bytes(key.public)
    private = load_ssh_private_key(key.private, None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert private.curve.name == "secp384r1"
    assert uses_nist_ec_curve(private.public_key())
    assert try_load_public_key(tmp_path / "k.pub") == public_key_for_flower(tmp_path / "k.pub")


def test_no_secret_is_in_a_repr_and_keys_differ():
    first, second = make_node_key("a"), make_node_key("a")
    assert first.private != second.private
    assert "PRIVATE" not in repr(first)
    assert "EllipticCurvePrivateKey" not in repr(AUTHORITY)


def test_a_file_that_is_no_public_key_is_refused(tmp_path):
    (tmp_path / "k.pub").write_text("ssh-rsa nonsense")
    with pytest.raises(ConfigError, match="holds no OpenSSH public key"):
        public_key_for_flower(tmp_path / "k.pub")


def test_the_authority_makes_no_further_authorities():
    constraints = AUTHORITY.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
