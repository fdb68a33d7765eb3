//! The way to istiod: what is verified, what is shown, and what an error says.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use cairn_identity::Identity;
use cairn_identity::ca::{CaConfig, CaError, fetch};
use cairn_identity::dev::{DevCa, IssueOptions};
use cairn_identity::istiod::{DialError, Istiod, Overrides, Roots};
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::authority::{Authority, HOUR, NAME, Setup};

/// A started server and the way to it, with a token.
async fn reached(setup: Setup) -> (Authority, Istiod, TempDir) {
    let directory = TempDir::new().unwrap();
    let token = directory.path().join("token");
    fs::write(&token, "secret").unwrap();
    let authority = setup.start().await;
    let istiod = authority.istiod(Some(&token));
    (authority, istiod, directory)
}

async fn refused(istiod: &Istiod) -> DialError {
    istiod.channel().await.expect_err("the dial must fail")
}

fn assert_says(error: &DialError, words: &[&str]) {
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
}

#[tokio::test]
async fn the_name_and_the_roots_are_verified() {
    let setup = Setup::new();
    let (_authority, istiod, _directory) = reached(setup.clone()).await;
    assert!(istiod.channel().await.is_ok());

    let named =
        Istiod { server_name: Some("istiod-v2.istio-system.svc".to_owned()), ..istiod.clone() };
    let error = refused(&named).await;
    assert!(matches!(error, DialError::Tls { .. }));
    assert_says(
        &error,
        &["istiod.istio-system.svc:15012", "istiod-v2.istio-system.svc", "not for"],
    );

    let elsewhere = Istiod {
        address: "other.example:15012".to_owned(),
        resolve: Overrides::parse(&format!(
            "other.example:15012={}",
            istiod.resolve.of(&istiod.address).unwrap()
        ))
        .unwrap(),
        ..istiod.clone()
    };
    assert!(matches!(refused(&elsewhere).await, DialError::Tls { .. }));
    let overridden = Istiod { server_name: Some(NAME.to_owned()), ..elsewhere };
    assert!(overridden.channel().await.is_ok());

    let foreign = DevCa::new("td").unwrap();
    let distrusted = Istiod { roots: Roots::Pem(foreign.root_pem().to_owned()), ..istiod };
    let error = refused(&distrusted).await;
    assert_says(&error, &["not issued by a root", "127.0.0.1:"]);
}

#[tokio::test]
async fn roots_and_token_are_read_anew() {
    let setup = Setup { token: Some("second".to_owned()), ..Setup::new() };
    let (authority, mut istiod, directory) = reached(setup.clone()).await;
    let roots = directory.path().join("root-cert.pem");
    istiod.roots = Roots::File(roots.clone());
    let config = CaConfig::new(istiod.clone(), setup.id.clone());

    let error = refused(&istiod).await;
    assert!(matches!(error, DialError::Roots { .. }));
    assert_says(&error, &["root-cert.pem", "istio-ca-root-cert"]);
    fs::write(&roots, "no root").unwrap();
    assert_says(&refused(&istiod).await, &["root-cert.pem", "no root certificate"]);
    fs::write(&roots, setup.signing.root_pem()).unwrap();
    assert!(istiod.channel().await.is_ok());

    assert!(matches!(fetch(&config).await.unwrap_err(), CaError::Refused { .. }));
    fs::write(directory.path().join("token"), " second\n").unwrap();
    assert!(fetch(&config).await.is_ok());
    assert_eq!(authority.calls().pop().unwrap().authorization.as_deref(), Some("Bearer second"));
}

#[tokio::test]
async fn a_token_that_cannot_be_sent_is_an_error() {
    let (_authority, istiod, directory) = reached(Setup::new()).await;
    let token = directory.path().join("token");
    for content in ["", " \n", "a\nb", "\u{e9}\u{0}", &"x".repeat(100_000)] {
        fs::write(&token, content).unwrap();
        let error = istiod.metadata().await.unwrap_err();
        assert!(matches!(error, DialError::Token { .. }));
        assert_says(&error, &["token", "istio-ca"]);
        assert!(!error.to_string().contains("xxx"));
    }
    fs::write(&token, "good").unwrap();
    let metadata = istiod.metadata().await.unwrap();
    assert_eq!(metadata.get("authorization").unwrap(), "Bearer good");
    assert_eq!(metadata.get("clusterid").unwrap(), "Kubernetes");
    assert!(!format!("{metadata:?} {istiod:?}").contains("good"));

    let odd = Istiod { cluster_id: "a\nb".to_owned(), ..istiod.clone() };
    assert_says(&odd.metadata().await.unwrap_err(), &["CLUSTER_ID"]);
    let without = Istiod { token: None, ..istiod };
    assert!(without.metadata().await.unwrap().get("authorization").is_none());
}

#[tokio::test]
async fn addresses_that_lead_nowhere() {
    let (_authority, istiod, _directory) = reached(Setup::new()).await;
    let at = |address: &str| Istiod { address: address.to_owned(), ..istiod.clone() };
    for address in ["", "istiod", "istiod:0", "::1:15012", "a b:1"] {
        let error = refused(&at(address)).await;
        assert!(matches!(error, DialError::Address { .. }), "{address:?}: {error}");
        assert_says(&error, &["host:port"]);
    }
    let error = refused(&at("istiod.invalid:15012")).await;
    assert!(matches!(error, DialError::Resolve { .. }), "{error}");
    assert_says(&error, &["istiod.invalid:15012", "Service"]);

    let free: SocketAddr = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = refused(&at(&free.to_string())).await;
    assert!(matches!(error, DialError::Connect { .. }), "{error}");
    assert_says(&error, &[&free.to_string(), "istiod runs"]);

    let misnamed = Istiod { server_name: Some("a/b".to_owned()), ..istiod };
    assert!(matches!(refused(&misnamed).await, DialError::ServerName { .. }));
}

#[tokio::test]
async fn only_h2_over_tls() {
    let (_authority, istiod, _directory) = reached(Setup { alpn: false, ..Setup::new() }).await;
    assert_says(&refused(&istiod).await, &["ALPN h2", "15012"]);

    let (_authority, istiod, _directory) = reached(Setup { plaintext: true, ..Setup::new() }).await;
    assert!(matches!(refused(&istiod).await, DialError::Tls { .. }));
}

#[tokio::test]
async fn nothing_secret_in_plaintext() {
    let setup = Setup { plaintext: true, ..Setup::new() };
    let (authority, istiod, _directory) = reached(setup.clone()).await;
    let identity = Identity::fixed(setup.signing.issue(&setup.id, HOUR).unwrap());
    let istiod = Istiod { plaintext: true, identity: Some(identity), ..istiod };
    assert!(!istiod.has_certificate());
    let error = fetch(&CaConfig::new(istiod, setup.id.clone())).await.unwrap_err();
    assert!(matches!(error, CaError::Refused { .. }), "{error}");
    let call = authority.calls().pop().unwrap();
    assert_eq!((call.authorization, call.certificate), (None, None));
}

#[tokio::test]
async fn a_certificate_that_has_ended_is_not_shown() {
    let setup = Setup::new();
    let (authority, istiod, _directory) = reached(setup.clone()).await;
    let options = IssueOptions {
        not_before: Some(SystemTime::now() - 2 * HOUR),
        ttl: HOUR,
        ..IssueOptions::default()
    };
    let ended = setup.signing.issue_pem(&setup.id, options).unwrap().credentials().unwrap();
    let istiod = Istiod { identity: Some(Identity::fixed(ended)), ..istiod };
    assert!(!istiod.has_certificate());
    fetch(&CaConfig::new(istiod.clone(), setup.id.clone())).await.unwrap();
    assert_eq!(authority.calls().pop().unwrap().certificate, None);

    let without_token = Istiod { token: Some("/nowhere".into()), ..istiod };
    assert!(matches!(without_token.metadata().await.unwrap_err(), DialError::Token { .. }));
}

#[tokio::test]
async fn a_channel_dials_again_and_says_why_it_cannot() {
    use cairn_proto::ca::IstioCertificateRequest;
    use cairn_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;

    let setup = Setup::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let free = listener.local_addr().unwrap();
    drop(listener);
    // The server's runtime ends with all of its connections, as a process does.
    let serving =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let authority = serving.spawn(setup.clone().start_at(free)).await.unwrap();
    let istiod = authority.istiod(None);
    let mut client = IstioCertificateServiceClient::new(istiod.channel().await.unwrap());
    let status = client.create_certificate(IstioCertificateRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unauthenticated);
    drop(authority);
    serving.shutdown_background();

    let dial_error = async {
        loop {
            let status =
                client.create_certificate(IstioCertificateRequest::default()).await.unwrap_err();
            if let Some(error) = DialError::within(&status) {
                return error.clone();
            }
            tokio::task::yield_now().await;
        }
    };
    let error = tokio::time::timeout(Duration::from_secs(60), dial_error).await.unwrap();
    assert!(matches!(error, DialError::Connect { .. }), "{error}");

    let authority = setup.start_at(free).await;
    let status = client.create_certificate(IstioCertificateRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unauthenticated);
    assert_eq!(authority.calls().len(), 1);
}
