//! Makes a request meet a condition: of a route, or of a policy.
//!
//! What cannot be met by a request (addresses, ports, claims of tokens) is left as it is.

use crate::any::open;
use crate::draft::Draft;
use crate::sample;
use crate::seed::Seed;
use cairn_mesh_tests::identity::spiffe;
use cairn_proto::envoy::envoy as pb;
use pb::config::core::v3::TypedExtensionConfig;
use pb::config::rbac::v3::permission::Rule;
use pb::config::rbac::v3::principal::Identifier;
use pb::config::rbac::v3::{Permission, Policy, Principal};
use pb::config::route::v3::header_matcher::HeaderMatchSpecifier;
use pb::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use pb::config::route::v3::route_match::PathSpecifier;
use pb::config::route::v3::{HeaderMatcher, QueryParameterMatcher, RouteMatch};
use pb::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use pb::r#type::matcher::v3::PathMatcher;
use pb::r#type::matcher::v3::filter_state_matcher::Matcher as StateMatcher;
use pb::r#type::matcher::v3::path_matcher::Rule as PathRule;

/// Ends of paths below a prefix.
const BELOW: [&str; 5] = ["", "", "/", "/more", "more"];
/// Namespaces and service accounts of clients.
const NAMESPACES: [&str; 5] = ["authz", "trusted", "team-a", "evil", "plain"];
const ACCOUNTS: [&str; 3] = ["client", "admin", "other"];
/// Filter state that holds who the client is.
const PEER: &str = "io.istio.peer_principal";

/// SPIFFE ids of all who may send requests.
pub fn clients() -> impl Iterator<Item = String> {
    NAMESPACES.iter().flat_map(|ns| ACCOUNTS.iter().map(|account| spiffe(ns, account)))
}

/// A route's match.
pub fn route(matcher: &RouteMatch, draft: &mut Draft, seed: &mut Seed) {
    match &matcher.path_specifier {
        Some(PathSpecifier::Path(path)) => draft.path.clone_from(path),
        Some(PathSpecifier::Prefix(path) | PathSpecifier::PathSeparatedPrefix(path)) => {
            draft.path = format!("{path}{}", seed.word(&BELOW));
        }
        Some(PathSpecifier::SafeRegex(regex)) => draft.path = sample::regex(&regex.regex, seed),
        Some(PathSpecifier::PathMatchPolicy(policy)) => template(policy, draft, seed),
        Some(PathSpecifier::ConnectMatcher(_)) | None => {}
    }
    matcher.headers.iter().for_each(|one| header(one, draft, seed));
    for QueryParameterMatcher { name, query_parameter_match_specifier } in &matcher.query_parameters
    {
        let value = match query_parameter_match_specifier {
            Some(QueryParameterMatchSpecifier::StringMatch(one)) => sample::text(one, seed),
            _ => "1".to_owned(),
        };
        draft.query.push((name.clone(), value));
    }
}

fn header(matcher: &HeaderMatcher, draft: &mut Draft, seed: &mut Seed) {
    if matcher.invert_match {
        draft.unset(&matcher.name);
        return;
    }
    let value = match &matcher.header_match_specifier {
        Some(HeaderMatchSpecifier::StringMatch(one)) => sample::text(one, seed),
        _ => "y".to_owned(),
    };
    draft.set(&matcher.name, &value);
}

/// `*` is a segment, `**` any number of them.
fn template(policy: &TypedExtensionConfig, draft: &mut Draft, seed: &mut Seed) {
    let any = policy.typed_config.as_ref();
    let Some(config) = any.and_then(open::<UriTemplateMatchConfig>) else { return };
    let many = seed.word(&["a", "a/b", "", "a/b/c.txt"]);
    draft.path =
        config.path_template.replace("**", many).replace('*', seed.word(&["u", "u-1", ""]));
}

/// A policy's conditions, one of each list.
pub fn policy(policy: &Policy, draft: &mut Draft, seed: &mut Seed) {
    if !policy.permissions.is_empty() {
        permission(seed.pick(&policy.permissions), draft, seed);
    }
    if !policy.principals.is_empty() {
        principal(seed.pick(&policy.principals), draft, seed);
    }
}

fn permission(one: &Permission, draft: &mut Draft, seed: &mut Seed) {
    match &one.rule {
        Some(Rule::AndRules(set)) => set.rules.iter().for_each(|one| permission(one, draft, seed)),
        Some(Rule::OrRules(set)) => permission(seed.pick(&set.rules), draft, seed),
        Some(Rule::Header(matcher)) => header(matcher, draft, seed),
        Some(Rule::UrlPath(matcher)) => path(matcher, draft, seed),
        Some(Rule::UriTemplate(policy)) => template(policy, draft, seed),
        _ => {}
    }
}

fn principal(one: &Principal, draft: &mut Draft, seed: &mut Seed) {
    match &one.identifier {
        Some(Identifier::AndIds(set)) => set.ids.iter().for_each(|one| principal(one, draft, seed)),
        Some(Identifier::OrIds(set)) => principal(seed.pick(&set.ids), draft, seed),
        Some(Identifier::Header(matcher)) => header(matcher, draft, seed),
        Some(Identifier::UrlPath(matcher)) => path(matcher, draft, seed),
        Some(Identifier::RemoteIp(range)) => {
            let network = &range.address_prefix;
            let ip = network.strip_suffix(".0").map_or(network.clone(), |part| format!("{part}.9"));
            draft.set("x-forwarded-for", &ip);
        }
        Some(Identifier::FilterState(state)) if state.key == PEER => {
            if let Some(StateMatcher::StringMatch(one)) = &state.matcher {
                let met: Vec<_> = clients().filter(|id| sample::matches(one, id)).collect();
                if !met.is_empty() && !met.contains(&draft.client) {
                    seed.pick(&met).clone_into(&mut draft.client);
                }
            }
        }
        _ => {}
    }
}

fn path(matcher: &PathMatcher, draft: &mut Draft, seed: &mut Seed) {
    if let Some(PathRule::Path(one)) = &matcher.rule {
        draft.path = sample::text(one, seed);
        if !draft.path.starts_with('/') {
            draft.path.insert(0, '/');
        }
    }
}
