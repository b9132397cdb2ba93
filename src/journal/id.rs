//! Names for handoffs and files.

use crate::sys::{clock, random};

/// Crockford's base 32, in lower case: its order is that of ASCII, and it has no letters that look like digits.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// Enough for milliseconds until the year 3084.
const TIME_DIGITS: u32 = 9;
const RANDOM_DIGITS: u32 = 4;

/// Returns a new id for a handoff: 13 digits of base 32, such as `1kk9xq3m07d2p`.
///
/// Nine digits are the wall clock in milliseconds, so that ids sort by their time; four are random (20 bits), so that two
/// machines, or two drivers in the same millisecond, do not choose the same.
#[must_use]
pub fn new_handoff_id() -> String {
    let mut bits = [0; 4];
    if random::fill(&mut bits).is_err() {
        // Only a kernel or a filter without getrandom(2) comes here; microseconds differ between two drivers as well.
        bits = u32::try_from(clock::monotonic_us() & u64::from(u32::MAX)).unwrap_or(0).to_le_bytes();
    }
    id(clock::wall_ms(), u32::from_le_bytes(bits))
}

fn id(wall_ms: u64, random: u32) -> String {
    digits(wall_ms, TIME_DIGITS).chain(digits(random.into(), RANDOM_DIGITS)).collect()
}

fn digits(value: u64, count: u32) -> impl Iterator<Item = char> {
    (0..count)
        .rev()
        .map(move |place| char::from(ALPHABET[usize::try_from(value >> (5 * place) & 31).unwrap_or(0)]))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_sort_by_their_time() {
        let times = [0, 1, 31, 32, 1_772_366_400_250, 1_772_366_400_251, (1 << 45) - 1];
        let ids: Vec<_> =
            times.iter().map(|ms| id(*ms, u32::MAX - u32::try_from(ms % 7).unwrap_or(0))).collect();
        assert!(ids.is_sorted(), "{ids:?}");
        assert!(ids.iter().all(|id| id.len() == 13));
    }

    #[test]
    fn ids_of_one_moment_differ() {
        let ids: HashSet<_> = (0..64).map(|_| new_handoff_id()).collect();
        assert!(ids.len() > 60, "{ids:?}");
    }
}
