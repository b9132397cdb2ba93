//! What a mistyped word may have been meant to be.

/// How much of a word is enough to know it by, in bytes.
const ENOUGH: usize = 3;

/// Returns the nearest of these words, if one is near.
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let begun = known.iter().find(|name| word.len() >= ENOUGH && name.starts_with(word));
    if let Some(name) = begun {
        return Some(name);
    }
    let (distance, name) = known.iter().map(|name| (distance(word, name), *name)).min()?;
    (distance <= word.len().min(name.len()).div_ceil(2)).then_some(name)
}

/// How many characters have to be changed, added or left out to get from one word to the other.
pub fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut before = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in to.bytes().enumerate() {
            let here = (before + usize::from(a != b)).min(row[j] + 1).min(row[j + 1] + 1);
            before = std::mem::replace(&mut row[j + 1], here);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_word_that_is_near_is_suggested() {
        let known = ["drain_grace_secs", "deadline_secs", "args"];
        assert_eq!(nearest("drain_grase_secs", &known), Some("drain_grace_secs"));
        assert_eq!(nearest("deadline", &known), Some("deadline_secs"));
        assert_eq!(nearest("arg", &known), Some("args"));
        assert_eq!(nearest("colour", &known), None);
    }
}
