//! What is written is read; what is damaged, too old or not ours is not.

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

const BYTES: usize = 1000;
const FILE: u64 = (NUMBERS_AT + BYTES + CHECKSUM_BYTES) as u64;

fn name(of: u32) -> (ChainHash, [u32; KV_BLOCK]) {
    let tokens = [of; KV_BLOCK];
    (ChainHash::root(b"test").then(&tokens), tokens)
}

fn numbers(of: u32) -> Vec<u8> {
    (0..BYTES).map(|at| (at as u32 * 7 + of) as u8).collect()
}

fn open(folder: &Path, budget: u64) -> DiskCache {
    DiskCache::open(folder, budget, BYTES, |line| panic!("{line}")).unwrap()
}

fn save(cache: &mut DiskCache, of: u32) {
    let (name, tokens) = name(of);
    assert!(cache.offer(name, &tokens, |out| out.extend(numbers(of))));
    while cache.wait() {}
}

fn read(cache: &mut DiskCache, of: u32) -> Option<Vec<u8>> {
    let (name, tokens) = name(of);
    cache.read(&name, &tokens).map(<[u8]>::to_vec)
}

#[test]
fn blocks_are_found_by_the_next_run_and_by_the_owner_alone() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("new/kv");
    let mut cache = open(&folder, 10 * FILE);
    (0..3).for_each(|of| save(&mut cache, of));
    assert!(matches!(DiskCache::open(&folder, 10 * FILE, BYTES, |_| {}), Err(DiskCacheError::InUse { .. })));
    drop(cache);
    assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
    for entry in fs::read_dir(&folder).unwrap() {
        assert_eq!(entry.unwrap().metadata().unwrap().mode() & 0o777, 0o600);
    }
    let unfinished = folder.join(name(9).0.hex() + UNFINISHED);
    fs::write(&unfinished, "half").unwrap();
    fs::write(folder.join("a note.md"), "of someone").unwrap();
    let mut cache = open(&folder, 10 * FILE);
    assert_eq!(
        (0..4).map(|of| read(&mut cache, of)).collect::<Vec<_>>(),
        [Some(numbers(0)), Some(numbers(1)), Some(numbers(2)), None]
    );
    assert!(!unfinished.exists() && folder.join("a note.md").exists());
    assert_eq!(cache.usage(), DiskUse { files: 3, bytes: 3 * FILE, read: 3, ..DiskUse::default() });
}

#[test]
fn the_files_used_longest_ago_go_when_the_budget_is_spent() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("kv");
    let mut cache = open(&folder, 3 * FILE);
    (0..3).for_each(|of| save(&mut cache, of));
    assert!(read(&mut cache, 0).is_some());
    save(&mut cache, 3);
    assert_eq!([0, 1, 2, 3].map(|of| read(&mut cache, of).is_some()), [true, false, true, true]);
    assert_eq!((cache.usage().bytes, cache.usage().evicted), (3 * FILE, 1));
    drop(cache);
    // The next run may have less.
    let mut cache = open(&folder, FILE);
    assert_eq!([0, 1, 2, 3].map(|of| read(&mut cache, of).is_some()), [false, false, false, true]);
    let refused = DiskCache::open(&folder, FILE - 1, BYTES, |_| {}).map(|_| ()).unwrap_err();
    assert!(matches!(refused, DiskCacheError::Budget { .. }), "{refused}");
}

#[test]
fn a_file_that_is_not_as_it_was_written_is_deleted() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("kv");
    let mut cache = open(&folder, 10 * FILE);
    let path = folder.join(name(0).0.hex() + EXTENSION);
    save(&mut cache, 0);
    let good = fs::read(&path).unwrap();
    let mut bad: Vec<Vec<u8>> = vec![Vec::new(), good[..good.len() - 1].to_vec(), [&good[..], &[0]].concat()];
    for at in (0..good.len()).step_by(97) {
        let mut flipped = good.clone();
        flipped[at] ^= 1 << (at % 8);
        bad.push(flipped);
    }
    for (nth, bytes) in bad.iter().enumerate() {
        fs::write(&path, bytes).unwrap();
        assert_eq!(read(&mut cache, 0), None, "number {nth}");
        assert!(!path.exists());
        assert_eq!(cache.usage().damaged, nth + 1);
        save(&mut cache, 0);
        assert_eq!(read(&mut cache, 0), Some(numbers(0)));
    }
    // A whole file under another's name is not that other.
    fs::copy(&path, folder.join(name(1).0.hex() + EXTENSION)).unwrap();
    drop(cache);
    assert_eq!(read(&mut open(&folder, 10 * FILE), 1), None);
}

#[test]
fn an_error_ends_the_use_of_the_folder_with_one_line() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("kv");
    let lines = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&lines);
    let report = move |line: &str| {
        assert!(line.contains("no longer kept on disk"), "{line}");
        counted.fetch_add(1, Ordering::Relaxed);
    };
    let mut cache = DiskCache::open(&folder, 10 * FILE, BYTES, report).unwrap();
    save(&mut cache, 0);
    fs::remove_dir_all(&folder).unwrap();
    assert_eq!(read(&mut cache, 0), None, "a file that went is no error");
    for of in 1..4 {
        let (name, tokens) = name(of);
        cache.offer(name, &tokens, |out| out.extend(numbers(of)));
        while cache.wait() {}
    }
    assert!(cache.usage().off && !cache.contains(&name(0).0));
    assert_eq!(lines.load(Ordering::Relaxed), 1);
}

#[test]
fn a_folder_that_others_can_read_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o750)).unwrap();
    let refused = DiskCache::open(folder.path(), 10 * FILE, BYTES, |_| {}).map(|_| ()).unwrap_err();
    assert!(refused.to_string().contains("mode 750"), "{refused}");
}

#[test]
fn a_full_queue_takes_nothing_and_waits_for_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("kv");
    let mut cache = open(&folder, 10 * FILE);
    cache.buffers.clear();
    let (name, tokens) = name(0);
    assert!(!cache.offer(name, &tokens, |_| panic!("no bytes are copied")));
}
