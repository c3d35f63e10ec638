//! "Did you mean …": the known word that is nearest to a mistyped one.

/// The candidate that `word` was most likely meant to be, if any is near enough to be more help than noise.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let normal = |text: &str| text.to_ascii_lowercase().replace('-', "_");
    let wanted = normal(word);
    let length = wanted.chars().count();
    // A word of one letter is near everything.
    let limit = (length / 3).max(1).min(length.saturating_sub(1));
    candidates
        .into_iter()
        .map(|candidate| (distance(&wanted, &normal(candidate)), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Edits (insert, delete, replace, swap neighbours) between two words.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replace = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replace.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before_last[j - 2] + 1);
            }
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_near_words_only() {
        let keys = ["size", "block_size", "read_only", "path", "direct"];
        assert_eq!(nearest("sizee", keys), Some("size"));
        assert_eq!(nearest("szie", keys), Some("size"));
        assert_eq!(nearest("blocksize", keys), Some("block_size"));
        assert_eq!(nearest("block-size", keys), Some("block_size"));
        assert_eq!(nearest("readonly", keys), Some("read_only"));
        assert_eq!(nearest("compression", keys), None);
        assert_eq!(nearest("x", ["a", "y"]), None);
    }
}
