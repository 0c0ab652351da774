//! The differences that are permitted, each with its source and its reason. Nothing here excuses a
//! difference of an aspect that it does not name, nor under another condition than it states.

use super::compare::{Aspect, Mismatch, Pair};
use super::exchange::{Exchange, Fault, Framing, Leaving, Protocol, Timing};
use super::peers::Proxy;
use super::reader::has_member;

/// A permitted difference.
pub struct Difference {
    pub name: &'static str,
    /// The section that permits or requires what the gateway does.
    pub source: &'static str,
    pub reason: &'static str,
    applies: fn(&Pair, &Mismatch) -> bool,
}

/// Why a proxy cannot take part in an exchange.
pub fn why_not_played(proxy: Proxy, exchange: &Exchange) -> Option<&'static str> {
    // RFC 9110 section 15.2: a proxy forwards them.
    let is_interim = proxy == Proxy::Nginx && !exchange.script.interim.is_empty();
    is_interim
        .then_some("not played: nginx before 1.29 takes an interim response for the final one")
}

/// The difference that explains a mismatch.
pub fn of(pair: &Pair, mismatch: &Mismatch) -> Option<&'static Difference> {
    ALL.iter().find(|difference| (difference.applies)(pair, mismatch))
}

/// Fields of one hop, in requests and in responses.
const OF_ONE_HOP: [&str; 8] = [
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
    "http2-settings",
];

/// Fields by which a client could pass for a proxy.
const CLAIMS: [&str; 4] = ["forwarded", "x-forwarded-host", "x-original-url", "x-real-ip"];

pub const ALL: &[Difference] = &[
    Difference {
        name: "the gateway refuses a target",
        source: "RFC 3986 section 2, RFC 9112 section 3.2",
        reason: "a target with an unescaped character, a control character or a broken escape has two readings",
        applies: |pair, mismatch| {
            is_refusal(pair, mismatch, "the proxy: 400") && is_ambiguous(&pair.exchange.target)
        },
    },
    Difference {
        name: "the gateway refuses TRACE",
        source: "RFC 9110 section 9.3.8",
        reason: "a TRACE returns credentials to a script; HAProxy forwards it, nginx judges the target first",
        applies: |pair, mismatch| {
            is_refusal(pair, mismatch, "the proxy: 405") && pair.exchange.method == "TRACE"
        },
    },
    Difference {
        name: "nginx refuses a method in lower case",
        source: "RFC 9110 section 9.1",
        reason: "a method is any token; nginx takes upper-case letters only",
        applies: |pair, mismatch| {
            pair.proxy == Proxy::Nginx
                && pair.exchange.method == "get"
                && is_about_response(mismatch)
        },
    },
    Difference {
        name: "nginx refuses a repeated If-None-Match",
        source: "RFC 9110 section 5.3",
        reason: "the field is a list, which may be sent in several lines",
        applies: |pair, mismatch| {
            let count =
                pair.exchange.fields.iter().filter(|field| field.name == "if-none-match").count();
            pair.proxy == Proxy::Nginx && count > 1 && is_about_response(mismatch)
        },
    },
    Difference {
        name: "HAProxy refuses a body of GET, HEAD or DELETE over HTTP/1.0",
        source: "RFC 9110 section 9.3.1",
        reason: "HAProxy fears that the API takes the body for the next request; the gateway forwards with HTTP/1.1",
        applies: |pair, mismatch| {
            let Exchange { protocol, method, framing, .. } = pair.exchange;
            let has_body = *protocol == Protocol::Http10 && *framing == Framing::Length;
            pair.proxy == Proxy::Haproxy
                && has_body
                && matches!(*method, "GET" | "HEAD" | "DELETE")
                && is_about_response(mismatch)
        },
    },
    Difference {
        name: "nginx sends fields of one hop over HTTP/2",
        source: "RFC 9113 section 8.2.2",
        reason: "the client treats the response as malformed; the gateway removes the fields",
        applies: |pair, mismatch| {
            let has_field =
                |name: &str| pair.exchange.script.fields.iter().any(|field| field.name == name);
            pair.proxy == Proxy::Nginx
                && pair.exchange.protocol == Protocol::Http2
                && (has_field("upgrade") || has_field("proxy-connection"))
                && is_about_response(mismatch)
        },
    },
    Difference {
        name: "nginx fails a request over HTTP/2 with trailer fields",
        source: "RFC 9113 section 8.1",
        reason: "nginx 1.22 does not take the trailer section for the end of the body",
        applies: |pair, mismatch| {
            pair.proxy == Proxy::Nginx
                && pair.exchange.protocol == Protocol::Http2
                && pair.exchange.has_trailers
                && (is_about_response(mismatch)
                    || matches!(
                        mismatch.aspect,
                        Aspect::RequestBody | Aspect::RequestEnd | Aspect::RequestFraming
                    ))
        },
    },
    Difference {
        name: "nginx takes a half-closed connection for a client that left",
        source: "RFC 9112 section 9.6",
        reason: "a client may end its sending after its last request; it receives its response",
        applies: |pair, mismatch| {
            let is_cut = match mismatch.aspect {
                Aspect::RequestBody | Aspect::RequestEnd => true,
                Aspect::ResponseBody => mismatch.gateway == "whole",
                Aspect::Persistence => mismatch.gateway == "true",
                _ => is_about_response(mismatch),
            };
            pair.proxy == Proxy::Nginx && pair.exchange.leaving == Leaving::HalfCloses && is_cut
        },
    },
    Difference {
        name: "how much of the request of a client that left arrives",
        source: "RFC 9112 section 8, RFC 9113 section 5.4.2",
        reason: "each proxy notices at another moment; what arrives is a beginning of the request",
        applies: |pair, mismatch| {
            let aspects =
                [Aspect::Arrivals, Aspect::RequestBody, Aspect::RequestEnd, Aspect::RequestFraming];
            !pair.exchange.is_read() && aspects.contains(&mismatch.aspect)
        },
    },
    Difference {
        name: "a request is sent again after a connection failed",
        source: "RFC 9110 section 9.2.2",
        reason: "an idempotent request without a response is repeated; each proxy has its own number of attempts",
        applies: |pair, mismatch| {
            mismatch.aspect == Aspect::Arrivals
                && fails_before_head(pair.exchange)
                && pair.exchange.is_idempotent()
                && mismatch.gateway != "0"
        },
    },
    Difference {
        name: "nginx repeats a request whose method it does not know",
        source: "RFC 9110 section 9.2.2",
        reason: "a proxy must not repeat a request that is not known to be idempotent",
        applies: |pair, mismatch| {
            pair.proxy == Proxy::Nginx
                && mismatch.aspect == Aspect::Arrivals
                && fails_before_head(pair.exchange)
                && matches!(pair.exchange.method, "FOO" | "M-SEARCH")
                && mismatch.gateway == "1"
        },
    },
    Difference {
        name: "nginx removes Content-Type of a response without content",
        source: "RFC 9110 section 8.3",
        reason: "the field may describe what a GET would return; nothing asks a proxy to remove it",
        applies: |pair, mismatch| {
            pair.proxy == Proxy::Nginx
                && pair.exchange.script.status == 204
                && mismatch.aspect == Aspect::ResponseField("content-type".to_owned())
                && mismatch.other == "absent"
        },
    },
    Difference {
        name: "nginx and HAProxy lose early responses",
        source: "RFC 9112 section 9.6",
        reason: "they reset the connection while the client sends; the gateway reads on for a while",
        applies: |pair, mismatch| {
            pair.exchange.script.timing != Timing::AfterRequest
                && (mismatch.aspect == Aspect::Source && mismatch.other == "none"
                    || mismatch.aspect == Aspect::Status && mismatch.other == "0")
        },
    },
    Difference {
        name: "HAProxy ends the client's connection where the gateway responds 502",
        source: "RFC 9112 section 9.3.1",
        reason: "after a failure of a reused connection HAProxy leaves the repetition to the client",
        applies: |pair, mismatch| {
            pair.proxy == Proxy::Haproxy
                && fails_before_head(pair.exchange)
                && (mismatch.aspect == Aspect::Source
                    && mismatch.gateway == "the proxy: 502"
                    && mismatch.other == "none"
                    || mismatch.aspect == Aspect::Status
                        && mismatch.gateway == "502"
                        && mismatch.other == "0")
        },
    },
    Difference {
        name: "how much of a truncated response arrives",
        source: "RFC 9112 section 8, RFC 9113 section 8.1",
        reason: "the client recognizes an incomplete response; how much it received of it is not defined",
        applies: |pair, mismatch| {
            let aspects = [
                Aspect::Source,
                Aspect::Status,
                Aspect::ResponseBody,
                Aspect::ResponseEnd,
                Aspect::Persistence,
                Aspect::Next,
            ];
            let is_lost_interim =
                mismatch.aspect == Aspect::Interim && pair.exchange.protocol == Protocol::Http2;
            is_truncated(pair.exchange)
                && (aspects.contains(&mismatch.aspect) || is_lost_interim)
                && !mismatch.gateway.contains("Malformed")
        },
    },
    Difference {
        name: "HAProxy cuts a response behind an interim one",
        source: "RFC 9110 section 15.2",
        reason: "HAProxy 2.6 forgets at times what it read behind the interim response",
        applies: |pair, mismatch| {
            let is_right = match mismatch.aspect {
                Aspect::ResponseBody => mismatch.gateway == "whole",
                Aspect::ResponseEnd => mismatch.gateway == "Complete",
                Aspect::Source => mismatch.gateway == "the API",
                Aspect::Status => mismatch.gateway == pair.exchange.script.status.to_string(),
                Aspect::Interim => mismatch.other == "[]",
                Aspect::Next => mismatch.gateway == "Some((200, true))",
                Aspect::Persistence => mismatch.gateway == "true",
                _ => false,
            };
            pair.proxy == Proxy::Haproxy && !pair.exchange.script.interim.is_empty() && is_right
        },
    },
    Difference {
        name: "HAProxy keeps a connection open after an early response",
        source: "RFC 9112 section 9.6",
        reason: "it waits for the body of a client that was still waiting for 100 Continue",
        applies: |pair, mismatch| {
            pair.proxy == Proxy::Haproxy
                && pair.exchange.expects
                && pair.exchange.script.timing == Timing::Early
                && mismatch.aspect == Aspect::ResponseEnd
                && mismatch.gateway == "Complete"
        },
    },
    Difference {
        name: "HAProxy sends a body in its own response to HEAD",
        source: "RFC 9110 section 9.3.2",
        reason: "a response to HEAD has no content, also if a proxy makes it",
        applies: |pair, mismatch| {
            pair.proxy == Proxy::Haproxy
                && pair.exchange.method == "HEAD"
                && mismatch.aspect == Aspect::Surplus
                && mismatch.gateway.is_empty()
        },
    },
    Difference {
        name: "HAProxy responds 400 to a client that half-closed where the gateway responds 502",
        source: "RFC 9110 section 15.6.3",
        reason: "the request was well formed, and the API failed",
        applies: |pair, mismatch| {
            let is_status = mismatch.aspect == Aspect::Status
                && mismatch.gateway == "502"
                && mismatch.other == "400";
            pair.proxy == Proxy::Haproxy
                && pair.exchange.leaving == Leaving::HalfCloses
                && fails_before_head(pair.exchange)
                && (is_status
                    || mismatch.aspect == Aspect::Source && mismatch.gateway == "the proxy: 502")
        },
    },
    Difference {
        name: "HAProxy ends a response without a length by closing",
        source: "RFC 9112 section 6.3",
        reason: "the gateway sends it in chunks over HTTP/1.1: its end is certain, the connection is kept",
        applies: |pair, mismatch| {
            pair.proxy == Proxy::Haproxy
                && pair.exchange.script.framing == Framing::UntilClose
                && pair.exchange.protocol == Protocol::Http11
                && matches!(
                    mismatch.aspect,
                    Aspect::ResponseFraming | Aspect::Persistence | Aspect::Next
                )
        },
    },
    Difference {
        name: "an early response ends the connection",
        source: "RFC 9112 section 9.6",
        reason: "the gateway does not read the rest of a body that the API did not want",
        applies: |pair, mismatch| {
            pair.exchange.script.timing != Timing::AfterRequest
                && matches!(mismatch.aspect, Aspect::Persistence | Aspect::Next)
                && mismatch.gateway != "true"
        },
    },
    Difference {
        name: "how much of a body arrives after an early response",
        source: "RFC 9112 section 9.5",
        reason: "the response is complete; each proxy stops sending the body at another moment",
        applies: |pair, mismatch| {
            pair.exchange.script.timing != Timing::AfterRequest
                && matches!(
                    mismatch.aspect,
                    Aspect::RequestBody | Aspect::RequestEnd | Aspect::RequestTrailers
                )
        },
    },
    Difference {
        name: "the gateway ends the connection of a client that asked for another protocol",
        source: "RFC 9110 section 7.8",
        reason: "the bytes that follow might belong to that protocol",
        applies: |pair, mismatch| {
            has_member(&pair.exchange.fields, "upgrade", "example/1")
                && matches!(mismatch.aspect, Aspect::Persistence | Aspect::Next)
        },
    },
    Difference {
        name: "nginx answers an expectation by itself",
        source: "RFC 9110 section 10.1.1",
        reason: "a proxy forwards the expectation to a server that understands HTTP/1.1",
        applies: |pair, mismatch| {
            let of_expectation = [Aspect::RequestField("expect".to_owned()), Aspect::Interim];
            pair.proxy == Proxy::Nginx
                && pair.exchange.expects
                && of_expectation.contains(&mismatch.aspect)
        },
    },
    Difference {
        name: "Content-Length: 0 of a method that defines a body",
        source: "RFC 9110 section 8.6",
        reason: "the gateway states that there is no body",
        applies: |pair, mismatch| {
            mismatch.aspect == Aspect::RequestFraming
                && pair.exchange.content.0.is_empty()
                && mismatch.gateway == "Length"
                && mismatch.other == "None"
        },
    },
    Difference {
        name: "another framing of the same request body",
        source: "RFC 9112 section 7",
        reason: "framing is of one hop: nginx sends a length where it has read the whole body",
        applies: |pair, mismatch| {
            mismatch.aspect == Aspect::RequestFraming
                && pair.exchange.framing == Framing::Chunked
                && mismatch.gateway == "Chunked"
        },
    },
    Difference {
        name: "the gateway does not forward trailer fields",
        source: "RFC 9110 section 6.5.1",
        reason: "they could not be judged before the request is forwarded",
        applies: |_, mismatch| {
            mismatch.aspect == Aspect::RequestTrailers && mismatch.gateway == "false"
        },
    },
    Difference {
        name: "several Cookie fields are one at the API",
        source: "RFC 6265 section 5.4, RFC 9113 section 8.2.3",
        reason: "a server reads the first or the last of several",
        applies: |_, mismatch| {
            let joined = mismatch.other.replace("] [", "; ");
            mismatch.aspect == Aspect::RequestField("cookie".to_owned())
                && mismatch.gateway == joined
        },
    },
    Difference {
        name: "the gateway is a part of the trace",
        source: "W3C Trace Context section 3.4",
        reason: "it replaces the id of the parent by its own and keeps that of the trace",
        applies: |_, mismatch| {
            let trace = |value: &str| value.get(..36).map(str::to_owned);
            mismatch.aspect == Aspect::RequestField("traceparent".to_owned())
                && trace(&mismatch.gateway) == trace(&mismatch.other)
        },
    },
    Difference {
        name: "the gateway removes fields of one hop",
        source: "RFC 9110 sections 7.6.1 and 11.7",
        reason: "the others pass some of them on, or those that Connection names",
        applies: |pair, mismatch| {
            let (name, fields) = match &mismatch.aspect {
                Aspect::RequestField(name) => (name, &pair.exchange.fields),
                Aspect::ResponseField(name) => (name, &pair.exchange.script.fields),
                _ => return false,
            };
            let is_of_hop = OF_ONE_HOP.contains(&&**name) || has_member(fields, "connection", name);
            is_of_hop && mismatch.gateway == "absent"
        },
    },
    Difference {
        name: "the gateway removes fields by which a client passes for a proxy",
        source: "RFC 7239 section 8.1",
        reason: "the client's address is not one of server.trusted_proxies",
        applies: |_, mismatch| match &mismatch.aspect {
            Aspect::RequestField(name) => CLAIMS.contains(&&**name) && mismatch.gateway == "absent",
            _ => false,
        },
    },
];

/// The gateway responds by itself and forwards nothing.
fn is_refusal(pair: &Pair, mismatch: &Mismatch, source: &str) -> bool {
    is_about_response(mismatch)
        && pair.gateway.requests().count() == 0
        && super::compare::source(&pair.gateway.received) == source
}

/// The mismatch follows from another response, or from a request that was not forwarded.
fn is_about_response(mismatch: &Mismatch) -> bool {
    let aspects = [
        Aspect::Arrivals,
        Aspect::Source,
        Aspect::Status,
        Aspect::Interim,
        Aspect::Next,
        Aspect::ResponseEnd,
    ];
    aspects.contains(&mismatch.aspect)
}

fn is_ambiguous(target: &str) -> bool {
    let has_quote = target.split_once('?').is_some_and(|(_, query)| query.contains('"'));
    let is_unescaped =
        |character: char| !character.is_ascii_graphic() || matches!(character, '`' | '<' | '>');
    has_quote || target.contains(is_unescaped) || target.contains("%00") || target.contains("%zz")
}

fn fails_before_head(exchange: &Exchange) -> bool {
    matches!(exchange.script.fault, Fault::CloseBeforeHead | Fault::ResetBeforeHead)
}

fn is_truncated(exchange: &Exchange) -> bool {
    matches!(exchange.script.fault, Fault::Truncated | Fault::ResetInBody)
}
