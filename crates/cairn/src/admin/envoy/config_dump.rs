//! `/config_dump`: `envoy.admin.v3.ConfigDump` in JSON, as it is made of what is accepted.
//!
//! Every section is there, if need be empty: `istioctl proxy-config` refuses a dump in which the one
//! that it reads is missing.

use super::bootstrap::bootstrap;
use super::json::Items;
use super::print::{Printed, PrintedAny};
use super::secrets::secrets;
use super::types::{Types, full_name};
use super::view::AdminView;
use bytes::Bytes;
use cairn_proto::prost::Message;
use cairn_proto::prost_types::Timestamp;
use cairn_xds::feed::Kind;
use prost_reflect::{DynamicMessage, Value};
use regex::Regex;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use std::io::{self, Write};
use std::time::SystemTime;

const MANAGER: &str =
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// What is asked for.
#[derive(Debug, Default)]
pub struct Selection {
    /// With the endpoints (Envoy leaves them out unless told).
    pub include_eds: bool,
    /// Items of this section alone; each is then a config of its own.
    pub resource: Option<Section>,
    /// Items whose names match as a whole.
    pub name: Option<Regex>,
}

/// A list in the dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// `bootstrap`, which is no list.
    Bootstrap,
    /// `dynamic_active_clusters`
    Clusters,
    /// `ecds_filters`
    Extensions,
    /// `dynamic_endpoint_configs`
    Endpoints,
    /// `dynamic_listeners`
    Listeners,
    /// `static_route_configs`: those inside of listeners, which is where istiod puts all of a waypoint.
    Routes,
    /// `dynamic_active_secrets`
    Secrets,
    /// A list that Envoy can have and Cairn never has.
    Empty,
}

/// Name of the section's list, type of its items, and what it is.
const SECTIONS: [(&str, &str, Section); 20] = [
    ("bootstrap", "BootstrapConfigDump", Section::Bootstrap),
    ("dynamic_active_clusters", "ClustersConfigDump.DynamicCluster", Section::Clusters),
    ("dynamic_active_secrets", "SecretsConfigDump.DynamicSecret", Section::Secrets),
    ("dynamic_endpoint_configs", "EndpointsConfigDump.DynamicEndpointConfig", Section::Endpoints),
    ("dynamic_listeners", "ListenersConfigDump.DynamicListener", Section::Listeners),
    ("ecds_filters", "EcdsConfigDump.EcdsFilterConfig", Section::Extensions),
    ("static_route_configs", "RoutesConfigDump.StaticRouteConfig", Section::Routes),
    ("dynamic_active_scoped_route_configs", "", Section::Empty),
    ("dynamic_route_configs", "", Section::Empty),
    ("dynamic_scoped_route_configs", "", Section::Empty),
    ("dynamic_warming_clusters", "", Section::Empty),
    ("dynamic_warming_secrets", "", Section::Empty),
    ("inline_scoped_route_configs", "", Section::Empty),
    ("static_clusters", "", Section::Empty),
    ("static_endpoint_configs", "", Section::Empty),
    ("static_listeners", "", Section::Empty),
    ("static_secrets", "", Section::Empty),
    ("dynamic_warming_listeners", "", Section::Empty),
    ("dynamic_draining_listeners", "", Section::Empty),
    ("api_listeners", "", Section::Empty),
];

impl Section {
    /// By the name of its list.
    pub fn parse(name: &str) -> Option<Section> {
        SECTIONS.iter().find(|(known, _, _)| *known == name).map(|(_, _, section)| *section)
    }

    /// Names of all lists.
    pub fn names() -> impl Iterator<Item = &'static str> {
        SECTIONS.iter().map(|(name, _, _)| *name)
    }

    fn describe(self) -> (&'static str, &'static str) {
        let found = SECTIONS.iter().find(|(_, _, section)| *section == self);
        found.map_or(("", ""), |(name, item, _)| (*name, *item))
    }
}

/// Writes the dump.
pub fn write(view: &AdminView, selection: &Selection, out: &mut dyn Write) -> io::Result<()> {
    let types = Types::load();
    let dump = Dump { view, types: &types, selection };
    Items::write(out, "{\"configs\":[", "\n]}\n", |configs| match selection.resource {
        Some(Section::Bootstrap) => dump.bootstrap(configs),
        Some(section) => dump.items(section, true, configs),
        None => dump.sections(configs),
    })
}

struct Dump<'a> {
    view: &'a AdminView,
    types: &'a Types,
    selection: &'a Selection,
}

impl Dump<'_> {
    /// In Envoy's order.
    fn sections(&self, configs: &mut Items<'_>) -> io::Result<()> {
        self.bootstrap(configs)?;
        self.section("ClustersConfigDump", Section::Clusters, configs)?;
        self.section("EcdsConfigDump", Section::Extensions, configs)?;
        if self.selection.include_eds {
            self.section("EndpointsConfigDump", Section::Endpoints, configs)?;
        }
        self.section("ListenersConfigDump", Section::Listeners, configs)?;
        self.section("RoutesConfigDump", Section::Routes, configs)?;
        configs.push(&serde_json::json!({
            "@type": "type.googleapis.com/envoy.admin.v3.ScopedRoutesConfigDump"
        }))?;
        self.section("SecretsConfigDump", Section::Secrets, configs)
    }

    fn bootstrap(&self, configs: &mut Items<'_>) -> io::Result<()> {
        let message = bootstrap(self.view).encode_to_vec();
        let bootstrap = self
            .types
            .decode("envoy.config.bootstrap.v3.Bootstrap", &message)
            .map_err(io::Error::other)?;
        configs.push(&Bootstrap {
            config: "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump",
            bootstrap: Printed::new(self.types, &bootstrap),
            last_updated: text(self.view.started.at),
        })
    }

    fn section(&self, name: &str, section: Section, configs: &mut Items<'_>) -> io::Result<()> {
        let (list, _) = section.describe();
        let before =
            format!("{{\"@type\":\"type.googleapis.com/envoy.admin.v3.{name}\",\"{list}\":[");
        Items::write(configs.next()?, &before, "]}", |items| self.items(section, false, items))
    }

    /// The items of a section; `alone` they say their own type.
    fn items(&self, section: Section, alone: bool, items: &mut Items<'_>) -> io::Result<()> {
        let (_, item) = section.describe();
        let own_type = alone.then(|| format!("type.googleapis.com/envoy.admin.v3.{item}"));
        let own_type = own_type.as_deref();
        match section {
            Section::Clusters => self.received(Kind::Cluster, "cluster", own_type, items),
            Section::Endpoints => {
                self.received(Kind::Endpoints, "endpoint_config", own_type, items)
            }
            Section::Extensions => {
                self.received(Kind::ExtensionConfig, "ecds_filter", own_type, items)
            }
            Section::Listeners => self.received(Kind::Listener, "listener", own_type, items),
            Section::Routes => self.routes(own_type, items),
            Section::Secrets => self.secrets(own_type, items),
            Section::Bootstrap | Section::Empty => Ok(()),
        }
    }

    fn is_wanted(&self, name: &str) -> bool {
        self.selection.name.as_ref().is_none_or(|regex| regex.is_match(name))
    }

    /// Resources as they were received.
    fn received(
        &self,
        kind: Kind,
        field: &'static str,
        own_type: Option<&str>,
        items: &mut Items<'_>,
    ) -> io::Result<()> {
        self.each(kind, |raw| {
            if !self.is_wanted(raw.name) {
                return Ok(());
            }
            let item = Versioned {
                own_type: own_type.filter(|_| kind != Kind::Listener),
                name: None,
                version: raw.version,
                field,
                value: PrintedAny::new(self.types, raw.type_url, &raw.body),
                last_updated: raw.last_updated,
            };
            match kind {
                Kind::Listener => {
                    items.push(&DynamicListener { own_type, name: raw.name, active_state: item })
                }
                _ => items.push(&item),
            }
        })
    }

    /// The routes inside of listeners.
    fn routes(&self, own_type: Option<&str>, items: &mut Items<'_>) -> io::Result<()> {
        self.each(Kind::Listener, |raw| {
            // What cannot be read is printed as bytes among the listeners.
            let Ok(listener) = self.types.decode(raw.type_url, &raw.body) else { return Ok(()) };
            for_each_route_config(self.types, &listener, &mut |config| {
                let name = config.get_field_by_name("name");
                if !self.is_wanted(name.as_ref().and_then(|name| name.as_str()).unwrap_or("")) {
                    return Ok(());
                }
                items.push(&Versioned {
                    own_type,
                    name: None,
                    version: "",
                    field: "route_config",
                    value: Printed::new(self.types, config).with_type(),
                    last_updated: raw.last_updated,
                })
            })
        })
    }

    fn secrets(&self, own_type: Option<&str>, items: &mut Items<'_>) -> io::Result<()> {
        let credentials = self.view.instance.identity().current();
        for secret in secrets(&credentials) {
            if !self.is_wanted(&secret.name) {
                continue;
            }
            let body = secret.encode_to_vec();
            items.push(&Versioned {
                own_type,
                name: Some(&secret.name),
                version: &credentials.generation.to_string(),
                field: "secret",
                value: PrintedAny::new(self.types, Kind::Secret.type_url(), &body),
                last_updated: credentials.not_before,
            })?;
        }
        Ok(())
    }

    /// Visits resources until a visit fails.
    fn each(
        &self,
        kind: Kind,
        mut visit: impl FnMut(&Raw<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut outcome = Ok(());
        self.view.store.each(kind, |name, version, type_url, body, last_updated| {
            if outcome.is_ok() {
                outcome = visit(&Raw { name, version, type_url, body, last_updated });
            }
        });
        outcome
    }
}

/// Visits the routes that HTTP connection managers of a listener carry.
fn for_each_route_config(
    types: &Types,
    listener: &DynamicMessage,
    visit: &mut dyn FnMut(&DynamicMessage) -> io::Result<()>,
) -> io::Result<()> {
    for chains in ["filter_chains", "default_filter_chain"] {
        for_each_message(listener, chains, &mut |chain| {
            for_each_message(chain, "filters", &mut |filter| {
                for_each_message(filter, "typed_config", &mut |any| {
                    let Some(manager) = manager(types, any) else { return Ok(()) };
                    for_each_message(&manager, "route_config", visit)
                })
            })
        })?;
    }
    Ok(())
}

/// The HTTP connection manager in an `Any`, if one is there.
fn manager(types: &Types, any: &DynamicMessage) -> Option<DynamicMessage> {
    let url = any.get_field_by_name("type_url")?;
    let url = url.as_str().filter(|url| full_name(url) == MANAGER)?;
    types.decode(url, any.get_field_by_name("value")?.as_bytes()?).ok()
}

/// Visits the message, or the messages, in a field, if it is set.
fn for_each_message(
    message: &DynamicMessage,
    field: &str,
    visit: &mut dyn FnMut(&DynamicMessage) -> io::Result<()>,
) -> io::Result<()> {
    if !message.has_field_by_name(field) {
        return Ok(());
    }
    match message.get_field_by_name(field).as_deref() {
        Some(Value::Message(inner)) => visit(inner),
        Some(Value::List(list)) => list.iter().filter_map(Value::as_message).try_for_each(visit),
        _ => Ok(()),
    }
}

/// One resource as it was received.
struct Raw<'a> {
    name: &'a str,
    version: &'a str,
    type_url: &'a str,
    body: Bytes,
    last_updated: SystemTime,
}

#[derive(Serialize)]
struct Bootstrap<'a> {
    #[serde(rename = "@type")]
    config: &'static str,
    bootstrap: Printed<'a>,
    last_updated: String,
}

#[derive(Serialize)]
struct DynamicListener<'a, V: Serialize> {
    #[serde(rename = "@type", skip_serializing_if = "Option::is_none")]
    own_type: Option<&'a str>,
    name: &'a str,
    active_state: Versioned<'a, V>,
}

/// A resource with its version, under the name that its section gives it.
struct Versioned<'a, V> {
    own_type: Option<&'a str>,
    name: Option<&'a str>,
    version: &'a str,
    field: &'static str,
    value: V,
    last_updated: SystemTime,
}

impl<V: Serialize> Serialize for Versioned<'_, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Versioned { own_type, name, version, field, value, last_updated } = self;
        let mut map = serializer.serialize_map(None)?;
        if let Some(own_type) = own_type {
            map.serialize_entry("@type", own_type)?;
        }
        if let Some(name) = name {
            map.serialize_entry("name", name)?;
        }
        if !version.is_empty() {
            map.serialize_entry("version_info", version)?;
        }
        map.serialize_entry(*field, value)?;
        map.serialize_entry("last_updated", &text(*last_updated))?;
        map.end()
    }
}

/// RFC 3339, in milliseconds.
fn text(time: SystemTime) -> String {
    let mut time = Timestamp::from(time);
    time.nanos -= time.nanos.rem_euclid(1_000_000);
    time.to_string()
}
