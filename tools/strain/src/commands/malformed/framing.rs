//! Heads and bodies that are not HTTP, or are two things at once.

use super::{Case, Place};
use crate::random::Random;

const KINDS: usize = 34;

pub(super) fn case(place: &Place<'_>, turn: usize, random: &mut Random) -> Case {
    let site = place.site;
    let host = &site.host;
    let key = site.key.as_deref().unwrap_or("none");
    let open = format!("Host: {host}\r\nAuthorization: Bearer {key}\r\n");
    let json = format!("{open}Content-Type: application/json\r\n");
    let path = *random.one_of(&["/v1/chat/completions", "/v1/completions", "/tokenize", "/v1/embeddings", "/health"]);
    let body = format!(r#"{{"model": "{}", "prompt": "a", "content": "a", "max_tokens": 1}}"#, place.model);
    let length = body.len();
    let inner = format!("GET /metrics HTTP/1.1\r\n{open}\r\n");
    let raw = |what: String, bytes: Vec<u8>| Case::raw(what, bytes);
    let post = |what: &str, headers: String, body: &str| {
        Case::raw(what, format!("POST {path} HTTP/1.1\r\n{json}{headers}\r\n{body}"))
    };
    match turn % KINDS {
        // Requests in requests.
        0 => post("length and chunks", format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n"), &body),
        1 => post(
            "chunks and length",
            "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n".into(),
            &format!("0\r\n\r\n{inner}"),
        ),
        2 => {
            post("two lengths", format!("Content-Length: {length}\r\nContent-Length: {}\r\n", random.below(99)), &body)
        }
        3 => post("a list of lengths", format!("Content-Length: {length}, {length}\r\n"), &body),
        4 => {
            let length = *random.one_of(&[
                "-1",
                "+5",
                "0x10",
                "1e3",
                "18446744073709551616",
                "99999999999999999999999999999999999999999999",
                " ",
                "5;5",
            ]);
            post("a length that is no number", format!("Content-Length: {length}\r\n"), &body)
        }
        5 => {
            let coding = *random.one_of(&[
                "xchunked",
                "chunked, identity",
                "identity",
                "gzip, chunked",
                "\tchunked",
                "chunked\u{b}",
            ]);
            post(
                "an odd transfer coding",
                format!("Transfer-Encoding: {coding}\r\n"),
                &format!("5\r\nhello\r\n0\r\n\r\n{inner}"),
            )
        }
        6 => post(
            "two transfer codings",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n".into(),
            "0\r\n\r\n",
        ),
        7 => post("a space before the colon", format!("Content-Length : {length}\r\n"), &body),
        8 => post("a folded header", format!("X-Fold: a\r\n b\r\nContent-Length: {length}\r\n"), &body),
        9 => raw(
            "bare line feeds".into(),
            format!("POST {path} HTTP/1.1\n{}Content-Length: {length}\n\n{body}", json.replace('\r', "")).into(),
        ),
        10 => {
            raw("bare carriage returns".into(), format!("GET {path} HTTP/1.1\r{open}\r").replace("\r\n", "\r").into())
        }
        11 => post(
            "a request behind the request",
            format!("Content-Length: {length}\r\n"),
            &format!("{body}{inner}{inner}"),
        ),
        // Chunks.
        12 => {
            let size = *random.one_of(&["zz", "-1", "0x5", "FFFFFFFFFFFFFFFFF", "fffffffffffffffe", "", "5 5", "5\0"]);
            post(
                "a chunk of no size",
                "Transfer-Encoding: chunked\r\n".into(),
                &format!("{size}\r\nhello\r\n0\r\n\r\n"),
            )
        }
        13 => post("a chunk that is too long", "Transfer-Encoding: chunked\r\n".into(), "3\r\nhello\r\n0\r\n\r\n"),
        14 => post("a chunk that breaks off", "Transfer-Encoding: chunked\r\n".into(), "ff\r\nhello"),
        15 => {
            let extension = "x".repeat(random.between(1, 40_000));
            post(
                "a long extension of a chunk",
                "Transfer-Encoding: chunked\r\n".into(),
                &format!("5;{extension}\r\nhello\r\n0\r\n\r\n"),
            )
        }
        16 => {
            let trailers: String = (0..random.between(1, 3000)).map(|number| format!("T{number}: x\r\n")).collect();
            post("trailers", "Transfer-Encoding: chunked\r\n".into(), &format!("0\r\n{trailers}\r\n"))
        }
        17 => {
            let chunks: String = body.chars().map(|character| format!("1\r\n{character}\r\n")).collect();
            post("a chunk a character", "Transfer-Encoding: chunked\r\n".into(), &format!("{chunks}0\r\n\r\n"))
        }
        // Bodies that are not what their head says.
        18 => post(
            "a body that breaks off",
            format!("Content-Length: {}\r\n", length + random.between(1, 1 << 20)),
            &body,
        ),
        19 => post("a body without a length", String::new(), &body),
        20 => post("a huge length", "Content-Length: 99999999999999\r\n".into(), &body),
        21 => post("a coding of the body", format!("Content-Encoding: gzip\r\nContent-Length: {length}\r\n"), &body),
        22 => post(
            "an expectation",
            format!("Expect: {}\r\nContent-Length: {length}\r\n", random.one_of(&["100-continue", "x"])),
            &body,
        ),
        // Heads.
        23 => raw(
            "a huge head".into(),
            format!("GET {path} HTTP/1.1\r\n{open}X-Huge: {}\r\n\r\n", "x".repeat(random.between(8_000, 400_000)))
                .into(),
        ),
        24 => {
            let many: String = (0..random.between(60, 2000)).map(|number| format!("X-{number}: y\r\n")).collect();
            raw("many headers".into(), format!("GET {path} HTTP/1.1\r\n{open}{many}\r\n").into())
        }
        25 => raw(
            "a long path".into(),
            format!("GET /{} HTTP/1.1\r\n{open}\r\n", "a".repeat(random.between(1000, 100_000))).into(),
        ),
        26 => {
            let path = *random.one_of(&[
                "*",
                "//",
                "/../../etc/passwd",
                "/%00",
                "/%zz",
                "/v1/models/%ff",
                "/v1/models/..%2f..",
                "http://evil.example/",
                "?x",
                "/\u{e9}",
                "evil.example:80",
                "/v1/models/%F0%9F%8E%89",
                "/a#b",
            ]);
            raw(format!("path {path}"), format!("GET {path} HTTP/1.1\r\n{open}\r\n").into())
        }
        27 => {
            let method = *random.one_of(&[
                "get",
                "G\u{c}ET",
                "CONNECT",
                "TRACE",
                "PRI",
                "PATCH",
                "PROPFIND",
                "",
                "A-VERY-LONG-METHOD-NAME-THAT-NOBODY-KNOWS",
                "OPTIONS",
                "HEAD",
            ]);
            raw(format!("method {method:?}"), format!("{method} {path} HTTP/1.1\r\n{open}\r\n").into())
        }
        28 => {
            let version = *random.one_of(&[
                "HTTP/0.9",
                "HTTP/1.0",
                "HTTP/1.2",
                "HTTP/2.0",
                "HTTP/11",
                "http/1.1",
                "HTTPS/1.1",
                "",
            ]);
            raw(format!("version {version:?}"), format!("GET {path} {version}\r\n{open}\r\n").into())
        }
        29 => {
            let byte = random.below(256) as u8;
            let mut bytes = format!("GET {path} HTTP/1.1\r\n{open}X-Byte: a").into_bytes();
            bytes.push(byte);
            bytes.extend_from_slice(b"b\r\n\r\n");
            raw(format!("byte {byte:#04x} in a header"), bytes)
        }
        30 => {
            let byte = random.below(256) as u8;
            let mut bytes = b"POST ".to_vec();
            bytes.extend([path.as_bytes(), &[byte], b" HTTP/1.1\r\n", json.as_bytes()].concat());
            bytes.extend_from_slice(format!("Content-Length: {length}\r\n\r\n{body}").as_bytes());
            raw(format!("byte {byte:#04x} in the path"), bytes)
        }
        31 => raw("the preface of HTTP/2".into(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec()),
        32 => {
            let upgrade =
                "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n";
            raw("an upgrade".into(), format!("GET {path} HTTP/1.1\r\n{open}{upgrade}\r\n").into())
        }
        _ => {
            let noise: Vec<u8> = (0..random.between(1, 2000)).map(|_| random.below(256) as u8).collect();
            raw("noise".into(), noise)
        }
    }
}
