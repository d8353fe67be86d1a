//! Requests that are wrong in every way we know.
//!
//! A status of 5xx tells a client to try again, and a server that dies takes everybody's night with it; so whatever a request
//! says, it is answered, refused or cut off. The corpus is generated: hand-written templates, each with many seeds.

mod fields;
mod framing;
mod hostile;

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use super::after;
use crate::client::{Site, is_timeout};
use crate::options::Options;
use crate::parts::in_parallel;
use crate::random::Random;
use crate::{Failure, Report};

/// Requests of a full run.
const REQUESTS: usize = 6000;
/// A request that has neither an answer nor an end after this time hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// One request as bytes.
pub(super) struct Case {
    /// What is wrong with it.
    what: String,
    bytes: Vec<u8>,
    /// Whether the client closes its side at once: a server may take that for a client that has gone, and give no answer.
    ends: bool,
}

impl Case {
    fn raw(what: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { what: what.into(), bytes: bytes.into(), ends: false }
    }

    /// A body at a path, in a head without fault.
    fn body(site: &Site, what: impl Into<String>, path: &str, body: impl AsRef<[u8]>) -> Self {
        Self::raw(what, site.request("POST", path, Some(body.as_ref())))
    }
}

/// What a model is called, and how to reach it: what cases need to know.
pub(super) struct Place<'a> {
    site: &'a Site,
    model: &'a str,
}

pub(crate) fn run(options: &Options) -> Result<Report, Failure> {
    let mut report = Report::default();
    let service = options.service(4, &["--queue-size", "256"])?;
    let baseline = service.baseline()?;
    let rounds = options.rounds(REQUESTS);
    let place = Place { site: &service.site, model: &service.model };
    let results = in_parallel(options.clients(16), rounds, options.seed, |index, random| {
        let case = case(&place, index, random);
        let outcome = send(&service.site, &case);
        (case.what, outcome)
    });

    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    let (mut failures, mut hanging) = (0, 0);
    for (index, (what, outcome)) in results.into_iter().enumerate() {
        let said = match outcome {
            Outcome::Status(status) => {
                if (500..600).contains(&status) {
                    failures += 1;
                    report.remark(format!("request {index}, {what}: {status}"));
                }
                status.to_string()
            }
            Outcome::Cut => "cut off".into(),
            Outcome::Hangs => {
                hanging += 1;
                report.remark(format!("request {index}, {what}: neither answer nor end in {} s", PATIENCE.as_secs()));
                "hanging".into()
            }
        };
        *outcomes.entry(said).or_default() += 1;
    }
    report.tell("seed", options.seed);
    report.tell("requests", rounds);
    let outcomes = outcomes.iter().map(|(said, count)| format!("{said}: {count}")).collect::<Vec<_>>().join(", ");
    report.tell("answers", outcomes);
    report.equal("answers of 5xx", failures, 0);
    report.equal("requests that hang", hanging, 0);
    after::check(&service, &baseline, &mut report)?;
    Ok(report)
}

/// Request `index` of a run: the lists in turns, so that a short run has of all.
fn case(place: &Place<'_>, index: usize, random: &mut Random) -> Case {
    let turn = index / 4;
    match index % 4 {
        // What is not whole waits for its rest until the server has enough of it; half of them say that none will come.
        0 => Case { ends: random.once_in(2), ..framing::case(place, turn, random) },
        1 => hostile::case(place, turn, random),
        _ => fields::case(place, random),
    }
}

enum Outcome {
    Status(u16),
    Cut,
    Hangs,
}

fn send(site: &Site, case: &Case) -> Outcome {
    let sent = || -> io::Result<u16> {
        let mut connection = site.connect()?;
        connection.wait_at_most(PATIENCE)?;
        // A server that has seen enough closes while we still write; its answer may be there nevertheless.
        let _ = connection.write(&case.bytes);
        if case.ends {
            let _ = connection.end_writing();
        }
        let start = Instant::now();
        let mut head = connection.head()?;
        // A body that breaks off after its head is the same fault as none.
        while connection.piece(&mut head)?.is_some() {
            if start.elapsed() > PATIENCE {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        Ok(head.status)
    };
    match sent() {
        Ok(status) => Outcome::Status(status),
        Err(error) if is_timeout(&error) => Outcome::Hangs,
        Err(_) => Outcome::Cut,
    }
}
