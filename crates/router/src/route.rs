//! Which route a request takes.
//!
//! The authority chooses a virtual host: its exact domain, else the longest `*.suffix`, else the
//! longest `prefix.*`, else `*`. In the virtual host the first route wins whose conditions all hold.
//! Neither step allocates, however many routes there are.

use crate::action::{DirectResponse, Forward, Redirect, WeightedCluster};
use crate::cors::Cors;
use crate::error::Context;
use crate::fault::Fault;
use crate::format::FormatContext;
use crate::header_ops::{CompiledHeaderOps, Message, RequestSink};
use crate::matching::{self, HeaderMatcher, QueryMatcher};
use crate::request::{HeaderKey, Headers, RequestView};
use crate::route_index::{PathKey, RouteIndex};
use crate::spec;
use ahash::{AHashMap, AHashSet};
use http::{HeaderName, HeaderValue};
use std::sync::Arc;

/// Longest path or prefix that a route can ask for, in bytes.
pub const MAX_PATH: usize = 8 << 10;
/// Authorities up to this length in bytes are folded to lower case on the stack.
const FOLD_ON_STACK: usize = 256;

const X_ENVOY_ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
const X_ENVOY_ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Virtual hosts by domain.
#[derive(Debug, Default)]
pub struct RouteTable {
    /// Name, for logs.
    pub name: Arc<str>,
    virtual_hosts: Box<[VirtualHost]>,
    domains: Domains,
}

/// Routes of some domains.
#[derive(Debug)]
pub struct VirtualHost {
    /// Name, unique in its table.
    pub name: Arc<str>,
    /// Applied after the route's own.
    pub request_headers: CompiledHeaderOps,
    /// Applied after the route's own.
    pub response_headers: CompiledHeaderOps,
    routes: Box<[Arc<Route>]>,
    index: RouteIndex,
}

/// One route.
#[derive(Debug)]
pub struct Route {
    /// Name, for logs.
    pub name: Arc<str>,
    /// What is done.
    pub action: RouteAction,
    /// Applied after the weighted cluster's own.
    pub request_headers: CompiledHeaderOps,
    /// Applied after the weighted cluster's own.
    pub response_headers: CompiledHeaderOps,
    /// Done to some requests before their action. Boxed, as what follows: hardly any route has it.
    pub fault: Option<Box<Fault>>,
    /// Cross-origin requests.
    pub cors: Option<Box<Cors>>,
    /// Value of `x-envoy-decorator-operation` on responses.
    pub decorator: Option<HeaderValue>,
    headers: Box<[HeaderMatcher]>,
    query: Box<[QueryMatcher]>,
    matched_len: Option<usize>,
}

/// What is done with a request.
#[derive(Debug)]
pub enum RouteAction {
    /// It is forwarded.
    Forward(Arc<Forward>),
    /// It is answered with a redirect.
    Redirect(Redirect),
    /// It is answered with a fixed response.
    DirectResponse(DirectResponse),
}

/// The route that a request takes.
#[derive(Debug, Clone, Copy)]
pub struct Matched<'a> {
    /// Where the route is.
    pub virtual_host: &'a VirtualHost,
    /// The route.
    pub route: &'a Arc<Route>,
}

/// Positions of virtual hosts.
type ByText = AHashMap<Box<[u8]>, usize>;

/// Positions of virtual hosts by domain, in lower case.
#[derive(Debug, Default)]
struct Domains {
    exact: ByText,
    suffixes: Wildcards,
    prefixes: Wildcards,
    any: Option<usize>,
}

/// Texts without their `*`, by length; the longest first.
#[derive(Debug, Default)]
struct Wildcards(Vec<(usize, ByText)>);

impl RouteTable {
    /// Compiles a table.
    pub fn compile(table: &spec::RouteTable, at: &mut Context) -> Option<RouteTable> {
        let spec::RouteTable { name, virtual_hosts } = table;
        let mut names = AHashSet::new();
        let mut domains = Domains::default();
        let mut position = 0;
        let compiled = at.each("virtual_hosts", virtual_hosts, |host, at| {
            if !names.insert(host.name.as_str()) {
                at.field("name", |at| at.error(format!("`{}` is there already", host.name)));
            }
            let domains = at.each("domains", &host.domains, |domain, at| {
                domains.insert(domain, position).map_err(|error| at.error(error)).ok()
            });
            position += 1;
            let compiled = VirtualHost::compile(host, at);
            domains.and(compiled)
        });
        Some(RouteTable { name: name.as_str().into(), virtual_hosts: compiled?.into(), domains })
    }

    /// The first route that matches; `None`: 404. Domains are compared with the authority as it was
    /// sent, its port included (Envoy), without regard to case.
    pub fn find(&self, request: &RequestView<'_>) -> Option<Matched<'_>> {
        let virtual_host = self.virtual_host(request.authority)?;
        let route = virtual_host.find(request)?;
        Some(Matched { virtual_host, route })
    }

    /// The virtual host for an authority.
    pub fn virtual_host(&self, authority: &str) -> Option<&VirtualHost> {
        self.virtual_hosts.get(self.domains.find(authority.as_bytes())?)
    }

    /// All virtual hosts in their order.
    pub fn virtual_hosts(&self) -> &[VirtualHost] {
        &self.virtual_hosts
    }
}

impl VirtualHost {
    fn compile(host: &spec::VirtualHost, at: &mut Context) -> Option<VirtualHost> {
        let spec::VirtualHost { name, domains, routes, request_headers, response_headers } = host;
        if domains.is_empty() {
            at.field("domains", |at| at.error("is empty; `*` stands for every domain"));
        }
        let mut index = RouteIndex::default();
        let mut number = 0;
        let compiled = at.each("routes", routes, |route, at| {
            if let Some(reason) = &route.matches.never {
                at.field("match", |at| at.warn(format!("never matches: {reason}")));
                return Some(None);
            }
            let key =
                at.field("match", |at| at.field("path", |at| path_key(&route.matches.path, at)));
            let compiled = Route::compile(route, at);
            index.push(number, key?, route.matches.case_sensitive);
            number += 1;
            compiled.map(|route| Some(Arc::new(route)))
        });
        let request_headers = at.field("request_headers", |at| {
            CompiledHeaderOps::compile(request_headers, Message::Request, at)
        });
        let response_headers = at.field("response_headers", |at| {
            CompiledHeaderOps::compile(response_headers, Message::Response, at)
        });
        Some(VirtualHost {
            name: name.as_str().into(),
            request_headers: request_headers?,
            response_headers: response_headers?,
            routes: compiled?.into_iter().flatten().collect(),
            index,
        })
        .filter(|_| !domains.is_empty())
    }

    /// The first of its routes that matches.
    pub fn find(&self, request: &RequestView<'_>) -> Option<&Arc<Route>> {
        let fits = |number: u32| {
            self.routes.get(number as usize).is_some_and(|route| route.matches_but_path(request))
        };
        self.routes.get(self.index.find(request.path.as_bytes(), fits)? as usize)
    }

    /// All routes in their order, without those that never match.
    pub fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }
}

impl Route {
    fn compile(route: &spec::Route, at: &mut Context) -> Option<Route> {
        let spec::Route {
            name,
            matches: spec::RouteMatch { path, case_sensitive: _, headers, query, never: _ },
            route,
            redirect,
            direct_response,
            request_headers,
            response_headers,
            fault,
            cors,
            decorator,
        } = route;
        let (headers, query) = at.field("match", |at| {
            let headers = at.each("headers", headers, HeaderMatcher::compile);
            (headers, at.each("query", query, QueryMatcher::compile))
        });
        let action = match (route.as_deref(), redirect, direct_response) {
            (Some(forward), None, None) => at
                .field("route", |at| Forward::compile(forward, at))
                .map(|forward| RouteAction::Forward(Arc::new(forward))),
            (None, Some(redirect), None) => at
                .field("redirect", |at| Redirect::compile(redirect, at))
                .map(RouteAction::Redirect),
            (None, None, Some(response)) => at
                .field("direct_response", |at| DirectResponse::compile(response, at))
                .map(RouteAction::DirectResponse),
            _ => at.reject("needs exactly one of `route`, `redirect` and `direct_response`"),
        };
        let request_headers = at.field("request_headers", |at| {
            CompiledHeaderOps::compile(request_headers, Message::Request, at)
        });
        let response_headers = at.field("response_headers", |at| {
            CompiledHeaderOps::compile(response_headers, Message::Response, at)
        });
        let fault = match fault {
            Some(fault) => at.field("fault", |at| Fault::compile(fault, at)),
            None => Some(None),
        };
        let cors = match cors {
            Some(cors) => at.field("cors", |at| Cors::compile(cors, at)).map(Some),
            None => Some(None),
        };
        let decorator = at.field("decorator", |at| match decorator.as_deref() {
            None | Some("") => Some(None),
            Some(text) => match HeaderValue::from_str(text) {
                Ok(text) => Some(Some(text)),
                Err(_) => at.reject("contains a character that no header value can have"),
            },
        });
        Some(Route {
            name: name.as_str().into(),
            action: action?,
            request_headers: request_headers?,
            response_headers: response_headers?,
            fault: fault?.map(Box::new),
            cors: cors?.map(Box::new),
            decorator: decorator?,
            headers: headers?.into(),
            query: query?.into(),
            matched_len: match path {
                spec::PathMatch::Exact(text)
                | spec::PathMatch::Prefix(text)
                | spec::PathMatch::PathSeparatedPrefix(text) => Some(text.len()),
                spec::PathMatch::Regex(_) => None,
            },
        })
    }

    /// Length in bytes of what rewrites of the matched part replace; `None`: the whole path.
    pub fn matched_len(&self) -> Option<usize> {
        self.matched_len
    }

    fn matches_but_path(&self, request: &RequestView<'_>) -> bool {
        self.headers.iter().all(|header| header.matches(request))
            && self.query.iter().all(|parameter| parameter.matches(request.query))
    }
}

impl Matched<'_> {
    /// Makes the request that is forwarded, in Envoy's order: the weighted cluster's headers and
    /// authority, the route's headers, the virtual host's, the route's authority, its path.
    pub fn finalize_request<S: RequestSink>(
        &self,
        cluster: Option<&WeightedCluster>,
        sink: &mut S,
        context: &FormatContext<'_>,
    ) {
        if let Some(cluster) = cluster {
            cluster.request_headers.apply_to_request(sink, context);
            if let Some(authority) = &cluster.host_rewrite {
                sink.set_authority(authority);
            }
        }
        self.route.request_headers.apply_to_request(sink, context);
        self.virtual_host.request_headers.apply_to_request(sink, context);
        let RouteAction::Forward(forward) = &self.route.action else { return };
        if let Some(authority) = &forward.host_rewrite {
            if forward.append_x_forwarded_host {
                append_forwarded_host(sink);
            }
            let original = sink.first(&HeaderKey::Authority).map(|value| value.into_owned());
            if let Some(Ok(original)) = original.map(HeaderValue::try_from) {
                sink.insert(&X_ENVOY_ORIGINAL_HOST, original);
            }
            sink.set_authority(authority);
        }
        let path = sink.first(&HeaderKey::Path).map(|path| path.into_owned());
        let Some(path) = path.and_then(|path| String::from_utf8(path).ok()) else { return };
        if let Some(rewritten) = forward.rewrite_path(self.route, &path) {
            if let Ok(original) = HeaderValue::from_str(&path) {
                sink.insert(&X_ENVOY_ORIGINAL_PATH, original);
            }
            sink.set_path(&rewritten);
        }
    }

    /// Changes the response's headers: the weighted cluster's, the route's, the virtual host's.
    pub fn finalize_response<S: crate::header_ops::HeaderSink>(
        &self,
        cluster: Option<&WeightedCluster>,
        sink: &mut S,
        request: &dyn Headers,
        context: &FormatContext<'_>,
    ) {
        if let Some(cluster) = cluster {
            cluster.response_headers.apply_to_response(sink, request, context);
        }
        self.route.response_headers.apply_to_response(sink, request, context);
        self.virtual_host.response_headers.apply_to_response(sink, request, context);
    }
}

impl Domains {
    fn insert(&mut self, domain: &str, host: usize) -> Result<(), String> {
        let folded = domain.to_ascii_lowercase();
        let inside = folded.strip_prefix('*').or(folded.strip_suffix('*')).unwrap_or(&folded);
        let free = match folded.as_str() {
            "" => return Err("is empty; `*` stands for every domain".to_owned()),
            "*" => self.any.replace(host).is_none(),
            _ if inside.contains('*') => {
                return Err(format!("`{domain}`: a `*` can stand at the start or at the end only"));
            }
            _ if folded.starts_with('*') => self.suffixes.insert(inside, host),
            _ if folded.ends_with('*') => self.prefixes.insert(inside, host),
            _ => self.exact.insert(folded.as_bytes().into(), host).is_none(),
        };
        if free { Ok(()) } else { Err(format!("`{domain}` is there already")) }
    }

    fn find(&self, authority: &[u8]) -> Option<usize> {
        if self.exact.is_empty() && self.suffixes.0.is_empty() && self.prefixes.0.is_empty() {
            return self.any;
        }
        if !authority.iter().any(u8::is_ascii_uppercase) {
            return self.find_folded(authority);
        }
        let mut stack = [0; FOLD_ON_STACK];
        let Some(folded) = stack.get_mut(..authority.len()) else {
            return self.find_folded(&authority.to_ascii_lowercase());
        };
        folded.copy_from_slice(authority);
        folded.make_ascii_lowercase();
        self.find_folded(folded)
    }

    fn find_folded(&self, authority: &[u8]) -> Option<usize> {
        let len = authority.len();
        let exact = self.exact.get(authority).copied();
        exact
            .or_else(|| self.suffixes.find(len, |part| authority.get(len - part..)))
            .or_else(|| self.prefixes.find(len, |part| authority.get(..part)))
            .or(self.any)
    }
}

impl Wildcards {
    /// `false`: it was there already.
    fn insert(&mut self, text: &str, host: usize) -> bool {
        let place = self.0.binary_search_by(|(len, _)| text.len().cmp(len));
        let place = place.unwrap_or_else(|place| {
            self.0.insert(place, (text.len(), ByText::new()));
            place
        });
        self.0[place].1.insert(text.as_bytes().into(), host).is_none()
    }

    /// The longest that fits; the `*` stands for at least one byte (Envoy).
    fn find<'a>(&self, len: usize, part: impl Fn(usize) -> Option<&'a [u8]>) -> Option<usize> {
        let shorter = self.0.iter().filter(|(text_len, _)| *text_len < len);
        shorter.into_iter().find_map(|(text_len, hosts)| hosts.get(part(*text_len)?).copied())
    }
}

fn path_key<'a>(path: &'a spec::PathMatch, at: &mut Context) -> Option<PathKey<'a>> {
    let checked = |field: &str, text: &'a str, at: &mut Context| {
        at.field(field, |at| {
            if text.len() > MAX_PATH {
                return at.reject(format!("has {} bytes; {MAX_PATH} are the most", text.len()));
            }
            match text.chars().find(|c| matches!(c, '?' | '#')) {
                Some(c) => {
                    at.reject(format!("contains `{c}`; the path is compared without its query"))
                }
                None => Some(text),
            }
        })
    };
    match path {
        spec::PathMatch::Exact(text) => checked("exact", text, at).map(PathKey::Exact),
        spec::PathMatch::Prefix(text) => checked("prefix", text, at).map(PathKey::Prefix),
        spec::PathMatch::PathSeparatedPrefix(text) => {
            let field = "path_separated_prefix";
            if text.is_empty() || text.ends_with('/') {
                return at.field(field, |at| at.reject("is empty or ends with `/`"));
            }
            checked(field, text, at).map(PathKey::PathSeparatedPrefix)
        }
        spec::PathMatch::Regex(pattern) => {
            matching::whole_regex(pattern, at).map(|regex| PathKey::Regex(pattern, regex))
        }
    }
}

/// Envoy's `append_x_forwarded_host`: the authority joins the list unless it is its last item.
fn append_forwarded_host<S: RequestSink>(sink: &mut S) {
    let Some(authority) = sink.first(&HeaderKey::Authority).map(|value| value.into_owned()) else {
        return;
    };
    let mut list = match sink.first(&HeaderKey::Name(X_FORWARDED_HOST)) {
        Some(list) => list.into_owned(),
        None => Vec::new(),
    };
    let last = list.rsplit(|byte| *byte == b',').next().map(<[u8]>::trim_ascii);
    if authority.is_empty() || last == Some(authority.as_slice()) {
        return;
    }
    if !list.is_empty() {
        list.push(b',');
    }
    list.extend_from_slice(&authority);
    if let Ok(list) = HeaderValue::from_bytes(&list) {
        sink.insert(&X_FORWARDED_HOST, list);
    }
}

#[cfg(test)]
mod tests;
