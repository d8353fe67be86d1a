//! The kernel's own account of the machine: small texts under `/proc` and `/sys`.
//!
//! Everything that is learned from them is a pure function over [`Read`], so a test hands in the texts of a machine that
//! nobody here has.

/// The text of a file by its absolute path; `None` where it is missing or may not be read.
pub(crate) type Read<'a> = &'a dyn Fn(&str) -> Option<String>;

/// [`Read`] on this machine.
pub(crate) fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// The rest of the line `name: …`, as `/proc/*/status` and `meminfo` have them.
pub(crate) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        // A node's meminfo begins each line with `Node 0 `.
        let (key, value) = line.split_once(':')?;
        (key.split_whitespace().next_back() == Some(name)).then(|| value.trim())
    })
}

/// A [`field`] like `24696 kB` in bytes.
pub(crate) fn bytes_field(text: &str, name: &str) -> Option<u64> {
    let kib: u64 = field(text, name)?.strip_suffix("kB")?.trim_end().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// [`Read`] over given texts.
    pub(crate) fn files<'a>(texts: &'a [(&str, &str)]) -> impl Fn(&str) -> Option<String> + 'a {
        |path| texts.iter().find(|(name, _)| *name == path).map(|(_, text)| (*text).to_owned())
    }

    #[test]
    fn sizes_are_read_from_meminfo_of_the_machine_of_a_node_and_of_a_process() {
        let meminfo = "MemTotal:       24696180 kB\nMemFree:          100 kB\nHugePages_Total:      16\n";
        assert_eq!(bytes_field(meminfo, "MemTotal"), Some(24_696_180 * 1024));
        assert_eq!(field(meminfo, "HugePages_Total"), Some("16"));
        assert_eq!(bytes_field("Node 3 MemTotal:       64 kB\n", "MemTotal"), Some(64 * 1024));
        assert_eq!(bytes_field("Name:\tx\nVmHWM:\t    1768 kB\n", "VmHWM"), Some(1768 * 1024));
    }

    #[test]
    fn what_is_absent_or_no_size_is_none() {
        for text in [
            "",
            "MemTotal 5 kB",
            "MemTotalX: 5 kB",
            "MemTotal: 5",
            "MemTotal: -5 kB",
            "MemTotal: 99999999999999999999 kB",
        ] {
            assert_eq!(bytes_field(text, "MemTotal"), None, "{text:?}");
        }
        assert_eq!(bytes_field("MemTotal: 18446744073709551615 kB", "MemTotal"), None);
    }
}
