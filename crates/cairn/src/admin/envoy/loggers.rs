//! `/logging` by loggers: Envoy's names, and the crates that they stand for here.
//!
//! The filter is a list such as `info,cairn_proxy=debug`; a logger is one target in it.

/// Targets that are listed.
const TARGETS: [&str; 10] = [
    "cairn",
    "cairn_hbone",
    "cairn_identity",
    "cairn_proxy",
    "cairn_router",
    "cairn_telemetry",
    "cairn_xds",
    "h2",
    "hyper",
    "rustls",
];

/// Envoy's loggers, and the targets that say the same.
const ALIASES: [(&str, &str); 24] = [
    ("admin", "cairn"),
    ("main", "cairn"),
    ("misc", "cairn"),
    ("config", "cairn_xds"),
    ("grpc", "cairn_xds"),
    ("upstream", "cairn_xds"),
    ("secret", "cairn_identity"),
    ("jwt", "cairn_identity"),
    ("client", "cairn_proxy"),
    ("conn_handler", "cairn_proxy"),
    ("connection", "cairn_proxy"),
    ("filter", "cairn_proxy"),
    ("forward_proxy", "cairn_proxy"),
    ("http", "cairn_proxy"),
    ("http1", "cairn_proxy"),
    ("pool", "cairn_proxy"),
    ("tcp_proxy", "cairn_proxy"),
    ("rbac", "cairn_router"),
    ("router", "cairn_router"),
    ("stats", "cairn_telemetry"),
    ("hbone", "cairn_hbone"),
    ("http2", "h2"),
    ("wasm", "cairn"),
    ("dns", "cairn"),
];

/// A level by Envoy's or our name.
pub fn level(name: &str) -> Option<&'static str> {
    Some(match name.to_ascii_lowercase().as_str() {
        "trace" => "trace",
        "debug" => "debug",
        "info" => "info",
        "warn" | "warning" => "warn",
        "error" | "critical" => "error",
        "off" => "off",
        _ => return None,
    })
}

/// The target that a logger stands for.
pub fn target(logger: &str) -> Option<&'static str> {
    let alias = ALIASES.iter().find(|(name, _)| *name == logger).map(|(_, target)| *target);
    alias.or_else(|| TARGETS.into_iter().find(|target| *target == logger))
}

/// The filter with another level for a target; `None` as the target: for all without one of their own.
pub fn with_level(filter: &str, target: Option<&str>, level: &str) -> String {
    let same = |directive: &&str| match target {
        Some(target) => directive.split('=').next() == Some(target),
        None => self::level(directive).is_some(),
    };
    let kept: Vec<&str> = directives(filter).filter(|directive| !same(directive)).collect();
    let own = match target {
        Some(target) => format!("{target}={level}"),
        None => level.to_owned(),
    };
    if kept.is_empty() { own } else { format!("{},{own}", kept.join(",")) }
}

/// `name: level` of each target, as Envoy lists them.
pub fn list(filter: &str) -> String {
    let general = directives(filter).filter_map(level).next_back().unwrap_or("off");
    let mut text = "active loggers:\n".to_owned();
    for target in TARGETS {
        let own = directives(filter).filter_map(|directive| directive.split_once('='));
        let mut own = own.filter(|(name, _)| *name == target).filter_map(|(_, own)| level(own));
        text.push_str(&format!("  {target}: {}\n", own.next_back().unwrap_or(general)));
    }
    text
}

fn directives(filter: &str) -> impl DoubleEndedIterator<Item = &str> {
    filter.split(',').map(str::trim).filter(|directive| !directive.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_level_is_changed_and_the_rest_stays() {
        assert_eq!(with_level("info", Some("cairn_proxy"), "debug"), "info,cairn_proxy=debug");
        let filter = with_level("info,cairn_proxy=debug,h2=off", Some("cairn_proxy"), "warn");
        assert_eq!(filter, "info,h2=off,cairn_proxy=warn");
        assert_eq!(with_level("info,h2=off", None, "debug"), "h2=off,debug");
        assert_eq!(with_level("info", None, "off"), "off");
    }

    #[test]
    fn loggers_by_envoys_names() {
        assert_eq!(target("rbac"), Some("cairn_router"));
        assert_eq!(target("cairn_xds"), Some("cairn_xds"));
        assert_eq!(target("nonsense"), None);
        assert_eq!((level("warning"), level("critical")), (Some("warn"), Some("error")));
        assert!(ALIASES.iter().all(|(_, target)| TARGETS.contains(target)));
    }

    #[test]
    fn the_list_says_what_holds() {
        let list = list("warn,cairn_xds=trace");
        assert!(list.starts_with("active loggers:\n  cairn: warn\n"), "{list}");
        assert!(list.contains("  cairn_xds: trace\n"), "{list}");
    }
}
