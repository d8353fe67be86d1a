//! Clients that hold a connection and give nothing for it.
//!
//! A bare `axum::serve` closes none of these, ever: each holds a descriptor and a place among the connections. Here all kinds
//! come at once, while an honest client goes on with its small requests.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use super::after;
use crate::answers::{self, ask};
use crate::client::Connection;
use crate::options::Options;
use crate::parts::in_parallel;
use crate::service::Service;
use crate::statistics::{ms, percentile};
use crate::{Failure, Report};

const HOSTILE: usize = 200;
/// A connection is to be closed within this time.
const CLOSED: Duration = Duration::from_secs(7);
/// After this one it counts as open for ever.
const WATCHED: Duration = Duration::from_secs(15);
/// Between two bytes of one that drips.
const DRIP: Duration = Duration::from_millis(300);
/// The honest client's p99 may become this many times as long.
const LONGER_MAX: f64 = 2.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hostility {
    Silent,
    HalfAHead,
    DrippingHead,
    IdleKeepAlive,
    DrippingBody,
}

const KINDS: [Hostility; 5] = [
    Hostility::Silent,
    Hostility::HalfAHead,
    Hostility::DrippingHead,
    Hostility::IdleKeepAlive,
    Hostility::DrippingBody,
];

pub(crate) fn run(options: &Options) -> Result<Report, Failure> {
    let mut report = Report::default();
    let service = options.service(4, &[])?;
    let baseline = service.baseline()?;
    let hostile = options.rounds(HOSTILE);
    let alone = honest(&service, |ended| {
        // As long as the other phase lasts, in a full run.
        sleep(CLOSED.mul_f64((hostile as f64 / HOSTILE as f64).min(1.0)));
        ended.store(true, Relaxed);
    });
    let mut closed = Vec::new();
    let beside = honest(&service, |ended| {
        closed = in_parallel(hostile, hostile, options.seed, |index, _| {
            let kind = KINDS[index % KINDS.len()];
            (kind, annoy(&service, kind))
        });
        ended.store(true, Relaxed);
    });

    report.tell("connections", hostile);
    for kind in KINDS {
        let of_kind: Vec<_> = closed.iter().filter(|(known, _)| *known == kind).map(|(_, time)| time).collect();
        let open = of_kind.iter().filter(|time| matches!(time, Ok(None))).count();
        report.equal(format!("{kind:?}, of {} still open after {} s", of_kind.len(), WATCHED.as_secs()), open, 0);
        for error in of_kind.iter().filter_map(|time| time.as_ref().err()) {
            report.remark(format!("{kind:?}: {error}"));
        }
        let times: Vec<f64> =
            of_kind.iter().filter_map(|time| Some(time.as_ref().ok()?.as_ref()?.as_secs_f64())).collect();
        let longest = times.iter().copied().fold(0.0, f64::max);
        let kept = open == 0 && longest <= CLOSED.as_secs_f64();
        report.holds_in_time(
            format!("{kind:?}, closed after at most"),
            format!("{longest:.1} s"),
            format!("{} s", CLOSED.as_secs()),
            kept,
        );
    }
    let failed = closed.iter().filter(|(_, time)| time.is_err()).count();
    report.equal("connections that could not be made", failed, 0);
    report.equal("honest requests that failed", alone.failed + beside.failed, 0);
    if let (Some(alone), Some(beside)) = (percentile(&alone.ms, 0.99), percentile(&beside.ms, 0.99)) {
        let figure = format!("{beside:.1} ms, alone {alone:.1} ms");
        let kept = beside < LONGER_MAX * alone;
        report.holds_in_time("an honest client's p99", figure, format!("below {LONGER_MAX}x"), kept);
    }
    after::check(&service, &baseline, &mut report)?;
    Ok(report)
}

/// Does one kind of harm; the time until the server closed the connection, or none if it did not.
fn annoy(service: &Service, kind: Hostility) -> io::Result<Option<Duration>> {
    let site = &service.site;
    let mut connection = site.connect()?;
    // From the last byte that the server had a right to expect.
    let mut start = Instant::now();
    match kind {
        Hostility::Silent => {}
        Hostility::HalfAHead => {
            connection.write(format!("GET /health HTTP/1.1\r\nHost: {}\r\nX-", site.host).as_bytes())?
        }
        Hostility::IdleKeepAlive => {
            connection.write(&site.request("GET", "/health", None))?;
            connection.next_response()?;
            start = Instant::now();
        }
        Hostility::DrippingHead => {
            let head = format!("GET /health HTTP/1.1\r\nHost: {}\r\nX-Long: {}", site.host, "x".repeat(1000));
            drip(&mut connection, head.as_bytes(), start);
        }
        Hostility::DrippingBody => {
            let body = answers::completion(&service.model, &"x".repeat(1000), 1).to_string();
            let request = site.request("POST", "/v1/completions", Some(body.as_bytes()));
            let (head, body) = request.split_at(request.len() - body.len());
            connection.write(head)?;
            drip(&mut connection, body, start);
        }
    }
    Ok(connection.closed_before(start + WATCHED).map(|end| end - start))
}

/// A byte at a time, until the server has enough of it.
fn drip(connection: &mut Connection, bytes: &[u8], start: Instant) {
    for byte in bytes {
        if connection.write(&[*byte]).is_err() || start.elapsed() > WATCHED {
            return;
        }
        // Between two bytes we look whether the server has closed.
        if connection.closed_before(Instant::now() + DRIP).is_some() {
            return;
        }
    }
}

#[derive(Default)]
struct Honest {
    ms: Vec<f64>,
    failed: usize,
}

/// An honest client's times while `meanwhile` runs, which says when it has ended.
fn honest(service: &Service, meanwhile: impl FnOnce(&AtomicBool)) -> Honest {
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut honest = Honest::default();
            let body = answers::completion(&service.model, "an honest request", 4);
            while !ended.load(Relaxed) {
                let start = Instant::now();
                match ask(&service.site, &body) {
                    Ok(answer) if answer.status == 200 => honest.ms.push(ms(start.elapsed())),
                    _ => honest.failed += 1,
                }
                sleep(Duration::from_millis(5));
            }
            honest
        });
        meanwhile(&ended);
        client.join().unwrap_or_default()
    })
}
