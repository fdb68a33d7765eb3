//! The listener `main_internal`: what tunnels can name, kept chain by chain.
//!
//! A push carries all chains again. Those whose bytes are the same keep what was made of them, and a
//! destination whose chains, names and gate are the same keeps its `Arc`.

use super::chain::{self, Body, Chain, broken_tcp};
use super::http;
use super::matcher::{self, Entry, Leads, Plan};
use super::observe;
use super::shallow::{Digest, parts, split};
use super::unsupported::{Notes, Subject, Unsupported};
use super::wire::{Undecodable, decode, type_name};
use cairn_proto::envoy as pb;
use cairn_router::spec::{AccessLog, ConnectionPolicy, Destination, HttpChain, TcpChain};
use pb::envoy::config::listener::v3::listener_filter::ConfigType as ListenerFilterConfig;
use pb::envoy::config::listener::v3::{Listener, ListenerFilter};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Field of `Listener` that holds the filter chains.
const FILTER_CHAINS: u32 = 3;
/// Field of `FilterChain` that holds its name.
const CHAIN_NAME: u32 = 7;

/// What stands in front of all destinations.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Gate {
    pub policy: ConnectionPolicy,
    /// Why nothing passes.
    pub broken: Option<String>,
}

/// The destinations, and what they are made of.
#[derive(Debug, Default)]
pub(super) struct Destinations {
    rest: Option<Digest>,
    plan: Arc<Plan>,
    chains: HashMap<Digest, KeptChain>,
    by_name: HashMap<String, Digest>,
    made: BTreeMap<String, Made>,
    notes: Notes,
    observed: observe::Shared,
    /// The listener's own access logs.
    logs: Vec<AccessLog>,
}

/// How many chains were read, and how many were known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub parsed: u64,
    pub reused: u64,
}

#[derive(Debug)]
struct KeptChain {
    name: String,
    is_http: bool,
    /// Until a destination has it.
    body: Option<Body>,
    /// The destination that has it.
    holder: Option<Arc<Destination>>,
    /// Some destination leads here.
    used: bool,
    notes: Notes,
    baggage: bool,
    discovered: Vec<String>,
}

/// One destination and what it was made of.
#[derive(Debug)]
struct Made {
    entry: Entry,
    http: Option<Digest>,
    tcp: Option<Digest>,
    gate: Arc<Gate>,
    spec: Arc<Destination>,
}

impl Destinations {
    /// Takes the listener in. What does not decode keeps its last good value and is listed.
    pub(super) fn update(&mut self, bytes: &[u8], count: &mut Count) -> Result<(), Vec<String>> {
        let split = match split(bytes, FILTER_CHAINS) {
            Ok(split) => split,
            Err(malformed) => return Err(vec![malformed.to_string()]),
        };
        let rest = Digest::of(&split.rest);
        if self.rest != Some(rest) {
            let (plan, mut notes) = plan(&split.rest).map_err(|error| vec![error.to_string()])?;
            let mut subject = Subject::new("listener", "main_internal");
            self.logs = observe::access_log::of_listener(&split.rest, &mut subject)
                .map_err(|error| vec![error.to_string()])?;
            notes.degraded.extend(subject.notes.degraded);
            (self.plan, self.notes) = (Arc::new(plan), notes);
            self.rest = Some(rest);
        }
        let mut undecodable = Vec::new();
        let mut before = std::mem::take(&mut self.chains);
        let mut names = HashMap::with_capacity(split.parts.len());
        for (number, bytes) in split.parts.iter().enumerate() {
            let digest = Digest::of(bytes);
            let (digest, kept) = match before.remove(&digest) {
                Some(kept) => {
                    count.reused += 1;
                    (digest, kept)
                }
                None if self.chains.contains_key(&digest) => continue,
                None => {
                    count.parsed += 1;
                    match chain::chain(bytes) {
                        Ok(mut chain) => {
                            self.observed.share(match &mut chain.body {
                                Body::Http(chain) => &mut chain.observe,
                                Body::Tcp(chain) => &mut chain.observe,
                            });
                            (digest, KeptChain::of(chain))
                        }
                        Err(error) => {
                            let name = name(bytes).unwrap_or_else(|| format!("#{number}"));
                            undecodable.push(format!("filter chain `{name}`: {error}"));
                            let known = self.by_name.get(&name).copied();
                            match known.and_then(|digest| Some((digest, before.remove(&digest)?))) {
                                Some(known) => known,
                                None => (digest, KeptChain::undecodable(name, &error)),
                            }
                        }
                    }
                }
            };
            // Of two chains with one name the first has it.
            names.entry(kept.name.clone()).or_insert(digest);
            self.chains.insert(digest, kept);
        }
        self.by_name = names;
        if undecodable.is_empty() { Ok(()) } else { Err(undecodable) }
    }

    /// The listener's own access logs: of tunnels for which it has no chain.
    pub(super) fn logs(&self) -> &[AccessLog] {
        &self.logs
    }

    /// The listener is gone.
    pub(super) fn clear(&mut self) {
        *self = Destinations::default();
    }

    /// Makes the destinations anew; whether any changed. `namespace` knows whose a chain or address is.
    pub(super) fn rebuild(&mut self, gate: &Arc<Gate>, namespace: &impl Owners) -> bool {
        let before = std::mem::take(&mut self.made);
        let mut made = BTreeMap::new();
        for kept in self.chains.values_mut() {
            kept.used = false;
        }
        let mut changed = false;
        let plan = Arc::clone(&self.plan);
        for entry in &plan.entries {
            if entry.addresses.is_empty() && entry.hosts.is_empty() {
                continue;
            }
            let name = unique(entry, &made);
            let (http, tcp) = self.slots(&entry.leads);
            for digest in http.iter().chain(&tcp) {
                if let Some(kept) = self.chains.get_mut(digest) {
                    kept.used = true;
                }
            }
            let owner = owner(entry, namespace);
            let one = match before.get(&name) {
                Some(known)
                    if known.entry == *entry
                        && known.http == http
                        && known.tcp == tcp
                        && Arc::ptr_eq(&known.gate, gate)
                        && known.spec.namespace == owner =>
                {
                    Made {
                        entry: entry.clone(),
                        http,
                        tcp,
                        gate: Arc::clone(gate),
                        spec: Arc::clone(&known.spec),
                    }
                }
                _ => {
                    changed = true;
                    let spec = self.make(&name, owner, entry, (http, tcp), gate);
                    Made { entry: entry.clone(), http, tcp, gate: Arc::clone(gate), spec }
                }
            };
            made.insert(name, one);
        }
        changed |= made.len() != before.len();
        self.made = made;
        changed
    }

    /// Chains of HTTP and of other bytes.
    fn slots(&self, leads: &Leads) -> (Option<Digest>, Option<Digest>) {
        let of = |name: &str| self.by_name.get(name).copied();
        match leads {
            Leads::Chain(name) => match of(name) {
                Some(digest) if self.chains.get(&digest).is_some_and(|kept| kept.is_http) => {
                    (Some(digest), None)
                }
                other => (None, other),
            },
            Leads::Sniffed { http, tcp } => (of(http), tcp.as_deref().and_then(of)),
            Leads::Broken(_) => (None, None),
        }
    }

    fn make(
        &mut self,
        name: &str,
        namespace: String,
        entry: &Entry,
        (http, tcp): (Option<Digest>, Option<Digest>),
        gate: &Gate,
    ) -> Arc<Destination> {
        let (wants_http, wants_tcp) = match &entry.leads {
            Leads::Chain(_) => (http.is_some(), http.is_none()),
            Leads::Sniffed { http: _, tcp } => (true, tcp.is_some()),
            Leads::Broken(_) => (false, true),
        };
        let closed = gate.broken.as_deref().or(match &entry.leads {
            Leads::Broken(what) => Some(what.as_str()),
            _ => None,
        });
        let missing = "there is no filter chain for it";
        let other = "its filter chain is of another kind";
        let http_chain: Option<HttpChain> = wants_http.then(|| match (closed, http) {
            (Some(reason), _) => http::broken(reason),
            (None, None) => http::broken(missing),
            (None, Some(digest)) => match self.take(&digest) {
                Some(Body::Http(chain)) => chain,
                _ => http::broken(other),
            },
        });
        let tcp_chain: Option<TcpChain> = wants_tcp.then(|| match (closed, tcp) {
            (Some(reason), _) => broken_tcp(reason),
            (None, None) => broken_tcp(missing),
            (None, Some(digest)) => match self.take(&digest) {
                Some(Body::Tcp(chain)) => chain,
                _ => broken_tcp(other),
            },
        });
        let spec = Arc::new(Destination {
            name: name.to_owned(),
            namespace,
            addresses: entry.addresses.clone(),
            hosts: entry.hosts.clone(),
            port: entry.port,
            connection: gate.policy.clone(),
            http: http_chain,
            tcp: tcp_chain,
        });
        if closed.is_none() {
            for digest in http.iter().chain(&tcp) {
                if let Some(kept) = self.chains.get_mut(digest).filter(|kept| kept.body.is_none()) {
                    kept.holder = Some(Arc::clone(&spec));
                }
            }
        }
        spec
    }

    /// What was made of a chain: the first time by itself, later as a copy.
    fn take(&mut self, digest: &Digest) -> Option<Body> {
        let kept = self.chains.get_mut(digest)?;
        if let Some(body) = kept.body.take() {
            return Some(body);
        }
        let holder = kept.holder.as_ref()?;
        match kept.is_http {
            true => holder.http.clone().map(Body::Http),
            false => holder.tcp.clone().map(Body::Tcp),
        }
    }

    /// In the order of names.
    pub(super) fn specs(&self) -> impl Iterator<Item = &Arc<Destination>> {
        self.made.values().map(|made| &made.spec)
    }

    pub(super) fn baggage(&self) -> bool {
        self.chains.values().any(|kept| kept.baggage)
    }

    /// Names of ECDS resources of chains that something leads to.
    pub(super) fn discovered(&self) -> impl Iterator<Item = &String> {
        self.chains.values().filter(|kept| kept.used).flat_map(|kept| &kept.discovered)
    }

    /// Addresses of destinations that are no service: pods that are named themselves.
    pub(super) fn direct(&self) -> impl Iterator<Item = IpAddr> {
        let direct = self.plan.entries.iter().filter(|entry| entry.port.is_none());
        let ranges = direct.flat_map(|entry| &entry.addresses);
        let single = ranges.filter(|range| range.0.prefix_len() == range.0.max_prefix_len());
        single.map(|range| range.0.addr())
    }

    pub(super) fn unsupported(&self) -> impl Iterator<Item = &BTreeSet<Unsupported>> {
        let used = self.chains.values().filter(|kept| kept.used);
        let chains = used.map(|kept| &kept.notes.unsupported);
        chains.chain([&self.plan.unsupported, &self.notes.unsupported])
    }

    pub(super) fn degraded(&self) -> impl Iterator<Item = &BTreeSet<Unsupported>> {
        let used = self.chains.values().filter(|kept| kept.used);
        used.map(|kept| &kept.notes.degraded).chain([&self.notes.degraded])
    }
}

/// Knows whose something is.
pub(super) trait Owners {
    /// Namespace of the service of a cluster.
    fn of_cluster(&self, name: &str) -> Option<String>;
    /// Namespace of the workload at an address.
    fn of_address(&self, address: IpAddr) -> Option<String>;
}

impl KeptChain {
    fn of(from: Chain) -> Self {
        let Chain { name, body, notes, baggage, discovered } = from;
        KeptChain {
            name,
            is_http: matches!(body, Body::Http(_)),
            body: Some(body),
            holder: None,
            used: false,
            notes,
            baggage,
            discovered,
        }
    }

    fn undecodable(name: String, error: &Undecodable) -> Self {
        let reason = error.to_string();
        let notes = Notes { broken: Some(reason.clone()), ..Notes::default() };
        KeptChain {
            body: Some(Body::Tcp(broken_tcp(&reason))),
            name,
            is_http: false,
            holder: None,
            used: false,
            notes,
            baggage: false,
            discovered: Vec::new(),
        }
    }
}

/// Reads everything but the chains.
fn plan(rest: &[u8]) -> Result<(Plan, Notes), Undecodable> {
    let listener = decode::<Listener>("envoy.config.listener.v3.Listener", rest)?.message;
    let mut subject = super::unsupported::Subject::new("listener", "main_internal");
    let mut plan = match &listener.filter_chain_matcher {
        Some(matcher) => matcher::plan(matcher)?,
        None => {
            subject.refuse("chains without `filter_chain_matcher` are not supported");
            Plan::default()
        }
    };
    for filter in &listener.listener_filters {
        if !is_known(filter) {
            subject.refuse(format!("listener filter `{}` is not supported", filter.name));
        }
    }
    if let Some(reason) = &subject.notes.broken {
        for entry in &mut plan.entries {
            entry.leads = Leads::Broken(reason.clone());
        }
    }
    // It is for what no other chain is for, which nothing is here: that is refused without it.
    subject.refuse_if(
        listener.default_filter_chain.is_some(),
        "a chain for everything that no other is for",
    );
    Ok((plan, subject.notes))
}

/// A listener filter that says what Cairn finds out by itself, by its type where it has one.
fn is_known(filter: &ListenerFilter) -> bool {
    const KNOWN: [(&str, &str); 3] = [
        (
            "envoy.filters.listener.original_dst",
            "envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
        ),
        (
            "envoy.filters.listener.http_inspector",
            "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
        ),
        (
            "envoy.filters.listener.tls_inspector",
            "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
        ),
    ];
    match &filter.config_type {
        Some(ListenerFilterConfig::TypedConfig(config)) => {
            let name = type_name(config);
            KNOWN.iter().any(|(_, of)| *of == name)
        }
        Some(ListenerFilterConfig::ConfigDiscovery(_)) => false,
        None => KNOWN.iter().any(|(name, _)| *name == filter.name),
    }
}

/// Name of a chain whose bytes do not decode, if it can be found.
fn name(bytes: &[u8]) -> Option<String> {
    let name = parts(bytes, CHAIN_NAME).last().map(|name| name.to_vec())?;
    String::from_utf8(name).ok().filter(|name| !name.is_empty())
}

/// A name for a destination: that of its chain, HTTP first.
fn unique(entry: &Entry, taken: &BTreeMap<String, Made>) -> String {
    let base = match &entry.leads {
        Leads::Chain(name) => name.clone(),
        Leads::Sniffed { http, tcp: _ } => http.clone(),
        Leads::Broken(_) => {
            let address = entry.addresses.first().map(|range| String::from(*range));
            let first = address.or_else(|| entry.hosts.first().cloned()).unwrap_or_default();
            format!("unsupported|{}|{first}", entry.port.unwrap_or(0))
        }
    };
    if !taken.contains_key(&base) {
        return base;
    }
    let with_port = format!("{base}|port {}", entry.port.unwrap_or(0));
    let mut name = with_port.clone();
    let mut number = 2;
    while taken.contains_key(&name) {
        name = format!("{with_port}|{number}");
        number += 1;
    }
    name
}

/// Namespace of `app.shop.svc.cluster.local`, of the cluster of the same name, or of the only namespace that
/// has pods at the addresses.
fn owner(entry: &Entry, owners: &impl Owners) -> String {
    let chain = match &entry.leads {
        Leads::Chain(name) => name.as_str(),
        Leads::Sniffed { http, tcp: _ } => http.as_str(),
        Leads::Broken(_) => "",
    };
    let mut labels = chain.rsplit('|').next().unwrap_or_default().split('.');
    if let (Some(_), Some(namespace), Some("svc")) = (labels.next(), labels.next(), labels.next()) {
        return namespace.to_owned();
    }
    if let Some(namespace) = owners.of_cluster(chain) {
        return namespace;
    }
    let addresses = entry.addresses.iter();
    let of: HashSet<String> =
        addresses.filter_map(|range| owners.of_address(range.0.addr())).collect();
    let mut of = of.into_iter();
    match (of.next(), of.next()) {
        (Some(only), None) => only,
        _ => String::new(),
    }
}
