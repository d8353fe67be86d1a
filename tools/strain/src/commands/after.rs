//! What has to be true after any load: the process lives, answers, and holds what it held before.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::answers::{self, ask};
use crate::service::{Baseline, Service};
use crate::{Failure, Report};

/// Longest wait for a server to be as it was. Times are judged elsewhere; this is the end of hope.
const PATIENCE: Duration = Duration::from_secs(30);

/// Adds the rows to `report`.
pub(crate) fn check(service: &Service, baseline: &Baseline, report: &mut Report) -> Result<(), Failure> {
    report.equal("deaths", usize::from(!service.is_alive()), 0);
    let (work, _) = service.settle(PATIENCE, |work| *work == baseline.work)?;
    report.equal("sequences that still run", work.running, baseline.work.running);
    report.equal("sequences that still wait", work.waiting, baseline.work.waiting);
    report.equal("KV blocks in use", work.used_blocks, baseline.work.used_blocks);
    if let Some(before) = baseline.holdings {
        let start = Instant::now();
        let now = loop {
            let Some(now) = service.holdings()? else { break before };
            if now.descriptors <= before.descriptors || start.elapsed() > PATIENCE {
                break now;
            }
            sleep(Duration::from_millis(20));
        };
        let kept = now.descriptors <= before.descriptors;
        report.holds("file descriptors", now.descriptors, before.descriptors, kept);
        report.tell("threads", format!("{}, before {}", now.threads, before.threads));
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let [before, now] = [before, now].map(|holdings| mib(holdings.anonymous_bytes));
        report.tell("anonymous memory and swap", format!("{now:.1} MiB, before {before:.1} MiB"));
    }
    let answer = ask(&service.site, &answers::completion(&service.model, "still there", 2));
    let said = match &answer {
        Ok(answer) => format!("status {}", answer.status),
        Err(error) => error.to_string(),
    };
    report.holds("a request after it", said, "status 200", answer.is_ok_and(|answer| answer.status == 200));
    Ok(())
}
