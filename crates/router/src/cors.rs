//! Cross-origin requests. Envoy: `filters.http.cors`.
//!
//! A preflight is an `OPTIONS` request with `origin` and a non-empty `access-control-request-method`.

use crate::error::Context;
use crate::header_ops::HeaderSink;
use crate::matching::StringMatcher;
use crate::spec;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

/// A route's policy for other origins.
#[derive(Debug, Clone)]
pub struct Cors {
    /// `None`: every origin may.
    origins: Option<Box<[StringMatcher]>>,
    methods: Option<HeaderValue>,
    headers: Option<HeaderValue>,
    expose: Option<HeaderValue>,
    max_age: Option<HeaderValue>,
    credentials: bool,
    forward_not_matching_preflights: bool,
}

/// What a request is to the policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CorsRequest {
    /// None of its business: it goes on, and its response is left alone.
    Other,
    /// It goes on; its response gets [`Cors::put_response_headers`] with this origin.
    Actual(HeaderValue),
    /// It is answered with 200 and [`Cors::put_preflight_headers`] with this origin.
    Preflight(HeaderValue),
    /// It is answered with 200 and [`Cors::put_preflight_headers`] without an origin.
    RefusedPreflight,
}

impl Cors {
    /// Checks and compiles; `None` after an error was recorded.
    pub(crate) fn compile(cors: &spec::Cors, at: &mut Context) -> Option<Cors> {
        let spec::Cors {
            allow_origins,
            allow_methods,
            allow_headers,
            expose_headers,
            max_age,
            allow_credentials,
            forward_not_matching_preflights,
        } = cors;
        let any = allow_origins
            .iter()
            .any(|origin| matches!(origin, spec::StringMatch::Exact(text) if text == "*"));
        let origins = at.each("allow_origins", allow_origins, |origin, at| {
            StringMatcher::compile(origin, false, at)
        });
        let mut value = |field: &str, text: &str| {
            at.field(field, |at| match HeaderValue::from_str(text) {
                Ok(value) => Some(Some(value).filter(|value| !value.is_empty())),
                Err(_) => at.reject("contains a character that no header value can have"),
            })
        };
        let methods = value("allow_methods", allow_methods);
        let headers = value("allow_headers", allow_headers);
        let expose = value("expose_headers", expose_headers);
        let max_age = value("max_age", max_age);
        Some(Cors {
            origins: Some(origins?.into()).filter(|_| !any),
            methods: methods?,
            headers: headers?,
            expose: expose?,
            max_age: max_age?,
            credentials: *allow_credentials,
            forward_not_matching_preflights: forward_not_matching_preflights.unwrap_or(true),
        })
    }

    /// What the policy has to do with a request.
    pub fn judge(&self, method: &Method, headers: &HeaderMap) -> CorsRequest {
        let Some(origin) = headers.get(ORIGIN).filter(|origin| !origin.is_empty()) else {
            return CorsRequest::Other;
        };
        let preflight = *method == Method::OPTIONS
            && headers.get(ACCESS_CONTROL_REQUEST_METHOD).is_some_and(|value| !value.is_empty());
        let allowed = self
            .origins
            .as_ref()
            .is_none_or(|origins| origins.iter().any(|matcher| matcher.matches(origin.as_bytes())));
        match (preflight, allowed) {
            (true, true) => CorsRequest::Preflight(origin.clone()),
            (false, true) => CorsRequest::Actual(origin.clone()),
            (true, false) if !self.forward_not_matching_preflights => CorsRequest::RefusedPreflight,
            (_, false) => CorsRequest::Other,
        }
    }

    /// Puts on the answer to a preflight what its client may do. Envoy says all of it to a client of an `origin` that
    /// is not allowed, too, but for the origin itself.
    pub fn put_preflight_headers<S: HeaderSink>(&self, origin: Option<&HeaderValue>, sink: &mut S) {
        match origin {
            Some(origin) => self.put_origin(origin, sink),
            None => self.put_credentials(sink),
        }
        put(sink, &ACCESS_CONTROL_ALLOW_METHODS, &self.methods);
        put(sink, &ACCESS_CONTROL_ALLOW_HEADERS, &self.headers);
        put(sink, &ACCESS_CONTROL_MAX_AGE, &self.max_age);
    }

    /// Puts on any other response what its client may see.
    pub fn put_response_headers<S: HeaderSink>(&self, origin: &HeaderValue, sink: &mut S) {
        self.put_origin(origin, sink);
        put(sink, &ACCESS_CONTROL_EXPOSE_HEADERS, &self.expose);
    }

    fn put_origin<S: HeaderSink>(&self, origin: &HeaderValue, sink: &mut S) {
        sink.insert(&ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        self.put_credentials(sink);
    }

    fn put_credentials<S: HeaderSink>(&self, sink: &mut S) {
        if self.credentials {
            sink.insert(&ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
    }
}

fn put<S: HeaderSink>(sink: &mut S, name: &HeaderName, value: &Option<HeaderValue>) {
    if let Some(value) = value {
        sink.insert(name, value.clone());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use spec::StringMatch::{Exact, Prefix, Regex};

    fn compile(cors: &spec::Cors) -> Cors {
        Cors::compile(cors, &mut Context::new()).unwrap()
    }

    fn headers(of: &[(&'static str, &'static str)]) -> HeaderMap {
        of.iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn policy() -> spec::Cors {
        spec::Cors {
            allow_origins: vec![
                Exact("https://a.example".into()),
                Prefix("https://b.".into()),
                Regex("https://c[0-9]\\.example".into()),
            ],
            allow_methods: "GET,PUT".into(),
            allow_headers: "x-a".into(),
            expose_headers: "x-e".into(),
            max_age: "60".into(),
            allow_credentials: true,
            forward_not_matching_preflights: None,
        }
    }

    #[test]
    fn requests_are_told_apart() {
        let strict = spec::Cors { forward_not_matching_preflights: Some(false), ..policy() };
        let (lenient, strict) = (compile(&policy()), compile(&strict));
        let asks = ("access-control-request-method", "PUT");
        let value = HeaderValue::from_static;
        let actual = |origin| CorsRequest::Actual(value(origin));
        for (method, sent, expected) in [
            (Method::GET, headers(&[]), CorsRequest::Other),
            (Method::GET, headers(&[("origin", "")]), CorsRequest::Other),
            (Method::GET, headers(&[("origin", "https://x.example")]), CorsRequest::Other),
            (Method::GET, headers(&[("origin", "https://a.example")]), actual("https://a.example")),
            (Method::PUT, headers(&[("origin", "https://b.any")]), actual("https://b.any")),
            (
                Method::GET,
                headers(&[("origin", "https://c7.example")]),
                actual("https://c7.example"),
            ),
            (Method::OPTIONS, headers(&[("origin", "https://b.x")]), actual("https://b.x")),
            (Method::GET, headers(&[("origin", "https://b.x"), asks]), actual("https://b.x")),
            (
                Method::OPTIONS,
                headers(&[("origin", "https://b.x"), asks]),
                CorsRequest::Preflight(value("https://b.x")),
            ),
            (Method::OPTIONS, headers(&[asks]), CorsRequest::Other),
        ] {
            assert_eq!(lenient.judge(&method, &sent), expected, "{method} {sent:?}");
            assert_eq!(strict.judge(&method, &sent), expected, "{method} {sent:?}");
        }
        let stranger = headers(&[("origin", "https://x.example"), asks]);
        assert_eq!(lenient.judge(&Method::OPTIONS, &stranger), CorsRequest::Other);
        assert_eq!(strict.judge(&Method::OPTIONS, &stranger), CorsRequest::RefusedPreflight);
    }

    #[test]
    fn exactly_a_star_is_every_origin() {
        let asked = headers(&[("origin", "null")]);
        let star = spec::Cors { allow_origins: vec![Exact("*".into())], ..policy() };
        let anybody = CorsRequest::Actual(HeaderValue::from_static("null"));
        assert_eq!(compile(&star).judge(&Method::GET, &asked), anybody);
        let prefix = spec::Cors { allow_origins: vec![Prefix("*".into())], ..policy() };
        assert_eq!(compile(&prefix).judge(&Method::GET, &asked), CorsRequest::Other);
        let nobody = spec::Cors { allow_origins: vec![], ..policy() };
        assert_eq!(compile(&nobody).judge(&Method::GET, &asked), CorsRequest::Other);
    }

    #[test]
    fn what_is_put() {
        let origin = HeaderValue::from_static("https://a.example");
        let mut preflight = HeaderMap::new();
        compile(&policy()).put_preflight_headers(Some(&origin), &mut preflight);
        let expected = headers(&[
            ("access-control-allow-origin", "https://a.example"),
            ("access-control-allow-credentials", "true"),
            ("access-control-allow-methods", "GET,PUT"),
            ("access-control-allow-headers", "x-a"),
            ("access-control-max-age", "60"),
        ]);
        assert_eq!(preflight, expected);
        let mut refused = HeaderMap::new();
        compile(&policy()).put_preflight_headers(None, &mut refused);
        preflight.remove("access-control-allow-origin");
        assert_eq!(refused, preflight);
        let mut response = headers(&[("access-control-allow-origin", "https://theirs")]);
        compile(&policy()).put_response_headers(&origin, &mut response);
        let expected = headers(&[
            ("access-control-allow-origin", "https://a.example"),
            ("access-control-allow-credentials", "true"),
            ("access-control-expose-headers", "x-e"),
        ]);
        assert_eq!(response, expected);
        let bare = spec::Cors { allow_origins: vec![Exact("*".into())], ..spec::Cors::default() };
        let mut response = HeaderMap::new();
        compile(&bare).put_preflight_headers(Some(&origin), &mut response);
        assert_eq!(response, headers(&[("access-control-allow-origin", "https://a.example")]));
    }

    #[test]
    fn errors() {
        let cors = spec::Cors {
            allow_origins: vec![Prefix(String::new())],
            max_age: "\n".into(),
            ..spec::Cors::default()
        };
        let mut at = Context::new();
        assert!(Cors::compile(&cors, &mut at).is_none());
        let errors: Vec<String> = at.into_errors().iter().map(ToString::to_string).collect();
        assert_eq!(
            errors,
            [
                "allow_origins[0].prefix: is empty, and would match everything",
                "max_age: contains a character that no header value can have",
            ]
        );
    }
}
