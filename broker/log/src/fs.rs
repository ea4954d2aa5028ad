//! Replaces small files atomically: the marker and the copy of the access document.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Replaces a file through a temporary one in the same directory, named like it with `.tmp` behind. After a crash there is
/// the old file or the new one; when this returns, the new one is durable. `mode` is the permissions of a file that is made,
/// before the umask.
///
/// # Errors
/// The path has no directory or no file name, or an operation failed. The old file is then still there, unless only the
/// last fsync failed.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut temporary = name.to_owned();
    temporary.push(".tmp");
    let temporary = dir.join(temporary);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_replaced_file_has_the_new_bytes_and_no_temporary_file_stays() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("file");
        fs::write(temporary.path().join("file.tmp"), "left by a crash, and longer than what is written").unwrap();
        for bytes in ["old", "new and longer", "n"] {
            replace(&path, bytes.as_bytes(), 0o600).unwrap();
            assert_eq!(fs::read(&path).unwrap(), bytes.as_bytes());
        }
        // The first one was the leftover, with its permissions.
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let names: Vec<_> = fs::read_dir(temporary.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["file"]);
        assert_eq!(replace(Path::new("/"), b"", 0o600).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_file_that_cannot_be_replaced_stays() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("file");
        replace(&path, b"old", 0o600).unwrap();
        // Nothing can be written under the temporary name.
        fs::create_dir(temporary.path().join("file.tmp")).unwrap();
        replace(&path, b"new", 0o600).unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }
}
