//! What endpoints answer, however odd: passed on where it is clear, refused where it is not, and
//! never mixed up with the next response.

use cairn_test_support::backend::hex;
use cairn_test_support::config::all_to;
use cairn_test_support::http1::{Http1, Response};
use cairn_test_support::stage::{Run, Stage, VIP};
use cairn_test_support::stream::H2Stream;
use cairn_test_support::wait::{drive, within};
use cairn_test_support::websocket;

/// The answer to a request that the backend answers with these bytes.
async fn raw(http: &mut Http1<H2Stream>, method: &str, bytes: &str) -> std::io::Result<Response> {
    let path = format!("/raw?hex={}", hex(bytes));
    within(bytes, http.request(method, &path, &[], b"")).await
}

/// The next requests get their own answers.
async fn nothing_is_mixed_up(run: &Run, http: &mut Http1<H2Stream>, after: &str) {
    for _ in 0..3 {
        let response = within(after, http.get("/status/418")).await.unwrap();
        assert_eq!((response.status, response.backend()), (418, "app"), "after {after}");
    }
    let response = run.h2c().await.get("/status/418").await.unwrap();
    assert_eq!(response.status, 418, "after {after}");
}

#[test]
fn interim_responses_pass() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        let mut http = run.http().await;
        let hints = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        let response = raw(&mut http, "GET", hints).await.unwrap();
        assert_eq!((response.status, response.text().as_str()), (200, "ok"));
        assert!(response.interim.is_empty() || response.interim == [103], "{response:?}");
        nothing_is_mixed_up(&run, &mut http, "103").await;
    });
}

#[test]
fn bodies_that_must_not_be_are_not_taken_for_responses() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        let poison = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison";
        let length = poison.len();
        for (method, head, status) in [
            ("HEAD", format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n"), 200),
            ("GET", format!("HTTP/1.1 304 Not Modified\r\ncontent-length: {length}\r\n\r\n"), 304),
            ("GET", "HTTP/1.1 204 No Content\r\n\r\n".to_owned(), 204),
            ("GET", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned(), 200),
        ] {
            let mut http = run.http().await;
            let response = raw(&mut http, method, &format!("{head}{poison}")).await.unwrap();
            assert_eq!((response.status, response.body.len()), (status, 0), "{head}");
            nothing_is_mixed_up(&run, &mut http, &head).await;
        }
        // A length where there can be no body is a contradiction.
        let mut http = run.http().await;
        let contradiction = "HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\nhello";
        let response = raw(&mut http, "GET", contradiction).await.unwrap();
        assert!(matches!(response.status, 204 | 502), "{response:?}");
        let mut http = run.http().await;
        nothing_is_mixed_up(&run, &mut http, contradiction).await;
    });
}

#[test]
fn old_and_endless_responses_are_delimited_by_their_end() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        let mut http = run.http().await;
        let old = "HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\nold";
        let response = raw(&mut http, "GET", old).await.unwrap();
        assert_eq!((response.status, response.text().as_str()), (200, "old"));
        assert_eq!(response.version, "HTTP/1.1");
        nothing_is_mixed_up(&run, &mut http, old).await;
        // HTTP/1.0 knows no chunks.
        let chunks = "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nold\r\n0\r\n\r\n";
        let response = raw(&mut http, "GET", chunks).await;
        assert!(
            response
                .as_ref()
                .is_ok_and(|response| response.status == 502 || response.text() == "old"),
            "{response:?}"
        );
    });
}

#[test]
fn upgrades_that_nobody_asked_for_are_refused() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        let mut http = run.http().await;
        let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison";
        let response = raw(&mut http, "GET", switch).await.unwrap();
        assert!(response.status >= 500, "{response:?}");
        let mut http = run.http().await;
        nothing_is_mixed_up(&run, &mut http, "101").await;
    });
}

#[test]
fn a_websocket_to_an_http2_endpoint_is_answered() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec_h2().http(VIP, all_to("app"))).await;
        match within("an answer", websocket::upgrade(run.http().await, "/ws")).await.unwrap() {
            Ok((mut socket, _)) => within("the echo", socket.echo("hello")).await.unwrap(),
            // An endpoint may ignore an upgrade.
            Err(response) => assert_ne!(response.status, 101, "{response:?}"),
        }
        assert_eq!(run.http().await.get("/").await.unwrap().status, 200);
    });
}

#[test]
fn malformed_chunks_break_the_response_off() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        for chunks in [
            "zz\r\nhello\r\n0\r\n\r\n",
            "5\nhello\r\n0\r\n\r\n",
            "3\r\nhello\r\n0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "-5\r\nhello\r\n0\r\n\r\n",
            "ffffffffffffffffff\r\nhello",
        ] {
            let mut http = run.http().await;
            let bytes = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunks}");
            let response = raw(&mut http, "GET", &bytes).await;
            assert!(
                response.is_err() || response.is_ok_and(|response| response.status == 502),
                "{chunks:?} was passed as a whole response"
            );
            let mut http = run.http().await;
            nothing_is_mixed_up(&run, &mut http, chunks).await;
        }
    });
}

#[test]
fn bytes_that_come_unasked_spoil_the_connection() {
    drive(async {
        let stage = Stage::new().await;
        let run = stage.run(&stage.spec().http(VIP, all_to("app"))).await;
        let mut http = run.http().await;
        for round in 0..20 {
            // The second response arrives with the first, or a moment after it.
            let two = "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n1HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison";
            let response = raw(&mut http, "GET", two).await.unwrap();
            assert_eq!(response.text(), "1", "round {round}");
            let response = http.get("/status/418").await.unwrap();
            assert_eq!(response.status, 418, "round {round}");
        }
    });
}
