//! Conditions on strings, headers and query parameters, compiled.
//!
//! Values are compared as bytes: a header may carry what is no UTF-8.

pub(crate) mod patterns;
pub(crate) mod re2;

use crate::error::Context;
use crate::request::{HeaderKey, Headers, RequestView};
use crate::spec;
use memchr::memmem::Finder;
use regex::bytes::Regex;

/// How a string is compared. Envoy: `StringMatcher`.
#[derive(Debug, Clone)]
pub struct StringMatcher {
    test: Test,
    ignore_case: bool,
}

#[derive(Debug, Clone)]
enum Test {
    Exact(Box<[u8]>),
    Prefix(Box<[u8]>),
    Suffix(Box<[u8]>),
    Contains(Box<Finder<'static>>),
    Regex(Regex),
}

/// A condition on a header. Envoy: `HeaderMatcher`.
#[derive(Debug, Clone)]
pub struct HeaderMatcher {
    key: HeaderKey,
    value: ValueTest,
    invert: bool,
    missing_is_empty: bool,
}

/// A condition on a query parameter. Envoy: `QueryParameterMatcher`.
#[derive(Debug, Clone)]
pub struct QueryMatcher {
    name: Box<str>,
    value: ValueTest,
}

#[derive(Debug, Clone)]
enum ValueTest {
    Present(bool),
    Is(StringMatcher),
}

impl StringMatcher {
    /// Compiles a matcher; `ignore_case` is about ASCII, and not about regular expressions (Envoy).
    pub fn compile(
        matcher: &spec::StringMatch,
        ignore_case: bool,
        at: &mut Context,
    ) -> Option<StringMatcher> {
        let test = match matcher {
            spec::StringMatch::Exact(text) => Some(Test::Exact(bytes(text))),
            spec::StringMatch::Prefix(text) => part("prefix", text, at).map(Test::Prefix),
            spec::StringMatch::Suffix(text) => part("suffix", text, at).map(Test::Suffix),
            spec::StringMatch::Contains(text) => part("contains", text, at)
                .map(|text| Test::Contains(Box::new(Finder::new(text.as_ref()).into_owned()))),
            spec::StringMatch::Regex(pattern) => whole_regex(pattern, at).map(Test::Regex),
        }?;
        Some(StringMatcher { test, ignore_case })
    }

    /// The value is as demanded.
    pub fn matches(&self, value: &[u8]) -> bool {
        match (&self.test, self.ignore_case) {
            (Test::Regex(regex), _) => regex.is_match(value),
            (Test::Exact(text), false) => value == &**text,
            (Test::Prefix(text), false) => value.starts_with(text),
            (Test::Suffix(text), false) => value.ends_with(text),
            (Test::Contains(finder), false) => finder.find(value).is_some(),
            (Test::Exact(text), true) => value.eq_ignore_ascii_case(text),
            (Test::Prefix(text), true) => {
                value.get(..text.len()).is_some_and(|start| start.eq_ignore_ascii_case(text))
            }
            (Test::Suffix(text), true) => value
                .len()
                .checked_sub(text.len())
                .and_then(|start| value.get(start..))
                .is_some_and(|end| end.eq_ignore_ascii_case(text)),
            (Test::Contains(finder), true) => {
                let text = finder.needle();
                value.windows(text.len()).any(|window| window.eq_ignore_ascii_case(text))
            }
        }
    }
}

impl HeaderMatcher {
    /// Compiles a matcher.
    pub fn compile(matcher: &spec::HeaderMatch, at: &mut Context) -> Option<HeaderMatcher> {
        let spec::HeaderMatch { name, value, invert, treat_missing_as_empty, ignore_case } =
            matcher;
        let key =
            at.field("name", |at| HeaderKey::parse(name).map_err(|error| at.error(error)).ok());
        let value = at.field("match", |at| ValueTest::compile(value, *ignore_case, at));
        Some(HeaderMatcher {
            key: key?,
            value: value?,
            invert: *invert,
            missing_is_empty: *treat_missing_as_empty,
        })
    }

    /// The request is as demanded. Of several values of a header one has to match (Envoy since 1.39:
    /// `match_headers_individually`), and inverted none may. An absent header does not match a
    /// condition on its value, inverted or not, unless it counts as empty.
    pub fn matches(&self, request: &RequestView<'_>) -> bool {
        match &self.value {
            ValueTest::Present(present) => (self.is_there(request) == *present) != self.invert,
            ValueTest::Is(_) if !self.is_there(request) => false,
            ValueTest::Is(matcher) => self.any_value(request, matcher) != self.invert,
        }
    }

    fn is_there(&self, request: &RequestView<'_>) -> bool {
        match &self.key {
            HeaderKey::Name(name) => self.missing_is_empty || request.headers.contains_key(name),
            HeaderKey::Authority => self.missing_is_empty || !request.authority.is_empty(),
            HeaderKey::Method | HeaderKey::Path | HeaderKey::Scheme => true,
        }
    }

    fn any_value(&self, request: &RequestView<'_>, matcher: &StringMatcher) -> bool {
        match &self.key {
            HeaderKey::Name(name) => {
                let mut values = request.headers.get_all(name).iter().peekable();
                if values.peek().is_none() {
                    return matcher.matches(b"");
                }
                values.any(|value| matcher.matches(value.as_bytes()))
            }
            pseudo => request.first(pseudo).is_some_and(|value| matcher.matches(&value)),
        }
    }
}

impl QueryMatcher {
    /// Compiles a matcher.
    pub fn compile(matcher: &spec::QueryMatch, at: &mut Context) -> Option<QueryMatcher> {
        let spec::QueryMatch { name, value } = matcher;
        if name.is_empty() {
            at.field("name", |at| at.error("is empty"));
        }
        let value = at.field("match", |at| ValueTest::compile(value, false, at));
        Some(QueryMatcher {
            name: (!name.is_empty()).then(|| name.as_str().into())?,
            value: value?,
        })
    }

    /// The first parameter of the name is as demanded. Names and values are compared as they are
    /// sent: Envoy decodes no `%` when it matches routes.
    pub fn matches(&self, query: Option<&str>) -> bool {
        let found = query.unwrap_or_default().split('&').find_map(|parameter| {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            (name == &*self.name).then_some(value)
        });
        match &self.value {
            ValueTest::Present(present) => found.is_some() == *present,
            ValueTest::Is(matcher) => found.is_some_and(|value| matcher.matches(value.as_bytes())),
        }
    }
}

impl ValueTest {
    fn compile(value: &spec::ValueMatch, ignore_case: bool, at: &mut Context) -> Option<ValueTest> {
        let string = match value {
            spec::ValueMatch::Present(present) => return Some(ValueTest::Present(*present)),
            spec::ValueMatch::Exact(text) => spec::StringMatch::Exact(text.clone()),
            spec::ValueMatch::Prefix(text) => spec::StringMatch::Prefix(text.clone()),
            spec::ValueMatch::Suffix(text) => spec::StringMatch::Suffix(text.clone()),
            spec::ValueMatch::Contains(text) => spec::StringMatch::Contains(text.clone()),
            spec::ValueMatch::Regex(pattern) => spec::StringMatch::Regex(pattern.clone()),
        };
        StringMatcher::compile(&string, ignore_case, at).map(ValueTest::Is)
    }
}

/// Compiles the regular expression of the field `regex`, which the whole value has to match.
pub(crate) fn whole_regex(pattern: &str, at: &mut Context) -> Option<Regex> {
    at.field("regex", |at| {
        if pattern.is_empty() {
            return at.reject("is empty");
        }
        let compiled = at.patterns().whole(pattern);
        compiled.map_err(|error| at.error(format!("`{pattern}` {error}"))).ok()
    })
}

/// A part that is empty would be in every value: Envoy refuses it too.
fn part(field: &str, text: &str, at: &mut Context) -> Option<Box<[u8]>> {
    if text.is_empty() {
        return at.field(field, |at| at.reject("is empty, and would match everything"));
    }
    Some(bytes(text))
}

fn bytes(text: &str) -> Box<[u8]> {
    text.as_bytes().into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use http::{HeaderMap, HeaderName, HeaderValue, Method};

    fn string(matcher: spec::StringMatch, ignore_case: bool) -> StringMatcher {
        StringMatcher::compile(&matcher, ignore_case, &mut Context::new()).unwrap()
    }

    #[test]
    fn strings() {
        use spec::StringMatch::{Contains, Exact, Prefix, Regex, Suffix};
        for (matcher, yes, no, folded) in [
            (Exact("Ab".into()), "Ab", "Abc", "aB"),
            (Prefix("Ab".into()), "Abc", "xAb", "aBc"),
            (Suffix("Ab".into()), "xAb", "b", "xaB"),
            (Contains("Ab".into()), "xAby", "Axb", "xaBy"),
        ] {
            assert!(string(matcher.clone(), false).matches(yes.as_bytes()));
            assert!(!string(matcher.clone(), false).matches(no.as_bytes()));
            assert!(!string(matcher.clone(), false).matches(folded.as_bytes()));
            assert!(string(matcher.clone(), true).matches(folded.as_bytes()));
            assert!(!string(matcher, true).matches(no.as_bytes()));
        }
        assert!(string(Exact(String::new()), false).matches(b""));
        assert!(string(Regex("A+".into()), true).matches(b"AA"));
        assert!(!string(Regex("A+".into()), true).matches(b"aa"), "case of a regex is its own");
        assert!(string(Regex("a.*".into()), false).matches(b"a\xff"));
    }

    #[test]
    fn errors_name_the_field() {
        let mut at = Context::new();
        at.field("match", |at| {
            at.field("headers", |at| {
                let header = spec::HeaderMatch {
                    name: ":nope".into(),
                    value: spec::ValueMatch::Regex("(".into()),
                    invert: false,
                    treat_missing_as_empty: false,
                    ignore_case: false,
                };
                assert!(at.index(0, |at| HeaderMatcher::compile(&header, at)).is_none());
            });
            let query = spec::QueryMatch {
                name: String::new(),
                value: spec::ValueMatch::Prefix("".into()),
            };
            assert!(at.field("query", |at| QueryMatcher::compile(&query, at)).is_none());
        });
        let errors: Vec<String> = at.into_errors().iter().map(ToString::to_string).collect();
        assert_eq!(
            errors,
            [
                "match.headers[0].name: `:nope` is not known; there are `:method`, `:authority`, \
                 `:path` and `:scheme`",
                "match.headers[0].match.regex: `(` has a `(` without `)`",
                "match.query.name: is empty",
                "match.query.match.prefix: is empty, and would match everything",
            ]
        );
    }

    struct Case {
        value: spec::ValueMatch,
        invert: bool,
        missing_is_empty: bool,
    }

    fn on_header(case: Case, name: &str, sent: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        for value in sent {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        let matcher = spec::HeaderMatch {
            name: name.to_ascii_uppercase(),
            value: case.value,
            invert: case.invert,
            treat_missing_as_empty: case.missing_is_empty,
            ignore_case: false,
        };
        let matcher = HeaderMatcher::compile(&matcher, &mut Context::new()).unwrap();
        matcher.matches(&RequestView {
            method: &Method::GET,
            authority: "App:80",
            path: "/x",
            query: Some("q"),
            scheme: "http",
            headers: &headers,
        })
    }

    #[test]
    fn headers_as_envoy() {
        use spec::ValueMatch::{Exact, Present};
        let exact = |text: &str| Exact(text.to_owned());
        // Value, inverted, missing counts as empty, what is sent, expected.
        for (value, invert, missing_is_empty, sent, expected) in [
            (exact("a"), false, false, Some("a"), true),
            (exact("a"), false, false, Some("b"), false),
            (exact("a"), false, false, None, false),
            (exact("a"), true, false, Some("a"), false),
            (exact("a"), true, false, Some("b"), true),
            (exact("a"), true, false, None, false),
            (exact("a"), true, true, None, true),
            (exact("a"), false, true, None, false),
            (exact(""), false, true, None, true),
            (exact(""), true, true, None, false),
            (Present(true), false, false, Some("a"), true),
            (Present(true), false, false, Some(""), true),
            (Present(true), false, false, None, false),
            (Present(true), true, false, Some("a"), false),
            (Present(true), true, false, None, true),
            (Present(false), false, false, Some("a"), false),
            (Present(false), false, false, None, true),
            (Present(false), true, false, Some("a"), true),
            (Present(false), true, false, None, false),
            (Present(true), false, true, None, true),
        ] {
            let label = format!("{value:?} {invert} {missing_is_empty} {sent:?}");
            let case = Case { value, invert, missing_is_empty };
            assert_eq!(on_header(case, "x-a", sent.as_slice()), expected, "{label}");
        }
        let case = |invert| Case { value: exact("a"), invert, missing_is_empty: false };
        assert!(on_header(case(false), "x-a", &["b", "a"]), "value by value");
        assert!(!on_header(case(true), "x-a", &["b", "a"]), "inverted: none may match");
        assert!(on_header(case(true), "x-a", &["b", "c"]));
        assert!(!on_header(case(false), "x-a", &["a,b"]), "one line is one value");
    }

    #[test]
    fn pseudo_headers() {
        let headers = HeaderMap::new();
        let request = RequestView {
            method: &Method::POST,
            authority: "App:80",
            path: "/x",
            query: Some("q=1"),
            scheme: "http",
            headers: &headers,
        };
        for (name, value) in [
            (":method", "POST"),
            (":authority", "App:80"),
            ("host", "App:80"),
            (":path", "/x?q=1"),
            (":scheme", "http"),
        ] {
            let mut matcher = spec::HeaderMatch {
                name: name.to_owned(),
                value: spec::ValueMatch::Exact(value.to_ascii_lowercase()),
                invert: false,
                treat_missing_as_empty: false,
                ignore_case: true,
            };
            let compile = |m: &spec::HeaderMatch| {
                HeaderMatcher::compile(m, &mut Context::new()).unwrap().matches(&request)
            };
            assert!(compile(&matcher), "{name}");
            matcher.invert = true;
            assert!(!compile(&matcher), "{name}");
            matcher.value = spec::ValueMatch::Present(false);
            assert!(compile(&matcher), "{name}");
        }
    }

    #[test]
    fn query_parameters() {
        use spec::ValueMatch::{Exact, Prefix, Present, Regex};
        for (value, query, expected) in [
            (Exact("1".into()), Some("a=1"), true),
            (Exact("1".into()), Some("b=2&a=1"), true),
            (Exact("1".into()), Some("a=2&a=1"), false),
            (Exact("1".into()), Some("aa=1&xa=1"), false),
            (Exact("1".into()), None, false),
            (Exact("".into()), Some("a"), true),
            (Exact("".into()), Some("a="), true),
            (Exact("x=y".into()), Some("a=x=y"), true),
            (Exact("x".into()), Some("a=%78"), false),
            (Exact("%78".into()), Some("a=%78"), true),
            (Prefix("x".into()), Some("&&a=xy"), true),
            (Regex("[a-z]+".into()), Some("a=xy"), true),
            (Regex("[a-z]+".into()), Some("a=x1"), false),
            (Present(true), Some("a"), true),
            (Present(true), Some("b"), false),
            (Present(false), Some("b"), true),
            (Present(false), None, true),
            (Present(false), Some("a=1"), false),
        ] {
            let label = format!("{value:?} {query:?}");
            let matcher = spec::QueryMatch { name: "a".into(), value };
            let matcher = QueryMatcher::compile(&matcher, &mut Context::new()).unwrap();
            assert_eq!(matcher.matches(query), expected, "{label}");
        }
    }
}
