//! The digest of the model's files, for those who ask: it is read through once, when the first one does.
//!
//! Threads that read requests see no files, so a thread of its own does it, started before them.

use std::sync::{Arc, mpsc};
use std::thread;

use tokio::sync::oneshot;

use crate::error::ApiError;

/// Computes the digest, or says why not.
pub type ComputeDigest = Arc<dyn Fn() -> Result<String, String> + Send + Sync>;

type Asked = oneshot::Sender<Result<String, String>>;

/// The way to the thread.
pub(crate) struct Digest(mpsc::Sender<Asked>);

impl Digest {
    /// Starts the thread; it ends when the last way to it is gone.
    pub(crate) fn start(compute: ComputeDigest) -> std::io::Result<Self> {
        let (sender, asked) = mpsc::channel::<Asked>();
        thread::Builder::new().name("digest".into()).spawn(move || {
            let mut known = None;
            for asked in asked {
                let digest = known.clone().map_or_else(|| compute(), Ok);
                known = digest.clone().ok();
                // Whoever does not listen any more needs no answer.
                let _ = asked.send(digest);
            }
        })?;
        Ok(Self(sender))
    }

    pub(crate) async fn get(&self) -> Result<String, ApiError> {
        let (sender, receiver) = oneshot::channel();
        let gone = || ApiError::unavailable("the model's files cannot be read any more");
        self.0.send(sender).map_err(|_| gone())?;
        receiver.await.map_err(|_| gone())?.map_err(ApiError::unavailable)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;

    #[test]
    fn it_is_computed_once_and_a_failure_is_tried_again() {
        let times = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&times);
        let digest = Digest::start(Arc::new(move || match counted.fetch_add(1, Relaxed) {
            0 => Err("not yet".into()),
            _ => Ok("ab".into()),
        }));
        let digest = digest.unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert!(runtime.block_on(digest.get()).unwrap_err().message.contains("not yet"));
        for _ in 0..3 {
            assert_eq!(runtime.block_on(digest.get()).unwrap(), "ab");
        }
        assert_eq!(times.load(Relaxed), 2);
    }
}
