//! Who is let in and who is not, in both directions.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cairn_identity::dev::{DevCa, IssueOptions, PemBundle};
use cairn_identity::{
    ExpectedPeers, Identity, PeerRefusal, SanError, SpiffeId, TrustDomains, peer_identity,
};
use rustls::{ClientConfig, HandshakeKind, ProtocolVersion};

use crate::meeting::{client_with, expecting, meet, server_with};

const HOUR: Duration = Duration::from_secs(3600);

struct Mesh {
    ca: DevCa,
    server: Identity,
    client: Identity,
}

impl Mesh {
    fn new() -> Self {
        let ca = DevCa::new("cluster.local").unwrap();
        let identity =
            |name| Identity::fixed(ca.issue(&ca.id("default", name).unwrap(), HOUR).unwrap());
        let (server, client) = (identity("waypoint"), identity("client"));
        Self { ca, server, client }
    }

    fn bundle(&self, name: &str, options: IssueOptions) -> PemBundle {
        self.ca.issue_pem(&self.ca.id("default", name).unwrap(), options).unwrap()
    }
}

/// Certificates that must be refused, whoever shows them.
fn bad_certificates(mesh: &Mesh, name: &str) -> Vec<(&'static str, PemBundle, &'static str)> {
    let id = mesh.ca.id("default", name).unwrap();
    let good = IssueOptions::default;
    let now = SystemTime::now();
    let uris = |list: &[&str]| IssueOptions {
        uri_sans: Some(list.iter().map(|uri| (*uri).to_owned()).collect()),
        dns_sans: vec!["web.default.svc.cluster.local".to_owned()],
        ..good()
    };
    let stranger = DevCa::new("cluster.local").unwrap();
    let mut without_intermediate = mesh.ca.intermediate().unwrap().issue_pem(&id, good()).unwrap();
    let end = without_intermediate.cert_chain.find("-----END").unwrap();
    let end = end + without_intermediate.cert_chain[end..].find('\n').unwrap() + 1;
    without_intermediate.cert_chain.truncate(end);
    vec![
        (
            "expired",
            mesh.bundle(
                name,
                IssueOptions { not_before: Some(now - 2 * HOUR), ttl: HOUR, ..good() },
            ),
            "expired",
        ),
        (
            "not valid yet",
            mesh.bundle(name, IssueOptions { not_before: Some(now + HOUR), ..good() }),
            "not_yet_valid",
        ),
        (
            "another root of the same name",
            stranger.issue_pem(&id, good()).unwrap(),
            "unknown_issuer",
        ),
        (
            "another root of another name",
            DevCa::new("other.example").unwrap().issue_pem(&id, good()).unwrap(),
            "unknown_issuer",
        ),
        ("intermediate not sent", without_intermediate, "unknown_issuer"),
        ("no URI SAN", mesh.bundle(name, uris(&[])), "no_spiffe_id"),
        (
            "two URI SANs, the right one first",
            mesh.bundle(name, uris(&[id.as_str(), "spiffe://cluster.local/ns/default/sa/other"])),
            "no_spiffe_id",
        ),
        (
            "two URI SANs, the right one last",
            mesh.bundle(name, uris(&["https://example.com/", id.as_str()])),
            "no_spiffe_id",
        ),
        (
            "the right id twice",
            mesh.bundle(name, uris(&[id.as_str(), id.as_str()])),
            "no_spiffe_id",
        ),
        (
            "a URI that is no SPIFFE id",
            mesh.bundle(name, uris(&["https://example.com/"])),
            "no_spiffe_id",
        ),
        (
            "a SPIFFE id that is no workload",
            mesh.bundle(name, uris(&["spiffe://cluster.local/node/a"])),
            "no_spiffe_id",
        ),
        ("the id with a query", mesh.bundle(name, uris(&[&format!("{id}?x")])), "no_spiffe_id"),
        ("the id with a zero byte", mesh.bundle(name, uris(&[&format!("{id}\0")])), "no_spiffe_id"),
    ]
}

#[tokio::test]
async fn good_peers_know_each_other() {
    let mesh = Mesh::new();
    let mut pair =
        meet(mesh.server.server_config(), mesh.client.client_config(&expecting(&mesh.server)))
            .await
            .unwrap();
    assert!(pair.is_alive().await);
    let (client, server) = (mesh.client.current(), mesh.server.current());
    assert_eq!(pair.client_identity().id, client.id);
    assert_eq!(pair.client_identity().serial, client.serial);
    assert_eq!(pair.client_identity().not_after, client.not_after);
    assert_eq!(pair.server_identity().id, server.id);
    let certificates = pair.server.get_ref().1.peer_certificates().unwrap();
    assert_eq!(peer_identity(certificates), Ok(client.id.clone()));
}

#[tokio::test]
async fn connections_are_tls13_h2_without_sni_and_never_resumed() {
    let mesh = Mesh::new();
    let config = mesh.client.client_config(&expecting(&mesh.server));
    for _ in 0..2 {
        let pair = meet(mesh.server.server_config(), Arc::clone(&config)).await.unwrap();
        let (server, client) = (pair.server.get_ref().1, pair.client.get_ref().1);
        assert_eq!(server.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        assert_eq!(server.alpn_protocol(), Some(b"h2".as_slice()));
        assert_eq!(client.alpn_protocol(), Some(b"h2".as_slice()));
        assert_eq!(server.server_name(), None);
        assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(client.tls13_tickets_received(), 0);
    }
}

#[tokio::test]
async fn server_refuses_bad_clients() {
    let mesh = Mesh::new();
    let expected = expecting(&mesh.server);
    let mut cases = bad_certificates(&mesh, "client");
    let good = IssueOptions::default;
    cases.push((
        "serverAuth only",
        mesh.bundle("client", IssueOptions { client_auth: false, ..good() }),
        "wrong_purpose",
    ));
    let foreign = SpiffeId::new("other.example", "default", "client").unwrap();
    cases.push((
        "another trust domain under our root",
        mesh.ca.issue_pem(&foreign, good()).unwrap(),
        "trust_domain",
    ));
    for (case, bundle, label) in &cases {
        let client = client_with(&mesh.client, &expected, Some(bundle));
        let failure = meet(mesh.server.server_config(), client).await.map(|_| case).unwrap_err();
        assert_eq!(
            failure.server.as_ref().map(PeerRefusal::label),
            Some(*label),
            "{case}: {failure:?}"
        );
        // The client is told by an alert, which is not a finding of its own.
        assert_eq!(
            failure.client.as_ref().map(PeerRefusal::label),
            Some("handshake"),
            "{case}: {failure:?}"
        );
    }
}

/// A certificate is no secret: that it was verified before proves nothing about who shows it now.
#[tokio::test]
async fn a_known_certificate_without_its_key_is_refused() {
    let mesh = Mesh::new();
    let expected = expecting(&mesh.server);
    let good = mesh.bundle("client", IssueOptions::default());
    let stolen =
        PemBundle { key: mesh.bundle("client", IssueOptions::default()).key, ..good.clone() };
    for _ in 0..2 {
        let client = client_with(&mesh.client, &expected, Some(&good));
        assert!(meet(mesh.server.server_config(), client).await.is_ok());
        let thief = client_with(&mesh.client, &expected, Some(&stolen));
        let failure = meet(mesh.server.server_config(), thief).await.map(|_| ()).unwrap_err();
        assert!(failure.server.is_some(), "{failure:?}");
    }
}

#[tokio::test]
async fn server_requires_a_certificate() {
    let mesh = Mesh::new();
    let client = client_with(&mesh.client, &expecting(&mesh.server), None);
    let failure = meet(mesh.server.server_config(), client).await.map(drop).unwrap_err();
    assert_eq!(failure.server, Some(PeerRefusal::NoCertificate));
}

#[tokio::test]
async fn client_refuses_bad_servers() {
    let mesh = Mesh::new();
    let expected = expecting(&mesh.server);
    let mut cases = bad_certificates(&mesh, "waypoint");
    let good = IssueOptions::default;
    cases.push((
        "clientAuth only",
        mesh.bundle("waypoint", IssueOptions { server_auth: false, ..good() }),
        "wrong_purpose",
    ));
    cases.push(("another service account", mesh.bundle("other", good()), "unexpected_identity"));
    let elsewhere = mesh.ca.id("elsewhere", "waypoint").unwrap();
    cases.push((
        "another namespace",
        mesh.ca.issue_pem(&elsewhere, good()).unwrap(),
        "unexpected_identity",
    ));
    let foreign = SpiffeId::new("other.example", "default", "waypoint").unwrap();
    cases.push((
        "another trust domain",
        mesh.ca.issue_pem(&foreign, good()).unwrap(),
        "unexpected_identity",
    ));
    for (case, bundle, label) in &cases {
        let server = server_with(&mesh.server, bundle);
        let failure =
            meet(server, mesh.client.client_config(&expected)).await.map(|_| case).unwrap_err();
        assert_eq!(
            failure.client.as_ref().map(PeerRefusal::label),
            Some(*label),
            "{case}: {failure:?}"
        );
        assert_eq!(
            failure.server.as_ref().map(PeerRefusal::label),
            Some("handshake"),
            "{case}: {failure:?}"
        );
    }
}

#[tokio::test]
async fn refusals_say_what_was_shown() {
    let mesh = Mesh::new();
    let other = ExpectedPeers::one(mesh.ca.id("default", "other").unwrap());
    let failure = meet(mesh.server.server_config(), mesh.client.client_config(&other))
        .await
        .map(drop)
        .unwrap_err();
    assert_eq!(
        failure.client,
        Some(PeerRefusal::UnexpectedIdentity(mesh.server.current().id.clone()))
    );

    let two = vec!["spiffe://a/ns/b/sa/c".to_owned(), "spiffe://a/ns/b/sa/d".to_owned()];
    let bundle =
        mesh.bundle("client", IssueOptions { uri_sans: Some(two), ..IssueOptions::default() });
    let client = client_with(&mesh.client, &expecting(&mesh.server), Some(&bundle));
    let failure = meet(mesh.server.server_config(), client).await.map(drop).unwrap_err();
    assert_eq!(failure.server, Some(PeerRefusal::NoSpiffeId(SanError::Several(2))));
}

#[tokio::test]
async fn dns_names_beside_the_id_do_not_matter() {
    let mesh = Mesh::new();
    let options = || IssueOptions {
        dns_sans: vec!["web.default.svc".to_owned(), "*.example.com".to_owned()],
        ..IssueOptions::default()
    };
    let server = server_with(&mesh.server, &mesh.bundle("waypoint", options()));
    let client = mesh.bundle("client", options());
    let client = client_with(&mesh.client, &expecting(&mesh.server), Some(&client));
    assert!(meet(server, client).await.is_ok());
}

#[tokio::test]
async fn certificates_without_extended_key_usage_allow_both_ends() {
    let mesh = Mesh::new();
    let options =
        || IssueOptions { server_auth: false, client_auth: false, ..IssueOptions::default() };
    let server = server_with(&mesh.server, &mesh.bundle("waypoint", options()));
    let client = mesh.bundle("client", options());
    let client = client_with(&mesh.client, &expecting(&mesh.server), Some(&client));
    assert!(meet(server, client).await.is_ok());
}

#[tokio::test]
async fn any_of_the_expected_identities_will_do() {
    let mesh = Mesh::new();
    let ids = ["one", "waypoint", "two"].map(|name| mesh.ca.id("default", name).unwrap());
    let expected = ExpectedPeers::new(ids).unwrap();
    assert!(meet(mesh.server.server_config(), mesh.client.client_config(&expected)).await.is_ok());
}

#[tokio::test]
async fn further_trust_domains_are_accepted_when_listed() {
    let mesh = Mesh::new();
    let foreign = SpiffeId::new("old.example", "default", "client").unwrap();
    let client = Identity::fixed(mesh.ca.issue(&foreign, HOUR).unwrap());
    let credentials = mesh.server.current().as_ref().clone();
    let trust_domains = TrustDomains::new(["cluster.local", "old.example"]).unwrap();
    let server = Identity::new(credentials, trust_domains);
    let expected = expecting(&server);
    assert!(meet(server.server_config(), client.client_config(&expected)).await.is_ok());
    assert!(meet(server.server_config(), mesh.client.client_config(&expected)).await.is_ok());
}

#[tokio::test]
async fn intermediates_lead_to_the_root() {
    let mesh = Mesh::new();
    let below = mesh.ca.intermediate().unwrap().intermediate().unwrap();
    let server =
        Identity::fixed(below.issue(&below.id("default", "waypoint").unwrap(), HOUR).unwrap());
    let client =
        Identity::fixed(below.issue(&below.id("default", "client").unwrap(), HOUR).unwrap());
    assert_eq!(server.current().chain().len(), 3);
    for (server, client) in [(&server, &client), (&mesh.server, &client), (&server, &mesh.client)] {
        let pair = meet(server.server_config(), client.client_config(&expecting(server))).await;
        assert!(pair.is_ok());
    }
}

#[tokio::test]
async fn other_protocols_are_refused() {
    let mesh = Mesh::new();
    let expected = expecting(&mesh.server);
    let with_alpn = |protocols: &[&[u8]]| {
        let mut config = mesh.client.client_config(&expected).as_ref().clone();
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Arc::new(config)
    };
    let failure =
        meet(mesh.server.server_config(), with_alpn(&[b"http/1.1"])).await.map(drop).unwrap_err();
    assert_eq!(failure.server.map(|refusal| refusal.label()), Some("handshake"));
    assert!(meet(mesh.server.server_config(), with_alpn(&[b"http/1.1", b"h2"])).await.is_ok());
    assert!(meet(mesh.server.server_config(), with_alpn(&[])).await.is_ok());
}

#[tokio::test]
async fn tls12_is_refused_by_both_ends() {
    let mesh = Mesh::new();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let old_client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let failure =
        meet(mesh.server.server_config(), Arc::new(old_client)).await.map(drop).unwrap_err();
    assert_eq!(failure.server.map(|refusal| refusal.label()), Some("handshake"));

    let current = mesh.server.server_config();
    let old_server = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::clone(&current.cert_resolver));
    let client = mesh.client.client_config(&expecting(&mesh.server));
    let failure = meet(Arc::new(old_server), client).await.map(drop).unwrap_err();
    assert_eq!(failure.client.map(|refusal| refusal.label()), Some("handshake"));
}

#[test]
fn no_certificates_name_nobody() {
    assert_eq!(peer_identity(&[]), Err(PeerRefusal::NoCertificate));
    let garbage = rustls_pki_types::CertificateDer::from(vec![0x30, 0x03, 1, 2, 3]);
    assert_eq!(peer_identity(&[garbage]), Err(PeerRefusal::NoSpiffeId(SanError::Unreadable)));
}
