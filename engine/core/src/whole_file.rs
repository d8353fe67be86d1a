//! A file that is there as a whole, or as it was before: written under another name, synced, renamed.
//!
//! Whoever reads an output while it is written, or after the power has failed, must not take half of it for all of it.
//! What is no ordinary file, like `/dev/stdout` or a pipe, cannot be renamed to and is written as it is.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A file on its way to its name. Dropped before [`WholeFile::finish`], it leaves nothing.
#[derive(Debug)]
pub struct WholeFile {
    file: File,
    /// Where it is, and where it belongs; none where it is written in place.
    places: Option<[PathBuf; 2]>,
}

impl WholeFile {
    /// Begins the file at `path`, as `.NAME.part` beside it. What another run left under that name is overwritten.
    ///
    /// # Errors
    /// What the system says.
    pub fn create(path: &Path) -> io::Result<Self> {
        let target = match fs::metadata(path) {
            Ok(there) if there.is_file() => fs::canonicalize(path)?, // a link stays one
            Ok(there) if there.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
            Ok(_) => return Ok(Self { file: File::options().write(true).open(path)?, places: None }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
            Err(error) => return Err(error),
        };
        let Some(name) = target.file_name() else { return Err(io::ErrorKind::InvalidFilename.into()) };
        let mut part = OsString::from(".");
        part.push(name);
        part.push(".part");
        let part = target.with_file_name(part);
        Self::create_as(part, target)
    }

    /// Begins the file at `target` as `part`, which lies in the same folder.
    ///
    /// # Errors
    /// What the system says.
    pub fn create_as(part: PathBuf, target: PathBuf) -> io::Result<Self> {
        Ok(Self { file: File::create(&part)?, places: Some([part, target]) })
    }

    /// The file, to write to.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Writes at a place of its own; places that are never written to are zeros.
    ///
    /// # Errors
    /// What the system says: a pipe has no places.
    pub fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }

    /// When this returns, the file is on the disk under its own name.
    ///
    /// # Errors
    /// What the system says; then the name is what it was before.
    pub fn finish(mut self) -> io::Result<()> {
        let Some([part, target]) = &self.places else { return self.file.flush() };
        self.file.sync_all()?;
        fs::rename(part, target)?;
        let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
        let synced = File::open(folder.unwrap_or(Path::new("."))).and_then(|folder| folder.sync_all());
        self.places = None;
        synced
    }
}

impl Write for WholeFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for WholeFile {
    fn drop(&mut self) {
        if let Some([part, _]) = &self.places {
            // Gone already or not, it is not the file; the error that led here is the one to tell.
            let _ = fs::remove_file(part);
        }
    }
}

/// Writes all of a file.
///
/// # Errors
/// What the system says; then the file is what it was before.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = WholeFile::create(path)?;
    file.write_all(bytes)?;
    file.finish()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_what_it_was_until_all_of_it_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.svg");
        write(&path, b"old").unwrap();
        let mut new = WholeFile::create(&path).unwrap();
        new.write_all(b"half").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        drop(new);
        assert_eq!((fs::read(&path).unwrap(), names(folder.path())), (b"old".to_vec(), vec!["a.svg".to_owned()]));

        let new = WholeFile::create(&path).unwrap();
        new.write_at(b"end", 4).unwrap();
        new.write_at(b"new", 0).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        new.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new\0end");
        assert_eq!(names(folder.path()), ["a.svg"]);
    }

    #[test]
    fn what_a_killed_run_left_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(".a.part"), "longer than what comes").unwrap();
        write(&folder.path().join("a"), b"new").unwrap();
        assert_eq!(fs::read(folder.path().join("a")).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[test]
    fn a_link_stays_one_and_what_is_no_file_is_written_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let [real, link] = ["real", "link"].map(|name| folder.path().join(name));
        fs::write(&real, "old").unwrap();
        symlink(&real, &link).unwrap();
        write(&link, b"new").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&real).unwrap(), b"new");

        write(Path::new("/dev/null"), b"new").unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
        assert!(write(folder.path(), b"new").is_err());
        assert!(write(&folder.path().join("nowhere/a"), b"new").is_err());
    }
}
