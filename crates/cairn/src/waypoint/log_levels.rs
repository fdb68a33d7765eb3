//! Istio's and Envoy's log levels as one filter.
//!
//! `--log_output_level` is the agent's: scopes with levels, `default:info,ads:debug`. It rules what the
//! process says about itself. `--proxyLogLevel` and `--proxyComponentLogLevel` are Envoy's; they rule
//! what it says about traffic. A scope or component without a counterpart has no effect.

/// Crates that handle traffic.
const TRAFFIC: [&str; 3] = ["cairn_proxy", "cairn_hbone", "cairn_router"];

/// Scopes of Istio's agent.
const SCOPES: [(&str, &str); 8] = [
    ("ads", "cairn_xds"),
    ("delta", "cairn_xds"),
    ("xdsproxy", "cairn_xds"),
    ("ca", "cairn_identity"),
    ("cache", "cairn_identity"),
    ("citadelclient", "cairn_identity"),
    ("security", "cairn_identity"),
    ("sds", "cairn_identity"),
];

/// Components of Envoy.
const COMPONENTS: [(&str, &str); 9] = [
    ("config", "cairn_xds"),
    ("connection", "cairn_hbone"),
    ("conn_handler", "cairn_hbone"),
    ("filter", "cairn_proxy"),
    ("http", "cairn_proxy"),
    ("http2", "cairn_hbone"),
    ("rbac", "cairn_router"),
    ("router", "cairn_proxy"),
    ("upstream", "cairn_proxy"),
];

/// The filter, in the order of importance: what stands later wins.
pub fn filter(agent: &str, proxy: &str, components: &str) -> String {
    let mut directives = vec![default_of(agent).to_owned()];
    let proxy = level(proxy).unwrap_or("warn");
    directives.extend(TRAFFIC.iter().map(|target| format!("{target}={proxy}")));
    for (pairs, table) in [(agent, &SCOPES[..]), (components, &COMPONENTS[..])] {
        for (name, value) in pairs.split(',').filter_map(|pair| pair.split_once(':')) {
            let target = table.iter().find(|(known, _)| *known == name.trim());
            if let (Some((_, target)), Some(level)) = (target, level(value)) {
                directives.push(format!("{target}={level}"));
            }
        }
    }
    directives.join(",")
}

/// Level of the scopes that are not named; `all` names all.
fn default_of(agent: &str) -> &'static str {
    let named = agent.split(',').rev().find_map(|pair| match pair.split_once(':') {
        Some((scope, value)) if matches!(scope.trim(), "default" | "all") => level(value),
        Some(_) => None,
        None => level(pair),
    });
    named.unwrap_or("info")
}

/// Istio: `none`, `fatal`, `error`, `warn`, `info`, `debug`. Envoy: `trace`, `debug`, `info`,
/// `warning`, `error`, `critical`, `off`.
fn level(name: &str) -> Option<&'static str> {
    match name.trim() {
        "trace" => Some("trace"),
        "debug" => Some("debug"),
        "info" => Some("info"),
        "warn" | "warning" => Some("warn"),
        "error" | "err" | "critical" | "fatal" => Some("error"),
        "none" | "off" => Some("off"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_become_a_filter_that_is_understood() {
        let quiet = "cairn_proxy=warn,cairn_hbone=warn,cairn_router=warn";
        for (agent, proxy, components, expected) in [
            ("default:info", "warning", "misc:error", format!("info,{quiet}")),
            ("", "", "", format!("info,{quiet}")),
            ("debug", "nonsense", "", format!("debug,{quiet}")),
            ("default:none,ads:debug", "warning", "", format!("off,{quiet},cairn_xds=debug")),
            (
                "all:warn",
                "critical",
                "rbac:trace,nothing:debug,http:loud",
                "warn,cairn_proxy=error,cairn_hbone=error,cairn_router=error,cairn_router=trace"
                    .to_owned(),
            ),
        ] {
            let filter = filter(agent, proxy, components);
            assert_eq!(filter, expected);
            assert!(crate::logging::parse(&filter).is_ok(), "{filter}");
        }
    }
}
