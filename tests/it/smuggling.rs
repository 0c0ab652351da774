//! Requests and answers whose framing is doubtful: one reading of them, or none.

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";

#[test]
fn request_with_ambiguous_framing_is_refused() {
    let origin = Origin::start();
    let gateway = Gateway::start(&origin);
    let hidden = "GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n";
    let length = hidden.len() + 5;
    let cases = [
        format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{hidden}"),
        format!(
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\
             Content-Length: {length}\r\n\r\n0\r\n\r\n{hidden}"
        ),
        format!("Transfer-Encoding: xchunked\r\nContent-Length: {length}\r\n\r\n0\r\n\r\n{hidden}"),
        format!("Transfer-Encoding : chunked\r\nContent-Length: {length}\r\n\r\n0\r\n\r\n{hidden}"),
        format!("Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!(
            "Transfer-Encoding:\x0bchunked\r\nContent-Length: {length}\r\n\r\n0\r\n\r\n{hidden}"
        ),
        format!("Content-Length: 5\r\nContent-Length: {length}\r\n\r\n0\r\n\r\n{hidden}"),
        format!("Content-Length: 5, {length}\r\n\r\n0\r\n\r\n{hidden}"),
        format!("Content-Length: +5\r\n\r\n0\r\n\r\n{hidden}"),
        format!("Content-Length: -5\r\n\r\n0\r\n\r\n{hidden}"),
        format!("Content-Length: 0x5\r\n\r\n0\r\n\r\n{hidden}"),
        format!("Content-Length: \r\n\r\n0\r\n\r\n{hidden}"),
        format!("X: y\r\n folded: z\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{hidden}"),
        format!("X: a\nContent-Length: {length}\r\n\r\n0\r\n\r\n{hidden}"),
        format!("X: a\rContent-Length: {length}\r\n\r\n0\r\n\r\n{hidden}"),
        format!("Content_Length: {length}\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{hidden}"),
        format!("Transfer-Encoding: chunked\r\n\r\n5;\x01=x\r\nabcde\r\n0\r\n\r\n{hidden}"),
        format!("Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n0\r\n\r\n{hidden}"),
        format!("Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n\r\n0\r\n\r\n{hidden}"),
    ];
    for (number, case) in cases.iter().enumerate() {
        let path = format!("/case/{number}");
        let mut connection = gateway.client().connect();
        connection.send_raw(format!("POST {path} HTTP/1.1\r\nHost: x\r\n{case}"));
        connection.end_of_sending();
        // An answer or two, or none: what counts is what the API saw.
        connection.rest();
        for seen in origin.seen() {
            let known = seen.path().starts_with("/case/")
                || seen.path() == "/hidden"
                || seen.path() == "/alive";
            assert!(known, "{case:?} became {seen:#?}");
            let lengths = seen
                .headers
                .iter()
                .filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
                .count();
            let coded = seen.header("transfer-encoding").is_some();
            assert!(
                lengths <= 1 && !(lengths == 1 && coded),
                "{case:?} went on as doubtful as it came: {seen:#?}"
            );
        }
        assert!(origin.count(|seen| seen.path() == path) <= 1, "{case:?}");
        gateway.client().get("/alive").send().assert_status(200);
    }
}

#[test]
fn request_with_two_framings_gets_400_and_ends_the_connection() {
    let origin = Origin::start();
    let gateway = Gateway::start(&origin);
    for doubtful in [
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: x\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "X : y\r\n",
    ] {
        let mut connection = gateway.client().connect();
        connection.send_raw(format!("POST /x HTTP/1.1\r\nHost: x\r\n{doubtful}\r\n"));
        let response = connection
            .read("POST", Kind::Forwarded)
            .unwrap_or_else(|| panic!("no answer to {doubtful:?}"));
        assert_eq!(response.status, 400, "{doubtful:?}: {response:#?}");
        assert_eq!(connection.rest(), b"", "{doubtful:?}");
    }
    assert_eq!(origin.requests(), 0);
}

#[test]
fn response_with_ambiguous_framing_reveals_no_secret() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let secret = upstream_document(DUCK);
    let length = secret.len();
    let smuggled = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{secret}"
    );
    let answers = [
        format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: {length}\r\n\r\n{secret}"),
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}".to_owned(),
        format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{{}}{smuggled}"),
        format!("HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 2\r\n\r\n{{}}{smuggled}"),
        "HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 2\r\n\r\n{}".to_owned(),
        format!("HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n{smuggled}"),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n".to_owned(),
        "nonsense\r\n\r\n".to_owned(),
        String::new(),
    ];
    for answer in answers {
        gateway.admin().delete("/cache").send().assert_status(200);
        origin.when(Rule::on("/customer/").raw_kept_open(answer.as_str()).times(1));
        let response = gateway.client().get(P).bearer("tok-a").send();
        assert!(matches!(response.status, 200 | 502 | 504), "{answer:?}: {response:#?}");
        assert!(!response.cache_status().contains("hit"), "{response:#?}");
        origin.behave();
        gateway.admin().delete("/cache").send().assert_status(200);
        let next = gateway.client().get(P).bearer("tok-a").send();
        assert_eq!(next.assert_status(200).text(), redacted_document(DUCK), "after {answer:?}");
        gateway.client().get("/alive").send().assert_status(200);
    }
}

#[test]
fn unsolicited_bytes_on_an_idle_connection_are_no_response() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let unasked = r#"HTTP/1.1 200 OK
Content-Length: 11

unasked-for"#
        .replace('\n', "\r\n");
    let good = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood";
    origin.when(Rule::on("/first").raw_kept_open(format!("{good}{unasked}")));
    for round in 0..5 {
        gateway.client().get("/first").try_send();
        let next = gateway.client().get(&format!("/next/{round}")).send();
        assert!(!next.text().contains("unasked"), "{next:#?}");
    }
}

#[test]
fn pipelined_second_request_gets_its_own_response_or_none() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    origin.knows("tok-b", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    for _ in 0..2 {
        let mut connection = client.connect();
        let mut both = client.get(P).bearer("tok-a").bytes();
        both.extend(client.get(&name_of(OTHER)).bearer("tok-b").bytes());
        connection.send_raw(&both);
        let first = connection.read("GET", Kind::Intercepted).expect("an answer to the first");
        assert_eq!(first.assert_status(200).json()["_id"], DUCK);
        if let Some(second) = connection.read("GET", Kind::Intercepted) {
            assert_eq!(second.assert_status(200).json()["_id"], OTHER);
        }
    }
    for seen in origin.fetched(DUCK) {
        assert_eq!(seen.token().as_deref(), Some("tok-a"));
    }
    for seen in origin.fetched(OTHER) {
        assert_eq!(seen.token().as_deref(), Some("tok-b"));
    }
}
