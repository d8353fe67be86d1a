//! Whom the server answers: names, origins, methods, keys.
//!
//! A page in a browser reaches 127.0.0.1, and with a rebound name it could read the answers. The decisions are written down
//! here by hand, from the promise and not from the server's code.

use std::io;

use super::after;
use crate::client::{Response, Site};
use crate::options::Options;
use crate::parts::in_parallel;
use crate::random::Random;
use crate::service::Service;
use crate::{Failure, Report};

const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"];
/// Paths of all kinds, of which only `/health` is open.
const KEY_PATHS: [(&str, &str); 7] = [
    ("GET", "/v1/models"),
    ("GET", "/metrics"),
    ("GET", "/slots"),
    ("GET", "/nothing-here"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/tokenize"),
    ("OPTIONS", "/v1/models"),
];
const KEY_LENGTH_MAX: usize = 128;

/// Values of `Host`, and whether the server is called so. `{port}` is its port, `{other}` another one.
const HOSTS: [(Host, bool); 25] = [
    (Host::Is("127.0.0.1:{port}"), true),
    (Host::Is("localhost:{port}"), true),
    (Host::Is("LocalHost:{port}"), true),
    (Host::Is("[::1]:{port}"), true),
    (Host::Is("127.0.0.1"), false),
    (Host::Is("localhost"), false),
    (Host::Is("127.0.0.1:{other}"), false),
    (Host::Is("localhost:80"), false),
    (Host::Is("evil.example"), false),
    (Host::Is("evil.example:{port}"), false),
    (Host::Is("localhost.evil.example:{port}"), false),
    (Host::Is("127.0.0.1.evil.example:{port}"), false),
    (Host::Is("evil.localhost:{port}"), false),
    (Host::Is("nightmonk.local:{port}"), false),
    (Host::Is("nightmonk.internal:{port}"), false),
    (Host::Is("192.168.0.10:{port}"), false),
    (Host::Is("0.0.0.0:{port}"), false),
    (Host::Is("127.0.0.2:{port}"), false),
    (Host::Is("127.1:{port}"), false),
    (Host::Is("2130706433:{port}"), false),
    (Host::Is("[::ffff:127.0.0.1]:{port}"), false),
    (Host::Is("user@localhost:{port}"), false),
    (Host::Is("localhost.:{port}"), false),
    (Host::Absent, false),
    (Host::Twice("localhost:{port}", "evil.example"), false),
];

#[derive(Clone, Copy, Debug)]
enum Host {
    Is(&'static str),
    Absent,
    Twice(&'static str, &'static str),
}

/// Values of `Origin`, and whether its pages may use a server that was told of none.
const ORIGINS: [(Option<&str>, bool); 12] = [
    (None, true),
    (Some("http://127.0.0.1:{port}"), true),
    (Some("http://localhost:{port}"), true),
    (Some("http://[::1]:{port}"), true),
    (Some("https://localhost:{port}"), false),
    (Some("http://localhost"), false),
    (Some("http://localhost:{other}"), false),
    (Some("http://evil.example"), false),
    (Some("http://localhost:{port}.evil.example"), false),
    (Some("null"), false),
    (Some("file://"), false),
    (Some("http://localhost:{port} http://evil.example"), false),
];

pub(crate) fn run(options: &Options) -> Result<Report, Failure> {
    let mut report = Report::default();
    let service = options.service(2, &[])?;
    let baseline = service.baseline()?;
    pages(&service, options, &mut report);
    match service.site.key.clone() {
        Some(key) => keys(&service, &key, options, &mut report),
        None => report.holds("a key", "none", "a server that asks for one", false),
    }
    after::check(&service, &baseline, &mut report)?;
    Ok(report)
}

/// Whether a request went through, as far as its answer tells; a refusal must say nothing else.
fn went_through(answer: &io::Result<Response>) -> bool {
    // The last two: a path that is not for this method, which only those learn who may ask.
    matches!(answer, Ok(answer) if matches!(answer.status, 200..=299 | 404 | 405))
}

fn pages(service: &Service, options: &Options, report: &mut Report) {
    let port = service.site.address.port();
    let other = if port == 65535 { 1 } else { port + 1 };
    let fill = |text: &str| text.replace("{port}", &port.to_string()).replace("{other}", &other.to_string());
    let all = HOSTS.len() * ORIGINS.len() * METHODS.len();
    // Every so-manieth of them where fewer are asked for.
    let step = (all / options.rounds(all).clamp(1, all)).max(1);
    let chosen: Vec<usize> = (0..all).step_by(step).collect();
    let decisions = in_parallel(8, chosen.len(), options.seed, |place, _| {
        let index = chosen[place];
        let (host, host_is_own) = HOSTS[index % HOSTS.len()];
        let (origin, origin_may) = ORIGINS[index / HOSTS.len() % ORIGINS.len()];
        let method = METHODS[index / HOSTS.len() / ORIGINS.len()];
        let mut head = format!("{method} /v1/models HTTP/1.1\r\nConnection: close\r\n");
        match host {
            Host::Is(host) => head.push_str(&format!("Host: {}\r\n", fill(host))),
            Host::Absent => {}
            Host::Twice(one, two) => head.push_str(&format!("Host: {}\r\nHost: {}\r\n", fill(one), fill(two))),
        }
        if let Some(origin) = origin {
            head.push_str(&format!("Origin: {}\r\n", fill(origin)));
        }
        if let Some(key) = &service.site.key {
            head.push_str(&format!("Authorization: Bearer {key}\r\n"));
        }
        if method == "OPTIONS" {
            head.push_str("Access-Control-Request-Method: POST\r\n");
        }
        head.push_str("\r\n");
        let answer = exchange(&service.site, head.as_bytes(), method == "HEAD");
        let want = host_is_own && origin_may;
        let shared = answer.as_ref().is_ok_and(|answer| answer.header("access-control-allow-origin").is_some());
        let told = answer.as_ref().is_ok_and(|answer| !want && answer.text().contains(&service.model));
        let failed = answer.as_ref().map_or(true, |answer| answer.status >= 500);
        let right = went_through(&answer) == want && !shared && !told && !failed;
        (!right).then(|| format!("{method} with {host:?} and Origin {origin:?}: {}", short(&answer)))
    });
    let asked = decisions.len();
    let wrong: Vec<String> = decisions.into_iter().flatten().collect();
    report.equal(format!("of {asked} decisions about pages, wrong"), wrong.len(), 0);
    wrong.into_iter().for_each(|wrong| report.remark(wrong));
}

fn short(answer: &io::Result<Response>) -> String {
    answer.as_ref().map_or_else(ToString::to_string, |answer| format!("status {}", answer.status))
}

/// Sends bytes, reads one answer.
fn exchange(site: &Site, bytes: &[u8], head_only: bool) -> io::Result<Response> {
    let mut connection = site.connect()?;
    connection.write(bytes)?;
    if head_only { connection.response_to_head() } else { connection.response() }
}

/// What a client shows, and whether it is the key.
fn shown(key: &str, random: &mut Random) -> Vec<(String, bool)> {
    let bearer = |text: &str| format!("Authorization: Bearer {text}\r\n");
    let mut shown = vec![
        (bearer(key), true),
        (format!("authorization: bearer {key}\r\n"), true),
        (String::new(), false),
        ("Authorization: \r\n".into(), false),
        ("Authorization: Bearer\r\n".into(), false),
        (format!("Authorization: {key}\r\n"), false),
        (format!("Authorization: Basic {key}\r\n"), false),
        (format!("Authorization: Bearer Bearer {key}\r\n"), false),
        (format!("Authorization: Bearer  {}\r\n", key.to_ascii_uppercase()), false),
        (format!("Authorization: Bearer{key}\r\n"), false),
        (format!("Authorization: Bearer {key}{key}\r\n"), false),
        (format!("Authorization: Bearer {key},{key}\r\n"), false),
        (format!("Authorization: Bearer {key}\u{e4}\r\n"), false),
        (format!("Cookie: key={key}\r\n"), false),
        (format!("Proxy-Authorization: Bearer {key}\r\n"), false),
        (format!("X-Forwarded-Authorization: Bearer {key}\r\n"), false),
        (bearer("x") + &bearer(key), false),
    ];
    // Every length: beginnings of the key, ends of it, it and something, and nothing of it.
    for length in 0..=KEY_LENGTH_MAX {
        let mut long = key.to_owned();
        long.push_str(&random.hex(KEY_LENGTH_MAX));
        let beginning = &long[..length];
        shown.push((bearer(beginning), beginning == key));
        let end = &key[key.len() - length.min(key.len())..];
        shown.push((bearer(end), end == key));
        shown.push((bearer(&random.hex(length)), false));
    }
    // One character away, at every place.
    for place in 0..key.len() {
        let mut near = key.as_bytes().to_vec();
        near[place] = if near[place] == b'x' { b'y' } else { b'x' };
        shown.push((bearer(&String::from_utf8_lossy(&near)), false));
        let mut without = key.to_owned();
        without.remove(place);
        shown.push((bearer(&without), false));
    }
    shown
}

fn keys(service: &Service, key: &str, options: &Options, report: &mut Report) {
    let all = shown(key, &mut Random::new(options.seed));
    let total = all.len() * KEY_PATHS.len();
    let step = (total / options.rounds(total).clamp(1, total)).max(1);
    let chosen: Vec<usize> = (0..total).step_by(step).collect();
    let decisions = in_parallel(8, chosen.len(), options.seed, |place, _| {
        let index = chosen[place];
        let (header, is_key) = &all[index % all.len()];
        let (method, path) = KEY_PATHS[index / all.len()];
        let body = if method == "POST" { "{}" } else { "" };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{header}Content-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            service.site.host,
            body.len()
        );
        let answer = exchange(&service.site, head.as_bytes(), false);
        // With the key anything but a question for it; without it nothing but that, or a head that is no head.
        let right = match &answer {
            Ok(answer) if *is_key => answer.status != 401 && answer.status < 500,
            Ok(answer) => matches!(answer.status, 400 | 401),
            Err(_) => !is_key,
        };
        (!right).then(|| format!("{method} {path} with {header:?}: {}", short(&answer)))
    });
    let asked = decisions.len();
    let wrong: Vec<String> = decisions.into_iter().flatten().collect();
    report.equal(format!("of {asked} decisions about keys, wrong"), wrong.len(), 0);
    wrong.into_iter().for_each(|wrong| report.remark(wrong));

    // The key in the path opens nothing, and what is open needs none.
    let bare = Site { key: None, ..service.site.clone() };
    for (path, want) in
        [(format!("/v1/models?api_key={key}"), 401), (format!("/v1/models?key={key}"), 401), ("/health".into(), 200)]
    {
        let status = bare.get(&path).map_or(0, |answer| usize::from(answer.status));
        let path = path.replace(key, "KEY");
        report.equal(format!("GET {path} without a header"), status, want);
    }
    // Without the key, no way of writing the open path opens another.
    for path in ["/health/../v1/models", "/health/", "//health", "/health/v1/models", "/%68ealth", "/v1/models?/health"]
    {
        let status = bare.get(path).map_or(0, |answer| answer.status);
        report.holds(format!("GET {path} without a key"), status, "a refusal", matches!(status, 400..=404));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_keys_have_every_length_and_the_key_itself_is_the_only_right_one() {
        let key = "nm-0123456789abcdef";
        let all = shown(key, &mut Random::new(1));
        let right = all.iter().filter(|(_, is_key)| *is_key).map(|(header, _)| header.to_ascii_lowercase());
        assert!(right.into_iter().all(|header| header == format!("authorization: bearer {key}\r\n")));
        for length in 0..=KEY_LENGTH_MAX {
            assert!(all.iter().any(|(header, _)| header.len() == "Authorization: Bearer \r\n".len() + length));
        }
    }
}
