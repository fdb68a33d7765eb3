//! What differs between two proxies' answers, with what cannot be equal put aside.

use crate::ask::{Answer, Reply, TAG};
use cairn_test_support::backend::{DATE, Recorded};
use std::collections::BTreeMap;

/// Everything that came of one request at one proxy.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What the client saw.
    pub answer: Answer,
    /// What backends got, by cluster; more than once where it was retried or mirrored.
    pub received: Vec<(String, Recorded)>,
}

impl Outcome {
    /// The response, if there was one.
    pub fn reply(&self) -> Option<&Reply> {
        match &self.answer {
            Answer::Reply(reply) => Some(reply),
            _ => None,
        }
    }

    /// Its status; 0 without a response.
    pub fn status(&self) -> u16 {
        self.reply().map_or(0, |reply| reply.status)
    }

    /// Its body as text.
    pub fn body(&self) -> String {
        self.reply().map_or_else(String::new, |reply| String::from_utf8_lossy(&reply.body).into())
    }

    /// Status and, where the proxy itself answered, body; or what else happened.
    fn verdict(&self) -> String {
        match &self.answer {
            Answer::Refused(status) => format!("CONNECT refused: {status}"),
            Answer::Broken => "tunnel broken".to_owned(),
            Answer::Silent => "silence".to_owned(),
            Answer::Reply(reply) => format!("{} {}", reply.status, self.by()),
        }
    }

    fn by(&self) -> &'static str {
        let backend = self.reply().is_some_and(|reply| reply.header("x-backend").is_some());
        if backend { "by a backend" } else { "by the proxy" }
    }

    /// Clusters, as often as they were chosen.
    fn clusters(&self) -> String {
        let names: Vec<_> = self.received.iter().map(|(cluster, _)| cluster.as_str()).collect();
        names.join(" ")
    }
}

/// Something that is not the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// `verdict`, `clusters`, `body`, `response NAME`, `trailer NAME`, `request line`, `received NAME`,
    /// `received body`.
    pub what: String,
    /// Envoy's side.
    pub envoy: String,
    /// Cairn's side.
    pub cairn: String,
}

/// All differences. Where the verdicts differ the rest follows from that, and is left out.
pub fn compare(method: &str, envoy: &Outcome, cairn: &Outcome) -> Vec<Difference> {
    let mut all = Differences::default();
    all.note("verdict", &envoy.verdict(), &cairn.verdict());
    if !all.0.is_empty() {
        let with = |one: &Outcome| format!("{}: {:?}", one.verdict(), shorten(&one.body()));
        all.0[0].envoy = with(envoy);
        all.0[0].cairn = with(cairn);
        return all.0;
    }
    all.note("clusters", &envoy.clusters(), &cairn.clusters());
    if let (Some(a), Some(b)) = (envoy.reply(), cairn.reply()) {
        all.reply(method, a, b);
    }
    if all.0.iter().all(|difference| difference.what != "clusters") {
        for ((_, a), (_, b)) in envoy.received.iter().zip(&cairn.received) {
            all.received(a, b);
        }
    }
    all.0
}

#[derive(Default)]
struct Differences(Vec<Difference>);

impl Differences {
    fn note(&mut self, what: &str, envoy: &str, cairn: &str) {
        if envoy != cairn {
            let one = Difference {
                what: what.to_owned(),
                envoy: envoy.to_owned(),
                cairn: cairn.to_owned(),
            };
            if !self.0.contains(&one) {
                self.0.push(one);
            }
        }
    }

    fn reply(&mut self, method: &str, a: &Reply, b: &Reply) {
        self.note("interim", &format!("{:?}", a.interim), &format!("{:?}", b.interim));
        // An echo says what the backend got, which is compared by itself.
        let echo = |reply: &Reply| {
            let body = method == "HEAD" || reply.body.starts_with(b"{\"authority\"");
            reply.header("x-backend").is_some() && body
        };
        let echoes = echo(a) && echo(b);
        let fields = |reply: &Reply| {
            let mut fields = by_name(&reply.headers);
            if echoes && fields.contains_key("content-length") {
                fields.insert("content-length".to_owned(), vec!["(of an echo)".to_owned()]);
            }
            fields
        };
        self.fields("response", &fields(a), &fields(b));
        self.fields("trailer", &by_name(&a.trailers), &by_name(&b.trailers));
        if !echoes && a.body != b.body {
            let text = |reply: &Reply| shorten(&String::from_utf8_lossy(&reply.body));
            self.note("body", &text(a), &text(b));
        }
    }

    fn received(&mut self, a: &Recorded, b: &Recorded) {
        let line = |seen: &Recorded| {
            let Recorded { method, target, authority, version, .. } = seen;
            format!("{method} {target} {version} of {authority}")
        };
        self.note("request line", &line(a), &line(b));
        self.fields("received", &by_name(&a.headers.0), &by_name(&b.headers.0));
        self.fields("received trailer", &by_name(&a.trailers.0), &by_name(&b.trailers.0));
        if a.body != b.body {
            let length = |seen: &Recorded| format!("{} bytes", seen.body_len);
            self.note("received body", &length(a), &length(b));
        }
    }

    fn fields(&mut self, what: &str, a: &Fields, b: &Fields) {
        let names = a.keys().chain(b.keys().filter(|name| !a.contains_key(*name)));
        for name in names {
            let text = |fields: &Fields| match fields.get(name) {
                Some(values) => values.join(" | "),
                None => "(none)".to_owned(),
            };
            self.note(&format!("{what} {name}"), &text(a), &text(b));
        }
    }
}

type Fields = BTreeMap<String, Vec<String>>;

/// Values by name, in order, with what is made up for each request replaced.
fn by_name(fields: &[(String, String)]) -> Fields {
    let mut all = Fields::new();
    for (name, value) in fields {
        let name = name.to_ascii_lowercase();
        if name != TAG {
            let value = made_up(&name, value).map_or_else(|| value.clone(), str::to_owned);
            all.entry(name).or_default().push(value);
        }
    }
    all
}

fn made_up(name: &str, value: &str) -> Option<&'static str> {
    match name {
        "date" if value != DATE => Some("(a date)"),
        "x-request-id" if is_fresh_uuid(value) => Some("(a UUID)"),
        "x-envoy-upstream-service-time" if value.parse::<u64>().is_ok() => Some("(milliseconds)"),
        _ => None,
    }
}

fn is_fresh_uuid(value: &str) -> bool {
    let parts: Vec<_> = value.split('-').map(str::len).collect();
    parts == [8, 4, 4, 4, 12]
        && value.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit())
        && value != "0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9"
}

fn shorten(text: &str) -> String {
    text.chars().take(160).collect()
}
