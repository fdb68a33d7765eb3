//! The file source: what is loaded, what a reload takes and what it leaves.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use cairn_identity::dev::{DevCa, IssueOptions, PemBundle};
use cairn_identity::files::{self, FileError, FileSource, FileWatch, ReloadStatus};
use cairn_identity::{Identity, IdentityError, TrustDomains};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::meeting::{expecting, meet};

const HOUR: Duration = Duration::from_secs(3600);
const INTERVAL: Duration = Duration::from_millis(10);

struct Fixture {
    dir: TempDir,
    ca: DevCa,
}

impl Fixture {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), ca: DevCa::new("td").unwrap() }
    }

    fn source(&self) -> FileSource {
        FileSource {
            cert: self.path("tls.crt"),
            key: self.path("tls.key"),
            roots: self.path("ca.crt"),
            trust_domains: None,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn bundle(&self, options: IssueOptions) -> PemBundle {
        self.ca.issue_pem(&self.ca.id("default", "waypoint").unwrap(), options).unwrap()
    }

    fn good(&self) -> PemBundle {
        self.bundle(IssueOptions::default())
    }

    fn write(&self, bundle: &PemBundle) {
        write(self.dir.path(), bundle);
    }

    async fn start(&self) -> (Identity, FileWatch) {
        let identity = files::load(&self.source()).await.unwrap();
        let watch = files::watch(self.source(), identity.clone(), INTERVAL);
        (identity, watch)
    }

    /// A volume as the kubelet writes it: the names lead through `..data` to a directory of one issue.
    fn write_volume(&self, version: &str, bundle: &PemBundle) {
        let target = self.path(version);
        fs::create_dir(&target).unwrap();
        write(&target, bundle);
        let link = self.path("..data_tmp");
        std::os::unix::fs::symlink(version, &link).unwrap();
        fs::rename(&link, self.path("..data")).unwrap();
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            let link = self.path(name);
            if fs::symlink_metadata(&link).is_err() {
                std::os::unix::fs::symlink(Path::new("..data").join(name), link).unwrap();
            }
        }
    }
}

fn write(dir: &Path, bundle: &PemBundle) {
    fs::write(dir.join("tls.crt"), &bundle.cert_chain).unwrap();
    fs::write(dir.join("tls.key"), &bundle.key).unwrap();
    fs::write(dir.join("ca.crt"), &bundle.roots).unwrap();
}

async fn until(watch: &FileWatch, reached: impl FnMut(&ReloadStatus) -> bool) -> ReloadStatus {
    let mut status = watch.subscribe();
    let wait = status.wait_for(reached);
    timeout(Duration::from_secs(30), wait).await.expect("the files were looked at").unwrap().clone()
}

#[tokio::test]
async fn loads_what_stands_in_the_files() {
    let fixture = Fixture::new();
    let bundle = fixture.good();
    fixture.write(&bundle);
    let identity = files::load(&fixture.source()).await.unwrap();
    assert_eq!(identity.current().id, fixture.ca.id("default", "waypoint").unwrap());
    assert_eq!(identity.current().serial, bundle.credentials().unwrap().serial);
    assert_eq!(identity.trust_domains().iter().collect::<Vec<_>>(), ["td"]);

    let trust_domains = TrustDomains::new(["a", "b"]).unwrap();
    let source = FileSource { trust_domains: Some(trust_domains.clone()), ..fixture.source() };
    assert_eq!(files::load(&source).await.unwrap().trust_domains(), trust_domains);
}

#[tokio::test]
async fn load_errors_name_the_file_and_the_remedy() {
    let fixture = Fixture::new();
    let good = fixture.good();
    let failing = async |change: &dyn Fn(&Fixture)| {
        fixture.write(&good);
        change(&fixture);
        files::load(&fixture.source()).await.unwrap_err().to_string()
    };
    type Case<'a> = (&'a dyn Fn(&Fixture), &'a str, &'a str);
    let cases: [Case<'_>; 8] = [
        (&|f| fs::remove_file(f.path("tls.key")).unwrap(), "tls.key", "must exist"),
        (&|f| fs::write(f.path("tls.crt"), "").unwrap(), "tls.crt", "BEGIN CERTIFICATE"),
        (&|f| fs::write(f.path("tls.key"), "").unwrap(), "tls.key", "BEGIN PRIVATE KEY"),
        (&|f| fs::write(f.path("ca.crt"), "").unwrap(), "ca.crt", "for each root"),
        (
            &|f| fs::write(f.path("tls.key"), f.good().key).unwrap(),
            "tls.key",
            "replace certificate and key together",
        ),
        (
            &|f| fs::write(f.path("ca.crt"), DevCa::new("td").unwrap().root_pem()).unwrap(),
            "tls.crt",
            "put the issuer's root into the roots",
        ),
        (
            &|f| {
                let past = SystemTime::now() - 2 * HOUR;
                f.write(&f.bundle(IssueOptions {
                    not_before: Some(past),
                    ttl: HOUR,
                    ..Default::default()
                }));
            },
            "tls.crt",
            "issue a new certificate",
        ),
        (
            &|f| fs::write(f.path("ca.crt"), vec![b'x'; 1024 * 1024 + 1]).unwrap(),
            "ca.crt",
            "at most 1048576 bytes",
        ),
    ];
    for (change, file, remedy) in cases {
        let message = failing(change).await;
        let path = fixture.path(file).display().to_string();
        assert!(message.starts_with(&path), "{message}");
        assert!(message.contains(remedy), "{message}");
    }
    let directory = FileSource { cert: fixture.dir.path().to_owned(), ..fixture.source() };
    assert!(matches!(files::load(&directory).await.unwrap_err(), FileError::Unsuitable { .. }));
}

#[tokio::test]
async fn changed_files_come_into_use() {
    let fixture = Fixture::new();
    fixture.write(&fixture.good());
    let (identity, watch) = fixture.start().await;
    let mut generations = identity.subscribe();

    let next = fixture.good();
    fixture.write(&next);
    generations.wait_for(|generation| *generation == 2).await.unwrap();
    assert_eq!(identity.current().serial, next.credentials().unwrap().serial);
    let status = until(&watch, |status| status.reloaded == 1 && status.problem.is_none()).await;
    // Written one by one, the files may have been seen half-way.
    assert!(status.refused <= 2, "{status:?}");
}

#[tokio::test]
async fn a_swapped_symlink_is_followed_and_cuts_no_connection() {
    let fixture = Fixture::new();
    let first = fixture.good();
    fixture.write_volume("..1", &first);
    let (identity, watch) = fixture.start().await;
    let client = fixture.ca.issue(&fixture.ca.id("default", "client").unwrap(), HOUR).unwrap();
    let client = Identity::fixed(client);
    let expected = expecting(&identity);
    let mut open = meet(identity.server_config(), client.client_config(&expected)).await.unwrap();

    for (round, version) in ["..2", "..3", "..4"].into_iter().enumerate() {
        let next = fixture.good();
        fixture.write_volume(version, &next);
        let previous = format!("..{}", round + 1);
        fs::remove_dir_all(fixture.path(&previous)).unwrap();
        let reloads = u64::try_from(round).unwrap() + 1;
        until(&watch, |status| status.reloaded == reloads).await;

        let serial = next.credentials().unwrap().serial;
        assert_eq!(identity.current().serial, serial);
        assert!(open.is_alive().await);
        let pair = meet(identity.server_config(), client.client_config(&expected)).await.unwrap();
        assert_eq!(pair.server_identity().serial, serial);
    }
    assert_eq!(watch.status().refused, 0, "a swap is never seen half-way: {:?}", watch.status());
}

#[tokio::test]
async fn bad_files_are_counted_once_and_the_old_stay() {
    let fixture = Fixture::new();
    let good = fixture.good();
    fixture.write(&good);
    let (identity, watch) = fixture.start().await;
    let serial = identity.current().serial.clone();

    let past = SystemTime::now() - 2 * HOUR;
    let expired =
        fixture.bundle(IssueOptions { not_before: Some(past), ttl: HOUR, ..Default::default() });
    let elsewhere = fixture.bundle(IssueOptions {
        uri_sans: Some(vec!["spiffe://td/workload/x".to_owned()]),
        ..Default::default()
    });
    let half = good.cert_chain[..good.cert_chain.len() / 2].to_owned();
    let steps: [(&dyn Fn(), &str); 6] = [
        (&|| fs::write(fixture.path("tls.key"), fixture.good().key).unwrap(), "does not belong"),
        (&|| fs::write(fixture.path("tls.crt"), &half).unwrap(), "damaged PEM"),
        (&|| fs::write(fixture.path("ca.crt"), "").unwrap(), "for each root"),
        (&|| fs::remove_file(fixture.path("tls.crt")).unwrap(), "must exist"),
        (&|| fixture.write(&expired), "the certificate ended at"),
        (&|| fixture.write(&elsewhere), "not the id of a workload"),
    ];
    for (step, reason) in steps {
        fixture.write(&good);
        until(&watch, |status| status.problem.is_none()).await;
        let refused = watch.status().refused;
        step();
        let status = until(&watch, |status| {
            status.problem.as_ref().is_some_and(|problem| problem.contains(reason))
        })
        .await;
        assert_eq!(status.reloaded, 0);
        assert!(status.refused > refused);
        assert_eq!(identity.current().serial, serial);
    }
}

#[tokio::test]
async fn a_set_that_stays_bad_is_counted_once() {
    let fixture = Fixture::new();
    fixture.write(&fixture.good());
    let (_identity, watch) = fixture.start().await;
    fs::remove_file(fixture.path("ca.crt")).unwrap();
    until(&watch, |status| status.refused == 1).await;
    tokio::time::sleep(10 * INTERVAL).await;
    assert_eq!(watch.status().refused, 1);
    assert!(watch.status().problem.is_some());
}

#[tokio::test]
async fn roots_alone_can_change() {
    let fixture = Fixture::new();
    let good = fixture.good();
    fixture.write(&good);
    let (identity, watch) = fixture.start().await;
    let other = DevCa::new("td").unwrap();
    let client = Identity::fixed({
        let mut bundle = other
            .issue_pem(&other.id("default", "client").unwrap(), IssueOptions::default())
            .unwrap();
        bundle.roots = fixture.ca.root_pem().to_owned();
        bundle.credentials().unwrap()
    });
    let expected = expecting(&identity);
    assert!(meet(identity.server_config(), client.client_config(&expected)).await.is_err());

    fs::write(fixture.path("ca.crt.new"), [fixture.ca.root_pem(), other.root_pem()].concat())
        .unwrap();
    fs::rename(fixture.path("ca.crt.new"), fixture.path("ca.crt")).unwrap();
    until(&watch, |status| status.reloaded == 1).await;
    assert_eq!(identity.current().roots().len(), 2);
    assert!(meet(identity.server_config(), client.client_config(&expected)).await.is_ok());
    assert_eq!(watch.status().refused, 0);
}

#[tokio::test]
async fn a_certificate_that_begins_later_comes_into_use_when_it_begins() {
    let fixture = Fixture::new();
    fixture.write(&fixture.good());
    let (identity, watch) = fixture.start().await;
    // X.509 counts whole seconds: this one begins within the next second.
    let soon = SystemTime::now() + Duration::from_secs(1);
    let bundle = fixture.bundle(IssueOptions { not_before: Some(soon), ..Default::default() });
    fixture.write(&bundle);
    until(&watch, |status| status.reloaded == 1).await;
    assert_eq!(identity.current().serial, bundle.credentials().unwrap().serial);
    assert_eq!(watch.status().problem, None);
}

#[tokio::test]
async fn dropping_the_watch_ends_it() {
    let fixture = Fixture::new();
    fixture.write(&fixture.good());
    let (_identity, watch) = fixture.start().await;
    let mut status = watch.subscribe();
    drop(watch);
    let ended = timeout(Duration::from_secs(30), status.wait_for(|_| false))
        .await
        .expect("the watch ended");
    assert!(ended.is_err());
}

#[test]
fn content_errors_keep_their_cause() {
    let error = IdentityError::KeyMismatch;
    let shown = FileError::Content { path: "tls.key".into(), error }.to_string();
    assert_eq!(
        shown,
        "tls.key: the private key does not belong to the certificate; \
         replace certificate and key together, of the same issue"
    );
}
