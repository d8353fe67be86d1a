//! Memory that stays: pages that the kernel takes from nobody, however short it is of them.
//!
//! A process may lock as much as its limit says, and the default limit is a few MiB. A model takes minutes to load, so
//! [`check_lockable`] asks before, and [`lock`] locks after.

use std::io;
use std::ptr;

use rustix::io::Errno;
use rustix::mm::{MapFlags, MlockFlags, ProtFlags};
use rustix::process::{Resource, getrlimit};
use thiserror::Error;

/// Why memory is not locked; inside an [`io::Error`].
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "cannot lock {bytes} bytes in memory ({errno}): the limit RLIMIT_MEMLOCK of this process is {}; raise it with \
     `ulimit -l unlimited`, or with LimitMEMLOCK=infinity in the systemd unit",
    limit.map_or("unlimited".to_owned(), |limit| format!("{limit} bytes"))
)]
pub struct LockError {
    /// Bytes asked for.
    pub bytes: usize,
    /// What this process may lock in all, if not everything.
    pub limit: Option<u64>,
    /// The kernel's answer.
    pub errno: Errno,
}

impl LockError {
    fn now(bytes: usize, errno: Errno) -> io::Error {
        let limit = getrlimit(Resource::Memlock).current;
        io::Error::new(io::Error::from(errno).kind(), Self { bytes, limit, errno })
    }
}

/// Keeps the pages of `bytes` in memory until their mapping ends. Those that are not there are taken or read now.
///
/// # Errors
/// [`LockError`], mostly because of the limit for locked memory.
pub fn lock(bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the range is borrowed, and locking changes no byte.
    unsafe { rustix::mm::mlock(bytes.as_ptr().cast_mut().cast(), bytes.len()) }
        .map_err(|errno| LockError::now(bytes.len(), errno))
}

/// Whether the kernel would let this process lock so many bytes more. Takes no memory.
///
/// # Errors
/// [`LockError`] with the limit that forbids it.
pub fn check_lockable(bytes: usize) -> io::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    // Addresses with nothing behind them, which count as locked as soon as they are to be locked when touched.
    let (access, flags) = (ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::NORESERVE);
    // SAFETY: a new mapping at an address that the kernel chooses touches no other memory.
    let mapping = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), bytes, access, flags) };
    let mapping = mapping.map_err(|errno| LockError::now(bytes, errno))?;
    // SAFETY: the mapping is ours, and nobody can read or write it.
    let locked = unsafe { rustix::mm::mlock_with(mapping, bytes, MlockFlags::ONFAULT) };
    // SAFETY: nothing refers to the mapping.
    let unmapped = unsafe { rustix::mm::munmap(mapping, bytes) };
    debug_assert_eq!(unmapped, Ok(()));
    match locked {
        // Linux before 4.4 cannot be asked; locking itself will tell.
        Ok(()) | Err(Errno::NOSYS) => Ok(()),
        Err(errno) => Err(LockError::now(bytes, errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::{HUGE_PAGE, Region};

    #[test]
    fn asking_and_locking_agree_and_an_error_names_the_limit() {
        let mut region = Region::anonymous(HUGE_PAGE).unwrap();
        region.prefault(None).unwrap();
        let limit = getrlimit(Resource::Memlock).current;
        let asked = check_lockable(HUGE_PAGE);
        match lock(region.as_slice()) {
            Ok(()) => asked.unwrap(),
            Err(error) => {
                assert!(error.to_string().contains(&limit.unwrap().to_string()), "{error}");
                assert_eq!(asked.unwrap_err().to_string(), error.to_string());
            }
        }
        let message = LockError { bytes: 9, limit: Some(8192), errno: Errno::NOMEM }.to_string();
        for part in ["lock 9 bytes", "RLIMIT_MEMLOCK of this process is 8192 bytes", "ulimit -l", "LimitMEMLOCK"] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn what_no_machine_has_cannot_be_locked() {
        check_lockable(0).unwrap();
        assert!(check_lockable(usize::MAX / 2).is_err());
    }
}
