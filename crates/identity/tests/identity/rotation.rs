//! One issue follows another: nothing is cut, nothing bad gets in.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cairn_identity::dev::{DevCa, IssueOptions};
use cairn_identity::{
    Credentials, ExpectedPeers, Identity, IdentityError, PeerRefusal, TrustDomains,
};

use crate::meeting::{expecting, meet};

const HOUR: Duration = Duration::from_secs(3600);

fn identity(ca: &DevCa, name: &str) -> Identity {
    Identity::fixed(ca.issue(&ca.id("default", name).unwrap(), HOUR).unwrap())
}

#[tokio::test]
async fn rotation_keeps_open_connections_and_serves_the_next_with_the_new_certificate() {
    let ca = DevCa::new("td").unwrap();
    let (server, client) = (identity(&ca, "waypoint"), identity(&ca, "client"));
    let expected = expecting(&server);
    let mut open = meet(server.server_config(), client.client_config(&expected)).await.unwrap();
    let first = server.current();
    assert_eq!(first.generation, 1);
    let mut generations = server.subscribe();
    assert!(!generations.has_changed().unwrap());

    server.publish(ca.issue(&first.id, HOUR).unwrap()).unwrap();
    client.publish(ca.issue(&client.current().id, HOUR).unwrap()).unwrap();

    generations.changed().await.unwrap();
    assert_eq!(*generations.borrow_and_update(), 2);
    let second = server.current();
    assert_eq!(second.generation, 2);
    assert_ne!(first.serial, second.serial);
    assert!(open.is_alive().await);
    assert_eq!(open.server_identity().serial, first.serial);
    let next = meet(server.server_config(), client.client_config(&expected)).await.unwrap();
    assert_eq!(next.server_identity().serial, second.serial);
    assert_eq!(next.client_identity().serial, client.current().serial);
}

#[test]
fn configurations_are_made_once_per_generation() {
    let ca = DevCa::new("td").unwrap();
    let identity = identity(&ca, "waypoint");
    let expected = ExpectedPeers::one(ca.id("default", "backend").unwrap());
    let (server, client) = (identity.server_config(), identity.client_config(&expected));
    assert!(Arc::ptr_eq(&server, &identity.server_config()));
    assert!(Arc::ptr_eq(&client, &identity.client_config(&expected)));

    identity.publish(identity.current().as_ref().clone()).unwrap();
    assert_eq!(identity.current().generation, 1, "the same certificates are no new generation");
    assert!(Arc::ptr_eq(&server, &identity.server_config()));

    identity.publish(ca.issue(&identity.current().id, HOUR).unwrap()).unwrap();
    assert!(!Arc::ptr_eq(&server, &identity.server_config()));
    assert!(!Arc::ptr_eq(&client, &identity.client_config(&expected)));
}

#[test]
fn bad_credentials_never_replace_good_ones() {
    let ca = DevCa::new("td").unwrap();
    let identity = identity(&ca, "waypoint");
    let id = identity.current().id.clone();
    let serial = identity.current().serial.clone();
    let now = SystemTime::now();
    let good = IssueOptions::default;
    let issue = |ca: &DevCa, options| ca.issue_pem(&id, options).unwrap().credentials().unwrap();

    let mut foreign = DevCa::new("td").unwrap().issue_pem(&id, good()).unwrap();
    foreign.roots = ca.root_pem().to_owned();
    type Reason = fn(&IdentityError) -> bool;
    let cases: Vec<(Credentials, Reason)> = vec![
        (
            issue(&ca, IssueOptions { not_before: Some(now - 2 * HOUR), ttl: HOUR, ..good() }),
            |error| matches!(error, IdentityError::Expired(_)),
        ),
        (issue(&ca, IssueOptions { not_before: Some(now + HOUR), ..good() }), |error| {
            matches!(error, IdentityError::NotYetValid(_))
        }),
        (issue(&ca, IssueOptions { server_auth: false, ..good() }), |error| {
            matches!(error, IdentityError::Untrusted(PeerRefusal::WrongPurpose))
        }),
        (issue(&ca, IssueOptions { client_auth: false, ..good() }), |error| {
            matches!(error, IdentityError::Untrusted(PeerRefusal::WrongPurpose))
        }),
        (foreign.credentials().unwrap(), |error| {
            matches!(error, IdentityError::Untrusted(PeerRefusal::UnknownIssuer))
        }),
    ];
    let generations = identity.subscribe();
    for (credentials, expected) in cases {
        let error = identity.publish(credentials).unwrap_err();
        assert!(expected(&error), "{error:?}");
    }
    assert_eq!(identity.current().serial, serial);
    assert_eq!(identity.current().generation, 1);
    assert!(!generations.has_changed().unwrap());
}

#[tokio::test]
async fn roots_rotate_alone() {
    let (old, new) = (DevCa::new("td").unwrap(), DevCa::new("td").unwrap());
    let bundle =
        old.issue_pem(&old.id("default", "waypoint").unwrap(), IssueOptions::default()).unwrap();
    let with_roots = |roots: &[&str]| {
        let mut bundle = bundle.clone();
        bundle.roots = roots.concat();
        bundle.credentials().unwrap()
    };
    let server = Identity::fixed(with_roots(&[old.root_pem()]));
    let expected = expecting(&server);
    let client_of = |ca: &DevCa| {
        let mut client =
            ca.issue_pem(&ca.id("default", "client").unwrap(), IssueOptions::default()).unwrap();
        client.roots = [old.root_pem(), new.root_pem()].concat();
        Identity::fixed(client.credentials().unwrap())
    };
    let (old_client, new_client) = (client_of(&old), client_of(&new));
    let meets = async |client: &Identity| match meet(
        server.server_config(),
        client.client_config(&expected),
    )
    .await
    {
        Ok(_) => None,
        Err(failure) => failure.server.map(|refusal| refusal.label()),
    };
    assert_eq!(meets(&old_client).await, None);
    assert_eq!(meets(&new_client).await, Some("unknown_issuer"));

    server.publish(with_roots(&[old.root_pem(), new.root_pem()])).unwrap();
    assert_eq!(server.current().generation, 2);
    assert_eq!(meets(&old_client).await, None);
    assert_eq!(meets(&new_client).await, None);

    // The certificate does not lead to the remaining root, and the old root is distrusted all the same.
    server.publish(with_roots(&[new.root_pem()])).unwrap();
    assert_eq!(server.current().generation, 3);
    assert_eq!(meets(&old_client).await, Some("unknown_issuer"));
    assert_eq!(meets(&new_client).await, None);
}

#[tokio::test]
async fn rotation_under_load_fails_no_handshake() {
    let ca = DevCa::new("td").unwrap();
    let (server, client) = (identity(&ca, "waypoint"), identity(&ca, "client"));
    let expected = expecting(&server);
    for _ in 0..20 {
        let (met, published) =
            tokio::join!(meet(server.server_config(), client.client_config(&expected)), async {
                server.publish(ca.issue(&server.current().id, HOUR).unwrap())
            });
        assert!(met.is_ok());
        published.unwrap();
    }
    assert_eq!(server.current().generation, 21);
}

#[tokio::test]
async fn trust_domains_are_changed_at_run_time() {
    let ca = DevCa::new("cluster.local").unwrap();
    let server = identity(&ca, "waypoint");
    let expected = expecting(&server);
    let client_of = |trust_domain: &str| {
        let id = cairn_identity::SpiffeId::new(trust_domain, "default", "client").unwrap();
        Identity::fixed(ca.issue(&id, HOUR).unwrap())
    };
    let (own, other) = (client_of("cluster.local"), client_of("old.example"));
    let meets = async |client: &Identity| match meet(
        server.server_config(),
        client.client_config(&expected),
    )
    .await
    {
        Ok(pair) => Ok(pair),
        Err(failure) => Err(failure.server.map(|refusal| refusal.label())),
    };
    let dialled = server.client_config(&expected);
    let mut open = meets(&own).await.unwrap();
    assert_eq!(meets(&other).await.err(), Some(Some("trust_domain")));

    let only_other = TrustDomains::new(["old.example"]).unwrap();
    assert!(server.set_trust_domains(only_other.clone()));
    assert!(!server.set_trust_domains(only_other.clone()), "the same again");
    assert_eq!(server.trust_domains(), only_other);
    // The client was verified before and its chain is known; it is refused all the same.
    assert_eq!(meets(&own).await.err(), Some(Some("trust_domain")));
    assert!(meets(&other).await.is_ok());
    assert!(open.is_alive().await, "what is open stays");
    assert_eq!(server.current().generation, 1, "the certificate is the same");
    assert!(Arc::ptr_eq(&dialled, &server.client_config(&expected)));

    // They outlive the certificate.
    server.publish(ca.issue(&server.current().id, HOUR).unwrap()).unwrap();
    assert_eq!(meets(&own).await.err(), Some(Some("trust_domain")));
    let both = TrustDomains::new(["cluster.local", "old.example"]).unwrap();
    assert!(server.set_trust_domains(both));
    assert!(meets(&own).await.is_ok());
    assert!(meets(&other).await.is_ok());
}
