//! `leasehold install`, as in the init container.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output};

fn install(into: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_leasehold"))
        .arg("install")
        .arg(into)
        .output()
        .expect("the binary starts")
}

#[test]
fn the_copy_is_this_binary_and_executable_by_all_users() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("leasehold");
    std::fs::write(&copy, "an old one").unwrap();
    let old = copy.metadata().unwrap().ino();

    let installed = install(folder.path());
    assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
    let metadata = copy.metadata().unwrap();
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o755);
    assert_ne!(
        metadata.ino(),
        old,
        "it was overwritten, not replaced: a reader could see a partial file"
    );
    assert_eq!(
        std::fs::read(&copy).unwrap(),
        std::fs::read(env!("CARGO_BIN_EXE_leasehold")).unwrap()
    );
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "other files remain");
    let version = Command::new(&copy).arg("--version").output().unwrap();
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("leasehold "));
}

#[test]
fn a_missing_folder_is_refused_by_name() {
    let installed = install(Path::new("/nonexistent/folder"));
    assert_eq!(installed.status.code(), Some(78));
    let complaint = String::from_utf8_lossy(&installed.stderr);
    assert!(
        complaint.starts_with("leasehold: cannot install into /nonexistent/folder: No such file"),
        "{complaint}"
    );
}
