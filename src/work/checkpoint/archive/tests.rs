//! Archives that leasehold wrote, and others.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use tar::{EntryType, Header};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use walkdir::WalkDir;

use super::format::*;
use super::pack::Data;
use super::*;
use crate::work::workspace::WorkDir;

struct Sandbox {
    home: TempDir,
    archive: PathBuf,
    into: PathBuf,
}

fn sandbox() -> Sandbox {
    let home = tempfile::tempdir().unwrap();
    let (archive, into) = (home.path().join("a.tar"), home.path().join("into"));
    fs::create_dir(&into).unwrap();
    Sandbox { home, archive, into }
}

impl Sandbox {
    fn unpack(&self) -> Result<Unpacked, String> {
        let work_dir = WorkDir { path: self.home.path().to_owned(), limit: None };
        unpack(&self.archive, &self.into, &work_dir, &CancellationToken::new())
    }

    /// Packs and unpacks, which must both succeed.
    fn packed_and_unpacked(&self, directory: &Path) -> (Packed, Unpacked) {
        let packed =
            pack(directory, ArchiveInfo::new(7), &self.archive, &CancellationToken::new()).unwrap();
        assert_eq!(packed.bytes, fs::metadata(&self.archive).unwrap().len());
        (packed, self.unpack().unwrap())
    }
}

#[test]
fn files_and_links_survive_a_round_trip() {
    let from = tempfile::tempdir().unwrap();
    let deep = "x".repeat(90);
    fs::create_dir_all(from.path().join("empty")).unwrap();
    fs::create_dir_all(from.path().join(&deep).join(&deep)).unwrap();
    let long = from.path().join(&deep).join(&deep).join("file");
    fs::write(&long, vec![7; 1 << 20]).unwrap();
    fs::write(from.path().join("nothing"), "").unwrap();
    symlink("nothing", from.path().join("link")).unwrap();
    let sandbox = self::sandbox();
    let (packed, unpacked) = sandbox.packed_and_unpacked(from.path());
    assert_eq!((packed.links_left_out, unpacked.links_left_out, unpacked.info.worked_s), (0, 0, 7));
    let into = &sandbox.into;
    assert_eq!(WalkDir::new(into).min_depth(1).into_iter().count(), 6);
    assert_eq!(fs::read(into.join(&deep).join(&deep).join("file")).unwrap(), vec![7; 1 << 20]);
    assert_eq!(fs::read_link(into.join("link")).unwrap(), Path::new("nothing"));
}

#[test]
fn modes_are_kept_also_of_read_only_directories() {
    let from = tempfile::tempdir().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let set = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    let (closed, inside) = (from.path().join("closed"), from.path().join("closed/inside"));
    fs::create_dir(&closed).unwrap();
    fs::write(&inside, "x").unwrap();
    set(&inside, 0o640);
    set(&closed, 0o510);
    let sandbox = self::sandbox();
    sandbox.packed_and_unpacked(from.path());
    let (closed_again, inside_again) =
        (sandbox.into.join("closed"), sandbox.into.join("closed/inside"));
    assert_eq!((mode(&closed_again), mode(&inside_again)), (0o510, 0o640));
    for path in [&closed, &closed_again] {
        set(path, 0o700);
    }
}

#[test]
fn a_sparse_file_stays_sparse() {
    const END: u64 = 1 << 40;
    let from = tempfile::tempdir().unwrap();
    let (few, many, none) =
        (from.path().join("few"), from.path().join("many"), from.path().join("none"));
    File::create(&few)
        .and_then(|file| file.set_len(END).and_then(|()| file.write_all_at(b"few", 0)))
        .unwrap();
    File::create(&none).and_then(|file| file.set_len(END)).unwrap();
    let file = File::create(&many).unwrap();
    for part in 0..60_u64 {
        file.write_all_at(&[u8::try_from(part).unwrap() + 1; 4096], part << 20).unwrap();
    }
    let sandbox = self::sandbox();
    let (packed, _) = sandbox.packed_and_unpacked(from.path());
    if fs::metadata(&none).unwrap().blocks() == 0 {
        assert!(packed.bytes < 1 << 20, "the archive has {} bytes", packed.bytes);
    }
    for path in ["few", "none"] {
        let metadata = fs::metadata(sandbox.into.join(path)).unwrap();
        assert_eq!(metadata.len(), END);
        assert!(metadata.blocks() * BLOCK < 1 << 20, "it takes {} blocks", metadata.blocks());
    }
    let mut start = [0; 4];
    File::open(sandbox.into.join("few")).unwrap().read_exact(&mut start).unwrap();
    assert_eq!(&start, b"few\0");
    assert!(fs::read(&many).unwrap() == fs::read(sandbox.into.join("many")).unwrap());
}

#[test]
fn a_file_that_shrinks_is_filled_with_zeros() {
    let from = tempfile::tempdir().unwrap();
    let path = from.path().join("file");
    fs::write(&path, "longer").unwrap();
    let file = File::open(&path).unwrap();
    fs::write(&path, "lo").unwrap();
    let mut bytes = Vec::new();
    let give_up = CancellationToken::new();
    Data { file: &file, parts: vec![0..3, 4..6].into(), give_up: &give_up }
        .read_to_end(&mut bytes)
        .unwrap();
    assert_eq!(bytes, b"lo\0\0\0");
}

#[test]
fn a_removed_or_replaced_directory_is_not_an_empty_one() {
    let from = tempfile::tempdir().unwrap();
    let directory = from.path().join("state");
    let archive = from.path().join("a.tar");
    let packed = || pack(&directory, ArchiveInfo::new(0), &archive, &CancellationToken::new());
    assert_eq!(packed(), Err("it was removed".to_owned()));
    fs::write(&directory, "x").unwrap();
    assert_eq!(packed(), Err("it is no longer a directory".to_owned()));
    fs::remove_file(&directory).unwrap();
    symlink("/", &directory).unwrap();
    assert_eq!(packed(), Err("it is no longer a directory".to_owned()));
    assert!(!archive.exists());
    fs::remove_file(&directory).unwrap();
    fs::create_dir(&directory).unwrap();
    let before = Identity::of(&directory).unwrap();
    assert_eq!(Identity::of(&directory), Ok(before));
    fs::rename(&directory, from.path().join("old")).unwrap();
    fs::create_dir(&directory).unwrap();
    assert_ne!(Identity::of(&directory), Ok(before));
}

#[test]
fn a_link_stays_inside_if_every_path_from_it_does() {
    for (name, target) in [
        ("l", "x"),
        ("l", "./x/y"),
        ("l", "."),
        ("a/l", ".."),
        ("a/b/l", "../../blobs/x"),
        ("l", "missing/x"),
    ] {
        assert!(stays_inside(Path::new(name), Path::new(target)), "{name} -> {target}");
    }
    for (name, target) in [
        ("l", ".."),
        ("l", "/"),
        ("l", "/etc/passwd"),
        ("a/l", "../../x"),
        ("a/l", "x/../../y"),
        ("l", "a/.."),
    ] {
        assert!(!stays_inside(Path::new(name), Path::new(target)), "{name} -> {target}");
    }
}

#[test]
fn a_link_that_leads_out_is_neither_saved_nor_restored() {
    let from = tempfile::tempdir().unwrap();
    symlink("/etc/passwd", from.path().join("out")).unwrap();
    symlink("in", from.path().join("inside")).unwrap();
    let sandbox = self::sandbox();
    let (packed, unpacked) = sandbox.packed_and_unpacked(from.path());
    assert_eq!((packed.links_left_out, unpacked.links_left_out), (1, 0));
    let link = |to: &str| Added {
        kind: EntryType::Symlink,
        name: "data/link".into(),
        to: to.into(),
        bytes: b"",
    };
    for (to, left_out) in [("/etc", 1), ("../x", 1), ("x", 0)] {
        let sandbox = self::sandbox();
        sandbox.write(&[ours(), link(to)]);
        assert_eq!(sandbox.unpack().unwrap().links_left_out, left_out, "{to}");
        assert_eq!(sandbox.into.join("link").is_symlink(), left_out == 0);
    }
}

struct Added {
    kind: EntryType,
    name: String,
    to: PathBuf,
    bytes: &'static [u8],
}

fn file(name: &str, bytes: &'static [u8]) -> Added {
    Added { kind: EntryType::Regular, name: name.into(), to: PathBuf::new(), bytes }
}

fn ours() -> Added {
    file(INFO_FILE, br#"{"version":1,"worked_s":0}"#)
}

impl Sandbox {
    /// Writes an archive with any entries, also invalid ones.
    fn write(&self, entries: &[Added]) {
        let mut tar = tar::Builder::new(File::create(&self.archive).unwrap());
        for Added { kind, name, to, bytes } in entries {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_size(bytes.len() as u64);
            header.set_mode(0o755);
            // `append_data` would refuse the name.
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            if !to.as_os_str().is_empty() {
                header.set_link_name(to).unwrap();
            }
            header.set_cksum();
            tar.append(&header, *bytes).unwrap();
        }
        tar.finish().unwrap();
    }
}

#[test]
fn an_archive_cannot_write_outside_the_directory() {
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    fs::write(&victim, "safe").unwrap();
    let special =
        |kind, name: &str, to: &Path| Added { kind, name: name.into(), to: to.into(), bytes: b"" };
    let link = |name: &str, to: &str| special(EntryType::Symlink, name, Path::new(to));
    let out = outside.path().to_str().unwrap();
    let file = |name: &str| self::file(name, b"evil");
    let bad = [
        vec![file("data/../../x")],
        vec![file(&format!("{out}/evil"))],
        vec![file("elsewhere")],
        vec![file("data")],
        vec![link("data", out), file("data/evil")],
        vec![link("data/l", out), file("data/l/evil")],
        vec![link("data/l", "x"), file("data/l/evil")],
        vec![
            special(EntryType::Directory, "data/x", Path::new("")),
            link("data/l", "x"),
            file("data/l/evil"),
        ],
        vec![link("data/l", "."), special(EntryType::Directory, "data/l", Path::new(""))],
        vec![special(EntryType::Link, "data/h", &victim)],
        vec![special(EntryType::Fifo, "data/f", Path::new(""))],
        vec![special(EntryType::Char, "data/c", Path::new(""))],
    ];
    for entries in bad {
        let names: Vec<_> = entries.iter().map(|entry| entry.name.clone()).collect();
        let sandbox = self::sandbox();
        sandbox.write(&[vec![ours()], entries].into_iter().flatten().collect::<Vec<_>>());
        let error = sandbox.unpack().expect_err(&names.join(", "));
        assert!(error.starts_with("entry ") && !error.contains("evil"), "{error}");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }
    // A file in the place of a link replaces the link.
    let sandbox = self::sandbox();
    sandbox.write(&[ours(), link("data/l", "x"), self::file("data/x", b"x"), file("data/l")]);
    sandbox.unpack().unwrap();
    assert_eq!(fs::read(sandbox.into.join("x")).unwrap(), b"x");
    assert_eq!(fs::read(&victim).unwrap(), b"safe");
}

#[test]
fn only_a_complete_archive_of_our_version_is_restored() {
    let with = |info: &'static [u8]| {
        let sandbox = self::sandbox();
        sandbox.write(&[file(INFO_FILE, info), file("data/secret", b"hidden")]);
        sandbox.unpack().map(|unpacked| unpacked.info.worked_s)
    };
    assert_eq!(with(br#"{"version":1,"worked_s":9,"more":true}"#), Ok(9));
    for (info, problem) in [
        (
            &br#"{"version":9,"worked_s":0}"#[..],
            "it has version 9, but this leasehold reads only version 1",
        ),
        (br#"{"version":0,"worked_s":0}"#, "it has version 0, but"),
        (br#"{"version":9}"#, "it has version 9, but"),
        (br#"{"worked_s":0}"#, "has no version"),
        (br#"{"version":"hidden"}"#, "has no version"),
        (b"hidden", "has no version"),
        (br#"{"version":1,"worked_s":"hidden"}"#, "has no worked_s in seconds"),
        (br#"{"version":1,"worked_s":-1}"#, "has no worked_s in seconds"),
        (br#"{"version":1,"worked_s":18446744073709551615}"#, "longer than the 14 days"),
    ] {
        let error = with(info).unwrap_err();
        assert!(error.contains(problem) && !error.contains("hidden"), "{error}");
    }

    let sandbox = self::sandbox();
    sandbox.write(&[ours(), file("data/one", b"1"), file("data/two", b"2")]);
    let whole = fs::read(&sandbox.archive).unwrap();
    for length in (0..whole.len() - 1024).step_by(128) {
        let sandbox = self::sandbox();
        fs::write(&sandbox.archive, &whole[..length]).unwrap();
        sandbox.unpack().expect_err(&format!("cut off at {length}"));
    }
    sandbox.write(&[file("data/one", b"1"), ours()]);
    assert_eq!(sandbox.unpack(), Err(NOT_AN_ARCHIVE.to_owned()));
}

#[test]
fn a_header_without_an_end_is_not_read() {
    for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader] {
        let sandbox = self::sandbox();
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(1 << 30);
        header.set_cksum();
        sandbox.write(&[ours()]);
        let length = fs::metadata(&sandbox.archive).unwrap().len() - 1024;
        let file = OpenOptions::new().write(true).open(&sandbox.archive).unwrap();
        file.write_all_at(header.as_bytes(), length).unwrap();
        file.set_len(1 << 30).unwrap();
        assert_eq!(sandbox.unpack(), Err("one of its headers is too long".to_owned()));
    }
}

#[test]
fn packing_and_unpacking_stop_when_time_runs_out() {
    let from = tempfile::tempdir().unwrap();
    fs::write(from.path().join("file"), "x").unwrap();
    let sandbox = self::sandbox();
    sandbox.packed_and_unpacked(from.path());
    let too_late = CancellationToken::new();
    too_late.cancel();
    let again = self::sandbox();
    let work_dir = WorkDir { path: again.home.path().to_owned(), limit: None };
    for given_up in [
        pack(from.path(), ArchiveInfo::new(7), &again.archive, &too_late).map(drop),
        unpack(&sandbox.archive, &again.into, &work_dir, &too_late).map(drop),
    ] {
        assert_eq!(given_up, Err(OUT_OF_TIME.to_owned()));
    }
}
