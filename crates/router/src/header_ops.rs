//! Changes to headers, compiled. Envoy: `HeaderParser`.
//!
//! Removals come first. Then all values are formatted, from the headers as they are at that point,
//! and only then put: first what overwrites, then what adds.

use crate::error::Context;
use crate::format::{Format, FormatContext};
use crate::request::{HeaderKey, Headers};
use crate::spec;
use http::{HeaderMap, HeaderName, HeaderValue};

/// Headers that can be changed.
pub trait HeaderSink: Headers {
    /// Replaces all values.
    fn insert(&mut self, name: &HeaderName, value: HeaderValue);
    /// Adds a value.
    fn append(&mut self, name: &HeaderName, value: HeaderValue);
    /// Removes all values.
    fn remove(&mut self, name: &HeaderName);
}

/// A request's headers that can be changed.
pub trait RequestSink: HeaderSink {
    /// Replaces `:authority`, which over HTTP/1 is `host`.
    fn set_authority(&mut self, authority: &HeaderValue);
    /// Replaces the path and query.
    fn set_path(&mut self, path_and_query: &str);
}

/// What is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// A request.
    Request,
    /// A response.
    Response,
}

/// Changes of one level: weighted cluster, route or virtual host.
#[derive(Debug, Clone, Default)]
pub struct CompiledHeaderOps {
    remove: Box<[HeaderName]>,
    /// What overwrites, then what adds.
    puts: Box<[Put]>,
    /// Values or conditions depend on the headers.
    depends: bool,
}

#[derive(Debug, Clone)]
struct Put {
    key: HeaderKey,
    value: Value,
    overwrite: bool,
    /// `Some(there)`: only if the header is there, or is not.
    only_if: Option<bool>,
}

#[derive(Debug, Clone)]
enum Value {
    Fixed(HeaderValue),
    Formatted(Format),
}

impl CompiledHeaderOps {
    /// Compiles the changes to a message.
    pub fn compile(ops: &spec::HeaderOps, message: Message, at: &mut Context) -> Option<Self> {
        let spec::HeaderOps { add, remove } = ops;
        let puts = at.each("add", add, |put, at| Put::compile(put, message, at));
        let remove = at.each("remove", remove, |name, at| match HeaderKey::parse(name) {
            Ok(HeaderKey::Name(name)) => Some(name),
            Ok(_) => at.reject(format!("`{name}` cannot be removed")),
            Err(error) => at.reject(error),
        });
        // An empty value is not put (Envoy).
        let mut puts: Vec<Put> = puts?.into_iter().flatten().collect();
        puts.sort_by_key(|put| !put.overwrite);
        let depends = |put: &Put| put.only_if.is_some() || matches!(put.value, Value::Formatted(_));
        Some(CompiledHeaderOps {
            remove: remove?.into(),
            depends: puts.iter().any(depends),
            puts: puts.into(),
        })
    }

    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.puts.is_empty()
    }

    /// Changes a request. `%REQ(…)%` is about the request as it is here.
    pub fn apply_to_request<S: RequestSink>(&self, sink: &mut S, context: &FormatContext<'_>) {
        for name in &self.remove {
            sink.remove(name);
        }
        let put = |sink: &mut S, put: &Put, value: HeaderValue| match &put.key {
            HeaderKey::Name(name) => put.put(sink, name, value),
            HeaderKey::Authority => sink.set_authority(&value),
            HeaderKey::Path => {
                if let Some(path) = value.to_str().ok().filter(|path| path.starts_with('/')) {
                    sink.set_path(path);
                }
            }
            HeaderKey::Method | HeaderKey::Scheme => {}
        };
        if self.depends {
            for (planned, value) in self.plan(sink, Some(sink), None, context) {
                put(sink, planned, value);
            }
        } else {
            self.fixed().for_each(|(planned, value)| put(sink, planned, value));
        }
    }

    /// Changes a response; `%REQ(…)%` is about `request`.
    pub fn apply_to_response<S: HeaderSink>(
        &self,
        sink: &mut S,
        request: &dyn Headers,
        context: &FormatContext<'_>,
    ) {
        for name in &self.remove {
            sink.remove(name);
        }
        let put = |sink: &mut S, put: &Put, value: HeaderValue| {
            if let HeaderKey::Name(name) = &put.key {
                put.put(sink, name, value);
            }
        };
        if self.depends {
            for (planned, value) in self.plan(sink, Some(request), Some(sink), context) {
                put(sink, planned, value);
            }
        } else {
            self.fixed().for_each(|(planned, value)| put(sink, planned, value));
        }
    }

    fn fixed(&self) -> impl Iterator<Item = (&Put, HeaderValue)> {
        self.puts.iter().filter_map(|put| match &put.value {
            Value::Fixed(value) => Some((put, value.clone())),
            Value::Formatted(_) => None,
        })
    }

    /// Everything that is to be put, decided before the first change.
    fn plan(
        &self,
        changed: &dyn Headers,
        request: Option<&dyn Headers>,
        response: Option<&dyn Headers>,
        context: &FormatContext<'_>,
    ) -> Vec<(&Put, HeaderValue)> {
        let value = |put: &Put| match &put.value {
            Value::Fixed(value) => Some(value.clone()),
            Value::Formatted(format) => {
                let value = format.render(context, request, response);
                HeaderValue::from_bytes(&value).ok().filter(|value| !value.is_empty())
            }
        };
        self.puts
            .iter()
            .filter(|put| {
                put.only_if.is_none_or(|there| changed.first(&put.key).is_some() == there)
            })
            .filter_map(|put| Some((put, value(put)?)))
            .collect()
    }
}

impl Put {
    /// `None`: an error; `Some(None)`: nothing to put.
    fn compile(put: &spec::HeaderValue, message: Message, at: &mut Context) -> Option<Option<Put>> {
        let spec::HeaderValue { name, value, action } = put;
        let key = at.field("name", |at| match HeaderKey::parse(name) {
            Ok(key @ HeaderKey::Name(_)) => Some(key),
            Ok(key @ (HeaderKey::Authority | HeaderKey::Path)) if message == Message::Request => {
                Some(key)
            }
            Ok(_) => at.reject(format!("`{name}` cannot be set here")),
            Err(error) => at.reject(error),
        });
        let format = at.field("value", |at| {
            let format = Format::parse(value).map_err(|error| at.error(error)).ok()?;
            let Some(text) = format.literal() else { return Some(Value::Formatted(format)) };
            match HeaderValue::from_bytes(text) {
                Ok(text) => Some(Value::Fixed(text)),
                Err(_) => at.reject("contains a character that no header value can have"),
            }
        });
        let (key, value) = (key?, format?);
        if let Value::Fixed(text) = &value {
            if key == HeaderKey::Path && !text.as_bytes().starts_with(b"/") {
                return at.field("value", |at| at.reject("is a path and has to begin with `/`"));
            }
            if text.is_empty() {
                return Some(None);
            }
        }
        let (overwrite, only_if) = match action {
            spec::HeaderAppend::Append => (false, None),
            spec::HeaderAppend::Overwrite => (true, None),
            spec::HeaderAppend::AddIfAbsent => (false, Some(false)),
            spec::HeaderAppend::OverwriteIfExists => (true, Some(true)),
        };
        Some(Some(Put { key, value, overwrite, only_if }))
    }

    fn put<S: HeaderSink>(&self, sink: &mut S, name: &HeaderName, value: HeaderValue) {
        if self.overwrite {
            sink.insert(name, value);
        } else {
            sink.append(name, value);
        }
    }
}

impl HeaderSink for HeaderMap {
    fn insert(&mut self, name: &HeaderName, value: HeaderValue) {
        HeaderMap::insert(self, name, value);
    }

    fn append(&mut self, name: &HeaderName, value: HeaderValue) {
        HeaderMap::append(self, name, value);
    }

    fn remove(&mut self, name: &HeaderName) {
        HeaderMap::remove(self, name);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::borrow::Cow;

    /// A request that can be changed.
    pub(crate) struct TestRequest {
        pub(crate) authority: String,
        pub(crate) path: String,
        pub(crate) headers: HeaderMap,
    }

    impl TestRequest {
        pub(crate) fn new(headers: &[(&str, &str)]) -> TestRequest {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                let name: HeaderName = name.parse().unwrap();
                map.append(name, value.parse().unwrap());
            }
            TestRequest { authority: "app".into(), path: "/p?q=1".into(), headers: map }
        }

        pub(crate) fn values(&self, name: &str) -> Vec<&str> {
            self.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
        }
    }

    impl Headers for TestRequest {
        fn first(&self, key: &HeaderKey) -> Option<Cow<'_, [u8]>> {
            match key {
                HeaderKey::Authority => Some(Cow::Borrowed(self.authority.as_bytes())),
                HeaderKey::Path => Some(Cow::Borrowed(self.path.as_bytes())),
                key => self.headers.first(key),
            }
        }
    }

    impl HeaderSink for TestRequest {
        fn insert(&mut self, name: &HeaderName, value: HeaderValue) {
            HeaderSink::insert(&mut self.headers, name, value);
        }

        fn append(&mut self, name: &HeaderName, value: HeaderValue) {
            HeaderSink::append(&mut self.headers, name, value);
        }

        fn remove(&mut self, name: &HeaderName) {
            HeaderSink::remove(&mut self.headers, name);
        }
    }

    impl RequestSink for TestRequest {
        fn set_authority(&mut self, authority: &HeaderValue) {
            self.authority = authority.to_str().unwrap().to_owned();
        }

        fn set_path(&mut self, path_and_query: &str) {
            self.path = path_and_query.to_owned();
        }
    }

    fn put(name: &str, value: &str, action: spec::HeaderAppend) -> spec::HeaderValue {
        spec::HeaderValue { name: name.into(), value: value.into(), action }
    }

    fn compile(add: Vec<spec::HeaderValue>, remove: &[&str]) -> CompiledHeaderOps {
        let remove = remove.iter().map(|name| (*name).to_owned()).collect();
        let mut at = Context::new();
        let ops = spec::HeaderOps { add, remove };
        let ops = CompiledHeaderOps::compile(&ops, Message::Request, &mut at);
        assert_eq!(at.into_errors(), []);
        ops.unwrap()
    }

    use spec::HeaderAppend::{AddIfAbsent, Append, Overwrite, OverwriteIfExists};

    #[test]
    fn actions() {
        for (action, absent, present) in [
            (Append, vec!["new"], vec!["old", "older", "new"]),
            (Overwrite, vec!["new"], vec!["new"]),
            (AddIfAbsent, vec!["new"], vec!["old", "older"]),
            (OverwriteIfExists, vec![], vec!["new"]),
        ] {
            let ops = compile(vec![put("X-A", "new", action)], &[]);
            let mut request = TestRequest::new(&[]);
            ops.apply_to_request(&mut request, &FormatContext::default());
            assert_eq!(request.values("x-a"), absent, "{action:?}");
            let mut request = TestRequest::new(&[("x-a", "old"), ("x-a", "older")]);
            ops.apply_to_request(&mut request, &FormatContext::default());
            assert_eq!(request.values("x-a"), present, "{action:?}");
        }
    }

    #[test]
    fn removals_then_overwrites_then_additions() {
        let ops = compile(
            vec![
                put("x-a", "added", Append),
                put("x-a", "set", Overwrite),
                put("x-gone", "back", AddIfAbsent),
            ],
            &["X-Gone"],
        );
        let mut request = TestRequest::new(&[("x-a", "old"), ("x-gone", "1")]);
        ops.apply_to_request(&mut request, &FormatContext::default());
        assert_eq!(request.values("x-a"), ["set", "added"]);
        assert_eq!(request.values("x-gone"), ["back"]);
    }

    #[test]
    fn values_are_formatted_before_anything_is_put() {
        let ops = compile(
            vec![
                put("x-a", "2", Overwrite),
                put("x-b", "%REQ(x-a)%-%REQ(x-gone)%", Overwrite),
                put("x-c", "%REQ(x-nowhere)%", Overwrite),
                put("x-d", "", Overwrite),
                put("x-e", "%ROUTE_NAME% 100%%", Append),
            ],
            &["x-gone"],
        );
        let mut request =
            TestRequest::new(&[("x-a", "1"), ("x-gone", "1"), ("x-c", "old"), ("x-d", "old")]);
        let context = FormatContext { route_name: Some("r"), ..FormatContext::default() };
        ops.apply_to_request(&mut request, &context);
        assert_eq!(request.values("x-a"), ["2"]);
        assert_eq!(request.values("x-b"), ["1-"]);
        assert_eq!(request.values("x-c"), ["old"], "an empty value changes nothing");
        assert_eq!(request.values("x-d"), ["old"], "an empty value changes nothing");
        assert_eq!(request.values("x-e"), ["r 100%"]);
    }

    #[test]
    fn authority_and_path() {
        let ops = compile(
            vec![
                put("x-host", "%REQ(:AUTHORITY)%", Overwrite),
                put("Host", "other", Overwrite),
                put(":path", "/new?%REQ(x-q)%", Append),
            ],
            &[],
        );
        let mut request = TestRequest::new(&[("x-q", "z")]);
        ops.apply_to_request(&mut request, &FormatContext::default());
        assert_eq!(request.values("x-host"), ["app"]);
        assert_eq!(request.authority, "other");
        assert_eq!(request.path, "/new?z");
        assert_eq!(request.values("host"), [""; 0]);
    }

    #[test]
    fn responses() {
        let ops = compile(
            vec![
                put("x-from", "%REQ(x-a)% %RESP(x-r)%", Overwrite),
                put("x-code", "%RESPONSE_CODE%", Append),
            ],
            &["x-r"],
        );
        let request = TestRequest::new(&[("x-a", "1")]);
        let mut response = HeaderMap::new();
        response.insert("x-r", HeaderValue::from_static("r"));
        let context = FormatContext { response_code: Some(503), ..FormatContext::default() };
        ops.apply_to_response(&mut response, &request, &context);
        assert_eq!(response.get("x-from").unwrap(), "1 ");
        assert_eq!(response.get("x-code").unwrap(), "503");
        assert!(!response.contains_key("x-r"));
    }

    #[test]
    fn errors() {
        let ops = spec::HeaderOps {
            add: vec![
                put(":method", "x", Append),
                put("x-a", "%NOPE%", Append),
                put("a b", "x\n", Append),
                put(":path", "x", Append),
            ],
            remove: vec!["x-ok".into(), "Host".into(), ":path".into()],
        };
        let mut at = Context::new();
        let request = at
            .field("request_headers", |at| CompiledHeaderOps::compile(&ops, Message::Request, at));
        assert!(request.is_none());
        let ops = spec::HeaderOps { add: vec![put("host", "x", Append)], remove: vec![] };
        assert!(CompiledHeaderOps::compile(&ops, Message::Response, &mut at).is_none());
        let errors: Vec<String> = at.into_errors().iter().map(ToString::to_string).collect();
        assert_eq!(
            errors,
            [
                "request_headers.add[0].name: `:method` cannot be set here",
                "request_headers.add[1].value: `%NOPE%` is not known",
                "request_headers.add[2].name: `a b` is no header name",
                "request_headers.add[2].value: contains a character that no header value can have",
                "request_headers.add[3].value: is a path and has to begin with `/`",
                "request_headers.remove[1]: `Host` cannot be removed",
                "request_headers.remove[2]: `:path` cannot be removed",
                "add[0].name: `host` cannot be set here",
            ]
        );
    }

    #[test]
    fn nothing() {
        assert!(compile(vec![], &[]).is_empty());
        assert!(compile(vec![put("x-a", "", Append)], &[]).is_empty());
        assert!(!compile(vec![], &["x-a"]).is_empty());
    }
}
