//! Damaged and hostile headers: an error with a place, never a panic, never memory without bytes behind it.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use super::sample::Sample;
use crate::import::gguf::{Gguf, ReadAt};
use crate::import::hyperparameters::Hyperparameters;
use crate::import::plan::Plan;
use crate::import::{Dtype, ImportOptions, tensors};

/// Remembers the largest buffer that was filled: buffers of the reader are the only memory that a length in the
/// file can ask for.
struct Watched<'a> {
    bytes: &'a [u8],
    largest: AtomicU64,
}

impl<'a> Watched<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, largest: AtomicU64::new(0) }
    }
}

impl ReadAt for Watched<'_> {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.largest.fetch_max(buffer.len() as u64, Ordering::Relaxed);
        self.bytes.read_exact_at(buffer, offset)
    }
}

/// Plans an import of `bytes` and checks what must hold whatever they are.
fn try_plan(bytes: &[u8]) -> bool {
    let file = Watched::new(bytes);
    let plan = Plan::new(&file, &ImportOptions::default());
    assert!(file.largest.into_inner() <= bytes.len() as u64, "a buffer larger than the file");
    let Ok(plan) = plan else { return false };
    for tensor in &plan.gguf.tensors {
        assert!(tensor.offset + tensor.bytes <= bytes.len() as u64, "`{}` reaches beyond the end", tensor.name);
    }
    true
}

#[test]
fn a_file_cut_at_any_byte_is_refused() {
    let (bytes, data_start) = Sample::llama().bytes_and_data_start();
    assert!(try_plan(&bytes));
    for len in (0..data_start).chain((data_start..bytes.len()).step_by(97)) {
        assert!(!try_plan(&bytes[..len]), "cut at byte {len}");
    }
    assert!(!try_plan(&bytes[..bytes.len() - 1]), "cut at the last byte");
}

#[test]
fn a_header_with_any_bit_flipped_does_no_harm() {
    let (mut bytes, data_start) = Sample::llama().bytes_and_data_start();
    let mut refused = 0;
    for bit in 0..data_start * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        refused += usize::from(!try_plan(&bytes));
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    // Most of a header is names and numbers that must fit each other; some text may say anything.
    assert!(refused > data_start * 8 / 2, "only {refused} of {} were refused", data_start * 8);
}

#[test]
fn huge_numbers_anywhere_in_a_header_do_no_harm() {
    let (bytes, data_start) = Sample::llama().bytes_and_data_start();
    let powers = [7, 8, 15, 16, 24, 30, 31, 32, 40, 48, 61, 62, 63];
    let numbers = powers.into_iter().flat_map(|power| [(1_u64 << power) - 1, 1 << power, (1 << power) + 1]);
    for number in numbers.chain([u64::MAX - 7, u64::MAX]) {
        for at in 0..data_start - 8 {
            let mut damaged = bytes.clone();
            damaged[at..at + 8].copy_from_slice(&number.to_le_bytes());
            let file = Watched::new(&damaged);
            if let Ok(gguf) = Gguf::read(&file)
                && let Ok(model) = Hyperparameters::read(&gguf.metadata)
                && let Ok(plan) = tensors::plan(&gguf, &model, Dtype::F32)
            {
                let values: u64 = plan.outputs.iter().map(tensors::OutputTensor::values).sum();
                assert!(values <= damaged.len() as u64, "more values than bytes");
            }
            assert!(file.largest.into_inner() <= damaged.len() as u64, "a buffer larger than the file");
        }
    }
}

#[test]
fn an_error_says_what_is_wrong_and_where() {
    let read = |bytes: &[u8]| Gguf::read(&bytes).expect_err("a damaged file").to_string();
    let (bytes, data_start) = Sample::llama().bytes_and_data_start();
    let put = |at: usize, with: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        bytes
    };
    let find = |name: &str| bytes.windows(name.len()).position(|window| window == name.as_bytes()).expect("a name");

    assert!(read(b"PK\x03\x04rest").contains("this is not a GGUF file"));
    assert!(read(&put(4, &1_u32.to_le_bytes())).contains("version 1"));
    assert!(read(&put(4, &3_u32.to_be_bytes())).contains("big-endian"));
    assert!(read(&put(8, &u64::MAX.to_le_bytes())).contains("the number of tensors is 18446744073709551615"));

    let key = find("llama.block_count");
    let found = read(&put(key + 17, &77_u32.to_le_bytes()));
    assert_eq!(found, format!("metadata key `llama.block_count`, byte {}: 77 is no GGUF value type", key + 21));

    let tensor = find("output_norm.weight") + 18;
    let (rank, dim, kind, offset) = (tensor, tensor + 4, tensor + 12, tensor + 16);
    let named = |text: &str| text.starts_with("tensor `output_norm.weight`, byte ");
    for (damaged, expected) in [
        (put(rank, &5_u32.to_le_bytes()), "the number of dimensions is 5, more than the limit of 4"),
        (put(dim, &0_u64.to_le_bytes()), "a dimension is zero"),
        (put(dim, &(1_u64 << 41).to_le_bytes()), "a dimension is above 2^40"),
        (put(kind, &11_u32.to_le_bytes()), "tensor type 11 (Q3_K) is not supported; supported are F32, F16"),
        (put(dim, &33_u64.to_le_bytes()), "its data needs 132 bytes but only 128 are left"),
        (put(offset, &1_u64.to_le_bytes()), "not a multiple of the alignment 32"),
        (put(offset, &0_u64.to_le_bytes()), "its data overlaps that of tensor `token_embd.weight`"),
        (put(offset, &(u64::MAX - 31).to_le_bytes()), "cut short or damaged"),
    ] {
        let found = read(&damaged);
        assert!(named(&found) && found.contains(expected), "{found}");
    }
    assert!(data_start > offset);
}

#[test]
fn names_are_there_once() {
    let mut sample = Sample::llama();
    sample.tensors.push(sample.tensors[3].clone());
    assert!(sample.refusal().contains("tensor `blk.0.attn_k.weight`"), "{}", sample.refusal());
    let mut sample = Sample::llama();
    sample.keys.push(sample.keys[1].clone());
    assert!(sample.refusal().contains("metadata key `llama.block_count`"), "{}", sample.refusal());
    assert!(sample.refusal().ends_with("it is there twice"));
}
