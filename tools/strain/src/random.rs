//! Chance that can be repeated: every run has a seed, and every thread of it a generator of its own.

/// SplitMix64: one addition and a few shifts, good enough to choose traffic, and the same on every machine.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// The generator of a run.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A generator for part `index` of the run, whatever the other parts draw.
    pub(crate) fn of_part(seed: u64, index: usize) -> Self {
        let mut random = Self(seed ^ (index as u64 + 1).wrapping_mul(0xd1b5_4a32_d192_ed03));
        random.number();
        random
    }

    /// 64 random bits.
    pub(crate) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which must not be 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.number() % end as u64) as usize
    }

    /// A number from `start` to `end`, both included.
    pub(crate) fn between(&mut self, start: usize, end: usize) -> usize {
        start + self.below(end - start + 1)
    }

    /// True once in `times`.
    pub(crate) fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One of a list that is not empty.
    pub(crate) fn one_of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    /// Small letters and spaces, so that a text is one for every tokenizer.
    pub(crate) fn words(&mut self, characters: usize) -> String {
        (0..characters)
            .map(|_| match self.below(6) {
                0 => ' ',
                _ => char::from(b'a' + self.below(26) as u8),
            })
            .collect()
    }

    /// Lower-case hexadecimal digits.
    pub(crate) fn hex(&mut self, digits: usize) -> String {
        (0..digits).map(|_| char::from(b"0123456789abcdef"[self.below(16)])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_traffic_and_another_seed_another() {
        let draw = |mut random: Random| (0..8).map(|_| random.number()).collect::<Vec<_>>();
        assert_eq!(draw(Random::new(1)), draw(Random::new(1)));
        assert_ne!(draw(Random::new(1)), draw(Random::new(2)));
        assert_ne!(draw(Random::of_part(1, 0)), draw(Random::of_part(1, 1)));
    }

    #[test]
    fn numbers_stay_in_their_range() {
        let mut random = Random::new(3);
        assert!((0..1000).all(|_| (2..=5).contains(&random.between(2, 5))));
        assert_eq!(random.hex(12).len(), 12);
        assert_eq!(random.words(40).chars().count(), 40);
    }
}
