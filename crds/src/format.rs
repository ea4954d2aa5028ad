//! Formats of names in the resources. For each there is a regular expression for the CEL rules of the schema and a
//! function for manifests that do not pass through an API server. The manifests of `operator/tests/api_server` are held
//! against both.

/// Repository of an image, with the registry host if there is one.
pub(crate) const REPOSITORY: &str =
    "^([A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]+)?/)?[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*$";
/// Tag of an image.
pub(crate) const TAG: &str = "^[A-Za-z0-9_][A-Za-z0-9._-]*$";
/// Digest of an image.
pub(crate) const DIGEST: &str = "^[a-z0-9]+:[0-9a-f]{32,}$";
/// Name of most Kubernetes objects, such as a StorageClass: a DNS subdomain.
pub(crate) const OBJECT: &str = "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$";
/// Key of a label, without the lengths of its parts.
pub(crate) const LABEL_KEY: &str = "^([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$";
/// Name of a port, without the length and the rule against two dashes in a row.
pub(crate) const PORT: &str = "^[a-z]([a-z0-9-]*[a-z0-9])?$";

fn lower(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// Returns whether a text has no other bytes than those of `inner`, and begins and ends with one of `edge`.
fn has_edges(text: &str, inner: impl Fn(u8) -> bool, edge: impl Fn(u8) -> bool) -> bool {
    let is_edge = |byte: Option<&u8>| byte.is_some_and(|byte| edge(*byte));
    text.bytes().all(inner) && is_edge(text.as_bytes().first()) && is_edge(text.as_bytes().last())
}

/// Returns whether a text is the repository of an image: at most 255 characters, without tag and digest.
pub fn is_repository(text: &str) -> bool {
    let is_component = |part: &str| has_edges(part, |byte| lower(byte) || b"._-".contains(&byte), lower);
    let is_host = |host: &str| {
        let (name, port) = host.split_once(':').unwrap_or((host, "0"));
        let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte));
        let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        is_name && begins && !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())
    };
    let is_path = |path: &str| path.split('/').all(is_component);
    text.len() <= 255
        && (is_path(text) || text.split_once('/').is_some_and(|(host, path)| is_host(host) && is_path(path)))
}

/// Returns whether a text is the tag of an image: at most 128 letters, digits, dots, dashes and underscores.
pub fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let begins = text.bytes().next().is_some_and(word);
    begins && text.len() <= 128 && text.bytes().all(|byte| word(byte) || b".-".contains(&byte))
}

/// Returns whether a text is a digest such as `sha256:...` of at most 128 characters.
pub fn is_digest(text: &str) -> bool {
    let hexadecimal = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.len() <= 128
        && text.split_once(':').is_some_and(|(algorithm, digits)| {
            has_edges(algorithm, lower, lower) && digits.len() >= 32 && digits.bytes().all(hexadecimal)
        })
}

/// Returns whether a text can be the name of a Kubernetes object, such as a StorageClass or a Secret.
pub fn is_object_name(text: &str) -> bool {
    text.len() <= 253 && has_edges(text, |byte| lower(byte) || b".-".contains(&byte), lower)
}

/// Returns whether a text can be the key of a label: a name of at most 63 characters, after the name of an object and a
/// slash if it has a prefix.
pub fn is_label_key(text: &str) -> bool {
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    prefix.is_none_or(is_object_name) && !name.is_empty() && is_label_value(name)
}

/// Returns whether a text can be the value of a label: at most 63 letters, digits, dashes, underscores and dots.
pub fn is_label_value(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric();
    text.is_empty() || text.len() <= 63 && has_edges(text, |byte| word(byte) || b"._-".contains(&byte), word)
}

/// Returns whether a text can be the name of a port: at most 15 lower case letters, digits and single dashes, a letter
/// first.
pub fn is_port_name(text: &str) -> bool {
    let begins = text.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
    begins && text.len() <= 15 && !text.contains("--") && has_edges(text, |byte| lower(byte) || byte == b'-', lower)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_kubernetes_can_read_are_told_from_others() {
        type Case = (fn(&str) -> bool, &'static [&'static str], &'static [&'static str]);
        let digest = concat!("sha256:", "0123456789abcdef0123456789abcdef");
        assert!(is_digest(digest) && !is_digest(&digest.to_uppercase()) && !is_digest(&format!("{digest}g")));
        let cases: [Case; 6] = [
            (
                is_repository,
                &["covey", "a/b", "Registry.example.org:5000/a_b/c-d", "localhost/x", "a--b/c", "host.:5/x"],
                &[
                    "",
                    "My Repo",
                    "covey:1",
                    "A",
                    "a/",
                    "/a",
                    "a//b",
                    "-a/b",
                    "host:/x",
                    "host:p/x",
                    "a/-b",
                    "a/B",
                    "covey@sha256:1",
                ],
            ),
            (is_tag, &["1", "v1.0_x", "_a-"], &["", "a b", ".a", "-a", "a:b"]),
            (is_object_name, &["fast", "a.b-c", "0"], &["", "Bad_Name", "-a", "a-", ".a", "a b"]),
            (is_label_key, &["a", "kubernetes.io/hostname", "A_b.c"], &["", "a/", "/a", "a/b/c", "A/b", "-a", "a b"]),
            (is_label_value, &["", "a", "A-b_c.d"], &["-a", "a-", "a b", "a/b"]),
            (
                is_port_name,
                &["mqtt", "a", "a-b", "tls-1883"],
                &["", "1a", "a--b", "a-", "Aa", "a_b", "sixteen-letters-x"],
            ),
        ];
        for (holds, good, bad) in cases {
            for text in good {
                assert!(holds(text), "{text:?}");
            }
            for text in bad {
                assert!(!holds(text), "{text:?}");
            }
        }
    }
}
