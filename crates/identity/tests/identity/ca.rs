//! The authority's client against a gRPC server on loopback.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use cairn_identity::ca::{
    AnswerError, CaClient, CaConfig, CaError, CaStatus, KeyKind, RunningCa, fetch,
};
use cairn_identity::dev::{DevCa, IssueOptions};
use cairn_identity::istiod::DialError;
use cairn_identity::{Identity, IdentityError, PeerRefusal, TrustDomains};
use tempfile::TempDir;
use tonic::Code;

use crate::authority::{Authority, Call, HOUR, Reply, Setup, istiod_at};
use crate::meeting::{expecting, meet};

/// Long enough that only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A token in a file of its own.
struct Token(TempDir);

impl Token {
    fn new(token: &str) -> Self {
        let this = Self(TempDir::new().unwrap());
        this.write(token);
        this
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("istio-token")
    }

    fn write(&self, token: &str) {
        fs::write(self.path(), format!("{token}\n")).unwrap();
    }

    fn remove(&self) {
        fs::remove_file(self.path()).unwrap();
    }
}

fn config(authority: &Authority, setup: &Setup, token: &Token) -> CaConfig {
    CaConfig::new(authority.istiod(Some(&token.path())), setup.id.clone())
}

/// Waits until the status is as wanted.
async fn until(running: &RunningCa, wanted: impl Fn(&CaStatus) -> bool) -> CaStatus {
    let mut status = running.subscribe();
    let found = tokio::time::timeout(PATIENCE, status.wait_for(|status| wanted(status)));
    found.await.expect("the status must become as wanted").unwrap().clone()
}

fn answer_error(error: CaError) -> AnswerError {
    match error {
        CaError::Answer { error, .. } => error,
        error => panic!("{error}"),
    }
}

#[tokio::test]
async fn one_certificate() {
    let setup = Setup::new();
    let (authority, token) = (setup.clone().start().await, Token::new("secret"));
    for key in [KeyKind::EcdsaP256, KeyKind::EcdsaP384] {
        let config = CaConfig { key, ..config(&authority, &setup, &token) };
        let credentials = fetch(&config).await.unwrap();
        assert_eq!(credentials.id, setup.id);
        assert_eq!((credentials.chain().len(), credentials.roots().len()), (1, 1));
    }
    let Call { authorization, cluster_id, certificate, ttl, signer } =
        authority.calls().pop().unwrap();
    assert_eq!(authorization.as_deref(), Some("Bearer secret"));
    assert_eq!(cluster_id.as_deref(), Some("Kubernetes"));
    assert_eq!((certificate, ttl, signer), (None, 86400, None));

    let mut config = config(&authority, &setup, &token);
    config.cert_signer = Some("example.com/signer".to_owned());
    config.ttl = HOUR;
    config.istiod.cluster_id = String::new();
    fetch(&config).await.unwrap();
    let call = authority.calls().pop().unwrap();
    assert_eq!((call.ttl, call.signer.as_deref()), (3600, Some("example.com/signer")));
    assert_eq!(call.cluster_id, None);
}

#[tokio::test]
async fn intermediates_and_several_roots() {
    let setup = Setup::new();
    let (authority, token) = (setup.clone().start().await, Token::new("secret"));
    let other = DevCa::new("td").unwrap();
    let roots = [setup.signing.root_pem(), other.root_pem()].concat();
    authority.script([Reply::Intermediates, Reply::Roots(roots)]);
    let config = config(&authority, &setup, &token);
    let with_intermediates = fetch(&config).await.unwrap();
    assert_eq!((with_intermediates.chain().len(), with_intermediates.roots().len()), (3, 1));
    let with_roots = fetch(&config).await.unwrap();
    assert_eq!((with_roots.chain().len(), with_roots.roots().len()), (1, 2));

    // Both prove themselves to each other, and clients of both roots are accepted.
    let server = Identity::fixed(with_roots);
    let client = Identity::fixed(with_intermediates);
    let expected = expecting(&server);
    assert!(meet(server.server_config(), client.client_config(&expected)).await.is_ok());
    let foreign =
        other.issue_pem(&other.id("shop", "client").unwrap(), IssueOptions::default()).unwrap();
    let mut foreign = foreign.clone();
    foreign.roots = [setup.signing.root_pem(), other.root_pem()].concat();
    let foreign = Identity::fixed(foreign.credentials().unwrap());
    assert!(meet(server.server_config(), foreign.client_config(&expected)).await.is_ok());
}

#[tokio::test]
async fn an_answer_that_is_not_for_us_is_refused() {
    let setup = Setup::new();
    let (authority, token) = (setup.clone().start().await, Token::new("secret"));
    let config = config(&authority, &setup, &token);
    let now = SystemTime::now();
    let good = IssueOptions::default;
    let foreign_root = DevCa::new("td").unwrap().root_pem().to_owned();
    type Check = fn(&AnswerError) -> bool;
    let cases: Vec<(Reply, Check)> = vec![
        (
            Reply::Identity("spiffe://td/ns/shop/sa/other"),
            |error| matches!(error, AnswerError::Identity { found, .. } if found.service_account() == "other"),
        ),
        (Reply::Identity("spiffe://other/ns/shop/sa/waypoint"), |error| {
            matches!(error, AnswerError::Identity { .. })
        }),
        (Reply::ForeignKey, |error| {
            matches!(error, AnswerError::Certificate(IdentityError::KeyMismatch))
        }),
        (
            Reply::Options(IssueOptions { not_before: Some(now - 2 * HOUR), ttl: HOUR, ..good() }),
            |error| matches!(error, AnswerError::Certificate(IdentityError::Expired(_))),
        ),
        (Reply::Options(IssueOptions { not_before: Some(now + HOUR), ..good() }), |error| {
            matches!(error, AnswerError::Certificate(IdentityError::NotYetValid(_)))
        }),
        (Reply::Options(IssueOptions { client_auth: false, ..good() }), |error| {
            matches!(
                error,
                AnswerError::Certificate(IdentityError::Untrusted(PeerRefusal::WrongPurpose))
            )
        }),
        (Reply::Options(IssueOptions { uri_sans: Some(Vec::new()), ..good() }), |error| {
            matches!(error, AnswerError::Certificate(IdentityError::SpiffeId(_)))
        }),
        (Reply::Roots(foreign_root), |error| {
            matches!(
                error,
                AnswerError::Certificate(IdentityError::Untrusted(PeerRefusal::UnknownIssuer))
            )
        }),
        (Reply::Roots(String::new()), |error| {
            matches!(error, AnswerError::Element { number: 2, .. })
        }),
        (Reply::LeafOnly, |error| *error == AnswerError::Short(1)),
        (Reply::Elements(Vec::new()), |error| *error == AnswerError::Short(0)),
        (Reply::Elements(vec!["x".to_owned(); 3]), |error| {
            matches!(error, AnswerError::Element { number: 1, .. })
        }),
    ];
    for (index, (reply, check)) in cases.into_iter().enumerate() {
        authority.script([reply]);
        let error = fetch(&config).await.unwrap_err();
        assert!(!error.may_pass());
        assert!(error.to_string().contains("istiod.istio-system.svc:15012"), "{error}");
        let error = answer_error(error);
        assert!(check(&error), "case {index}: {error:?}");
    }
    assert!(fetch(&config).await.is_ok());
}

#[tokio::test]
async fn errors_say_who_said_it_and_what_to_do() {
    let setup = Setup { token: Some("right".to_owned()), ..Setup::new() };
    let (authority, token) = (setup.clone().start().await, Token::new("wrong"));
    let mut config = config(&authority, &setup, &token);
    let error = fetch(&config).await.unwrap_err();
    assert!(matches!(error, CaError::Refused { code: Code::Unauthenticated, .. }));
    assert!(error.may_pass());
    let text = error.to_string();
    assert!(text.contains("istiod.istio-system.svc:15012"), "{text}");
    assert!(text.contains("request authenticate failure"), "{text}");
    assert!(text.contains("istio-ca") && text.contains("CLUSTER_ID"), "{text}");
    assert!(!text.contains("wrong"), "{text}");

    token.write("right");
    authority.script([Reply::Status(Code::InvalidArgument), Reply::Status(Code::Unavailable)]);
    let error = fetch(&config).await.unwrap_err();
    assert!(!error.may_pass());
    assert!(error.to_string().contains("SECRET_TTL"), "{error}");
    assert!(fetch(&config).await.unwrap_err().may_pass());

    token.remove();
    let error = fetch(&config).await.unwrap_err();
    assert!(matches!(error, CaError::Dial(DialError::Token { .. })), "{error}");
    assert!(error.to_string().contains("istio-token"), "{error}");
    config.key = KeyKind::Rsa2048;
    assert_eq!(fetch(&config).await.unwrap_err(), CaError::Rsa);
}

#[tokio::test]
async fn asks_until_there_is_a_certificate() {
    let setup = Setup { token: Some("right".to_owned()), ..Setup::new() };
    let token = Token::new("wrong");
    // The port is known before anybody listens on it.
    let address: SocketAddr = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let config = CaConfig {
        trust_domains: Some(TrustDomains::new(["td", "old"]).unwrap()),
        ..CaConfig::new(istiod_at(address, &setup.signing, Some(&token.path())), setup.id.clone())
    };
    let reasons = Arc::new(Mutex::new(Vec::new()));
    let (told, mut waiting) = tokio::sync::mpsc::channel(16);
    let start = tokio::spawn({
        let reasons = Arc::clone(&reasons);
        CaClient::start(config, move |reason| {
            reasons.lock().unwrap().push(reason);
            let _ = told.try_send(());
        })
    });
    waiting.recv().await.unwrap();
    let authority = setup.clone().start_at(address).await;
    authority.script([Reply::Status(Code::Unavailable)]);
    // It answers and refuses the token; then the token is replaced, and the authority is not available once.
    while authority.calls().is_empty() {
        waiting.recv().await.unwrap();
    }
    token.write("right");
    let (identity, running) = tokio::time::timeout(PATIENCE, start).await.unwrap().unwrap();
    assert_eq!(identity.current().id, setup.id);
    assert_eq!(identity.trust_domains(), TrustDomains::new(["td", "old"]).unwrap());
    let status = running.status();
    let reasons = reasons.lock().unwrap().clone();
    assert_eq!(status.failed, reasons.len() as u64);
    assert_eq!((status.signed, status.requests), (1, status.failed + 1));
    assert_eq!(status.last_error, None);
    assert_eq!(status.not_after, Some(identity.current().not_after));
    let told = |what: &str| reasons.iter().any(|reason| reason.contains(what));
    assert!(told("no connection to 127.0.0.1:"), "{reasons:?}");
    assert!(told("Unauthenticated") && told("Unavailable"), "{reasons:?}");
    assert!(told("next try in"), "{reasons:?}");
}

#[tokio::test]
async fn renewed_before_it_ends_and_nothing_is_cut() {
    let setup = Setup::new();
    let (authority, token) = (setup.clone().start().await, Token::new("secret"));
    authority.otherwise(Reply::Ttl(Duration::from_secs(4)));
    let (identity, running) =
        CaClient::start(config(&authority, &setup, &token), |reason| panic!("{reason}")).await;
    let first = identity.current();
    let client_ca = &setup.signing;
    let client =
        Identity::fixed(client_ca.issue(&client_ca.id("shop", "client").unwrap(), HOUR).unwrap());
    let expected = expecting(&identity);
    let mut open = meet(identity.server_config(), client.client_config(&expected)).await.unwrap();
    let status = until(&running, |status| status.signed >= 3).await;
    assert_eq!(status.failed, 0);
    let current = identity.current();
    assert!(current.generation >= 3);
    assert_ne!(current.serial, first.serial);
    assert!(open.is_alive().await);
    assert_eq!(open.server_identity().serial, first.serial);
    // Renewals show the certificate, and the token beside it.
    let calls = authority.calls();
    assert_eq!(calls[0].certificate, None);
    assert_eq!(calls[1].certificate.as_ref(), Some(&setup.id));
    assert_eq!(calls[1].authorization.as_deref(), Some("Bearer secret"));
}

#[tokio::test]
async fn the_certificate_is_shown_when_there_is_no_token() {
    let setup = Setup::new();
    let (authority, token) = (setup.clone().start().await, Token::new("secret"));
    authority.otherwise(Reply::Ttl(Duration::from_secs(4)));
    let (_identity, running) =
        CaClient::start(config(&authority, &setup, &token), |reason| panic!("{reason}")).await;
    token.remove();
    let status = until(&running, |status| status.signed >= 2).await;
    assert_eq!(status.failed, 0);
    let call = authority.calls().pop().unwrap();
    assert_eq!(call.certificate, Some(setup.id.clone()));
    assert_eq!(call.authorization, None);
}

#[tokio::test]
async fn the_token_is_shown_when_the_certificate_is_refused() {
    let setup = Setup { client_roots: DevCa::new("td").unwrap(), ..Setup::new() };
    let (authority, token) = (setup.clone().start().await, Token::new("secret"));
    let mut config = config(&authority, &setup, &token);
    let old = setup.signing.issue(&setup.id, HOUR).unwrap();
    config.istiod.identity = Some(Identity::fixed(old));
    let waits = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&waits);
    let started = CaClient::start(config, move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    let (identity, _running) = tokio::time::timeout(PATIENCE, started).await.unwrap();
    assert_eq!(identity.current().id, setup.id);
    assert_eq!(waits.load(Ordering::Relaxed), 1, "one connection ended, the next was without it");
    let calls = authority.calls();
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0].certificate, None);
}

#[tokio::test]
async fn while_the_authority_is_away_the_certificate_stays() {
    let setup = Setup::new();
    let (authority, token) = (setup.clone().start().await, Token::new("secret"));
    let short = Reply::Ttl(Duration::from_secs(6));
    authority.script([short.clone(), Reply::LeafOnly, Reply::ForeignKey]);
    authority.otherwise(Reply::Status(Code::Unavailable));
    let (identity, running) =
        CaClient::start(config(&authority, &setup, &token), |reason| panic!("{reason}")).await;
    let first = identity.current();
    let status = until(&running, |status| status.failed >= 3).await;
    assert_eq!(status.signed, 1);
    assert_eq!(status.serial.as_ref(), Some(&first.serial));
    assert!(status.last_error.is_some());
    assert_eq!(identity.current().serial, first.serial);
    assert_eq!(identity.current().generation, 1);

    // It is back.
    authority.otherwise(Reply::Good);
    let status = until(&running, |status| status.signed == 2).await;
    assert_eq!(status.last_error, None);
    assert_eq!(identity.current().generation, 2);
}

#[tokio::test]
async fn roots_are_those_of_the_last_answer() {
    let setup = Setup::new();
    let (authority, token) = (setup.clone().start().await, Token::new("secret"));
    let new = DevCa::new("td").unwrap();
    let both = [setup.signing.root_pem(), new.root_pem()].concat();
    authority.script([Reply::Ttl(Duration::from_secs(4)), Reply::Roots(both)]);
    let (identity, running) =
        CaClient::start(config(&authority, &setup, &token), |reason| panic!("{reason}")).await;
    assert_eq!(identity.current().roots().len(), 1);
    until(&running, |status| status.signed == 2).await;
    assert_eq!(identity.current().roots().len(), 2);
}

#[tokio::test]
async fn what_was_kept_needs_no_authority() {
    let setup = Setup::new();
    let (authority, token) = (setup.clone().start().await, Token::new("secret"));
    let memory = TempDir::new_in("/dev/shm").unwrap();
    let config =
        CaConfig { keep_in: Some(memory.path().to_owned()), ..config(&authority, &setup, &token) };
    let (first, running) = CaClient::start(config.clone(), |reason| panic!("{reason}")).await;
    assert!(!running.status().kept);
    assert_eq!(running.status().keeping_failed, None);
    drop(running);
    authority.otherwise(Reply::Status(Code::Unavailable));

    let (again, running) = CaClient::start(config.clone(), |reason| panic!("{reason}")).await;
    assert_eq!(again.current().serial, first.current().serial);
    assert!(running.status().kept);
    assert_eq!(running.status().expiry_seconds(), first_expiry(&first));
    until(&running, |status| status.failed >= 2).await;
    assert_eq!(again.current().generation, 1);
    authority.otherwise(Reply::Good);
    let status = until(&running, |status| status.signed == 1).await;
    assert!(!status.kept);
    assert_eq!(again.current().generation, 2);
    drop(running);

    // Another identity does not take it.
    authority.script([Reply::Identity("spiffe://td/ns/shop/sa/other")]);
    let other = CaConfig { id: setup.signing.id("shop", "other").unwrap(), ..config };
    let (other, running) = CaClient::start(other, |reason| panic!("{reason}")).await;
    assert_eq!(other.current().id.service_account(), "other");
    assert_eq!(running.status().signed, 1);
}

#[tokio::test]
async fn without_a_directory_in_memory_nothing_is_kept() {
    let setup = Setup::new();
    let (authority, token) = (setup.clone().start().await, Token::new("secret"));
    let nowhere = token.0.path().join("nowhere");
    let config = CaConfig { keep_in: Some(nowhere.clone()), ..config(&authority, &setup, &token) };
    let (identity, running) = CaClient::start(config, |reason| panic!("{reason}")).await;
    assert_eq!(identity.current().id, setup.id);
    let status = running.status();
    assert_eq!((status.signed, status.last_error), (1, None));
    assert!(status.keeping_failed.unwrap().contains("nowhere"));
}

fn first_expiry(identity: &Identity) -> Option<u64> {
    let since = identity.current().not_after.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(since.as_secs())
}
