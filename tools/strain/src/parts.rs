//! Many clients at once.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;

use crate::random::Random;

/// Does `rounds` rounds by `clients` threads, each round by the first that is free. What a round draws depends on its number,
/// not on its thread. Results in the order of rounds.
pub(crate) fn in_parallel<T: Send>(
    clients: usize,
    rounds: usize,
    seed: u64,
    round: impl Fn(usize, &mut Random) -> T + Sync,
) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(rounds));
    thread::scope(|scope| {
        for _ in 0..clients.min(rounds) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Relaxed);
                    if index >= rounds {
                        break;
                    }
                    let result = round(index, &mut Random::of_part(seed, index));
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_draw_the_same_whoever_does_them() {
        let draw = |clients| in_parallel(clients, 50, 9, |index, random| (index, random.number()));
        let alone = draw(1);
        assert_eq!(alone.len(), 50);
        assert!(alone.iter().enumerate().all(|(place, (index, _))| place == *index));
        assert_eq!(draw(7), alone);
    }
}
