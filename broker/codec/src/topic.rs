//! The syntax of topic names and topic filters (MQTT 5, 4.7 and 4.8.2).
//!
//! The decoder checks every topic of every packet. Topics from other sources, such as access rules, are checked with
//! the same functions. Matching is not part of the codec.

/// Reason why a text is no topic name or topic filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The topic has no characters.
    #[error("topic is empty [MQTT-4.7.3-1]")]
    Empty,
    /// The topic contains U+0000.
    #[error("topic contains the null character [MQTT-4.7.3-2]")]
    Null,
    /// The topic is longer than 65,535 bytes.
    #[error("topic is longer than 65535 bytes [MQTT-4.7.3-3]")]
    TooLong,
    /// A topic name contains a wildcard.
    #[error("topic name contains a wildcard [MQTT-4.7.0-1]")]
    WildcardInName,
    /// `#` is not the last character, or not alone in its level.
    #[error("# is not the whole last level of the filter [MQTT-4.7.1-1]")]
    MultiLevelWildcard,
    /// `+` is not alone in its level.
    #[error("+ is not a whole level of the filter [MQTT-4.7.1-2]")]
    SingleLevelWildcard,
    /// The share name has no characters.
    #[error("share name is empty [MQTT-4.8.2-1]")]
    ShareNameEmpty,
    /// The share name contains a wildcard.
    #[error("share name contains a wildcard [MQTT-4.8.2-2]")]
    ShareNameWildcard,
    /// Nothing follows the share name.
    #[error("shared subscription has no filter after its share name [MQTT-4.8.2-2]")]
    ShareFilter,
}

/// Checks a topic name, as used in a PUBLISH, a will or a response topic.
///
/// # Errors
/// Fails if the name is empty, too long, or contains U+0000 or a wildcard.
pub fn check_name(name: &str) -> Result<(), Error> {
    check_text(name)?;
    if name.bytes().any(|byte| matches!(byte, b'+' | b'#')) {
        return Err(Error::WildcardInName);
    }
    Ok(())
}

/// Checks a topic filter, as used in a SUBSCRIBE. A filter that begins with `$share/` must be a well-formed shared
/// filter.
///
/// # Errors
/// Fails if the filter is empty, too long, contains U+0000, or has a misplaced wildcard or an invalid share name.
pub fn check_filter(filter: &str) -> Result<(), Error> {
    check_text(filter)?;
    match filter.strip_prefix("$share/") {
        Some(shared) => check_shared(shared),
        None => check_levels(filter),
    }
}

/// Splits a well-formed shared filter into share name and filter. Returns `None` for any other filter.
pub fn split_shared(filter: &str) -> Option<(&str, &str)> {
    filter.strip_prefix("$share/")?.split_once('/')
}

fn check_text(text: &str) -> Result<(), Error> {
    if text.is_empty() {
        return Err(Error::Empty);
    }
    if text.len() > usize::from(u16::MAX) {
        return Err(Error::TooLong);
    }
    if text.as_bytes().contains(&0) {
        return Err(Error::Null);
    }
    Ok(())
}

fn check_shared(shared: &str) -> Result<(), Error> {
    let Some((name, filter)) = shared.split_once('/') else {
        return Err(if shared.is_empty() { Error::ShareNameEmpty } else { Error::ShareFilter });
    };
    if name.is_empty() {
        return Err(Error::ShareNameEmpty);
    }
    if name.bytes().any(|byte| matches!(byte, b'+' | b'#')) {
        return Err(Error::ShareNameWildcard);
    }
    if filter.is_empty() {
        return Err(Error::ShareFilter);
    }
    check_levels(filter)
}

fn check_levels(filter: &str) -> Result<(), Error> {
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        if level.contains('#') && (level != "#" || levels.peek().is_some()) {
            return Err(Error::MultiLevelWildcard);
        }
        if level.contains('+') && level != "+" {
            return Err(Error::SingleLevelWildcard);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_any_text_without_wildcards() {
        for name in ["a", "/", "a//b", " ", "$SYS/x", "部门/消息", "$share/g/a"] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        for (name, error) in [("", Error::Empty), ("a/+", Error::WildcardInName), ("#", Error::WildcardInName)] {
            assert_eq!(check_name(name), Err(error), "{name}");
        }
        assert_eq!(check_name("a\0"), Err(Error::Null));
        assert_eq!(check_name(&"a".repeat(65_535)), Ok(()));
        assert_eq!(check_name(&"a".repeat(65_536)), Err(Error::TooLong));
    }

    #[test]
    fn wildcards_of_filters_are_whole_levels() {
        for filter in ["#", "+", "a/#", "/#", "+/+/#", "//", "$share", "$share/g/#", "$share/g//", "$shared/#"] {
            assert_eq!(check_filter(filter), Ok(()), "{filter}");
        }
        for (filter, error) in [
            ("", Error::Empty),
            ("#/", Error::MultiLevelWildcard),
            ("##", Error::MultiLevelWildcard),
            ("a#", Error::MultiLevelWildcard),
            ("+#", Error::MultiLevelWildcard),
            ("a+", Error::SingleLevelWildcard),
            ("++", Error::SingleLevelWildcard),
            ("$share/", Error::ShareNameEmpty),
            ("$share//a", Error::ShareNameEmpty),
            ("$share/#/a", Error::ShareNameWildcard),
            ("$share/g", Error::ShareFilter),
            ("$share/g/", Error::ShareFilter),
            ("$share/g/a#", Error::MultiLevelWildcard),
        ] {
            assert_eq!(check_filter(filter), Err(error), "{filter}");
        }
    }

    #[test]
    fn shared_filters_come_apart_at_the_share_name() {
        assert_eq!(split_shared("$share/g/a/b"), Some(("g", "a/b")));
        assert_eq!(split_shared("$share/g//"), Some(("g", "/")));
        assert_eq!(split_shared("a/$share/g/b"), None);
    }
}
