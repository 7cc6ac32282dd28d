//! Label selectors of lists.

use std::collections::HashMap;

/// Whether every pair of `selector` is among `labels`. An empty selector selects everything.
pub(crate) fn labels(labels: &HashMap<String, String>, selector: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn all_pairs_have_to_be_equal() {
        let own = map(&[("app", "web"), ("tier", "front")]);
        assert!(labels(&own, &map(&[])));
        assert!(labels(&own, &map(&[("app", "web")])));
        assert!(!labels(&own, &map(&[("app", "web"), ("tier", "back")])));
        assert!(!labels(&own, &map(&[("zone", "")])));
    }
}
