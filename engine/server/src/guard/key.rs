//! The key that clients show.
//!
//! Digests of equal length are compared without a branch, all of them for every request: the time says nothing about how
//! much of a key was right, nor about which one.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use blake3::Hash;
use subtle::{Choice, ConstantTimeEq};

/// Longest file of keys.
const KEY_FILE_BYTES_MAX: u64 = 1 << 20;

/// Digests of the keys.
pub(crate) struct Keys(Vec<Hash>);

impl Keys {
    /// Of no keys: everyone is accepted.
    pub(crate) fn new(keys: &[String]) -> Self {
        Self(keys.iter().map(|key| blake3::hash(key.as_bytes())).collect())
    }

    /// Whether a request shows one of the keys, as `Authorization: Bearer KEY` or `X-Api-Key: KEY`.
    pub(crate) fn accept(&self, headers: &HeaderMap) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let bearer = headers.get(AUTHORIZATION).and_then(|value| {
            let (scheme, key) = value.as_bytes().split_at_checked("Bearer ".len())?;
            scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key)
        });
        let shown = bearer.or_else(|| headers.get("x-api-key").map(|value| value.as_bytes())).unwrap_or_default();
        let digest = blake3::hash(shown);
        let equal = |known: &Hash| known.as_bytes().ct_eq(digest.as_bytes());
        self.0.iter().map(equal).fold(Choice::from(0), |any, one| any | one).into()
    }
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum KeyFileError {
    #[error("cannot read or write the key in {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} may be read by others (mode {mode:o}); make it your own (`chmod 600`), and the key a new one")]
    Readable { path: PathBuf, mode: u32 },
    #[error("{path} holds no key; remove it, and a key is made at the next start")]
    Empty { path: PathBuf },
    #[error("{path} is not a file of keys: it has more than {KEY_FILE_BYTES_MAX} bytes, or is not text")]
    NotKeys { path: PathBuf },
}

/// The keys in a file, one a line. Where there is none and `make` is set, it gets a key that nobody knows, for its owner's
/// eyes only.
///
/// # Errors
/// [`KeyFileError`]; also where others may read the file.
pub fn key_file(path: &Path, make: bool) -> Result<Vec<String>, KeyFileError> {
    let failed = |source| KeyFileError::Io { path: path.into(), source };
    match OpenOptions::new().read(true).open(path) {
        Ok(file) => {
            let facts = file.metadata().map_err(failed)?;
            if facts.mode() & 0o077 != 0 {
                return Err(KeyFileError::Readable { path: path.into(), mode: facts.mode() & 0o777 });
            }
            let mut text = String::new();
            let not_keys = || KeyFileError::NotKeys { path: path.into() };
            match file.take(KEY_FILE_BYTES_MAX + 1).read_to_string(&mut text) {
                Ok(bytes) if bytes as u64 > KEY_FILE_BYTES_MAX => return Err(not_keys()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(not_keys()),
                Err(error) => return Err(failed(error)),
            }
            let keys: Vec<String> =
                text.lines().map(str::trim).filter(|line| !line.is_empty()).map(Into::into).collect();
            if keys.is_empty() { Err(KeyFileError::Empty { path: path.into() }) } else { Ok(keys) }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && make => {
            let mut secret = [0; 32];
            let filled = rustix::rand::getrandom(&mut secret[..], rustix::rand::GetRandomFlags::empty());
            if filled.map_err(|error| failed(error.into()))? != secret.len() {
                return Err(failed(io::Error::other("the system gave too few random bytes")));
            }
            let key = format!("nm-{}", Hash::from_bytes(secret).to_hex());
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder).map_err(failed)?;
            }
            // Written beside and renamed: a start that is cut off leaves no half of a key.
            let beside = path.with_extension(format!("new-{}", std::process::id()));
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside).map_err(failed)?;
            file.write_all(format!("{key}\n").as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
            fs::rename(&beside, path).map_err(failed)?;
            Ok(vec![key])
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use axum::http::HeaderValue;

    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).unwrap());
        headers
    }

    #[test]
    fn only_whole_keys_of_any_length_are_accepted() {
        for length in 1..200 {
            let key = "k".repeat(length);
            let keys = Keys::new(&["another".into(), key.clone()]);
            assert!(keys.accept(&headers("authorization", &format!("bearer {key}"))));
            assert!(keys.accept(&headers("x-api-key", &key)));
            for wrong in [&key[1..], &format!("{key}k"), &format!(" {key}"), ""] {
                assert!(!keys.accept(&headers("authorization", &format!("Bearer {wrong}"))), "{length}");
                assert!(!keys.accept(&headers("x-api-key", wrong)), "{length}");
            }
            assert!(!keys.accept(&headers("authorization", &key)));
            assert!(!keys.accept(&HeaderMap::new()));
        }
        assert!(Keys::new(&[]).accept(&HeaderMap::new()));
    }

    #[test]
    fn a_key_is_made_once_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/api-key");
        assert!(matches!(key_file(&path, false), Err(KeyFileError::Io { .. })));
        let made = key_file(&path, true).unwrap();
        assert_eq!(made.len(), 1);
        assert!(made[0].len() > 60);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(key_file(&path, true).unwrap(), made);

        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(key_file(&path, true), Err(KeyFileError::Readable { mode: 0o640, .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "\n \n").unwrap();
        assert!(matches!(key_file(&path, true), Err(KeyFileError::Empty { .. })));
    }
}
