//! How long a route's changes to a request take.

#![allow(missing_docs, clippy::unwrap_used)] // made by Criterion's macros; a benchmark may panic

use cairn_router::error::Context;
use cairn_router::format::FormatContext;
use cairn_router::header_ops::{CompiledHeaderOps, HeaderSink, Message, RequestSink};
use cairn_router::request::{HeaderKey, Headers};
use cairn_router::spec::{HeaderAppend, HeaderOps, HeaderValue as Put};
use criterion::{Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use std::borrow::Cow;
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};

/// A request as the changes see it.
#[derive(Clone)]
struct Request(HeaderMap);

impl Headers for Request {
    fn first(&self, key: &HeaderKey) -> Option<Cow<'_, [u8]>> {
        match key {
            HeaderKey::Path => Some(Cow::Borrowed(b"/api/orders/1907")),
            HeaderKey::Authority => self.0.get(header::HOST).map(|value| value.as_bytes().into()),
            key => self.0.first(key),
        }
    }
}

impl HeaderSink for Request {
    fn insert(&mut self, name: &HeaderName, value: HeaderValue) {
        self.0.insert(name, value);
    }

    fn append(&mut self, name: &HeaderName, value: HeaderValue) {
        self.0.append(name, value);
    }

    fn remove(&mut self, name: &HeaderName) {
        self.0.remove(name);
    }
}

impl RequestSink for Request {
    fn set_authority(&mut self, authority: &HeaderValue) {
        self.0.insert(header::HOST, authority.clone());
    }

    fn set_path(&mut self, path_and_query: &str) {
        black_box(path_and_query);
    }
}

fn ops(values: &[(&str, &str)]) -> CompiledHeaderOps {
    let put = |(name, value): &(&str, &str)| Put {
        name: (*name).to_owned(),
        value: (*value).to_owned(),
        action: HeaderAppend::Overwrite,
    };
    let spec =
        HeaderOps { add: values.iter().map(put).collect(), remove: vec!["x-internal".to_owned()] };
    CompiledHeaderOps::compile(&spec, Message::Request, &mut Context::new()).unwrap()
}

fn change(criterion: &mut Criterion) {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("host", "app.shop.svc.cluster.local"),
        ("user-agent", "benches/1"),
        ("accept", "*/*"),
        ("x-request-id", "7b3f1a0e-6d6c-4b0a-9a41-0d8b1f6f4a55"),
        ("x-forwarded-proto", "http"),
        ("x-internal", "yes"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let request = Request(headers);
    let context = FormatContext {
        peer_uri_san: Some("spiffe://cluster.local/ns/shop/sa/web"),
        downstream_remote: Some(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 40000)),
        ..FormatContext::default()
    };
    let mut group = criterion.benchmark_group("header changes");
    let cases = [
        ("none", CompiledHeaderOps::default()),
        ("three fixed", ops(&[("x-a", "1"), ("x-b", "2"), ("x-route", "orders")])),
        (
            "three formatted",
            ops(&[
                ("x-client", "%DOWNSTREAM_PEER_URI_SAN%"),
                ("x-from", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
                ("x-id", "id-%REQ(X-REQUEST-ID)%"),
            ]),
        ),
    ];
    for (name, ops) in cases {
        group.bench_function(name, |bencher| {
            bencher.iter_batched_ref(
                || request.clone(),
                |request| ops.apply_to_request(request, black_box(&context)),
                criterion::BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, change);
criterion_main!(benches);
