//! On which node memory has to be, and on which it is.
//!
//! The two are asked of the kernel separately: a policy that was accepted says little (one on a mapped file is accepted
//! and ignored), so after a load the kernel is asked where pages really are. Neither question has a library in safe Rust
//! that would not also bring libnuma, so both system calls are made here, and only here.

use std::ffi::{c_int, c_ulong, c_void};
use std::ptr::{self, NonNull};

use rustix::io::Errno;

use crate::topology::NodeId;

/// Bits of a node mask: the kernel's own limit for nodes.
const MASK_BITS: usize = 1024;

/// Addresses that one system call asks for.
const QUERY: usize = 1024;

/// Where the pages of some memory are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Pages on each node that has some, ascending by node.
    pub pages: Vec<(NodeId, usize)>,
    /// Pages that were not taken yet: nobody has touched them.
    pub untouched: usize,
}

impl Placement {
    /// The share of all pages asked for that are on `node`, from 0 to 1; 1 where there are none.
    pub fn share_on(&self, node: NodeId) -> f64 {
        let all = self.untouched + self.touched();
        let there = self.pages.iter().find(|(id, _)| *id == node).map_or(0, |(_, pages)| *pages);
        if all == 0 { 1.0 } else { there as f64 / all as f64 }
    }

    /// Pages that are on some node.
    pub fn touched(&self) -> usize {
        self.pages.iter().map(|(_, pages)| pages).sum()
    }
}

/// Binds memory that nobody has touched to a node: pages come from there or not at all.
///
/// # Safety
/// The range is one whole mapping, or part of one, of the caller's own.
pub(crate) unsafe fn bind(start: NonNull<u8>, bytes: usize, node: NodeId) -> Result<(), Errno> {
    const WORD_BITS: usize = c_ulong::BITS as usize;
    let mut mask: [c_ulong; MASK_BITS / WORD_BITS] = [0; _];
    // Static: a cpuset that changes later must not move the model to other nodes.
    let mode = libc::MPOL_BIND | libc::MPOL_F_STATIC_NODES;
    *mask.get_mut(node.0 / WORD_BITS).ok_or(Errno::INVAL)? |= 1 << (node.0 % WORD_BITS);
    // The kernel takes one bit less than the number that it is given.
    let (mask, bits, flags): (_, c_ulong, c_ulong) = (mask.as_ptr(), MASK_BITS as c_ulong + 1, 0);
    // SAFETY: the range is the caller's by its promise, the mask has as many bits as said, and a policy changes no byte.
    match unsafe { libc::syscall(libc::SYS_mbind, start.as_ptr(), bytes, mode, mask, bits, flags) } {
        0 => Ok(()),
        _ => Err(last_error()),
    }
}

/// Where the pages at every `step`-th byte of a range are. Asking takes no page.
pub(crate) fn query(start: NonNull<u8>, bytes: usize, step: usize) -> Result<Placement, Errno> {
    let mut placement = Placement::default();
    let mut addresses = [ptr::null::<c_void>(); QUERY];
    let mut nodes: [c_int; QUERY] = [0; QUERY];
    let pages = bytes.div_ceil(step);
    for first in (0..pages).step_by(QUERY) {
        let asked = QUERY.min(pages - first);
        for (page, address) in (first..).zip(&mut addresses[..asked]) {
            *address = start.as_ptr().wrapping_add(page * step).cast();
        }
        let (none, myself, flags): (*const c_int, c_int, c_int) = (ptr::null(), 0, 0);
        let (count, from, to) = (asked as c_ulong, addresses.as_ptr(), nodes.as_mut_ptr());
        // SAFETY: the kernel reads `asked` addresses and writes as many numbers; without target nodes it moves nothing,
        // and what lies at the addresses is not looked at.
        if unsafe { libc::syscall(libc::SYS_move_pages, myself, count, from, none, to, flags) } != 0 {
            return Err(last_error());
        }
        for &node in &nodes[..asked] {
            placement.count(node)?;
        }
    }
    placement.pages.sort_unstable();
    Ok(placement)
}

impl Placement {
    /// Counts a page by the kernel's answer for it: a node, or an error number below zero.
    fn count(&mut self, answer: c_int) -> Result<(), Errno> {
        match usize::try_from(answer) {
            Ok(node) => match self.pages.iter_mut().find(|(id, _)| id.0 == node) {
                Some((_, pages)) => *pages += 1,
                None => self.pages.push((NodeId(node), 1)),
            },
            // Without a page, or with the page of zeros that all untouched memory shares.
            Err(_) if answer == -libc::ENOENT || answer == -libc::EFAULT => self.untouched += 1,
            Err(_) => return Err(Errno::from_raw_os_error(-answer)),
        }
        Ok(())
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_counted_by_node_and_a_share_is_of_all_that_was_asked_for() {
        let mut placement = Placement::default();
        for answer in [1, 0, 1, -libc::ENOENT, 1] {
            placement.count(answer).unwrap();
        }
        assert_eq!((placement.touched(), placement.untouched), (4, 1));
        let shares = [0, 1, 2].map(|node| placement.share_on(NodeId(node)));
        assert_eq!(shares, [0.2, 0.6, 0.0]);
        assert_eq!(placement.count(-libc::EACCES), Err(Errno::ACCESS));
    }

    #[test]
    fn no_pages_are_all_in_place() {
        assert_eq!(Placement::default().share_on(NodeId(3)), 1.0);
    }
}
