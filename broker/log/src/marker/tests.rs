use std::collections::BTreeMap;

use super::*;

const OURS: Uuid = Uuid::from_u128(1);
const THEIRS: Uuid = Uuid::from_u128(2);

fn expected(cluster_id: Option<Uuid>) -> Expected<'static> {
    Expected { cluster_id, node_name: "herd-1" }
}

fn existing(dir: &Path) -> Claimed {
    match Directory::open(dir, &expected(Some(OURS))).unwrap() {
        Directory::Existing(existing) => existing.claim().unwrap(),
        other => panic!("{other:?}"),
    }
}

/// Returns a new directory that is bound to the cluster.
fn bound(dir: &Path, cluster_id: Uuid) -> Claimed {
    let mut claimed = fresh(dir).create().unwrap();
    claimed.bind(cluster_id).unwrap();
    claimed
}

fn fresh(dir: &Path) -> Fresh {
    match Directory::open(dir, &expected(None)).unwrap() {
        Directory::Fresh(fresh) => fresh,
        other => panic!("{other:?}"),
    }
}

/// Returns names, contents and modification times of the files.
fn state(dir: &Path) -> BTreeMap<String, (Vec<u8>, std::time::SystemTime)> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let modified = entry.metadata().unwrap().modified().unwrap();
        files.insert(entry.file_name().into_string().unwrap(), (fs::read(entry.path()).unwrap(), modified));
    }
    files
}

fn refuse(dir: &Path, expected: &Expected<'_>) -> Error {
    let before = state(dir);
    let error = Directory::open(dir, expected).unwrap_err();
    assert_eq!(state(dir), before);
    error
}

#[test]
fn an_empty_directory_gets_its_marker_when_the_node_joins() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("made/when/absent");
    drop(fresh(&dir));
    let claimed = bound(&dir, OURS);
    let marker = claimed.marker().clone();
    assert_eq!((marker.cluster_id, marker.incarnation, marker.node_name.as_str()), (Some(OURS), 1, "herd-1"));
    drop(claimed);
    for incarnation in 2..5 {
        assert_eq!(*existing(&dir).marker(), Marker { incarnation, ..marker.clone() });
    }
    // Accepted while the cluster id is not known.
    assert!(matches!(Directory::open(&dir, &expected(None)), Ok(Directory::Existing(_))));
    let other = temporary.path().join("other");
    assert_ne!(bound(&other, OURS).marker().node_id, marker.node_id);
}

#[test]
fn a_foreign_disk_is_refused_and_not_touched() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    drop(bound(dir, THEIRS));
    // The lock file is not created either.
    fs::remove_file(dir.join(LOCK)).unwrap();
    let text = refuse(dir, &expected(Some(OURS))).to_string();
    for part in [dir.join(MARKER).to_str().unwrap(), &OURS.to_string(), &THEIRS.to_string(), "aside"] {
        assert!(text.contains(part), "{text}");
    }
    let error = refuse(dir, &Expected { cluster_id: Some(THEIRS), node_name: "herd-2" });
    assert!(matches!(error, Error::ForeignNode { .. }));
    let text = error.to_string();
    for part in [dir.join(MARKER).to_str().unwrap(), "\"herd-1\"", "\"herd-2\"", &THEIRS.to_string()] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_damaged_marker_is_refused_whatever_bit_flipped() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    drop(bound(dir, OURS));
    let whole = fs::read(dir.join(MARKER)).unwrap();
    let meaning = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).ok();
    for offset in 0..whole.len() {
        for bit in 0..8 {
            let mut bytes = whole.clone();
            bytes[offset] ^= 1 << bit;
            if meaning(&bytes) == meaning(&whole) {
                continue;
            }
            fs::write(dir.join(MARKER), bytes).unwrap();
            let error = refuse(dir, &expected(None));
            let known = matches!(error, Error::Damaged { .. } | Error::Version { .. } | Error::ForeignNode { .. });
            assert!(known, "{error}");
        }
    }
    fs::write(dir.join(MARKER), b"").unwrap();
    assert!(matches!(refuse(dir, &expected(None)), Error::Damaged { .. }));
}

#[test]
fn a_second_process_is_refused_and_told_who_is_there() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let claimed = bound(dir, OURS);
    let error = refuse(dir, &expected(Some(OURS)));
    assert!(matches!(error, Error::Locked { owner: Some(owner), .. } if owner == std::process::id()), "{error}");
    drop(claimed);
    let waiting = existing(dir);
    assert_eq!(waiting.marker().incarnation, 2);

    let other = tempfile::tempdir().unwrap();
    let fresh = fresh(other.path());
    assert!(matches!(refuse(other.path(), &expected(None)), Error::Locked { .. }));
    drop(fresh);
}

#[test]
fn a_torn_replacement_leaves_the_old_marker() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    drop(bound(dir, OURS));
    fs::write(dir.join("covey.json.tmp"), b"{\"formatVer").unwrap();
    assert_eq!(existing(dir).marker().incarnation, 2);
    assert_eq!(existing(dir).marker().incarnation, 3);
}

#[test]
fn a_disk_is_bound_to_one_cluster_for_good() {
    let temporary = tempfile::tempdir().unwrap();
    let mut claimed = fresh(temporary.path()).create().unwrap();
    assert_eq!(claimed.marker().cluster_id, None);
    claimed.bind(OURS).unwrap();
    claimed.bind(OURS).unwrap();
    assert!(matches!(claimed.bind(THEIRS), Err(Error::ForeignCluster { .. })));
    claimed.release();
    assert_eq!(existing(temporary.path()).marker().cluster_id, Some(OURS));
}

#[test]
fn the_marker_keeps_its_bytes() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let node_id = NodeId::new(0x0123_4567_89ab_cdef);
    let marker = Marker { cluster_id: Some(OURS), node_id, node_name: "herd-1".into(), incarnation: 300, left: false };
    marker.write(dir).unwrap();
    assert_eq!(fs::read_to_string(dir.join(MARKER)).unwrap(), include_str!("recorded.json"));
    assert_eq!(Marker::read(dir).unwrap(), Some(marker));
}

#[test]
fn the_disk_of_a_node_that_has_left_is_emptied_at_the_next_start_also_after_a_crash() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let mut claimed = bound(dir, OURS);
    let node_id = claimed.marker().node_id;
    for (directory, file) in [("log", "log/1"), ("lost+found", "lost+found/kept"), ("state", "state/1")] {
        fs::create_dir(dir.join(directory)).unwrap();
        fs::write(dir.join(file), "old").unwrap();
    }
    fs::write(dir.join("access.json"), "old").unwrap();
    claimed.leave().unwrap();
    drop(claimed);
    let left = || match Directory::open(dir, &expected(Some(OURS))).unwrap() {
        Directory::Left(left) => left,
        other => panic!("{other:?}"),
    };
    assert_eq!(left().marker().node_id, node_id);
    assert!(dir.join("log/1").exists(), "opening deletes nothing");
    // A start that ended after some of the deletions.
    fs::remove_dir_all(dir.join("log")).unwrap();
    let claimed = left().empty().unwrap().create().unwrap();
    let marker = claimed.marker();
    assert_eq!((marker.cluster_id, marker.incarnation, marker.left), (None, 1, false));
    assert_ne!(marker.node_id, node_id);
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [MARKER, LOCK, "lost+found"]);
    assert!(dir.join("lost+found/kept").exists());
}
