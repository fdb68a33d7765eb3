use crate::recording::{THEMES, settings, translated, updates};
use cairn_router::compile::Compiler;
use cairn_xds::feed::Kind;
use cairn_xds::translate::Translator;
use std::collections::BTreeSet;

/// Errors of the compiler about what the translator had listed as broken; there are none else.
#[test]
fn every_recording_compiles() {
    for theme in THEMES {
        let translator = translated(theme);
        let resources = translator.resources();
        if let Err(errors) = Compiler::new("mesh").compile(&resources) {
            let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
            panic!("{theme}: {errors:#?}");
        }
    }
}

/// What is broken is listed, by its name.
#[test]
fn what_is_broken_is_listed() {
    for theme in THEMES {
        let translator = translated(theme);
        let resources = translator.resources();
        let listed: BTreeSet<String> = translator
            .unsupported()
            .into_iter()
            .flat_map(|of| [of.name.clone(), of.reason, of.name.replace("|tcp|", "|http|")])
            .collect();
        for cluster in resources.clusters.iter().filter(|cluster| cluster.broken.is_some()) {
            assert!(listed.contains(&cluster.name), "{theme}: {}", cluster.name);
        }
        for destination in &resources.destinations {
            let http = destination.http.as_ref().and_then(|chain| chain.broken.as_ref());
            let tcp = destination.tcp.as_ref().and_then(|chain| chain.broken.as_ref());
            if let Some(reason) = http.or(tcp) {
                assert!(
                    listed.contains(&destination.name) || listed.contains(reason),
                    "{theme}: {}",
                    destination.name
                );
            }
        }
    }
}

/// The order of kinds does not matter.
#[test]
fn any_order_gives_the_same() {
    for theme in THEMES {
        let expected = translated(theme);
        let mut reversed = Translator::new(settings(theme));
        for update in updates(theme).into_iter().rev() {
            reversed.apply(update).unwrap();
        }
        assert!(expected.resources() == reversed.resources(), "{theme}");
        assert_eq!(expected.facts(), reversed.facts(), "{theme}");
        assert_eq!(expected.wanted(), reversed.wanted(), "{theme}");
        assert_eq!(expected.unsupported(), reversed.unsupported(), "{theme}");
    }
}

/// What is taken back leaves nothing behind.
#[test]
fn removals_leave_nothing() {
    for theme in THEMES {
        let mut translator = translated(theme);
        for mut update in updates(theme) {
            update.removed = update.changed.drain(..).map(|resource| resource.name).collect();
            translator.apply(update).unwrap();
        }
        assert!(translator.resources() == Translator::new(settings(theme)).resources(), "{theme}");
        assert_eq!(translator.wanted(), Translator::new(settings(theme)).wanted(), "{theme}");
        assert_eq!(translator.unsupported(), [], "{theme}");
        assert_eq!(translator.degraded(), [], "{theme}");
    }
}

#[test]
fn facts_of_the_listener() {
    let plain = translated("plain");
    let facts = plain.facts();
    let terminate = facts.terminate.unwrap();
    assert_eq!(terminate.addresses, ["0.0.0.0:15008".parse().unwrap()]);
    assert_eq!(facts.trust_domains, ["cluster.local"]);
    assert_eq!(terminate.max_concurrent_streams, Some(100));
    let seconds = std::time::Duration::from_secs;
    assert_eq!(terminate.keepalive, Some((seconds(10), seconds(20))));
    assert_eq!(terminate.broken, None);
    let originate = facts.originate.unwrap();
    assert_eq!(originate.port, 15008);
    assert_eq!(originate.idle_timeout, Some(seconds(3600)));
    assert!(!facts.baggage);
    assert!(translated("multi-network").facts().baggage);
}

/// Istio's layered policies stand in front of every destination; an unknown filter there closes all.
#[test]
fn what_stands_in_front_of_tunnels() {
    let layered = translated("multi-network").resources();
    assert!(!layered.destinations.is_empty());
    for destination in &layered.destinations {
        let names: Vec<&String> =
            destination.connection.rbac.iter().flat_map(|rbac| rbac.policies.keys()).collect();
        assert_eq!(names, ["ns[plain]-policy[l4]-rule[0]"]);
    }
    let limited = translated("extensions").resources();
    for destination in &limited.destinations {
        let http = destination.http.as_ref().map(|chain| chain.broken.as_deref());
        let tcp = destination.tcp.as_ref().map(|chain| chain.broken.as_deref());
        for broken in http.into_iter().chain(tcp) {
            assert!(broken.unwrap().contains("local_ratelimit"), "{broken:?}");
        }
    }
}

/// As long as it is not known what stands in front of tunnels, nothing passes.
#[test]
fn without_connect_terminate_nothing_passes() {
    let mut translator = Translator::new(settings("plain"));
    for mut update in updates("plain") {
        update.changed.retain(|resource| resource.name != "connect_terminate");
        translator.apply(update).unwrap();
    }
    let resources = translator.resources();
    assert!(!resources.destinations.is_empty());
    for destination in &resources.destinations {
        assert!(destination.http.as_ref().is_none_or(|chain| chain.broken.is_some()));
        assert!(destination.tcp.as_ref().is_none_or(|chain| chain.broken.is_some()));
    }
}

/// A tunnelled endpoint has exactly the identity of the workload at its address.
#[test]
fn endpoints_prove_who_they_are() {
    let mut translator = Translator::new(settings("plain"));
    let (workloads, others): (Vec<_>, Vec<_>) =
        updates("plain").into_iter().partition(|update| update.kind == Kind::Workload);
    for update in others {
        translator.apply(update).unwrap();
    }
    let app = "inbound-vip|80|http|app.plain.svc.cluster.local";
    let identities = |translator: &Translator| {
        let resources = translator.resources();
        let set = resources.endpoints.iter().find(|set| set.cluster == app).unwrap();
        set.endpoints.iter().map(|endpoint| endpoint.identities.clone()).collect::<Vec<_>>()
    };
    assert_eq!(identities(&translator), [vec![] as Vec<String>, vec![]]);
    assert!(translator.wanted().workloads.contains("/10.244.1.11"));
    for update in workloads {
        translator.apply(update).unwrap();
    }
    let expected = vec!["spiffe://cluster.local/ns/plain/sa/app".to_owned()];
    assert_eq!(identities(&translator), [expected.clone(), expected]);
    assert_eq!(translator.wanted().workloads, BTreeSet::new());
}

/// Two networks: hosts lead to destinations, and what has no address can be named by its host.
#[test]
fn hosts_of_several_networks() {
    let resources = translated("multi-network").resources();
    let of = |name: &str| {
        resources.destinations.iter().find(|destination| destination.name == name).unwrap()
    };
    let app = of("inbound-vip|80|http|app.plain.svc.cluster.local");
    assert_eq!(app.hosts, ["app.plain.svc.cluster.local"]);
    assert_eq!(app.addresses.len(), 1);
    let headless = of("inbound-vip|80|http|headless.plain.svc.cluster.local");
    assert_eq!((headless.hosts.len(), headless.addresses.len()), (1, 0));
    assert!(headless.http.is_some() && headless.port == Some(80) && headless.namespace == "plain");
}

/// Pods that are named themselves go by `encap`, to wherever the tunnel named.
#[test]
fn pods_by_their_addresses() {
    let resources = translated("workload").resources();
    let direct = resources
        .destinations
        .iter()
        .find(|destination| destination.name == "direct-http")
        .unwrap();
    assert_eq!((direct.port, direct.addresses.len()), (None, 2));
    assert!(direct.http.is_some() && direct.tcp.is_some());
    assert_eq!(direct.namespace, "wl");
    let encap = resources.clusters.iter().find(|cluster| cluster.name == "encap").unwrap();
    let original = encap.original_destination.unwrap();
    assert_eq!(original.transport, cairn_router::spec::EndpointTransport::Hbone);
}

/// A service whose Telemetry turns metrics off has no filter for them, another one has changes.
#[test]
fn telemetry_of_services() {
    let resources = translated("telemetry").resources();
    let metrics = |name: &str| {
        let mut named = resources.destinations.iter().filter(|one| one.name.contains(name));
        let one = named.next().unwrap();
        let http = one.http.as_ref().and_then(|chain| chain.observe.as_ref());
        let tcp = one.tcp.as_ref().and_then(|chain| chain.observe.as_ref());
        http.or(tcp).and_then(|observe| observe.metrics.clone())
    };
    assert!(metrics("|80|http|quiet.tel").unwrap().off);
    assert_eq!(metrics("|4317|http|collector.tel"), None);
    for name in ["|80|http|app.tel", "|9100|tcp|app.tel"] {
        let metrics = metrics(name).unwrap();
        assert_eq!(metrics.report_interval, Some(std::time::Duration::from_secs(10)));
        let [requests, bytes] = metrics.overrides.as_slice() else { panic!("{metrics:?}") };
        assert_eq!(requests.metric.as_deref(), Some("requests_total"));
        assert_eq!(requests.remove, ["destination_app"]);
        assert_eq!(requests.dimensions["peer_ns"], "filter_state.upstream_peer.namespace");
        assert_eq!((bytes.metric.as_deref(), bytes.drop), (Some("request_bytes"), true));
    }
}
