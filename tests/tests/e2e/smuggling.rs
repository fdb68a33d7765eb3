//! Requests that two parsers could read differently: refused, and nothing of them reaches a backend.

use cairn_test_support::config::all_to;
use cairn_test_support::raw_h2::{RawH2, flag, kind};
use cairn_test_support::stage::{Run, Stage, VIP};
use cairn_test_support::wait::{drive, within};

/// What must never be taken for a request of its own.
const HIDDEN: &str = "GET /smuggled HTTP/1.1\r\nHost: app.test\r\n\r\n";

async fn stage() -> (Stage, Run) {
    let stage = Stage::new().await;
    let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
    (stage, run)
}

/// Sends bytes, returns the statuses of all responses until the tunnel ends.
async fn statuses(run: &Run, what: &str, bytes: &[u8]) -> Vec<u16> {
    let mut http = run.http().await;
    let _ = http.send(bytes).await;
    let mut statuses = Vec::new();
    loop {
        match within(&format!("{what}, after {statuses:?}"), http.response()).await {
            Ok(response) if statuses.len() < 5 => statuses.push(response.status),
            _ => return statuses,
        }
    }
}

#[test]
fn a_head_that_is_ambiguous_gets_400() {
    drive(async {
        let (stage, run) = stage().await;
        let post = "POST / HTTP/1.1\r\nHost: app.test\r\n";
        let get = "GET / HTTP/1.1\r\nHost: app.test\r\n";
        let cases: Vec<(&str, String)> = vec![
            (
                "CL and TE",
                format!("{post}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            ),
            (
                "TE and CL",
                format!("{post}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n"),
            ),
            ("equal CLs", format!("{post}Content-Length: 4\r\nContent-Length: 4\r\n\r\nbody")),
            ("different CLs", format!("{post}Content-Length: 4\r\nContent-Length: 5\r\n\r\nbody!")),
            ("list of CLs", format!("{post}Content-Length: 4, 4\r\n\r\nbody")),
            ("signed CL", format!("{post}Content-Length: +4\r\n\r\nbody")),
            ("negative CL", format!("{post}Content-Length: -1\r\n\r\n")),
            ("hexadecimal CL", format!("{post}Content-Length: 0x4\r\n\r\nbody")),
            ("CL with words", format!("{post}Content-Length: 4 bytes\r\n\r\nbody")),
            ("empty CL", format!("{post}Content-Length: \r\n\r\n")),
            ("huge CL", format!("{post}Content-Length: 99999999999999999999\r\n\r\n")),
            ("space before the colon of CL", format!("{post}Content-Length : 4\r\n\r\nbody")),
            (
                "space before the colon of TE",
                format!("{post}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
            ),
            ("tab before a colon", format!("{get}X\t: 1\r\n\r\n")),
            (
                "TE chunked twice",
                format!(
                    "{post}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
                ),
            ),
            (
                "TE chunked, chunked",
                format!("{post}Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
            ),
            ("TE of another name", format!("{post}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n")),
            ("TE quoted", format!("{post}Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n")),
            (
                "TE with a vertical tab",
                format!("{post}Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
            ),
            ("TE identity", format!("{post}Transfer-Encoding: identity\r\n\r\n")),
            (
                "TE chunked, identity",
                format!("{post}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
            ),
            ("TE empty", format!("{post}Transfer-Encoding: \r\n\r\n")),
            ("bare LF", "GET / HTTP/1.1\nHost: app.test\n\n".to_owned()),
            ("bare LF after a header", format!("{get}X: 1\nY: 2\r\n\r\n")),
            ("bare LF at the end", "GET / HTTP/1.1\r\nHost: app.test\r\n\n".to_owned()),
            ("bare CR in a value", format!("{get}X: a\rTransfer-Encoding: chunked\r\n\r\n")),
            ("bare CR as a line end", "GET / HTTP/1.1\rHost: app.test\r\r".to_owned() + "\r\n\r\n"),
            ("obs-fold", format!("{get}X: a\r\n b\r\n\r\n")),
            ("obs-fold of TE", format!("{post}Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n")),
            (
                "a folded first header",
                "GET / HTTP/1.1\r\n X: 1\r\nHost: app.test\r\n\r\n".to_owned(),
            ),
            ("NUL in a value", format!("{get}X: a\0b\r\n\r\n")),
            ("NUL in a name", format!("{get}X\0: a\r\n\r\n")),
            ("a header without a colon", format!("{get}nonsense\r\n\r\n")),
            ("an empty name", format!("{get}: value\r\n\r\n")),
            ("a name with a space", format!("{get}X Y: 1\r\n\r\n")),
            ("a name with a bracket", format!("{get}X(Y): 1\r\n\r\n")),
            ("a name beyond ASCII", format!("{get}Xé: 1\r\n\r\n")),
            ("no host", "GET / HTTP/1.1\r\nX: 1\r\n\r\n".to_owned()),
            ("two hosts", format!("{get}Host: app.test\r\n\r\n")),
            ("two different hosts", format!("{get}Host: evil.test\r\n\r\n")),
            ("a host with a path", "GET / HTTP/1.1\r\nHost: app.test/admin\r\n\r\n".to_owned()),
            ("a host with a user", "GET / HTTP/1.1\r\nHost: a@app.test\r\n\r\n".to_owned()),
            ("a host with a space", "GET / HTTP/1.1\r\nHost: app test\r\n\r\n".to_owned()),
            (
                "absolute form of another host",
                "GET http://evil.test/ HTTP/1.1\r\nHost: app.test\r\n\r\n".to_owned(),
            ),
            (
                "absolute form of another port",
                "GET http://app.test:81/ HTTP/1.1\r\nHost: app.test\r\n\r\n".to_owned(),
            ),
            (
                "CONNECT inside CONNECT",
                "CONNECT 10.96.0.11:80 HTTP/1.1\r\nHost: 10.96.0.11:80\r\n\r\n".to_owned(),
            ),
            ("another version", "GET / HTTP/1.2\r\nHost: app.test\r\n\r\n".to_owned()),
            ("version 2", "GET / HTTP/2.0\r\nHost: app.test\r\n\r\n".to_owned()),
            ("no version", "GET /\r\nHost: app.test\r\n\r\n".to_owned()),
            ("lower case version", "GET / http/1.1\r\nHost: app.test\r\n\r\n".to_owned()),
            ("two spaces", "GET  / HTTP/1.1\r\nHost: app.test\r\n\r\n".to_owned()),
            (
                "two spaces before the version",
                "GET /  HTTP/1.1\r\nHost: app.test\r\n\r\n".to_owned(),
            ),
            ("a space in the target", "GET /a b HTTP/1.1\r\nHost: app.test\r\n\r\n".to_owned()),
            ("a tab in the request line", "GET\t/ HTTP/1.1\r\nHost: app.test\r\n\r\n".to_owned()),
            ("a space in front", " GET / HTTP/1.1\r\nHost: app.test\r\n\r\n".to_owned()),
            ("a method with a bracket", "G(T / HTTP/1.1\r\nHost: app.test\r\n\r\n".to_owned()),
            ("a target without a slash", "GET admin HTTP/1.1\r\nHost: app.test\r\n\r\n".to_owned()),
            ("a fragment", "GET /a#b HTTP/1.1\r\nHost: app.test\r\n\r\n".to_owned()),
            (
                "a control byte in the target",
                "GET /a\x01b HTTP/1.1\r\nHost: app.test\r\n\r\n".to_owned(),
            ),
            ("DEL in the target", "GET /a\x7fb HTTP/1.1\r\nHost: app.test\r\n\r\n".to_owned()),
        ];
        for (what, bytes) in &cases {
            let bytes = format!("{bytes}{HIDDEN}");
            let seen = statuses(&run, what, bytes.as_bytes()).await;
            let unknown_coding = what.starts_with("TE ") && seen == [501];
            assert!(
                seen == [400] || unknown_coding,
                "{what}: one answer, and the tunnel ends: {seen:?}"
            );
            assert_eq!(stage.app.requests(), 0, "{what}: {:?}", stage.app.log());
        }
        assert_eq!(run.http().await.get("/").await.unwrap().status, 200);
    });
}

#[test]
fn http_1_0_with_chunks_is_refused() {
    drive(async {
        let (stage, run) = stage().await;
        let bytes = format!(
            "POST / HTTP/1.0\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}"
        );
        let seen = statuses(&run, "chunked HTTP/1.0", bytes.as_bytes()).await;
        assert!(seen == [400] || seen == [426], "{seen:?}");
        assert_eq!(stage.app.requests(), 0);
    });
}

#[test]
fn chunks_that_are_malformed_end_the_tunnel() {
    drive(async {
        let (stage, run) = stage().await;
        for (what, body) in [
            ("a prefix", "0x5\r\nhello\r\n0\r\n\r\n"),
            ("a sign", "+5\r\nhello\r\n0\r\n\r\n"),
            ("a space in front", " 5\r\nhello\r\n0\r\n\r\n"),
            ("no digits", "\r\nhello\r\n0\r\n\r\n"),
            ("an underscore", "5_0\r\nhello\r\n0\r\n\r\n"),
            ("too many digits", "00000000000000005\r\nhello\r\n0\r\n\r\n"),
            ("an overflow", "ffffffffffffffff1\r\nhello\r\n0\r\n\r\n"),
            ("a bare LF after the size", "5\nhello\r\n0\r\n\r\n"),
            ("a bare CR after the size", "5\rhello\r\n0\r\n\r\n"),
            ("a bare LF in an extension", "5;a\nhello\r\n0\r\n\r\n"),
            ("a bare LF after the data", "5\r\nhello\n0\r\n\r\n"),
            ("data that is too long", "3\r\nhello\r\n0\r\n\r\n"),
            ("data that is too short", "7\r\nhello\r\n0\r\n\r\n"),
            ("a bare LF at the end", "5\r\nhello\r\n0\r\n\n"),
            ("a trailer without a colon", "0\r\nnonsense\r\n\r\n"),
            ("a trailer with a space before its colon", "0\r\nx : 1\r\n\r\n"),
            ("a folded trailer", "0\r\nx: 1\r\n 2\r\n\r\n"),
        ] {
            let head =
                "POST /chunks HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n";
            let bytes = format!("{head}{body}{HIDDEN}");
            let seen = statuses(&run, what, bytes.as_bytes()).await;
            // The head may be on its way already when a chunk is seen to be bad.
            assert!(seen == [400] || seen.is_empty(), "{what}: {seen:?}");
            assert_eq!(stage.app.requests(), 0, "{what}: {:?}", stage.app.log());
        }
        assert_eq!(run.http().await.get("/").await.unwrap().status, 200);
    });
}

#[test]
fn trailers_carry_no_framing_or_routing() {
    drive(async {
        let (stage, run) = stage().await;
        let head =
            "POST /trailers HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n";
        for field in ["content-length: 5", "transfer-encoding: chunked", "host: evil.test"] {
            let bytes = format!(
                "{head}0\r\n{field}\r\n\r\nGET / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n"
            );
            statuses(&run, field, bytes.as_bytes()).await;
            for seen in stage.app.log() {
                assert!(seen.trailers.0.is_empty(), "{field} was passed on: {seen:?}");
            }
        }
    });
}

#[test]
fn h2c_requests_that_http1_would_misread_are_refused() {
    drive(async {
        let (stage, run) = stage().await;
        let good =
            [(":method", "GET"), (":scheme", "http"), (":path", "/h2"), (":authority", "app.test")];
        let with = |extra: &[(&'static str, &'static str)]| {
            let mut fields = good.to_vec();
            fields.extend_from_slice(extra);
            fields
        };
        let replaced = |name: &str, value: &'static str| {
            good.iter()
                .map(|(key, old)| (*key, if *key == name { value } else { *old }))
                .collect::<Vec<_>>()
        };
        let without =
            |name: &str| good.iter().filter(|(key, _)| *key != name).copied().collect::<Vec<_>>();
        for (what, fields) in [
            ("transfer-encoding", with(&[("transfer-encoding", "chunked")])),
            ("connection", with(&[("connection", "close")])),
            ("upgrade", with(&[("upgrade", "websocket")])),
            ("keep-alive", with(&[("keep-alive", "5")])),
            ("te other than trailers", with(&[("te", "chunked")])),
            ("CR LF in a value", with(&[("x", "a\r\ntransfer-encoding: chunked")])),
            ("LF in a value", with(&[("x", "a\nb")])),
            ("NUL in a value", with(&[("x", "a\0b")])),
            ("CR LF in a name", with(&[("x\r\ny", "a")])),
            ("colon in a name", with(&[("x:y", "a")])),
            ("upper case in a name", with(&[("X-Upper", "a")])),
            ("an empty name", with(&[("", "a")])),
            ("content-length with a sign", with(&[("content-length", "+0")])),
            ("two content-lengths", with(&[("content-length", "0"), ("content-length", "1")])),
            ("a content-length that is wrong", with(&[("content-length", "5")])),
            ("another host", with(&[("host", "evil.test")])),
            ("two paths", with(&[(":path", "/smuggled")])),
            ("two authorities", with(&[(":authority", "evil.test")])),
            ("an unknown pseudo-header", with(&[(":unknown", "1")])),
            ("a path without a slash", replaced(":path", "admin")),
            ("an empty path", replaced(":path", "")),
            ("a path with a space", replaced(":path", "/a HTTP/1.1")),
            ("a path with CR LF", replaced(":path", "/a\r\nx: y")),
            ("a method with a space", replaced(":method", "GET /smuggled")),
            (
                "CONNECT inside CONNECT",
                vec![(":method", "CONNECT"), (":authority", "10.96.0.11:80")],
            ),
            ("no path", without(":path")),
            ("no method", without(":method")),
            ("no authority", without(":authority")),
        ] {
            let mut raw = RawH2::new(run.tunnel(VIP).await);
            raw.preface(&[]).await.unwrap();
            raw.headers(1, &fields, true).await.unwrap();
            match within(what, raw.answer(1)).await {
                Some(answer) if answer.kind == kind::HEADERS => {
                    assert_eq!(answer.status(), Some(400), "{what}");
                }
                Some(_) | None => {}
            }
            assert_eq!(stage.app.requests(), 0, "{what}: {:?}", stage.app.log());
        }
        let mut raw = RawH2::new(run.tunnel(VIP).await);
        raw.preface(&[]).await.unwrap();
        raw.headers(1, &good, true).await.unwrap();
        assert_eq!(raw.answer(1).await.unwrap().status(), Some(200), "the good one");
    });
}

#[test]
fn h2c_data_must_be_as_long_as_announced() {
    drive(async {
        let (stage, run) = stage().await;
        for (what, announced, data) in
            [("too much", "3", &b"12345"[..]), ("too little", "9", b"12345")]
        {
            let mut raw = RawH2::new(run.tunnel(VIP).await);
            raw.preface(&[]).await.unwrap();
            let fields = [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", "/h2"),
                (":authority", "app.test"),
                ("content-length", announced),
            ];
            raw.headers(1, &fields, false).await.unwrap();
            raw.frame(kind::DATA, flag::END_STREAM, 1, data).await.unwrap();
            let answer = within(what, raw.answer(1)).await;
            assert_ne!(answer.and_then(|frame| frame.status()), Some(200), "{what}");
            assert_eq!(stage.app.requests(), 0, "{what}: {:?}", stage.app.log());
        }
        assert_eq!(run.h2c().await.get("/").await.unwrap().status, 200);
    });
}
