//! `pool.yaml` as it is at this moment, and who this member is.
//!
//! A file that is wrong changes nothing: the last good one stays, and the reason is said once.

use crate::failure::Failure;
use crate::waypoint::yaml;
use cairn_pool::PoolConfig;
use ring::digest::{SHA256, digest};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Interval, MissedTickBehavior};

/// Most bytes of the file.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// How often it is looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// Who this member is to every cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    /// Its name.
    pub name: String,
    /// Address by which ztunnels reach it.
    pub address: IpAddr,
    /// Region, zone, subzone.
    pub locality: Option<[String; 3]>,
}

/// The file, followed.
pub struct Source {
    path: PathBuf,
    seen: Vec<u8>,
    said: Option<String>,
    looks: Interval,
}

/// Reads the file.
///
/// # Errors
/// What is wrong with it, and where.
pub fn read(path: &Path) -> Result<PoolConfig, Failure> {
    bytes(path).and_then(|bytes| parse(&bytes)).map_err(|reason| {
        Failure::new(format!("{}: {reason}", path.display()))
            .hint("docs/pool.md describes the file")
    })
}

fn bytes(path: &Path) -> Result<Vec<u8>, String> {
    let size = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > MAX_FILE_BYTES {
        return Err(format!("has {size} bytes, more than {MAX_FILE_BYTES}"));
    }
    std::fs::read(path).map_err(|error| error.to_string())
}

fn parse(bytes: &[u8]) -> Result<PoolConfig, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "is no UTF-8".to_owned())?;
    PoolConfig::of(yaml::parse(text)?).map_err(|error| error.to_string())
}

impl Source {
    /// Follows the file from what it has; the configuration is that of this moment. Needs a tokio runtime.
    ///
    /// # Errors
    /// What is wrong with it: a member does not start with a broken file.
    pub fn open(path: &Path) -> Result<(Source, PoolConfig), Failure> {
        let config = read(path)?;
        let seen = bytes(path).map(|bytes| hash(&bytes)).unwrap_or_default();
        let mut looks = tokio::time::interval(INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok((Source { path: path.to_owned(), seen, said: None, looks }, config))
    }

    /// Resolves when the file says something else that is good. May be dropped at any time.
    pub async fn changed(&mut self) -> PoolConfig {
        loop {
            self.looks.tick().await;
            let path = self.path.clone();
            let read = tokio::task::spawn_blocking(move || bytes(&path)).await;
            let found = read.unwrap_or_else(|_| Err("could not be read".to_owned()));
            let parsed = match found {
                Ok(bytes) if hash(&bytes) == self.seen => continue,
                Ok(bytes) => {
                    self.seen = hash(&bytes);
                    parse(&bytes)
                }
                Err(reason) => Err(reason),
            };
            match parsed {
                Ok(config) => {
                    self.said = None;
                    return config;
                }
                Err(reason) if self.said.as_ref() != Some(&reason) => {
                    tracing::error!(
                        path = %self.path.display(), reason,
                        "the file cannot be used, the last good one stays"
                    );
                    self.said = Some(reason);
                }
                Err(_) => {}
            }
        }
    }
}

fn hash(bytes: &[u8]) -> Vec<u8> {
    digest(&SHA256, bytes).as_ref().to_vec()
}

impl Who {
    /// What the file says, else the pod's variables, else the host's name.
    ///
    /// # Errors
    /// Without an address nobody could find us.
    pub fn of(config: &PoolConfig, var: impl Fn(&str) -> Option<String>) -> Result<Who, Failure> {
        let var = |name: &str| var(name).filter(|value| !value.is_empty());
        let member = &config.member;
        let name = member.name.clone().or_else(|| var("POD_NAME")).or_else(|| var("HOSTNAME"));
        let name = name.unwrap_or_else(|| "member".to_owned());
        if name.contains('~') {
            return Err(Failure::new(format!("the member's name is `{name}`, which has a `~`"))
                .hint("istiod takes the node's id apart there; set member.name"));
        }
        let address = match member.address {
            Some(address) => address,
            None => {
                let text = var("POD_IP").or_else(|| var("INSTANCE_IP"));
                let text = text.ok_or_else(|| {
                    Failure::new("no address by which ztunnels reach this member")
                        .hint("set member.address in pool.yaml, or POD_IP from status.podIP")
                })?;
                text.parse().map_err(|_| {
                    Failure::new(format!("POD_IP is `{text}`, which is no IP address"))
                })?
            }
        };
        Ok(Who { name, address, locality: member.locality.as_deref().map(locality) })
    }
}

/// `region/zone/subzone`; what is missing is empty.
pub fn locality(text: &str) -> [String; 3] {
    let mut parts = text.splitn(3, '/').map(str::to_owned);
    std::array::from_fn(|_| parts.next().unwrap_or_default())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn config(text: &str) -> PoolConfig {
        parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_member_is_who_the_file_says_else_the_pod() {
        let none = |_: &str| None;
        let told = config("member: {name: m1, address: 10.8.3.17, locality: r1/z1}");
        let who = Who::of(&told, none).unwrap();
        assert_eq!((who.name.as_str(), who.address.to_string()), ("m1", "10.8.3.17".to_owned()));
        assert_eq!(who.locality, Some(["r1".to_owned(), "z1".to_owned(), String::new()]));
        let pod = |name: &str| match name {
            "POD_NAME" => Some("wp-7c9f".to_owned()),
            "POD_IP" => Some("fd00::17".to_owned()),
            _ => None,
        };
        let who = Who::of(&config("{}"), pod).unwrap();
        assert_eq!((who.name.as_str(), who.address.is_ipv6()), ("wp-7c9f", true));
        assert!(Who::of(&config("{}"), none).is_err(), "nobody would find it");
        let bad = config("member: {name: 'a~b', address: 10.0.0.1}");
        assert!(Who::of(&bad, none).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_file_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pool.yaml");
        std::fs::write(&path, "member: {name: a}").unwrap();
        let (mut source, first) = Source::open(&path).unwrap();
        assert_eq!(first.member.name.as_deref(), Some("a"));
        std::fs::write(&path, "member: [").unwrap();
        let broken = tokio::time::timeout(Duration::from_secs(5), source.changed()).await;
        assert!(broken.is_err());
        std::fs::remove_file(&path).unwrap();
        let gone = tokio::time::timeout(Duration::from_secs(5), source.changed()).await;
        assert!(gone.is_err());
        std::fs::write(&path, "member: {name: b}").unwrap();
        assert_eq!(source.changed().await.member.name.as_deref(), Some("b"));
        assert!(read(dir.path()).is_err());
    }
}
