//! How much memory the control group of this process still allows.
//!
//! In a container the machine's free memory is not ours: past the group's limit the kernel kills, and past its `high`
//! mark it throttles every allocation until loading seems to hang. A limit holds for the whole subtree, so each group on
//! the path counts, in both versions of the interface, which one machine may mix.

use crate::kernel_files::Read;

/// What one version of the interface calls things.
struct Interface {
    /// File system type and the super option that marks the mount, if one does.
    mount: (&'static str, Option<&'static str>),
    limits: &'static [&'static str],
    usage: &'static str,
    /// Line of `memory.stat` for file cache that the kernel gives back first.
    reclaimable: &'static str,
}

const V1: Interface = Interface {
    mount: ("cgroup", Some("memory")),
    limits: &["memory.limit_in_bytes"],
    usage: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file",
};

const V2: Interface = Interface {
    mount: ("cgroup2", None),
    limits: &["memory.max", "memory.high"],
    usage: "memory.current",
    reclaimable: "inactive_file",
};

/// A group's limit, and how far its members are from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupLimit {
    /// The limit in bytes.
    pub limit_bytes: u64,
    /// What may still be allocated below it: limit - usage + file cache that can go.
    pub free_bytes: u64,
    /// The file that sets it.
    pub path: String,
}

/// The limit on the path of this process's groups that leaves least; `None` without any.
pub(crate) fn tightest(read: Read<'_>) -> Option<CgroupLimit> {
    let (groups, mounts) = (read("/proc/self/cgroup")?, read("/proc/self/mountinfo")?);
    let v1 = groups.lines().find_map(|line| group_of(line, |names| names.split(',').any(|name| name == "memory")));
    let v2 = groups.lines().find_map(|line| group_of(line, str::is_empty));
    [(V1, v1), (V2, v2)]
        .iter()
        .filter_map(|(interface, group)| {
            let (root, mount_point) = mounts.lines().find_map(|line| mount_of(line, interface))?;
            Some(limits(interface, group.as_deref()?, root, mount_point, read))
        })
        .flatten()
        .min_by_key(|limit| limit.free_bytes)
}

/// The group of a line `hierarchy:controllers:/group` of `/proc/self/cgroup`.
fn group_of(line: &str, wanted: impl Fn(&str) -> bool) -> Option<String> {
    let (_, rest) = line.split_once(':')?;
    let (controllers, group) = rest.split_once(':')?;
    wanted(controllers).then(|| group.to_owned())
}

/// Root inside the file system, and mount point, of a `mountinfo` line that is this interface's.
fn mount_of<'a>(line: &'a str, interface: &Interface) -> Option<(&'a str, &'a str)> {
    let (place, kind) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let (root, mount_point) = (place.next()?, place.next()?);
    let mut kind = kind.split(' ');
    let (fs_type, options) = (kind.next()?, kind.nth(1)?);
    let (want_type, want_option) = interface.mount;
    let has_option = want_option.is_none_or(|want| options.split(',').any(|option| option == want));
    (fs_type == want_type && has_option).then_some((root, mount_point))
}

/// The limits of `group` and of every group above it that is mounted.
fn limits(interface: &Interface, group: &str, root: &str, mount_point: &str, read: Read<'_>) -> Vec<CgroupLimit> {
    // A container often mounts its own group as the root, but still sees its full name. Where the name does not begin
    // with what is mounted, the mount point is the nearest group that can be seen.
    let below = group
        .strip_prefix(root.trim_end_matches('/'))
        .filter(|below| below.starts_with('/') && !below.contains("/.."))
        .unwrap_or("");
    let mut dir = format!("{mount_point}{}", below.trim_end_matches('/'));
    let mut found = Vec::new();
    while dir.len() >= mount_point.len() {
        found.extend(interface.limits.iter().filter_map(|file| limit(interface, &dir, file, read)));
        dir.truncate(dir.rfind('/').unwrap_or(0));
    }
    found
}

fn limit(interface: &Interface, dir: &str, file: &str, read: Read<'_>) -> Option<CgroupLimit> {
    let path = format!("{dir}/{file}");
    // `max` is no limit in version 2, and a number just below 2^63 is none in version 1.
    let limit_bytes = read(&path)?.trim().parse().ok().filter(|&bytes: &u64| bytes < 1 << 62)?;
    let usage: u64 = read(&format!("{dir}/{}", interface.usage)).and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let stat = read(&format!("{dir}/memory.stat")).unwrap_or_default();
    let reclaimable =
        stat.lines().find_map(|line| line.strip_prefix(interface.reclaimable)?.trim().parse::<u64>().ok()).unwrap_or(0);
    let free_bytes = limit_bytes.saturating_sub(usage.saturating_sub(reclaimable));
    Some(CgroupLimit { limit_bytes, free_bytes, path })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel_files::tests::files;

    const V2_MOUNT: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn version_2_takes_the_least_of_max_and_high_along_the_path() {
        let limit = tightest(&files(&[
            ("/proc/self/cgroup", "0::/night.slice/engine.service\n"),
            ("/proc/self/mountinfo", V2_MOUNT),
            ("/sys/fs/cgroup/night.slice/engine.service/memory.max", "max\n"),
            ("/sys/fs/cgroup/night.slice/engine.service/memory.high", "9000\n"),
            ("/sys/fs/cgroup/night.slice/engine.service/memory.current", "1000\n"),
            ("/sys/fs/cgroup/night.slice/memory.max", "8000\n"),
            ("/sys/fs/cgroup/night.slice/memory.current", "5000\n"),
            ("/sys/fs/cgroup/night.slice/memory.stat", "anon 100\nfile 3000\ninactive_file 1500\n"),
        ]));
        let path = "/sys/fs/cgroup/night.slice/memory.max".to_owned();
        assert_eq!(limit, Some(CgroupLimit { limit_bytes: 8000, free_bytes: 4500, path }));
    }

    #[test]
    fn a_high_mark_counts_where_it_leaves_less_than_every_maximum() {
        for (high, free_bytes) in [("6000", 2000), ("3000", 0)] {
            let limit = tightest(&files(&[
                ("/proc/self/cgroup", "0::/night.slice/engine.service\n"),
                ("/proc/self/mountinfo", V2_MOUNT),
                ("/sys/fs/cgroup/night.slice/engine.service/memory.max", "9000\n"),
                ("/sys/fs/cgroup/night.slice/engine.service/memory.current", "1000\n"),
                ("/sys/fs/cgroup/night.slice/memory.max", "8000\n"),
                ("/sys/fs/cgroup/night.slice/memory.high", high),
                ("/sys/fs/cgroup/night.slice/memory.current", "4000\n"),
            ]));
            let path = "/sys/fs/cgroup/night.slice/memory.high".to_owned();
            assert_eq!(limit, Some(CgroupLimit { limit_bytes: high.parse().unwrap(), free_bytes, path }));
        }
    }

    #[test]
    fn version_1_finds_its_own_mount_and_knows_its_number_for_no_limit() {
        let mounts = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let limit = tightest(&files(&[
            ("/proc/self/cgroup", "5:devices:/\n4:memory:/a/b\n0::/\n"),
            ("/proc/self/mountinfo", mounts),
            ("/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n"),
            ("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "7000\n"),
            ("/sys/fs/cgroup/memory/a/memory.usage_in_bytes", "6000\n"),
            ("/sys/fs/cgroup/memory/a/memory.stat", "inactive_file 1\ntotal_inactive_file 500\n"),
        ]));
        let path = "/sys/fs/cgroup/memory/a/memory.limit_in_bytes".to_owned();
        assert_eq!(limit, Some(CgroupLimit { limit_bytes: 7000, free_bytes: 1500, path }));
    }

    #[test]
    fn a_container_that_mounts_its_own_group_is_read_at_the_mount_point() {
        for (group, root) in
            [("/docker/abc", "/docker/abc"), ("/docker/abc", "/other"), ("/docker/abc", "/dock"), ("/../../x", "/")]
        {
            let mounts = format!("30 23 0:26 {root} /sys/fs/cgroup ro - cgroup2 cgroup rw\n");
            let groups = format!("0::{group}\n");
            let limit = tightest(&files(&[
                ("/proc/self/cgroup", &groups),
                ("/proc/self/mountinfo", &mounts),
                ("/sys/fs/cgroup/memory.max", "100\n"),
                ("/sys/fs/cgroup/memory.current", "300\n"),
            ]));
            assert_eq!(limit.map(|limit| (limit.limit_bytes, limit.free_bytes)), Some((100, 0)), "{group} in {root}");
        }
    }

    #[test]
    fn no_limit_and_no_files_are_none() {
        assert_eq!(tightest(&|_| None), None);
        let unlimited = &[
            ("/proc/self/cgroup", "0::/\n"),
            ("/proc/self/mountinfo", V2_MOUNT),
            ("/sys/fs/cgroup/memory.max", "max\n"),
            ("/sys/fs/cgroup/memory.high", "nonsense\n"),
        ];
        assert_eq!(tightest(&files(unlimited)), None);
    }
}
