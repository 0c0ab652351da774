//! What a request may look like: a protected path spelled in another way is refused, and nothing
//! malformed gets through.

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";

/// An origin that sends secrets for every path, a gateway, and a caller who may not see them.
fn scene() -> (Origin, Gateway) {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    origin.when(Rule::on("").answer(Answer::json(upstream_document(DUCK))));
    origin.when(Rule::on("/auth/validateToken"));
    let gateway = Gateway::start(&origin);
    (origin, gateway)
}

#[test]
fn protected_path_in_another_spelling_is_refused() {
    let (origin, gateway) = scene();
    let aliases = [
        "/customer/73469a52f4fd7f77ec7b28cc/name/",
        "/customer/73469a52f4fd7f77ec7b28cc/name;a=b",
        "/customer/73469a52f4fd7f77ec7b28cc;a=b/name",
        "/customer;x/73469a52f4fd7f77ec7b28cc/name",
        "/customer/73469a52f4fd7f77ec7b28cc/name%2f",
        "/customer/73469a52f4fd7f77ec7b28cc/name%00",
        "/customer/73469a52f4fd7f77ec7b28cc/n%61me",
        "/customer/73469a52f4fd7f77ec7b28cc/n%2561me",
        "/customer/73469a52f4fd7f77ec7b28cc/n%252561me",
        "/customer/73469a52f4fd7f77ec7b28cc/Name",
        "/customer/73469a52f4fd7f77ec7b28cc%2fname",
        "/customer/73469a52f4fd7f77ec7b28cc%5Cname",
        "/customer/73469a52f4fd7f77ec7b28cc\\name",
        "/customer/73469a52f4fd7f77ec7b28cc//name",
        "/customer/73469a52f4fd7f77ec7b28cc/./name",
        "/customer/73469a52f4fd7f77ec7b28cc/x/../name",
        "/customer/73469a52f4fd7f77ec7b28cc/%2e/name",
        "/customer/7346%39a52f4fd7f77ec7b28cc/name",
        "/customer//73469a52f4fd7f77ec7b28cc/name",
        "//customer/73469a52f4fd7f77ec7b28cc/name",
        "/./customer/73469a52f4fd7f77ec7b28cc/name",
        "/x/../customer/73469a52f4fd7f77ec7b28cc/name",
        "/x/%2e%2e/customer/73469a52f4fd7f77ec7b28cc/name",
        "/x/%252e%252e/customer/73469a52f4fd7f77ec7b28cc/name",
        "/x/..%2fcustomer/73469a52f4fd7f77ec7b28cc/name",
        "/x\\..\\customer\\73469a52f4fd7f77ec7b28cc\\name",
        "\\customer\\73469a52f4fd7f77ec7b28cc\\name",
        "/CUSTOMER/73469a52f4fd7f77ec7b28cc/name",
        "/Customer",
        "/customer/",
        "/%63ustomer/73469a52f4fd7f77ec7b28cc",
        "/%2563ustomer/73469a52f4fd7f77ec7b28cc",
        "/%61uth/login",
        "/AUTH/login",
        "/x/../auth/login",
        "/Employee/ee0000000000000000000001",
        "/employee//ee0000000000000000000001",
        "/LOG/changelog",
        "/log/./changelog",
        "/tools/realtim%65",
        "/Tools/realtime",
        "/tools//realtime",
        "/x/../tools/realtime",
        "/pbx/app/notification/send/CallerId",
    ];
    for alias in aliases {
        for method in ["GET", "POST"] {
            let response =
                gateway.client().call(method, alias).bearer("tok-a").kind(Kind::Forwarded).send();
            response.assert_error(400, "bad_request");
        }
        assert_eq!(
            origin.count(|seen| seen.path() != "/auth/validateToken"),
            0,
            "{alias} reached the API"
        );
    }
    gateway.client().get(P).bearer("tok-a").send().assert_status(200);
}

#[test]
fn blocked_path_is_refused_for_every_caller() {
    let (origin, gateway) = scene();
    origin.knows("tok-admin", "ADMIN", DUCK);
    let blocked = [
        "/tools/realtime",
        "/tools/realtime?x=1",
        "/tools/realtime/below/it",
        "/porting/123/notify",
        "/pbx/app/notification/send/callerid",
    ];
    for path in blocked {
        for method in ["GET", "POST", "DELETE", "OPTIONS"] {
            gateway
                .client()
                .call(method, path)
                .bearer("tok-admin")
                .send()
                .assert_error(403, "access_denied");
            gateway.client().call(method, path).send().assert_error(403, "access_denied");
        }
    }
    assert_eq!(origin.count(|seen| seen.path() != "/auth/validateToken"), 0);
    for path in ["/tools/realtimes", "/tools", "/porting/123", "/porting/1/2/notify"] {
        gateway.client().get(path).bearer("tok-a").revealed().send().assert_status(200);
    }
}

#[test]
fn id_of_another_shape_is_forwarded_and_redacted() {
    let (origin, gateway) = scene();
    let ids =
        ["73469a52f4fd7f77ec7b28c", "73469a52f4fd7f77ec7b28cc0", "73469a52f4fd7f77ec7b28cg", "me"];
    for id in ids {
        let path = format!("/customer/{id}/name");
        let response = gateway.client().get(&path).bearer("tok-a").send();
        assert_eq!(response.assert_status(200).text(), redacted_document(DUCK), "{id}");
        assert_eq!(response.cache_status(), "telecomx-gateway; fwd=bypass", "{id}");
        assert_eq!(origin.last(&path).expect("it was forwarded").target, path);
    }
    for path in [
        "/customer/73469a52f4fd7f77ec7b28cc/name.json",
        "/customer/73469a52f4fd7f77ec7b28cc/name/x.css",
    ] {
        let response = gateway.client().get(path).bearer("tok-a").send();
        assert_eq!(response.assert_status(200).text(), redacted_document(DUCK), "{path}");
    }
}

#[test]
fn digits_of_other_scripts_are_not_an_id() {
    let (origin, gateway) = scene();
    // Full-width, Arabic, Devanagari, mathematical and superscript digits in the place of the
    // first.
    for digit in ["\u{ff17}", "\u{0667}", "\u{096d}", "\u{1d7d5}", "\u{2077}"] {
        let escaped: String = digit.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let path = format!("/customer/{escaped}{}/name", &DUCK[1..]);
        let before = origin.requests();
        for _ in 0..2 {
            // Not stored, and redacted as all that is under /customer.
            let response = gateway.client().get(&path).bearer("tok-a").kind(Kind::Forwarded).send();
            assert_eq!(response.assert_status(200).text(), redacted_document(DUCK), "{path}");
            assert_eq!(response.cache_status(), "telecomx-gateway; fwd=bypass", "{path}");
            assert_eq!(origin.last(&path).expect("it was forwarded").target, path);
        }
        assert_eq!(origin.count(|seen| seen.path() == path), 2, "{path}");
        assert!(origin.requests() > before);
        // Not escaped, it is no target at all.
        let raw = format!("/customer/{digit}{}/name", &DUCK[1..]);
        let response = gateway.client().get(&raw).bearer("tok-a").kind(Kind::Forwarded).send();
        response.assert_error(400, "bad_request");
    }
}

#[test]
fn escapes_that_a_path_needs_pass_unchanged() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let targets = [
        "/search/a%20b",
        "/search/%C3%A6%c3%b8",
        "/search/x?q=%2e%2e%2f&r=a+b",
        "/customer/73469a52f4fd7f77ec7b28cc/note/a%20b",
        "/log/changelog/%C3%A6",
        "/a,b/c!d/$&'()*+=:@~-_.x",
        "/search/%22%3C%3E",
    ];
    for target in targets {
        let response = gateway.client().get(target).bearer("tok-a").send();
        assert_eq!(response.assert_status(200).json()["target"], target);
    }
}

#[test]
fn malformed_target_is_refused() {
    let (origin, gateway) = scene();
    let targets: [&[u8]; 12] = [
        b"/x%",
        b"/x%4",
        b"/x%zz",
        b"/x%-1",
        b"/x\x00y",
        b"/x\x01y",
        b"/x\x7fy",
        b"/x%00",
        b"/x%0d%0ay",
        b"/x#fragment",
        b"/customer/73469a52f4fd7f77ec7b28cc/name#x",
        b"customer/73469a52f4fd7f77ec7b28cc/name",
    ];
    for target in targets {
        let shown = String::from_utf8_lossy(target);
        let mut request = b"GET ".to_vec();
        request.extend_from_slice(target);
        request.extend_from_slice(b" HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer tok-a\r\n\r\n");
        let mut connection = gateway.client().connect();
        connection.send_raw(&request);
        let response = connection
            .read("GET", Kind::Forwarded)
            .unwrap_or_else(|| panic!("no answer to {shown:?}"));
        assert_eq!(response.status, 400, "{shown:?}: {response:#?}");
        assert_eq!(origin.requests(), 0, "{shown:?}");
    }
}

#[test]
fn absolute_form_never_reaches_another_host() {
    let (origin, gateway) = scene();
    let elsewhere = Origin::start();
    let targets = [
        format!("{}/x", elsewhere.url()),
        format!("{}{P}", elsewhere.url()),
        format!("http://{}@{}/x", gateway.public_address(), elsewhere.address()),
        "http://evil.invalid/x".to_owned(),
        "ftp://evil.invalid/x".to_owned(),
    ];
    for target in targets {
        let response = gateway.client().get(&target).bearer("tok-a").kind(Kind::Forwarded).send();
        assert_eq!(response.status, 400, "{target}: {response:#?}");
    }
    assert_eq!((elsewhere.requests(), origin.requests()), (0, 0));
}

#[test]
fn trace_and_connect_are_not_allowed() {
    let (origin, gateway) = scene();
    for (method, target) in [("TRACE", "/x"), ("TRACE", P), ("CONNECT", "evil.invalid:443")] {
        gateway
            .client()
            .call(method, target)
            .bearer("tok-a")
            .send()
            .assert_error(405, "bad_request");
    }
    assert_eq!(origin.requests(), 0);
}

#[test]
fn too_large_head_is_refused() {
    let (origin, gateway) = scene();
    let client = gateway.client();
    let long = "x".repeat(33 << 10);
    client.get(P).bearer("tok-a").header("X-Long", &long).send().assert_error(431, "bad_request");
    client.get("/x").header("X-Long", &long).send().assert_error(431, "bad_request");
    client.get(&format!("/{long}")).send().assert_error(431, "bad_request");
    let many =
        (0..101).fold(client.get(P), |call, number| call.header(&format!("X-{number}"), "1"));
    many.send().assert_error(431, "bad_request");
    assert_eq!(origin.requests(), 0);
    let allowed = (0..90).fold(client.get(P).bearer("tok-a"), |call, number| {
        call.header(&format!("X-{number}"), "1")
    });
    allowed.header("X-Long", &"x".repeat(20 << 10)).send().assert_status(200);
}

#[test]
fn head_limit_is_configurable() {
    let origin = Origin::start();
    let gateway = Gateway::with(&origin, r#"server.max_header_bytes = "4KiB""#);
    let long = "x".repeat(5 << 10);
    gateway.client().get("/x").header("X-Long", &long).send().assert_error(431, "bad_request");
    gateway.client().get("/x").header("X-Long", &long[..2048]).send().assert_status(200);
}

#[test]
fn connection_field_that_names_a_protected_field_is_refused() {
    let (origin, gateway) = scene();
    let named = [
        "Authorization",
        "cookie",
        "X-API-Key",
        "Host",
        "Via",
        "Forwarded",
        "X-Forwarded-For",
        "x-forwarded-proto",
    ];
    for name in named {
        for path in [P, "/x"] {
            let call = gateway
                .client()
                .get(path)
                .bearer("tok-a")
                .header("Connection", &format!("keep-alive, {name}"));
            call.send().assert_error(400, "bad_request");
        }
    }
    assert_eq!(origin.requests(), 0);
}

#[test]
fn request_has_exactly_one_host() {
    let (origin, gateway) = scene();
    let heads = [
        "GET /x HTTP/1.1\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET /customer/73469a52f4fd7f77ec7b28cc/name HTTP/1.1\r\nAuthorization: Bearer tok-a\r\n\r\n",
    ];
    for head in heads {
        let mut connection = gateway.client().connect();
        connection.send_raw(head);
        let response = connection.read("GET", Kind::Forwarded).expect("an answer");
        assert_eq!(response.status, 400, "{head:?}: {response:#?}");
    }
    assert_eq!(origin.requests(), 0);
}
