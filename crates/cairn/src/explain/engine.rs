//! The way of a request through the compiled model, step by step.
//!
//! Verdicts, routes and endpoints come from the model that serves traffic. What it was compiled from
//! is looked at only to name conditions.

use super::answer::{DestinationFound, Explanation, Routed, Step};
use super::blame::{Subject, blame_route, text};
use super::places;
use super::question::{Asked, Question, Target};
use super::request::{Refused, Request};
use cairn_router::action::Forward;
use cairn_router::destination::{Destination, HttpChain, HttpFilter, TargetRef, TcpChain};
use cairn_router::format::FormatContext;
use cairn_router::model::Mesh;
use cairn_router::rbac::{CompiledRbac, Verdict};
use cairn_router::request::ConnectionView;
use cairn_router::route::{Matched, RouteAction};
use cairn_router::spec::{self, Resources};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// Policies, routes and destinations that are listed at most.
const MAX_LISTED: usize = 50;

/// What becomes of what is asked, by `mesh`, which was compiled from `resources`.
pub fn explain(mesh: &Mesh, resources: &Resources, question: &Question) -> Explanation {
    let mut answer = Explanation {
        target: question.target.to_string(),
        from: question.from.clone(),
        source_ip: question.source_ip.to_string(),
        ..Explanation::default()
    };
    let (named, target) = match &question.target {
        Target::Address(address) => (Some(*address), TargetRef::Addr(*address)),
        Target::Host(host, port) => (None, TargetRef::Host(host, *port)),
    };
    let Some(destination) = mesh.destination(&target) else {
        answer.outcome = "CONNECT 404: nobody has this address or name with this port".to_owned();
        answer.notes = similar(resources, question);
        return answer;
    };
    let found = resources.destinations.iter().find(|spec| *spec.name == *destination.name);
    let Some(spec) = found else {
        answer.outcome = "the configuration is changing at this moment; ask again".to_owned();
        return answer;
    };
    answer.destination = Some(DestinationFound {
        name: destination.name.to_string(),
        namespace: destination.tenant.namespace.to_string(),
        matched: matched_by(spec, named, &question.target),
        broken: destination.broken.as_ref().map(ToString::to_string),
    });
    let connection = ConnectionView {
        peer_id: question.from.as_deref(),
        source: SocketAddr::new(question.source_ip, 0),
        destination: named,
        port: match &question.target {
            Target::Address(address) => address.port(),
            Target::Host(_, port) => *port,
        },
    };
    let way = Way { mesh, destination, spec, named, connection };
    way.follow(question, &mut answer);
    answer
}

/// One destination, and who comes to it.
struct Way<'a> {
    mesh: &'a Mesh,
    destination: &'a Destination,
    spec: &'a spec::Destination,
    named: Option<SocketAddr>,
    connection: ConnectionView<'a>,
}

impl Way<'_> {
    fn follow(&self, question: &Question, answer: &mut Explanation) {
        if let Some(reason) = self.destination.refusal() {
            answer.outcome = format!("CONNECT 503: {reason}");
            return;
        }
        let policies = self.spec.connection.rbac.iter().zip(&self.destination.connection);
        let subject = Subject { connection: &self.connection, request: None };
        let (steps, refused) = ask_all(policies, subject);
        answer.connection = steps;
        if let Some(details) = refused {
            answer.outcome = format!("CONNECT 403: {details}");
            return;
        }
        let Destination { http, tcp, .. } = self.destination;
        match (http, tcp, &question.request) {
            (Some(http), tcp, asked) if asked.is_some() || tcp.is_none() => {
                if tcp.is_some() {
                    answer.notes.push("bytes that are no HTTP take the TCP chain".to_owned());
                }
                answer.chain = Some("http".to_owned());
                let get = Asked::get();
                self.http(http, asked.as_ref().unwrap_or(&get), answer);
            }
            (http, Some(tcp), asked) => {
                if http.is_some() {
                    answer.notes.push(
                        "HTTP takes the HTTP chain; write a method and path to follow it"
                            .to_owned(),
                    );
                } else if asked.is_some() {
                    answer.notes.push(
                        "this port is opaque to the waypoint: a request is bytes like others"
                            .to_owned(),
                    );
                }
                answer.chain = Some("tcp".to_owned());
                self.tcp(tcp, answer);
            }
            (_, None, _) => answer.outcome = "CONNECT 503: it has no chain".to_owned(),
        }
    }

    fn tcp(&self, chain: &TcpChain, answer: &mut Explanation) {
        if let Some(reason) = &chain.broken {
            answer.outcome = format!("the connection is refused: {reason}");
            return;
        }
        let Some(spec) = &self.spec.tcp else { return };
        let subject = Subject { connection: &self.connection, request: None };
        let (steps, refused) = ask_all(spec.rbac.iter().zip(&chain.rbac), subject);
        answer.filters = steps;
        if let Some(details) = refused {
            answer.outcome = format!("the connection is closed: {details}");
            return;
        }
        let weights: Vec<(&str, u32)> =
            spec.clusters.iter().map(|cluster| (&*cluster.name, cluster.weight)).collect();
        self.clusters(&weights, answer);
        answer.answered = answer.clusters.iter().any(|cluster| cluster.usable > 0);
        answer.outcome = match answer.answered {
            true => format!("bytes go to {}", names(&weights)),
            false => format!("the connection is closed: no endpoint in {}", names(&weights)),
        };
    }

    fn http(&self, chain: &HttpChain, asked: &Asked, answer: &mut Explanation) {
        let mut request = Request::new(asked, &self.authority());
        if let Some(reason) = &chain.broken {
            answer.request = Some(request.to_string());
            answer.outcome = format!("503: {reason}");
            return;
        }
        let normal = request.normalise(chain);
        answer.request = Some(request.to_string());
        match normal {
            Ok(()) => {}
            Err(Refused::Bad(reason)) => {
                answer.outcome = format!("400: {reason}");
                return;
            }
            Err(Refused::Redirect(path)) => {
                answer.outcome = format!("307 to {path}: the path has an escaped slash");
                answer.answered = true;
                return;
            }
        }
        if let Some(details) = self.filters(chain, &mut request, answer) {
            answer.outcome = format!("403 RBAC: access denied ({details})");
            return;
        }
        self.route(chain, &request, answer);
    }

    /// What `host` is where the question does not say.
    fn authority(&self) -> String {
        match self.spec.hosts.first() {
            Some(host) => host.clone(),
            None => self.named.map(|named| named.to_string()).unwrap_or_default(),
        }
    }

    /// The detail of the first refusal.
    fn filters(
        &self,
        chain: &HttpChain,
        request: &mut Request,
        answer: &mut Explanation,
    ) -> Option<String> {
        let specs = self.spec.http.as_ref().map(|chain| &*chain.filters).unwrap_or_default();
        for (spec, filter) in specs.iter().zip(&chain.filters) {
            match (spec, filter) {
                (spec::HttpFilter::Rbac(spec), HttpFilter::Rbac(rbac)) => {
                    let view = request.view();
                    let subject = Subject { connection: &self.connection, request: Some(&view) };
                    let (step, refused) = ask(spec, rbac, subject);
                    answer.filters.push(step);
                    if refused.is_some() {
                        return refused;
                    }
                }
                (_, HttpFilter::RequestHeaders(changes)) => {
                    let before = request.clone();
                    changes.apply_to_request(request, &self.format_context());
                    answer.filters.push(Step {
                        filter: "changes to headers".to_owned(),
                        verdict: "applied".to_owned(),
                        policy: None,
                        why: request.changes_since(&before),
                    });
                }
                (spec::HttpFilter::RequestHeaders(_), HttpFilter::Rbac(_)) => {}
            }
        }
        None
    }

    fn format_context(&self) -> FormatContext<'_> {
        FormatContext {
            downstream_remote: Some(self.connection.source),
            downstream_local: self.named,
            peer_uri_san: self.connection.peer_id,
            ..FormatContext::default()
        }
    }

    fn route(&self, chain: &HttpChain, request: &Request, answer: &mut Explanation) {
        let view = request.view();
        let hosts = self.spec.http.as_ref().map(|chain| &*chain.routes.virtual_hosts);
        let hosts = hosts.unwrap_or_default();
        let Some(host) = chain.routes.virtual_host(view.authority) else {
            let domains: Vec<_> =
                hosts.iter().flat_map(|host| &host.domains).take(MAX_LISTED).cloned().collect();
            answer.route = Some(Routed::default());
            answer.outcome = "404: no virtual host has this authority".to_owned();
            answer.notes.push(format!("domains: {}", domains.join(", ")));
            return;
        };
        let found = host.find(&view);
        let spec = hosts.iter().find(|spec| *spec.name == *host.name);
        let routes = spec.map(|spec| &*spec.routes).unwrap_or_default();
        // Routes that never match are not among the compiled ones.
        let mut compiled = host.routes().iter();
        let number = routes.iter().position(|spec| {
            spec.matches.never.is_none()
                && compiled
                    .next()
                    .is_some_and(|route| found.is_some_and(|found| Arc::ptr_eq(route, found)))
        });
        let before = routes.get(..number.unwrap_or(routes.len())).unwrap_or_default();
        let mut passed_over: Vec<String> = before
            .iter()
            .enumerate()
            .take(MAX_LISTED)
            .map(|(index, route)| {
                let why = blame_route(route, &view);
                format!("{}: {}", label(index, route), why.unwrap_or_else(|| "matches".to_owned()))
            })
            .collect();
        if before.len() > MAX_LISTED {
            passed_over.push(format!("and {} more", before.len() - MAX_LISTED));
        }
        let domains = spec.map(|spec| spec.domains.join(", ")).unwrap_or_default();
        let mut routed = Routed {
            virtual_host: Some(format!("{} (domains {domains})", host.name)),
            passed_over,
            ..Routed::default()
        };
        let spec = number.and_then(|number| Some((number, routes.get(number)?)));
        let (Some(found), Some((number, spec))) = (found, spec) else {
            answer.route = Some(routed);
            answer.outcome = "404: no route matches".to_owned();
            return;
        };
        routed.route = Some(format!("{}: {}", label(number, spec), text(&spec.matches)));
        answer.route = Some(routed);
        let matched = Matched { virtual_host: host, route: found };
        self.act(matched, spec, request, answer);
    }

    fn act(
        &self,
        matched: Matched<'_>,
        spec: &spec::Route,
        request: &Request,
        answer: &mut Explanation,
    ) {
        let mut details = Vec::new();
        if let Some(fault) = &spec.fault {
            details.push(format!("some requests are disturbed first: {}", text(fault)));
        }
        if let Some(cors) = &spec.cors {
            details.push(format!("requests of other origins: {}", text(cors)));
        }
        let action = match &matched.route.action {
            RouteAction::Redirect(redirect) => {
                let location = redirect.location(matched.route, &request.view());
                answer.outcome = format!("{} to {location}", redirect.status.as_u16());
                answer.answered = true;
                "redirect".to_owned()
            }
            RouteAction::DirectResponse(response) => {
                answer.outcome = format!("{}, a fixed response", response.status.as_u16());
                answer.answered = true;
                format!("fixed response of {} bytes", response.body.len())
            }
            RouteAction::Forward(forward) => {
                self.forward(&matched, forward, spec, request, &mut details, answer)
            }
        };
        if let Some(routed) = &mut answer.route {
            routed.action = Some(action);
            routed.details = details;
        }
    }

    /// Says what the action is.
    fn forward(
        &self,
        matched: &Matched<'_>,
        forward: &Forward,
        spec: &spec::Route,
        request: &Request,
        details: &mut Vec<String>,
        answer: &mut Explanation,
    ) -> String {
        let Some(spec) = &spec.route else { return "forward".to_owned() };
        match forward.timeout {
            Some(timeout) => details.push(format!("timeout {timeout:?}")),
            None => details.push("no timeout".to_owned()),
        }
        if let Some(retry) = &spec.retry {
            details.push(format!("retries: {}", text(retry)));
        }
        for mirror in &spec.mirrors {
            details.push(format!(
                "{}% of the requests are copied to {}",
                mirror.percent, mirror.cluster
            ));
        }
        let weights: Vec<(&str, u32)> = match &spec.cluster {
            Some(cluster) => vec![(cluster, 1)],
            None => spec.weighted_clusters.iter().map(|one| (&*one.name, one.weight)).collect(),
        };
        self.clusters(&weights, answer);
        // Of several clusters, which can change the request for themselves, the first is shown.
        let (_, weighted) = forward.pick_cluster(0);
        let mut forwarded = request.clone();
        let mut context = self.format_context();
        context.route_name = Some(&matched.route.name);
        context.virtual_host_name = Some(&matched.virtual_host.name);
        matched.finalize_request(weighted, &mut forwarded, &context);
        let changes = forwarded.changes_since(request);
        details.extend(changes);
        if let Some(routed) = &mut answer.route {
            routed.forwarded_as = Some(forwarded.to_string());
        }
        let missing = weights.iter().all(|(name, _)| self.mesh.cluster(name).is_none());
        answer.outcome = if missing {
            let status = forward.cluster_not_found_status.as_u16();
            format!("{status}: there is no cluster {}", names(&weights))
        } else if answer.clusters.iter().all(|cluster| cluster.usable == 0) {
            format!("503: no healthy upstream in {}", names(&weights))
        } else {
            answer.answered = true;
            format!("forwarded to {}", names(&weights))
        };
        format!("forward to {}", names(&weights))
    }

    fn clusters(&self, weights: &[(&str, u32)], answer: &mut Explanation) {
        let sum: f64 = weights.iter().map(|(_, weight)| f64::from(*weight)).sum();
        for (name, weight) in weights.iter().filter(|(_, weight)| *weight > 0) {
            let share = 100.0 * f64::from(*weight) / sum;
            answer.clusters.push(places::cluster(self.mesh, name, share, self.named));
        }
    }
}

fn names(weights: &[(&str, u32)]) -> String {
    let names: Vec<_> =
        weights.iter().filter(|(_, weight)| *weight > 0).map(|(name, _)| *name).collect();
    names.join(" or ")
}

/// Number, from 1, and name of a route.
fn label(index: usize, route: &spec::Route) -> String {
    match route.name.as_str() {
        "" => format!("#{}", index + 1),
        name => format!("#{} {name}", index + 1),
    }
}

/// Steps up to the first refusal, and its detail.
fn ask_all<'a>(
    filters: impl Iterator<Item = (&'a spec::Rbac, &'a CompiledRbac)>,
    subject: Subject<'_>,
) -> (Vec<Step>, Option<String>) {
    let mut steps = Vec::new();
    for (spec, rbac) in filters {
        let (step, refused) = ask(spec, rbac, subject);
        steps.push(step);
        if refused.is_some() {
            return (steps, refused);
        }
    }
    (steps, None)
}

/// What one filter says, and the detail if it refuses.
fn ask(spec: &spec::Rbac, rbac: &CompiledRbac, subject: Subject<'_>) -> (Step, Option<String>) {
    let verdict = subject.ask(rbac);
    let (said, policy) = match verdict {
        Verdict::Allowed => ("allowed", None),
        Verdict::Logged { policy } => ("logged", Some(policy.to_string())),
        Verdict::Denied { policy } => ("denied", policy.map(ToString::to_string)),
    };
    let (matched, why) = look_at(spec.action, &spec.policies, subject);
    let step = Step {
        filter: format!("RBAC {} with {} policies", action(spec.action), spec.policies.len()),
        verdict: said.to_owned(),
        policy: policy.or(matched),
        why,
    };
    (step, verdict.details())
}

fn action(action: spec::Action) -> &'static str {
    match action {
        spec::Action::Allow => "ALLOW",
        spec::Action::Deny => "DENY",
        spec::Action::Log => "LOG",
    }
}

/// The first policy that matches, and why those before it do not.
fn look_at(
    action: spec::Action,
    policies: &BTreeMap<String, spec::Policy>,
    subject: Subject<'_>,
) -> (Option<String>, Vec<String>) {
    let mut why = Vec::new();
    for (name, policy) in policies.iter().take(MAX_LISTED) {
        match subject.blame(action, policy) {
            None => return (Some(name.clone()), why),
            Some(reason) => why.push(format!("{name} does not match: {reason}")),
        }
    }
    if policies.len() > MAX_LISTED {
        why.push(format!("and {} more policies", policies.len() - MAX_LISTED));
    }
    (None, why)
}

/// The address or host by which the destination was found.
fn matched_by(spec: &spec::Destination, named: Option<SocketAddr>, target: &Target) -> String {
    let port = match spec.port {
        Some(port) => format!("port {port}"),
        None => "every port".to_owned(),
    };
    let Some(named) = named else { return format!("host {target}, {port}") };
    let ip = named.ip().to_canonical();
    let ranges = spec.addresses.iter().filter(|range| range.0.contains(&ip));
    match ranges.max_by_key(|range| range.0.prefix_len()) {
        Some(range) => format!("address {}, {port}", String::from(*range)),
        None => port,
    }
}

/// Destinations that have the address or host, with other ports.
fn similar(resources: &Resources, question: &Question) -> Vec<String> {
    let has = |spec: &spec::Destination| match &question.target {
        Target::Address(address) => {
            let ip = address.ip().to_canonical();
            spec.addresses.iter().any(|range| range.0.contains(&ip))
        }
        Target::Host(host, _) => spec.hosts.iter().any(|known| known.eq_ignore_ascii_case(host)),
    };
    let found = resources.destinations.iter().filter(|spec| has(spec)).take(MAX_LISTED);
    found
        .map(|spec| match spec.port {
            Some(port) => format!("it is there with port {port}: {}", spec.name),
            None => format!("it is there: {}", spec.name),
        })
        .collect()
}

#[cfg(test)]
mod tests;
