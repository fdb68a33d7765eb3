//! Where Cairn may differ from Envoy, and why: each rule points to a row of `docs/differences.md`.

use cairn_differential_tests::ask::Answer;
use cairn_differential_tests::compare::{Difference, Outcome};
use cairn_differential_tests::draft::{Draft, Protocol};

/// Why something differs.
pub struct Rule {
    /// Heading and first cell of a row of `docs/differences.md`.
    pub row: (&'static str, &'static str),
    covers: fn(&Case<'_>) -> bool,
}

/// A difference, and what came of the request.
pub struct Case<'a> {
    /// Of the theme.
    pub title: &'a str,
    /// What differs.
    pub difference: &'a Difference,
    /// The request.
    pub draft: &'a Draft,
    /// What came of it at Envoy.
    pub envoy: &'a Outcome,
    /// And at Cairn.
    pub cairn: &'a Outcome,
}

impl Case<'_> {
    fn is(&self, what: &str) -> bool {
        self.difference.what == what
    }

    /// Both sides, exactly.
    fn says(&self, envoy: &str, cairn: &str) -> bool {
        self.difference.envoy == envoy && self.difference.cairn == cairn
    }
}

/// All rules.
pub const RULES: [Rule; 11] = [
    Rule {
        row: ("HTTP/1 parsing", "a refused head of a gRPC request"),
        covers: |case| {
            case.is("verdict")
                && case.draft.path.contains('#')
                && case.draft.is_grpc()
                && case.draft.protocol == Protocol::Http1
                && case.envoy.reply().is_some_and(|reply| reply.header("grpc-status").is_some())
                && case.cairn.status() == 400
        },
    },
    Rule {
        row: ("Replies", "a reply to HEAD over HTTP/1.1 without a known length"),
        covers: |case| {
            case.draft.method == "HEAD"
                && case.draft.protocol == Protocol::Http1
                && (case.is("response transfer-encoding") && case.says("chunked", "(none)")
                    || case.is("response content-length")
                        && case.says("(none)", "0")
                        && case.cairn.received.is_empty())
        },
    },
    Rule {
        row: ("Replies", "a reply of our own before the request's body has come, HTTP/1.1"),
        covers: |case| {
            case.is("response connection")
                && (case.says("close", "(none)") || case.says("(none)", "close"))
                && case.draft.protocol == Protocol::Http1
                && !case.draft.body.is_empty()
                && case.cairn.received.is_empty()
        },
    },
    Rule {
        row: ("Replies", "gRPC trailers to an HTTP/1.1 client"),
        covers: |case| {
            case.difference.what.starts_with("trailer ")
                && case.difference.envoy == "(none)"
                && case.draft.protocol == Protocol::Http1
                && case.draft.is_grpc()
                && case.draft.header("te") == Some("trailers")
        },
    },
    Rule {
        row: ("Authorization and identity", "`source.ip`"),
        covers: |case| {
            case.is("verdict")
                && case.title == "authorization"
                && (case.envoy.status() == 403
                    || case.envoy.reply().and_then(|it| it.header("grpc-status")) == Some("7"))
                && matches!(case.cairn.received.as_slice(),
                    [(cluster, _)] if cluster == "inbound-vip|80|http|app.authz.svc.cluster.local")
        },
    },
    Rule {
        row: ("Authorization and identity", "policies of TCP destinations"),
        covers: |case| {
            case.is("verdict")
                && case.envoy.answer == Answer::Broken
                && case.cairn.answer == Answer::Refused(403)
        },
    },
    Rule {
        row: ("Retries", "a pooled connection that turned out dead"),
        covers: |case| {
            let Some(failing) = case.draft.header("x-reset-on") else { return false };
            let tries = |outcome: &[(String, _)]| {
                outcome.iter().filter(|(cluster, _)| cluster == failing).count()
            };
            let others = |outcome: &[(String, _)]| outcome.len() - tries(outcome);
            let (envoy, cairn) = (case.envoy.received.as_slice(), case.cairn.received.as_slice());
            case.is("clusters")
                && ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"]
                    .contains(&case.draft.method.as_str())
                && tries(cairn) == tries(envoy) + 1
                && others(cairn) == others(envoy)
        },
    },
    Rule {
        row: ("Protocols", "trailers of HTTP/1.1 messages"),
        covers: |case| case.is("trailer x-trailer") && case.says("(none)", "end"),
    },
    Rule {
        row: ("Protocols", "headers of mirrored requests"),
        covers: |case| {
            let added = |envoy: &str, cairn: &str| {
                envoy == "127.0.0.1" && cairn == "(none)" || *envoy == format!("{cairn},127.0.0.1")
            };
            let Difference { envoy, cairn, .. } = case.difference;
            case.envoy.received.len() > 1
                && (case.is("received x-envoy-internal") && case.says("true", "(none)")
                    || case.is("received expect") && case.says("100-continue", "(none)")
                    || case.is("received x-forwarded-for") && added(envoy, cairn))
        },
    },
    Rule {
        row: ("Protocols", "a header that is there twice"),
        covers: |case| {
            let Difference { what, envoy, cairn } = case.difference;
            what.starts_with("received ")
                && cairn.contains(" | ")
                && *envoy == cairn.replace(" | ", ",")
        },
    },
    Rule {
        row: ("Protocols", "`x-envoy-original-path`, `x-envoy-original-host` of a client"),
        covers: |case| {
            let name = case.difference.what.strip_prefix("received ").unwrap_or_default();
            ["x-envoy-original-path", "x-envoy-original-host"].contains(&name)
                && case.draft.header(name) == Some(&case.difference.envoy)
                && case.difference.cairn == "(none)"
        },
    },
];

/// The rule that covers it.
pub fn find(case: &Case<'_>) -> Option<usize> {
    RULES.iter().position(|rule| (rule.covers)(case))
}

/// Prints what each rule explained; returns 1 when one has no row, or explained nothing of the requests
/// that are always the same.
pub fn report(used: &[usize], usual: bool) -> usize {
    let documented = include_str!("../../../../docs/differences.md");
    let mut failed = 0;
    for (Rule { row: (heading, cell), .. }, count) in RULES.iter().zip(used) {
        println!("explained {count} times: {heading}: {cell}");
        let below = documented.split(&format!("\n## {heading}\n")).nth(1).unwrap_or_default();
        let section = below.split("\n## ").next().unwrap_or_default();
        if !section.contains(&format!("\n| {cell} |")) {
            println!("  docs/differences.md has no such row");
            failed = 1;
        }
        if *count == 0 && usual {
            println!("  it explained nothing: is it still true?");
            failed = 1;
        }
    }
    failed
}
