//! Patterns for the client ids that a user may use.

/// A client id pattern. `*` matches any text, the empty one included, without `/`, `+` and `#`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientIdPattern(Box<str>);

impl ClientIdPattern {
    /// Wraps a pattern; every text is valid.
    pub fn new(pattern: &str) -> Self {
        Self(pattern.into())
    }

    /// Returns whether the client id matches. A client id with `/`, `+`, `#` or NUL never does.
    pub fn admits(&self, client_id: &str) -> bool {
        if client_id.contains(['/', '+', '#', '\0']) {
            return false;
        }
        let Some((head, tail)) = self.0.split_once('*') else {
            return *self.0 == *client_id;
        };
        let Some(mut rest) = client_id.strip_prefix(head) else {
            return false;
        };
        // Leftmost matching is sufficient for the parts between two stars; the last part must match the end.
        let mut parts = tail.split('*').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                return rest.ends_with(part);
            }
            match rest.split_once(part) {
                Some((_, after)) => rest = after,
                None => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn stars_are_runs_inside_one_level() {
        for (pattern, id, admitted) in [
            ("robot-*", "robot-7", true),
            ("robot-*", "robot-", true),
            ("robot-*", "robot", false),
            ("robot-*", "robot-7/x", false),
            ("robot-*", "robot-+", false),
            ("*", "#", false),
            ("*", "anything at all", true),
            ("*", "", true),
            ("fixed", "fixed", true),
            ("fixed", "fixed2", false),
            ("a*b*c", "abc", true),
            ("a*b*c", "a1b2bc", true),
            ("a*b*c", "acb", false),
            ("ab*ba", "aba", false),
            ("**x", "x", true),
        ] {
            assert_eq!(ClientIdPattern::new(pattern).admits(id), admitted, "{pattern} {id}");
        }
    }

    /// By definition: a star matches nothing, or one character and the rest.
    fn naive(pattern: &[u8], id: &[u8]) -> bool {
        match (pattern, id) {
            ([], []) => true,
            ([b'*', rest @ ..], _) if naive(rest, id) => true,
            ([b'*', ..], [first, rest @ ..]) => !b"/+#".contains(first) && naive(pattern, rest),
            ([a, pattern @ ..], [b, id @ ..]) => a == b && naive(pattern, id),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(pattern in "[ab*]{0,6}", id in "[ab/]{0,8}") {
            prop_assert_eq!(ClientIdPattern::new(&pattern).admits(&id), naive(pattern.as_bytes(), id.as_bytes()));
        }
    }
}
