//! Lossless 12-bit BF16: the panels of [`Matrix::panels`](super::Matrix::panels) in three quarters of their bytes.
//!
//! Trained weights use few exponents: within 64 neighbours nearly all lie in a window of 16. So a weight becomes the lower
//! byte of its BF16 (mantissa and last bit of the exponent) and a nibble: its sign, and the rest of the exponent counted
//! from the block's base. What lies outside of the window is kept whole in a list of patches and put back in registers.
//! Every bit pattern survives, NaN payloads too, and a product has the bits that plain panels give.
//!
//! # Format
//!
//! Numbers are little-endian. A *block* is 64 weights, two lines of a plain panel (a line is a pair of columns of 16 rows).
//! A panel of `[cols / 2][16][2]` weights, `cols` a multiple of 8, lies strictly in the order in which a kernel reads:
//! for each span of 256 columns (fewer at the end) one line of 64 bases, a byte a block, zeros behind the last; then for
//! each two blocks of the span three lines of 64 bytes: lower bytes of the first block, lower bytes of the second,
//! nibbles of both.
//!
//! * Byte `16 l + 8 h + w` of a block's lower bytes, `w < 8`, belongs to word `8 l + w` of the block's line `h`: two
//!   interleaving instructions, which work on quarters of a register, then give whole lines.
//! * Byte `i` of the nibbles has that of byte `i` of the first block in its low half, of the second in its high half:
//!   bits 0 to 2 are the exponent's upper seven bits less the base, bit 3 is the sign.
//! * A base has its value in bits 0 to 6; bit 7 says that the block has patches. There bit 3 of the nibbles is turned
//!   round: a kernel adds base and sign without looking.
//!
//! Behind the panels follow `panels + 1` u32: where each panel's patches begin in the list that comes last. A patch is a
//! u32: the weight's 16 bits, then 6 bits that say which word of the block, and bit 31 in the last patch of a block.
//! Patches stand in the order of blocks. That is 12.125 bits a weight and 32 bits a patch.

use std::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};

use super::PANEL;
#[cfg(target_arch = "x86_64")]
use crate::Avx512;
use crate::Isa;
use crate::arch::Compute;
use crate::arch::step::{Ahead, Gather};
#[cfg(target_arch = "x86_64")]
use crate::arch::x86_64::{Lay, Lines};

/// Columns that share a line of bases.
const SPAN_COLS: usize = 256;
/// Columns in two blocks.
const GROUP_COLS: usize = 8;
const LINE_BYTES: usize = 64;
const GROUP_BYTES: usize = 3 * LINE_BYTES;
/// Weights of a block.
const BLOCK: usize = 64;

const HAS_PATCHES: u8 = 0x80;
const LAST_PATCH: u32 = 1 << 31;

/// Two blocks as they are stored.
pub(crate) type Group = [[u8; LINE_BYTES]; 3];

/// Bytes of one packed panel; `None` if the width has no packed form, or more bytes than an address can say.
pub const fn panel_bytes(cols: usize) -> Option<usize> {
    if !cols.is_multiple_of(GROUP_COLS) {
        return None;
    }
    match (cols / GROUP_COLS).checked_mul(GROUP_BYTES) {
        Some(groups) => groups.checked_add(cols.div_ceil(SPAN_COLS) * LINE_BYTES),
        None => None,
    }
}

/// Bytes of a packed matrix with `patches` patches; `None` as in [`panel_bytes`].
pub fn matrix_bytes([rows, cols]: [usize; 2], patches: usize) -> Option<usize> {
    let panels = rows.div_ceil(PANEL);
    let tail = panels.checked_add(1)?.checked_add(patches)?.checked_mul(size_of::<u32>())?;
    panel_bytes(cols)?.checked_mul(panels)?.checked_add(tail)
}

/// Packs `panel`, plain BF16 `[cols / 2][16][2]`, into `out`; what does not fit the form is appended to `patches`.
///
/// # Panics
/// If `panel` is not a panel of `cols` columns, a multiple of 8, or `out` is not [`panel_bytes`] long.
pub fn pack_panel(panel: &[u8], cols: usize, out: &mut [u8], patches: &mut Vec<u32>) {
    assert_eq!(Some(out.len()), panel_bytes(cols), "bytes of a packed panel of {cols} columns");
    assert_eq!(panel.len(), cols * PANEL * 2, "bytes of a plain panel of {cols} columns");
    let spans =
        panel.chunks(SPAN_COLS * PANEL * 2).zip(out.chunks_mut(LINE_BYTES + SPAN_COLS / GROUP_COLS * GROUP_BYTES));
    for (plain, out) in spans {
        let (bases, groups) = out.split_at_mut(LINE_BYTES);
        bases.fill(0);
        let bases = bases.as_chunks_mut::<2>().0;
        let plain = plain.as_chunks::<{ 4 * BLOCK }>().0;
        for ((bases, plain), out) in bases.iter_mut().zip(plain).zip(groups.as_chunks_mut::<GROUP_BYTES>().0) {
            let (low, nibbles) = out.split_at_mut(2 * LINE_BYTES);
            for (half, (base, low)) in bases.iter_mut().zip(low.as_chunks_mut().0).enumerate() {
                let block = &plain[half * 2 * BLOCK..][..2 * BLOCK];
                let block: &[[u8; 2]; BLOCK] = block.as_chunks().0.try_into().expect("a block has 64 weights");
                pack_block(block, half, base, low, nibbles, patches);
            }
        }
    }
}

/// `half` is 0 or 1: which nibble is this block's.
fn pack_block(
    block: &[[u8; 2]; BLOCK],
    half: usize,
    base: &mut u8,
    low: &mut [u8; LINE_BYTES],
    nibbles: &mut [u8],
    patches: &mut Vec<u32>,
) {
    let (window, inside) = best_window(block);
    *base = window;
    let mut left = BLOCK - inside;
    for (word, [lower, upper]) in block.iter().enumerate() {
        let at = place(word);
        let offset = (upper & 0x7f).wrapping_sub(window);
        let nibble = if offset < 8 { offset | upper >> 7 << 3 } else { 0 };
        low[at] = *lower;
        nibbles[at] = if half == 0 { nibble } else { nibbles[at] | nibble << 4 };
        if offset >= 8 {
            *base = window | HAS_PATCHES;
            left -= 1;
            let last = if left == 0 { LAST_PATCH } else { 0 };
            patches.push(u32::from(u16::from_le_bytes([*lower, *upper])) | (word as u32) << 16 | last);
        }
    }
    if *base & HAS_PATCHES != 0 {
        nibbles.iter_mut().for_each(|nibbles| *nibbles ^= 8 << (4 * half));
    }
}

/// Where word `word` of a block has its byte.
const fn place(word: usize) -> usize {
    word % 32 / 8 * 16 + word / 32 * 8 + word % 8
}

/// The base whose window has the most weights, and how many.
fn best_window(block: &[[u8; 2]; BLOCK]) -> (u8, usize) {
    let mut largest = 0;
    let mut smallest = 0x7f;
    for [_, upper] in block {
        largest = largest.max(upper & 0x7f);
        smallest = smallest.min(upper & 0x7f);
    }
    let base = largest.saturating_sub(7);
    if smallest >= base {
        return (base, BLOCK);
    }
    let inside = |base: u8| block.iter().filter(|[_, upper]| (upper & 0x7f).wrapping_sub(base) < 8).count();
    (smallest.saturating_sub(7)..=base)
        .map(|base| (base, inside(base)))
        .max_by_key(|(_, inside)| *inside)
        .unwrap_or((base, 0))
}

/// What is wrong with packed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackedError {
    /// The width has no packed form.
    #[error("{0} columns, but packed panels have a multiple of 8")]
    Columns(usize),
    /// Too few or too many bytes.
    #[error("{got} bytes, but a packed matrix of this shape and with {patches} patches has {want}")]
    Length {
        /// Bytes that are there.
        got: usize,
        /// Bytes that there must be.
        want: usize,
        /// Patches that the index speaks of.
        patches: usize,
    },
    /// The bytes begin where words cannot be read.
    #[error("the bytes are not aligned to 4")]
    Alignment,
    /// The index of patches is not ascending.
    #[error("the index of patches descends at panel {panel}")]
    Index {
        /// Panel.
        panel: usize,
    },
    /// Blocks with patches and patches are not as many.
    #[error("panel {panel}: its blocks ask for other patches than it has")]
    Patches {
        /// Panel.
        panel: usize,
    },
}

/// What follows the panels of a packed matrix: whose patches are where. With it the panels can be checked some at a time,
/// while they are read from a file.
#[derive(Clone, Copy)]
pub struct Index<'a> {
    /// Where each panel's patches begin, counted from the first number of all.
    starts: &'a [u32],
    patches: &'a [u32],
}

impl<'a> Index<'a> {
    /// The index of a matrix of `panels` panels.
    ///
    /// # Errors
    /// [`PackedError::Length`], [`PackedError::Alignment`] or [`PackedError::Index`]; lengths are those of the index.
    pub fn new(bytes: &'a [u8], panels: usize) -> Result<Self, PackedError> {
        let wrong = |patches: usize| {
            let words = panels.saturating_add(1).saturating_add(patches);
            PackedError::Length { got: bytes.len(), want: words.saturating_mul(size_of::<u32>()), patches }
        };
        let words: &[u32] = bytemuck::try_cast_slice(bytes).map_err(|_| match bytes.len().is_multiple_of(4) {
            true => PackedError::Alignment,
            false => wrong(0),
        })?;
        let count = panels.checked_add(1).ok_or(wrong(0))?;
        let (starts, patches) = words.split_at_checked(count).ok_or(wrong(0))?;
        if let Some(panel) = starts.windows(2).position(|pair| pair[0] > pair[1]) {
            return Err(PackedError::Index { panel });
        }
        let listed = (starts[panels] - starts[0]) as usize;
        match patches.len() == listed {
            true => Ok(Self { starts, patches }),
            false => Err(wrong(listed)),
        }
    }

    fn patches_of(&self, panel: usize) -> &'a [u32] {
        let [start, end] = [self.starts[panel], self.starts[panel + 1]].map(|start| (start - self.starts[0]) as usize);
        &self.patches[start..end]
    }

    /// Packed panels of `cols` columns from `first` on.
    fn panels<'p>(&self, first: usize, cols: usize, panels: &'p [u8]) -> impl Iterator<Item = (usize, PackedPanel<'p>)>
    where
        'a: 'p,
    {
        let bytes = panel_bytes(cols).unwrap_or(0).max(1);
        let index = *self;
        panels.chunks_exact(bytes).enumerate().map(move |(i, bytes)| {
            let panel = first + i;
            (panel, PackedPanel { bytes, patches: index.patches_of(panel) })
        })
    }

    /// Whether every block of these panels, the first of which is `first`, has the patches that it asks for, and no
    /// patch is left over.
    ///
    /// # Errors
    /// [`PackedError::Patches`] names the first panel that is damaged.
    ///
    /// # Panics
    /// If there are no such panels.
    pub fn check(&self, first: usize, cols: usize, panels: &[u8]) -> Result<(), PackedError> {
        for (panel, PackedPanel { bytes, patches }) in self.panels(first, cols, panels) {
            let asking: usize = spans(bytes)
                .map(|(bases, groups)| {
                    bases[..2 * groups.len()].iter().filter(|base| **base & HAS_PATCHES != 0).count()
                })
                .sum();
            let ends = patches.iter().filter(|patch| **patch & LAST_PATCH != 0).count();
            let ended = patches.last().is_none_or(|patch| patch & LAST_PATCH != 0);
            if asking != ends || !ended {
                return Err(PackedError::Patches { panel });
            }
        }
        Ok(())
    }

    /// Row, column and value of the first NaN or infinity in these panels, the first of which is `first`.
    ///
    /// Only bases are read, and patches: a block whose window ends below the largest exponent holds numbers.
    ///
    /// # Panics
    /// If there are no such panels.
    pub fn first_non_finite(&self, first: usize, cols: usize, panels: &[u8]) -> Option<([usize; 2], f32)> {
        let suspicious = |panel: &PackedPanel| {
            let reaches = |base: &u8| base & !HAS_PATCHES >= 0x78;
            spans(panel.bytes).any(|(bases, groups)| bases[..2 * groups.len()].iter().any(reaches))
                || panel.patches.iter().any(|patch| patch & 0x7f80 == 0x7f80)
        };
        self.panels(first, cols, panels).filter(|(_, panel)| suspicious(panel)).find_map(|(panel, packed)| {
            let mut lines = vec![[[0_u16; 32]; 4]; cols / GROUP_COLS];
            packed.expand(Isa::Scalar, cast_slice_mut(&mut lines));
            let words: &[u16] = cast_slice(&lines);
            let at = words.iter().position(|word| word & 0x7f80 == 0x7f80)?;
            let place = [panel * PANEL + at % 32 / 2, at / 32 * 2 + at % 2];
            Some((place, crate::dtype::bf16_to_f32(words[at])))
        })
    }
}

/// Packed panels over borrowed bytes.
#[derive(Clone, Copy)]
pub(super) struct Packed<'a> {
    panels: &'a [u8],
    panel_bytes: usize,
    cols: usize,
    index: Index<'a>,
}

impl<'a> Packed<'a> {
    pub(super) fn new(bytes: &'a [u8], [rows, cols]: [usize; 2]) -> Result<Self, PackedError> {
        let panel_bytes = panel_bytes(cols).ok_or(PackedError::Columns(cols))?;
        let panels = rows.div_ceil(PANEL);
        let wrong = |patches| PackedError::Length {
            got: bytes.len(),
            want: matrix_bytes([rows, cols], patches).unwrap_or(usize::MAX),
            patches,
        };
        let all = panel_bytes.checked_mul(panels).ok_or(wrong(0))?;
        let (panels_bytes, tail) = bytes.split_at_checked(all).ok_or(wrong(0))?;
        let index = Index::new(tail, panels).map_err(|error| match error {
            PackedError::Length { patches, .. } => wrong(patches),
            other => other,
        })?;
        Ok(Self { panels: panels_bytes, panel_bytes, cols, index })
    }

    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // asked for by tiles
    pub(super) fn bytes_of_panel(&self) -> usize {
        self.panel_bytes
    }

    pub(super) fn panel(&self, panel: usize) -> PackedPanel<'a> {
        PackedPanel {
            bytes: &self.panels[panel * self.panel_bytes..][..self.panel_bytes],
            patches: self.index.patches_of(panel),
        }
    }

    /// Whether every block that asks for patches has them, and no patch is left over.
    pub(super) fn check(&self, panels: Range<usize>) -> Result<(), PackedError> {
        let bytes = panels.start * self.panel_bytes..panels.end * self.panel_bytes;
        self.index.check(panels.start, self.cols, &self.panels[bytes])
    }
}

/// One packed panel.
#[derive(Clone, Copy)]
pub(super) struct PackedPanel<'a> {
    bytes: &'a [u8],
    patches: &'a [u32],
}

/// The lines of bases of a panel, each with its groups.
#[inline(always)]
fn spans(panel: &[u8]) -> impl Iterator<Item = (&[u8; LINE_BYTES], &[Group])> {
    panel.chunks(LINE_BYTES + SPAN_COLS / GROUP_COLS * GROUP_BYTES).filter_map(|span| {
        let (bases, groups) = span.split_first_chunk()?;
        Some((bases, cast_slice(groups)))
    })
}

impl PackedPanel<'_> {
    /// Writes the plain panel, `[cols / 2][16][2]`.
    pub(super) fn expand(self, isa: Isa, out: &mut [u8]) {
        let out: &mut [[[u16; 32]; 4]] = cast_slice_mut(out);
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(token) => self.expand_in_registers(token, out),
            #[cfg(target_arch = "x86_64")]
            Isa::Amx(token) => self.expand_in_registers(token.avx512(), out),
            _ => isa.compute(ExpandPortably { panel: self, out }),
        }
    }

    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // no other ISA unpacks in registers
    fn expand_in_registers<T: Gather>(self, gather: T, out: &mut [[[u16; 32]; 4]]) {
        gather.vectorize(ExpandInRegisters { gather, panel: PanelToLay::new(self, 0), out });
    }
}

struct ExpandInRegisters<'a, 'o, T> {
    gather: T,
    panel: PanelToLay<'a>,
    out: &'o mut [[[u16; 32]; 4]],
}

impl<T: Gather> Compute for ExpandInRegisters<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn compute(self) {
        let Self { gather, mut panel, out } = self;
        for out in out.chunks_mut(GROUPS_OF_TILE) {
            panel.lay_groups(gather, out);
        }
    }
}

/// Groups whose lines are a tile.
const GROUPS_OF_TILE: usize = 4;

/// What is still to be laid of a panel.
pub(super) struct PanelToLay<'a> {
    /// Of the span under way.
    groups: &'a [Group],
    bases: [u32; LINE_BYTES],
    /// Bit `i`: block `i` of the span has patches.
    asking: u64,
    /// Groups of the span that are laid already.
    laid: usize,
    /// The spans behind it.
    rest: &'a [u8],
    patches: &'a [u32],
    /// How far behind the panel's end that lies which will be laid after it.
    next: usize,
}

impl<'a> PanelToLay<'a> {
    /// What will be laid after the panel lies `next` bytes behind its end.
    pub(super) fn new(panel: PackedPanel<'a>, next: usize) -> Self {
        let PackedPanel { bytes, patches } = panel;
        Self { groups: &[], bases: [0; LINE_BYTES], asking: 0, laid: 0, rest: bytes, patches, next }
    }

    /// Lays the next groups, as many as `out` has or are left.
    #[inline(always)]
    fn lay_groups<T: Gather>(&mut self, gather: T, out: &mut [[[u16; 32]; 4]]) {
        const { assert!((SPAN_COLS / GROUP_COLS).is_multiple_of(GROUPS_OF_TILE)) };
        if self.laid == self.groups.len() {
            let Some((bases, groups)) = spans(self.rest).next() else { return };
            gather.ask(bases, Ahead::new(self.rest.len(), self.next));
            (self.bases, self.asking) = (gather.spread(bases), gather.sign_bits(bases));
            (self.groups, self.laid) = (groups, 0);
            self.rest = &self.rest[LINE_BYTES + size_of_val(groups)..];
        }
        let groups = &self.groups[self.laid..];
        let bases = &self.bases.as_chunks::<2>().0[self.laid..];
        let ahead = Ahead::new(size_of_val(groups) + self.rest.len(), self.next);
        let mut count = 0;
        for ((group, bases), out) in groups.iter().zip(bases).zip(&mut *out) {
            for line in group {
                gather.ask(line, ahead);
            }
            // An array's `map` would not be compiled for the ISA.
            for (out, line) in out.iter_mut().zip(gather.unpack(group, bases)) {
                *out = gather.line(line);
            }
            count += 1;
        }
        if self.asking >> (2 * self.laid) & ((1 << (2 * GROUPS_OF_TILE)) - 1) != 0 {
            for (bases, out) in bases.iter().zip(out).take(count) {
                self.patches = patch(bases.map(|base| base as u8), self.patches, out);
            }
        }
        self.laid += count;
    }
}

#[cfg(target_arch = "x86_64")]
impl Lay for PanelToLay<'_> {
    #[inline(always)]
    fn lay(&mut self, avx512: Avx512, out: &mut Lines) {
        const { assert!(size_of::<Lines>() == GROUPS_OF_TILE * 4 * LINE_BYTES) };
        self.lay_groups(avx512, out.0.as_chunks_mut().0);
    }
}

/// Puts patches into the four lines of a group; gives the patches that are left.
#[cold]
fn patch<'a>(bases: [u8; 2], mut patches: &'a [u32], lines: &mut [[u16; 32]; 4]) -> &'a [u32] {
    for (half, base) in bases.into_iter().enumerate() {
        if base & HAS_PATCHES == 0 {
            continue;
        }
        while let Some((patch, rest)) = patches.split_first() {
            patches = rest;
            let word = (patch >> 16) as usize & 63;
            lines[2 * half + word / 32][word % 32] = *patch as u16;
            if patch & LAST_PATCH != 0 {
                break;
            }
        }
    }
    patches
}

struct ExpandPortably<'a> {
    panel: PackedPanel<'a>,
    out: &'a mut [[[u16; 32]; 4]],
}

impl Compute for ExpandPortably<'_> {
    type Output = ();

    #[inline(always)]
    fn compute(self) {
        let mut patches = self.panel.patches;
        let mut out = self.out.iter_mut();
        for (bases, groups) in spans(self.panel.bytes) {
            for ((bases, group), out) in bases.as_chunks::<2>().0.iter().zip(groups).zip(&mut out) {
                for half in 0..2 {
                    let (base, low, nibbles) = (bases[half], &group[half], &group[2]);
                    let (first, second) = out[2 * half..].split_at_mut(1);
                    let lines = [&mut first[0], &mut second[0]];
                    for (h, line) in lines.into_iter().enumerate() {
                        for (l, words) in line.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                            let from = 16 * l + 8 * h;
                            for w in 0..8 {
                                let nibble = nibbles[from + w] >> (4 * half) & 15;
                                let upper = (nibble & 7 | (nibble & 8) << 4).wrapping_add(base);
                                words[w] = u16::from_le_bytes([low[from + w], upper]);
                            }
                        }
                    }
                }
                if (bases[0] | bases[1]) & HAS_PATCHES != 0 {
                    patches = patch(*bases, patches, out);
                }
            }
        }
    }
}

/// `P` packed panels times `S` streams of activations: weights are put together in registers and used at once.
pub(super) struct PackedTile<'a, T: Gather, const P: usize, const S: usize> {
    pub(super) step: T,
    pub(super) w: [PackedPanel<'a>; P],
    pub(super) x: [&'a [T::X]; S],
}

impl<T: Gather, const P: usize, const S: usize> Compute for PackedTile<'_, T, P, S> {
    type Output = [[[f32; 16]; P]; S];

    #[inline(always)]
    fn compute(self) -> Self::Output {
        let Self { step, w, x } = self;
        let next = (P - 1) * w[0].bytes.len();
        let mut patches = w.map(|w| w.patches);
        let mut sums = [[step.zero(); P]; S];
        let mut rest = w.map(|w| w.bytes);
        let mut x = x.map(|x| x.as_chunks::<4>().0);
        while !rest[0].is_empty() {
            let mut bases = [[0; LINE_BYTES]; P];
            let mut asking = 0;
            let mut groups: [&[Group]; P] = [&[]; P];
            for p in 0..P {
                let span = rest[p].len().min(LINE_BYTES + SPAN_COLS / GROUP_COLS * GROUP_BYTES);
                let (now, later) = rest[p].split_at(span);
                rest[p] = later;
                let (head, tail) = now.split_first_chunk().expect("a span begins with a line of bases");
                step.ask(head, Ahead::new(now.len() + later.len(), next));
                bases[p] = step.spread(head);
                asking |= step.sign_bits(head);
                groups[p] = cast_slice(tail);
            }
            let count = groups[0].len();
            for groups in &mut groups {
                *groups = &groups[..count];
            }
            let mut now: [&[[T::X; 4]]; S] = [&[]; S];
            for s in 0..S {
                (now[s], x[s]) = x[s].split_at(count);
            }
            for g in 0..count.min(32) {
                let ahead = Ahead::new(size_of_val(&groups[0][g..]) + rest[0].len(), next);
                let of_group = |p: usize| [bases[p][2 * g], bases[p][2 * g + 1]];
                let mut lines: [[T::W; 4]; P] = std::array::from_fn(|p| {
                    for line in &groups[p][g] {
                        step.ask(line, ahead);
                    }
                    step.unpack(&groups[p][g], &of_group(p))
                });
                if asking >> (2 * g) & 3 != 0 {
                    for p in 0..P {
                        let mut words = lines[p].map(|line| step.line(line));
                        patches[p] = patch(of_group(p).map(|base| base as u8), patches[p], &mut words);
                        lines[p] = words.map(|words| step.weights(&words));
                    }
                }
                for j in 0..4 {
                    for s in 0..S {
                        for p in 0..P {
                            sums[s][p] = step.step(lines[p][j], &now[s][g][j], sums[s][p]);
                        }
                    }
                }
            }
        }
        sums.map(|sums| sums.map(|sums| step.to_array(sums)))
    }
}

#[cfg(test)]
mod tests;
