//! `/server_info`, `/listeners` and `/certs`.

use super::bootstrap::{node, socket};
use super::print::Printed;
use super::secrets;
use super::types::Types;
use super::view::AdminView;
use crate::ready::NotReady;
use cairn_proto::envoy::envoy::admin::v3::{
    CommandLineOptions, ListenerStatus, Listeners, ServerInfo, server_info,
};
use cairn_proto::envoy::google::protobuf::Duration;
use cairn_proto::prost::Message;

/// `envoy.admin.v3.ServerInfo`.
pub fn server_info(view: &AdminView) -> String {
    let uptime = view.started.instant.elapsed();
    let uptime =
        Duration { seconds: i64::try_from(uptime.as_secs()).unwrap_or(i64::MAX), nanos: 0 };
    let node = node(view);
    let info = ServerInfo {
        version: format!("cairn/{}", env!("CARGO_PKG_VERSION")),
        state: state(view).into(),
        uptime_current_epoch: Some(uptime),
        uptime_all_epochs: Some(uptime),
        hot_restart_version: "disabled".to_owned(),
        command_line_options: Some(CommandLineOptions {
            service_cluster: node.cluster.clone(),
            service_node: node.id.clone(),
            log_level: view.logging.filter(),
            ..CommandLineOptions::default()
        }),
        node: Some(node),
        hot_restart_initializing: false,
    };
    print("envoy.admin.v3.ServerInfo", &info)
}

/// The process' state, as Envoy names it.
pub fn state(view: &AdminView) -> server_info::State {
    match view.readiness.check() {
        Ok(()) => server_info::State::Live,
        Err(NotReady::Waiting(_)) => server_info::State::Initializing,
        Err(_) => server_info::State::Draining,
    }
}

/// `envoy.admin.v3.Listeners`.
pub fn listeners_json(view: &AdminView) -> String {
    let status = |bound: &super::view::Bound| ListenerStatus {
        name: bound.name.clone(),
        local_address: Some(socket(bound.address)),
        ..ListenerStatus::default()
    };
    let listeners = Listeners { listener_statuses: view.listeners.iter().map(status).collect() };
    print("envoy.admin.v3.Listeners", &listeners)
}

/// One `name::address` a line.
pub fn listeners_text(view: &AdminView) -> String {
    view.listeners.iter().map(|bound| format!("{}::{}\n", bound.name, bound.address)).collect()
}

/// `envoy.admin.v3.Certificates`.
pub fn certs(view: &AdminView) -> String {
    print("envoy.admin.v3.Certificates", &secrets::certificates(view))
}

fn print(name: &str, message: &impl Message) -> String {
    let types = Types::load();
    let printed = types
        .decode(name, &message.encode_to_vec())
        .map_err(|error| error.to_string())
        .and_then(|message| {
            serde_json::to_string_pretty(&Printed::new(&types, &message))
                .map_err(|error| error.to_string())
        });
    let mut text =
        printed.unwrap_or_else(|error| serde_json::json!({ "error": error }).to_string());
    text.push('\n');
    text
}
