//! From what a tunnel names to filter chains. Envoy: `Listener.filter_chain_matcher`.
//!
//! istiod writes address → port → \[first bytes\] → chain and, with several networks, host and port → chain in front
//! of it. Any other tree makes what is below it fail closed.

use super::unsupported::Unsupported;
use super::wire::{IpMatcher, IpRangeMatcher, Undecodable, network, open, type_name};
use cairn_proto::envoy as pb;
use cairn_router::spec::CidrRange;
use pb::envoy::extensions::matching::common_inputs::network::v3::FilterStateInput;
use pb::google::protobuf::StringValue;
use pb::xds::core::v3::{CidrRange as Range, TypedExtensionConfig};
use pb::xds::r#type::matcher::v3::Matcher;
use pb::xds::r#type::matcher::v3::matcher::matcher_tree::{MatchMap, TreeType};
use pb::xds::r#type::matcher::v3::matcher::on_match::OnMatch as Then;
use pb::xds::r#type::matcher::v3::matcher::{MatcherTree, MatcherType, OnMatch};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;

/// Filter state that holds what CONNECT named.
const CONNECT_AUTHORITY: &str = "io.istio.connect_authority";
/// What the first bytes are called; the quotes are part of the names.
const H2C: &str = "'h2c'";
const HTTP_11: &str = "'http/1.1'";
const HTTP_10: &str = "'http/1.0'";

/// Where tunnels lead.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Plan {
    pub entries: Vec<Entry>,
    pub unsupported: BTreeSet<Unsupported>,
}

/// Addresses and hosts that lead to the same.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub addresses: Vec<CidrRange>,
    pub hosts: Vec<String>,
    /// `None`: every port.
    pub port: Option<u16>,
    pub leads: Leads,
}

/// What a port leads to, by the names of chains.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Leads {
    /// One chain.
    Chain(String),
    /// The first bytes decide.
    Sniffed { http: String, tcp: Option<String> },
    /// Nothing that is understood, and why.
    Broken(String),
}

/// Reads the tree.
pub(super) fn plan(matcher: &Matcher) -> Result<Plan, Undecodable> {
    let mut reader = Reader::default();
    reader.top(matcher)?;
    let entries = reader.keys.into_iter().filter_map(|key| reader.entries.remove(&key));
    Ok(Plan { entries: entries.collect(), unsupported: reader.unsupported })
}

type Key = (Option<u16>, Leads);

#[derive(Default)]
struct Reader {
    /// In the order in which they came.
    keys: Vec<Key>,
    entries: HashMap<Key, Entry>,
    unsupported: BTreeSet<Unsupported>,
}

/// By what something is reached.
#[derive(Clone, Copy)]
enum Name<'a> {
    Addresses(&'a [CidrRange]),
    Host(&'a str),
}

impl Reader {
    fn top(&mut self, matcher: &Matcher) -> Result<(), Undecodable> {
        let Some((tree, input)) = tree(matcher) else {
            self.list("filter_chain_matcher", "a list of conditions".to_owned());
            return Ok(());
        };
        match (type_of(input), &tree.tree_type) {
            (Some("DestinationIPInput"), Some(TreeType::CustomMatch(custom))) => {
                if matcher.on_no_match.is_some() {
                    self.list(
                        "filter_chain_matcher",
                        "a chain for addresses that are not listed".to_owned(),
                    );
                }
                self.addresses(custom)
            }
            (Some("FilterStateInput"), Some(TreeType::ExactMatchMap(map))) => {
                let state = match input.typed_config.as_ref() {
                    Some(config) => open::<FilterStateInput>(config)?.message,
                    None => FilterStateInput::default(),
                };
                if state.key == CONNECT_AUTHORITY && state.field.is_empty() {
                    self.hosts(map)?;
                } else {
                    let what = format!("a condition on the filter state `{}`", state.key);
                    self.list("filter_chain_matcher", what);
                }
                match matcher.on_no_match.as_ref().and_then(|then| then.on_match.as_ref()) {
                    Some(Then::Matcher(matcher)) => self.top(matcher),
                    Some(Then::Action(_)) => {
                        let what = "a chain for everything that is not listed".to_owned();
                        self.list("filter_chain_matcher", what);
                        Ok(())
                    }
                    None => Ok(()),
                }
            }
            (kind, _) => {
                let what = format!("a condition on {}", kind.unwrap_or("nothing that is known"));
                self.list("filter_chain_matcher", what);
                Ok(())
            }
        }
    }

    /// Host and port as CONNECT names them.
    fn hosts(&mut self, map: &MatchMap) -> Result<(), Undecodable> {
        let sorted: BTreeMap<_, _> = map.map.iter().collect();
        for (authority, then) in sorted {
            if let Ok(address) = authority.parse::<SocketAddr>() {
                let range = [CidrRange(address.ip().into())];
                self.port(Name::Addresses(&range), Some(address.port()), then);
                continue;
            }
            let parsed = authority.rsplit_once(':').and_then(|(host, port)| {
                Some((host, port.parse::<u16>().ok().filter(|port| *port != 0)?))
            });
            match parsed {
                Some((host, port)) if is_host(host) => {
                    self.port(Name::Host(host), Some(port), then);
                }
                _ => self.list(authority, "it is no host that CONNECT could name".to_owned()),
            }
        }
        Ok(())
    }

    fn addresses(&mut self, custom: &TypedExtensionConfig) -> Result<(), Undecodable> {
        let config = custom.typed_config.as_ref();
        let Some(config) = config.filter(|any| type_name(any) == "xds.type.matcher.v3.IPMatcher")
        else {
            self.list("filter_chain_matcher", format!("the matcher `{}`", custom.name));
            return Ok(());
        };
        let IpMatcher { range_matchers } = open(config)?.message;
        for IpRangeMatcher { ranges, on_match, exclusive } in &range_matchers {
            let mut networks = Vec::with_capacity(ranges.len());
            for Range { address_prefix, prefix_len } in ranges {
                let length = prefix_len.as_ref().map(|length| length.value);
                match network(address_prefix, length) {
                    // What has no address of its own: reachable by host, if at all.
                    Some(network) if is_unspecified(&network) => {}
                    Some(network) => networks.push(CidrRange(network)),
                    None => self.list(address_prefix, "it is no network".to_owned()),
                }
            }
            let name = Name::Addresses(&networks);
            match on_match {
                Some(_) if *exclusive => self.broken(name, None, "an exclusive network"),
                Some(then) => self.range(name, then),
                None => self.broken(name, None, "a network without a chain"),
            }
        }
        Ok(())
    }

    /// What is below addresses: ports, first bytes, or a chain.
    fn range(&mut self, name: Name<'_>, then: &OnMatch) {
        let Some(Then::Matcher(matcher)) = &then.on_match else {
            return self.port(name, None, then);
        };
        let Some((tree, input)) = tree(matcher) else {
            return self.broken(name, None, "a list of conditions");
        };
        match (type_of(input), &tree.tree_type) {
            (Some("DestinationPortInput"), Some(TreeType::ExactMatchMap(map))) => {
                let sorted: BTreeMap<_, _> = map.map.iter().collect();
                for (port, then) in sorted {
                    match port.parse::<u16>() {
                        Ok(port) if port != 0 => self.port(name, Some(port), then),
                        _ => self.list(port, "it is no port".to_owned()),
                    }
                }
                if let Some(then) = &matcher.on_no_match {
                    self.port(name, None, then);
                }
            }
            _ => self.port(name, None, then),
        }
    }

    /// What is below a port: first bytes, or a chain.
    fn port(&mut self, name: Name<'_>, port: Option<u16>, then: &OnMatch) {
        let leads = leads(then).unwrap_or_else(Leads::Broken);
        self.add(name, port, leads);
    }

    fn broken(&mut self, name: Name<'_>, port: Option<u16>, what: &str) {
        self.add(name, port, Leads::Broken(what.to_owned()));
    }

    fn add(&mut self, name: Name<'_>, port: Option<u16>, leads: Leads) {
        if let Leads::Broken(what) = &leads {
            let subject = match name {
                Name::Addresses([first, ..]) => String::from(*first),
                Name::Addresses([]) => "0.0.0.0".to_owned(),
                Name::Host(host) => host.to_owned(),
            };
            self.list(&subject, what.clone());
        }
        let key = (port, leads);
        let entry = self.entries.entry(key.clone()).or_insert_with(|| {
            self.keys.push(key.clone());
            let (port, leads) = key;
            Entry { addresses: Vec::new(), hosts: Vec::new(), port, leads }
        });
        match name {
            Name::Addresses(addresses) => {
                for address in addresses {
                    if !entry.addresses.contains(address) {
                        entry.addresses.push(*address);
                    }
                }
            }
            Name::Host(host) => entry.hosts.push(host.to_owned()),
        }
    }

    fn list(&mut self, name: &str, what: String) {
        self.unsupported.insert(Unsupported {
            kind: "matcher",
            name: name.to_owned(),
            reason: format!("{what}: what it would lead to is not reachable"),
        });
    }
}

/// The tree of a matcher, and what it looks at.
fn tree(matcher: &Matcher) -> Option<(&MatcherTree, &TypedExtensionConfig)> {
    match &matcher.matcher_type {
        Some(MatcherType::MatcherTree(tree)) => Some((tree, tree.input.as_ref()?)),
        _ => None,
    }
}

/// Last part of the name of a network input's type.
fn type_of(input: &TypedExtensionConfig) -> Option<&str> {
    type_name(input.typed_config.as_ref()?)
        .strip_prefix("envoy.extensions.matching.common_inputs.network.v3.")
}

/// The error says what is not understood.
fn leads(then: &OnMatch) -> Result<Leads, String> {
    if then.keep_matching {
        return Err("a match that goes on".to_owned());
    }
    let matcher = match &then.on_match {
        Some(Then::Action(action)) => return chain(action).map(Leads::Chain),
        Some(Then::Matcher(matcher)) => matcher,
        None => return Err("a match that leads nowhere".to_owned()),
    };
    let Some((tree, input)) = tree(matcher) else { return Err("a list of conditions".to_owned()) };
    let (Some("ApplicationProtocolInput"), Some(TreeType::ExactMatchMap(MatchMap { map }))) =
        (type_of(input), &tree.tree_type)
    else {
        return Err(format!("the condition `{}`", input.name));
    };
    if let Some(other) = map.keys().find(|name| ![H2C, HTTP_11, HTTP_10].contains(&name.as_str())) {
        return Err(format!("the protocol {other}"));
    }
    let of = |name: &str| match map.get(name).map(leads) {
        Some(Ok(Leads::Chain(chain))) => Ok(chain),
        Some(_) => Err(format!("what the protocol {name} leads to")),
        None => Err(format!("bytes of which {name} is none that is listed")),
    };
    let http = of(HTTP_11)?;
    if of(H2C)? != http {
        return Err("another chain for HTTP/2 than for HTTP/1.1".to_owned());
    }
    let tcp = match matcher.on_no_match.as_ref().map(|then| leads(then)) {
        None => None,
        Some(Ok(Leads::Chain(chain))) => Some(chain),
        Some(_) => return Err("what other bytes than HTTP lead to".to_owned()),
    };
    Ok(Leads::Sniffed { http, tcp })
}

/// Name of the chain of an action.
fn chain(action: &TypedExtensionConfig) -> Result<String, String> {
    let config = action.typed_config.as_ref();
    match config.filter(|any| type_name(any) == "google.protobuf.StringValue") {
        Some(any) => match open::<StringValue>(any) {
            Ok(read) => Ok(read.message.value),
            Err(error) => Err(format!("an action that {error}")),
        },
        None => Err(format!("the action `{}`", action.name)),
    }
}

/// One address that stands for none.
fn is_unspecified(network: &ipnet::IpNet) -> bool {
    network.prefix_len() == network.max_prefix_len() && network.addr().is_unspecified()
}

/// CONNECT can name it (the router's rule).
fn is_host(host: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    !host.is_empty() && host.bytes().all(known) && host.parse::<std::net::IpAddr>().is_err()
}
