//! Policies that do not wait.
//!
//! While a snapshot waits for endpoints of new clusters, what it forbids holds already: the destinations that are
//! served get their new policies and keep the routes that they have.

use cairn_router::spec::{Destination, HttpChain, Resources, TcpChain};
use std::collections::HashMap;
use std::sync::Arc;

/// What is served until `next` can be: `last` with the policies of `next`. `None`: they are the same.
pub fn ahead(last: &Resources, next: &Resources) -> Option<Resources> {
    let new: HashMap<&str, &Arc<Destination>> =
        next.destinations.iter().map(|new| (new.name.as_str(), new)).collect();
    let mut differs = false;
    let held = last.destinations.iter().filter_map(|old| {
        let Some(new) = new.get(old.name.as_str()) else {
            // What is gone is no longer open to anybody.
            differs = true;
            return None;
        };
        if Arc::ptr_eq(old, new) {
            return Some(Arc::clone(old));
        }
        let held = with_routes_of(old, new);
        if held == **old {
            return Some(Arc::clone(old));
        }
        differs = true;
        Some(Arc::new(held))
    });
    let destinations = held.collect();
    differs.then(|| Resources { destinations, ..last.clone() })
}

/// `new` with the routes of `old`, for each chain that both have. Another chain is taken as it is: what of it leads
/// to clusters that are not served answers 503.
fn with_routes_of(old: &Destination, new: &Destination) -> Destination {
    let http = new.http.as_ref().map(|new| match &old.http {
        Some(old) => HttpChain { routes: old.routes.clone(), ..new.clone() },
        None => new.clone(),
    });
    let tcp = new.tcp.as_ref().map(|new| match &old.tcp {
        Some(old) => TcpChain { clusters: old.clusters.clone(), ..new.clone() },
        None => new.clone(),
    });
    Destination { http, tcp, ..new.clone() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn resources(destinations: Value) -> Resources {
        let clusters = json!([{"name": "a", "service": "app.shop.svc.cluster.local"}]);
        serde_json::from_value(json!({"destinations": destinations, "clusters": clusters})).unwrap()
    }

    fn http(name: &str, cluster: &str, policies: Value) -> Value {
        let routes = json!({"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
            {"name": "r", "match": {"path": {"prefix": "/"}}, "route": {"cluster": cluster}}
        ]}]});
        json!({
            "name": name, "addresses": ["10.0.0.1/32"], "port": 80,
            "http": {"filters": policies, "routes": routes},
        })
    }

    fn deny() -> Value {
        json!([{"rbac": {"action": "DENY", "policies": {"no": {"permissions": ["any"], "principals": ["any"]}}}}])
    }

    #[test]
    fn policies_go_ahead_and_routes_stay() {
        let last = resources(json!([http("app", "a", json!([]))]));
        let next = resources(json!([http("app", "new", deny()), http("other", "new", json!([]))]));
        let ahead = ahead(&last, &next).unwrap();
        assert_eq!(ahead, resources(json!([http("app", "a", deny())])));
    }

    #[test]
    fn new_routes_alone_wait() {
        let last = resources(json!([http("app", "a", deny())]));
        let next = resources(json!([http("app", "new", deny()), http("other", "new", json!([]))]));
        assert_eq!(ahead(&last, &next), None);
    }

    #[test]
    fn what_is_gone_goes_at_once() {
        let last = resources(json!([http("app", "a", json!([])), http("old", "a", json!([]))]));
        let next = resources(json!([http("app", "new", json!([]))]));
        assert_eq!(ahead(&last, &next), Some(resources(json!([http("app", "a", json!([]))]))));
    }

    #[test]
    fn a_chain_of_another_kind_does_not_keep_the_old_one_open() {
        let tcp = json!([{
            "name": "app", "addresses": ["10.0.0.1/32"], "port": 80,
            "tcp": {"clusters": [{"name": "new"}]},
        }]);
        let last = resources(json!([http("app", "a", json!([]))]));
        let next = resources(tcp.clone());
        assert_eq!(ahead(&last, &next), Some(resources(tcp)));
    }
}
