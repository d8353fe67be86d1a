//! What time it is, for chat templates that write it.
//!
//! In UTC: a machine's zone may change between two runs of one job.

use std::time::{SystemTime, UNIX_EPOCH};

use engine_core::text::CivilTime;

/// Now; 1970 where the clock stands before that.
pub(crate) fn now() -> CivilTime {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    CivilTime::from_unix(i64::try_from(seconds).unwrap_or(i64::MAX), 0)
}
