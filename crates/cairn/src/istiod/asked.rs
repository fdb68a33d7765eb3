//! Addresses that requests have asked for: who is there?

use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Addresses that are asked for at once; further ones wait until one is forgotten.
const MAX_ADDRESSES: usize = 4096;
/// After so long an address is forgotten, and asked for again by the next request that needs it.
const FORGET: Duration = Duration::from_secs(60);

/// Addresses that requests have asked for, bounded in number and time.
#[derive(Debug)]
pub struct Asked {
    network: String,
    addresses: Mutex<HashMap<IpAddr, Instant>>,
}

impl Asked {
    /// In our network.
    pub fn new(network: &str) -> Self {
        Asked { network: network.to_owned(), addresses: Mutex::default() }
    }

    /// `true`: it is news.
    pub fn ask(&self, address: IpAddr) -> bool {
        self.ask_at(address.to_canonical(), Instant::now())
    }

    fn ask_at(&self, address: IpAddr, now: Instant) -> bool {
        let mut addresses = self.addresses.lock();
        if addresses.contains_key(&address) {
            return false;
        }
        if addresses.len() >= MAX_ADDRESSES {
            addresses.retain(|_, since| now.saturating_duration_since(*since) < FORGET);
        }
        addresses.len() < MAX_ADDRESSES && addresses.insert(address, now).is_none()
    }

    /// Names of the workloads, as istiod's aliases `network/ip`.
    pub fn names(&self) -> Vec<String> {
        self.names_at(Instant::now())
    }

    fn names_at(&self, now: Instant) -> Vec<String> {
        let mut addresses = self.addresses.lock();
        addresses.retain(|_, since| now.saturating_duration_since(*since) < FORGET);
        addresses.keys().map(|address| format!("{}/{address}", self.network)).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_asked_for_once_and_forgotten() {
        let asked = Asked::new("net1");
        let now = Instant::now();
        let ip: IpAddr = "10.0.0.1".parse().unwrap();
        assert!(asked.ask_at(ip, now));
        assert!(!asked.ask_at(ip, now));
        assert!(!asked.ask("::ffff:10.0.0.1".parse().unwrap()));
        assert_eq!(asked.names_at(now), ["net1/10.0.0.1"]);
        assert_eq!(asked.names_at(now + FORGET), Vec::<String>::new());
        assert!(asked.ask_at(ip, now + FORGET));
    }

    #[test]
    fn their_number_is_bounded() {
        let asked = Asked::new("");
        let now = Instant::now();
        let ip = |number: usize| IpAddr::from(u32::try_from(number).unwrap().to_be_bytes());
        let news = (0..MAX_ADDRESSES + 10).filter(|number| asked.ask_at(ip(*number), now)).count();
        assert_eq!(news, MAX_ADDRESSES);
        assert!(asked.ask_at(ip(MAX_ADDRESSES + 1), now + FORGET));
    }
}
