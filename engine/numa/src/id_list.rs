//! Lists of CPU or node numbers in the kernel's notation, `0-31,64-95`.
//!
//! Every topology file of sysfs uses it, and real machines interleave their lists, so a list is never taken for a range.

/// No machine has ids this large; a list that names one is refused before memory is spent on it.
const ID_LIMIT: usize = 1 << 16;

/// The ids of a kernel list, ascending and distinct; an empty text is an empty list. `None` where it is not a list.
pub(crate) fn parse(text: &str) -> Option<Vec<usize>> {
    let mut ids = Vec::new();
    let text = text.trim();
    if text.is_empty() {
        return Some(ids);
    }
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= ID_LIMIT {
            return None;
        }
        ids.extend(first..=last);
        if ids.len() > ID_LIMIT {
            return None;
        }
    }
    ids.sort_unstable();
    ids.dedup();
    Some(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_interleave_and_repeat() {
        assert_eq!(parse("0-3,8,10-11\n"), Some(vec![0, 1, 2, 3, 8, 10, 11]));
        assert_eq!(parse("4,0-1,1"), Some(vec![0, 1, 4]));
        assert_eq!(parse("7"), Some(vec![7]));
    }

    #[test]
    fn an_empty_text_is_an_empty_list() {
        assert_eq!(parse(""), Some(vec![]));
        assert_eq!(parse("\n"), Some(vec![]));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in ["a", "1-", "-1", "3-1", "1,,2", "0-4294967295", "65536", "1 2"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
        assert_eq!(parse(&"0-65535,".repeat(1000)), None);
    }
}
