//! The table of what becomes of each recording.

use crate::recording::{THEMES, folder, translated};
use cairn_router::spec::{Resources, RouteTable};
use cairn_xds::translate::Unsupported;
use std::fmt::Write;

const HEAD: &str = "# What becomes of the recorded pushes

Generated (`UPDATE=1 cargo test -p cairn-xds --test captures`); a test compares it. `broken` are those that fail closed; unsupported and degraded
things are listed below the table.

| theme | destinations (broken) | clusters (broken) | endpoints | without identity | routes (never, 503) | policies | workloads | unsupported | degraded |
|---|---|---|---|---|---|---|---|---|---|
";

#[test]
fn the_table_is_right() {
    let mut table = HEAD.to_owned();
    let mut lists = String::new();
    for theme in THEMES {
        let translator = translated(theme);
        let resources = translator.resources();
        let (unsupported, degraded) = (translator.unsupported(), translator.degraded());
        writeln!(
            table,
            "| `{theme}` | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            destinations(&resources),
            clusters(&resources),
            resources.endpoints.iter().map(|set| set.endpoints.len()).sum::<usize>(),
            translator.wanted().workloads.len(),
            routes(&resources),
            policies(&resources),
            resources.workloads.len(),
            unsupported.len(),
            degraded.len(),
        )
        .unwrap();
        list(&mut lists, theme, "unsupported", &unsupported);
        list(&mut lists, theme, "degraded", &degraded);
    }
    let table = format!("{table}{lists}");
    let path = folder().join("TABLE.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &table).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(table == expected, "{} differs; write it anew with UPDATE=1", path.display());
}

/// Equal reasons of one kind are one line.
fn list(out: &mut String, theme: &str, title: &str, findings: &[Unsupported]) {
    if findings.is_empty() {
        return;
    }
    writeln!(out, "\n## {theme}: {title}\n").unwrap();
    let mut lines: std::collections::BTreeMap<(&str, &str), Vec<&str>> = Default::default();
    for finding in findings {
        lines.entry((finding.kind, &finding.reason)).or_default().push(&finding.name);
    }
    for ((kind, reason), names) in lines {
        let first = names[0];
        match names.len() - 1 {
            0 => writeln!(out, "- {kind} `{first}`: {reason}").unwrap(),
            others => writeln!(out, "- {kind} `{first}` and {others} more: {reason}").unwrap(),
        }
    }
}

fn destinations(resources: &Resources) -> String {
    let broken = resources.destinations.iter().filter(|destination| {
        let http = destination.http.as_ref().and_then(|chain| chain.broken.as_ref());
        http.or(destination.tcp.as_ref().and_then(|chain| chain.broken.as_ref())).is_some()
    });
    format!("{} ({})", resources.destinations.len(), broken.count())
}

fn clusters(resources: &Resources) -> String {
    let broken = resources.clusters.iter().filter(|cluster| cluster.broken.is_some());
    format!("{} ({})", resources.clusters.len(), broken.count())
}

fn routes(resources: &Resources) -> String {
    let chains = resources.destinations.iter().filter_map(|destination| destination.http.as_ref());
    let tables: Vec<&RouteTable> = chains.map(|chain| &chain.routes).collect();
    let routes: Vec<_> = tables
        .iter()
        .flat_map(|table| &table.virtual_hosts)
        .flat_map(|host| &host.routes)
        .collect();
    let never = routes.iter().filter(|route| route.matches.never.is_some()).count();
    let unavailable = routes
        .iter()
        .filter(|route| route.direct_response.as_ref().is_some_and(|of| of.status == 503))
        .count();
    format!("{} ({never}, {unavailable})", routes.len())
}

fn policies(resources: &Resources) -> usize {
    use cairn_router::spec::HttpFilter;
    let mut count = 0;
    for destination in &resources.destinations {
        count += destination.connection.rbac.iter().map(|rbac| rbac.policies.len()).sum::<usize>();
        let filters = destination.http.iter().flat_map(|chain| &chain.filters);
        count += filters
            .map(|filter| match filter {
                HttpFilter::Rbac(rbac) => rbac.policies.len(),
                HttpFilter::RequestHeaders(_) => 0,
            })
            .sum::<usize>();
        let tcp = destination.tcp.iter().flat_map(|chain| &chain.rbac);
        count += tcp.map(|rbac| rbac.policies.len()).sum::<usize>();
    }
    count
}
