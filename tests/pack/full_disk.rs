//! Without room on the disk, and started again when there is some: the same bytes.

use std::fs;

use engine_core::checkpoint::Checkpoint;

use super::{files, golden, pack, text};
use crate::damaged::disk::SmallDisk;
use crate::damaged::{assert_refused, run};

#[test]
fn a_pack_on_a_full_disk_leaves_nothing_half_done_and_goes_on_when_there_is_room() {
    const WHOLE: usize = 4096;
    let folder = tempfile::tempdir().unwrap();
    let source = golden().join("qwen3_moe");
    let undisturbed = folder.path().join("undisturbed");
    pack(&source, &undisturbed, false).unwrap();
    let want = files(&undisturbed);
    let kib = want.values().map(Vec::len).sum::<usize>() / 1024;
    assert!(want.len() > 5 && kib < WHOLE / 2, "{} files of {kib} KiB", want.len());

    let Some(disk) = SmallDisk::mount(&folder.path().join("disk"), WHOLE) else { return };
    let target = disk.path("packed");
    let arguments = ["pack", "-m", text(&source), "-o", text(&target), "--max-shard-size", "100000", "--threads", "2"];
    let (mut at_once, mut on_the_way) = (0, 0);
    // Least is known before the first byte: only with a little more than that a shard is begun in vain.
    for room in (4..kib + 60).step_by(16) {
        disk.resize(room);
        let output = run(&arguments);
        if output.status.success() {
            assert!(files(&target) == want, "{room} KiB of room");
        } else {
            let what = format!("{room} KiB of room");
            let said = assert_refused(&what, &output, 1, &[text(&target), "no space", "bytes", "make room"]);
            let of_a_file = said.contains(".unfinished: no space");
            let space = rustix::fs::statvfs(&target).unwrap();
            let free = space.f_bavail * space.f_frsize;
            assert!(
                said.contains(&format!("{free} are free")) || said.contains(&format!("the {free} bytes")),
                "{said}"
            );
            (at_once, on_the_way) = (at_once + usize::from(!of_a_file), on_the_way + usize::from(of_a_file));
            let left = files(&target);
            let marker = "nightmonk-pack.unfinished";
            assert!(left.iter().all(|(name, bytes)| name == marker || want.get(name) == Some(bytes)), "{what}");
            // What there is of it is no model.
            assert!(Checkpoint::open(&target).is_err(), "{what}");
        }
        disk.resize(WHOLE);
        let output = run(&arguments);
        assert!(output.status.success(), "{room}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(files(&target) == want, "{room} KiB of room, then space");
        fs::remove_dir_all(&target).unwrap();
    }
    assert!(at_once > 0, "no run was refused before its first shard");
    assert!(on_the_way > 0, "no run was refused in a shard");
}
