//! The output of `covey local`: addresses, users with passwords, and command lines to paste.

use std::fmt::Write as _;

use clap::ValueEnum;
use covey_contract::access::{Action, Effect};
use serde::Serialize;

/// Format of the standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Text for people.
    Text,
    /// One JSON object, once everything is ready.
    Json,
}

/// All running clusters; the content of `connect.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    /// Clusters by namespace and name.
    pub(super) clusters: Vec<ClusterReport>,
}

/// A running cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ClusterReport {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) cluster_id: String,
    /// Revision of the access document that every broker enforces.
    pub(super) access_revision: u64,
    pub(super) brokers: Vec<BrokerReport>,
    pub(super) users: Vec<UserReport>,
}

/// A broker of a running cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BrokerReport {
    pub(super) name: String,
    /// Addresses for clients, one per listener.
    pub(super) addresses: Vec<String>,
    /// Address of `/metrics`, `/livez` and `/readyz`.
    pub(super) http: String,
    /// Process id; `None` while the broker is being restarted.
    pub(super) pid: Option<u32>,
    /// Path of the configuration file.
    pub(super) config: String,
    /// Path of the log file.
    pub(super) log: String,
}

/// A user that may connect.
#[derive(Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct UserReport {
    pub(super) username: String,
    /// Password; `None` if it is not text.
    pub(super) password: Option<String>,
    /// A client id that the user may use, if it may not use all.
    pub(super) client_id: Option<String>,
    /// A filter that the user may subscribe to.
    pub(super) subscribe: Option<String>,
    /// A topic that the user may publish to.
    pub(super) publish: Option<String>,
}

impl std::fmt::Debug for UserReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserReport").field("username", &self.username).finish_non_exhaustive()
    }
}

impl Report {
    /// Returns the report in JSON, for programs.
    pub(super) fn json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }

    /// Returns the report as text, for people.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for cluster in &self.clusters {
            cluster.write(&mut text);
        }
        text.push_str("Ctrl-C stops the brokers; their data stays.\n");
        text
    }
}

impl ClusterReport {
    fn write(&self, text: &mut String) {
        let addresses: Vec<&str> =
            self.brokers.iter().flat_map(|broker| &broker.addresses).map(String::as_str).collect();
        push(text, format_args!("{} is ready: {}\n", self.name, addresses.join(" ")));
        let http: Vec<String> = self.brokers.iter().map(|broker| format!("http://{}/metrics", broker.http)).collect();
        push(text, format_args!("  metrics: {}\n", http.join(" ")));
        for user in &self.users {
            let password = user.password.as_deref().unwrap_or("(not text)");
            push(text, format_args!("  user {:?}, password {password:?}\n", user.username));
        }
        let first = addresses.first().copied().unwrap_or_default();
        let last = addresses.last().copied().unwrap_or_default();
        for user in &self.users {
            if let Some(filter) = &user.subscribe {
                push(text, format_args!("  {}\n", user.command("mosquitto_sub", first, filter, "-v")));
            }
        }
        for user in &self.users {
            if let Some(topic) = &user.publish {
                push(text, format_args!("  {}\n", user.command("mosquitto_pub", last, topic, "-m hello")));
            }
        }
    }
}

impl UserReport {
    fn command(&self, program: &str, address: &str, topic: &str, rest: &str) -> String {
        let (host, port) = address.rsplit_once(':').unwrap_or((address, "1883"));
        let mut words = vec![program.to_owned(), "-V 5".into(), format!("-h {host} -p {port}")];
        if !self.username.is_empty() {
            words.push(format!(
                "-u {} -P {}",
                quote(&self.username),
                quote(self.password.as_deref().unwrap_or_default())
            ));
        }
        words.extend(self.client_id.iter().map(|id| format!("-i {}", quote(id))));
        words.push(format!("-q 1 -t {} {rest}", quote(topic)));
        words.join(" ")
    }
}

/// Quotes a word for a POSIX shell.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    text.write_fmt(line).unwrap_or_default();
}

/// Builds the report of a user. Filter and topic are taken from the first rules that allow them.
pub(super) fn user(user: &covey_contract::access::User, password: Option<String>) -> UserReport {
    let client_id = user.client_id_pattern.as_ref().map(|pattern| pattern.replace('*', "1"));
    let fill = |topic: &String| {
        topic.replace("{username}", &user.name).replace("{clientId}", client_id.as_deref().unwrap_or("1"))
    };
    let first = |action: Action| {
        let allowing = user.rules.iter().filter(|rule| rule.effect == Effect::Allow && rule.actions.contains(&action));
        allowing.flat_map(|rule| &rule.topics).map(fill).next()
    };
    UserReport {
        username: user.name.clone(),
        password,
        subscribe: first(Action::Subscribe),
        publish: first(Action::Publish).map(|filter| name_under(&filter)),
        client_id,
    }
}

/// Returns a topic name that the filter matches.
fn name_under(filter: &str) -> String {
    let levels = filter.split('/').map(|level| if matches!(level, "+" | "#") { "1" } else { level });
    levels.collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use covey_contract::access::{Rule, User};

    use super::*;

    fn worker() -> User {
        let rule = |action, topic: &str| Rule {
            effect: Effect::Allow,
            actions: vec![action],
            topics: vec![topic.to_owned()],
            max_qos: None,
            retain: None,
        };
        User {
            name: "worker".into(),
            source: String::new(),
            verifiers: vec![],
            client_id_pattern: Some("deploy.*".into()),
            rules: vec![rule(Action::Subscribe, "jobs/#"), rule(Action::Publish, "done/{clientId}/+")],
        }
    }

    #[test]
    fn lines_are_ready_to_paste() {
        let broker = BrokerReport { addresses: vec!["127.0.0.1:1884".into()], ..BrokerReport::default() };
        let users = vec![user(&worker(), Some("it's".into()))];
        let cluster = ClusterReport { name: "prod".into(), brokers: vec![broker], users, ..ClusterReport::default() };
        let text = Report { clusters: vec![cluster] }.text();
        assert!(
            text.contains(
                r"mosquitto_sub -V 5 -h 127.0.0.1 -p 1884 -u 'worker' -P 'it'\''s' -i 'deploy.1' -q 1 -t 'jobs/#' -v"
            ),
            "{text}"
        );
        assert!(text.contains("-t 'done/deploy.1/1' -m hello"), "{text}");
    }
}
