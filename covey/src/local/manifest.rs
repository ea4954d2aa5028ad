//! Manifests from files, checked as an API server would check them.
//!
//! `covey local` reads them at its start and whenever a file changes. Invariant: [`read`] returns a set that is valid
//! as a whole; a file with one invalid document yields an error and no documents.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use covey_crds::{MqttCluster, MqttUser};
use covey_operator::cluster::validate;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Namespace of objects without a namespace.
const NAMESPACE: &str = "default";
/// UID of a manifest that is only validated.
const NO_UID: &str = "none";

/// Reason why manifests are refused. The texts are for their author.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("failed to read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: not YAML: {problem}", path.display())]
    Yaml { path: PathBuf, problem: String },
    #[error("{}: {}", path.display(), problems.join("; "))]
    Invalid { path: PathBuf, problems: Vec<String> },
    #[error("{0} is defined twice in the files")]
    Twice(String),
    #[error("there is no MqttCluster in the files")]
    Empty,
    #[error("{0}")]
    Schema(#[from] covey_crds::Error),
    #[error("failed to read a schema: {0}")]
    Json(#[from] serde_json::Error),
}

/// Namespace and name of an object.
pub(super) type Key = (String, String);

/// All objects in the files, by namespace and name.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Manifests {
    pub(super) clusters: BTreeMap<Key, MqttCluster>,
    pub(super) users: BTreeMap<Key, MqttUser>,
    pub(super) secrets: BTreeMap<Key, Secret>,
}

impl Manifests {
    /// Returns the users of a cluster.
    pub(super) fn users_of(&self, cluster: &Key) -> Vec<MqttUser> {
        let of = |user: &&MqttUser| {
            user.metadata.namespace.as_deref() == Some(cluster.0.as_str()) && user.spec.cluster_ref.name == cluster.1
        };
        self.users.values().filter(of).cloned().collect()
    }

    /// Returns the Secrets of a namespace, by name.
    pub(super) fn secrets_in(&self, namespace: &str) -> BTreeMap<String, Secret> {
        let within = self.secrets.iter().filter(|((found, _), _)| found == namespace);
        within.map(|((_, name), secret)| (name.clone(), secret.clone())).collect()
    }

    /// Returns the names of the users whose cluster is not in the files.
    pub(super) fn orphans(&self) -> Vec<String> {
        let has_cluster = |user: &MqttUser| {
            let key = (user.namespace().unwrap_or_default(), user.spec.cluster_ref.name.clone());
            self.clusters.contains_key(&key)
        };
        self.users.values().filter(|user| !has_cluster(user)).map(MqttUser::name_any).collect()
    }
}

/// Reads the texts of the files, which are compared to detect changes.
pub(super) fn texts(files: &[PathBuf]) -> Result<Vec<String>, Error> {
    let text =
        |path: &PathBuf| std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.clone(), source });
    files.iter().map(text).collect()
}

/// Reads and checks all documents.
pub(super) fn read(files: &[PathBuf], texts: &[String]) -> Result<Manifests, Error> {
    let schemas = Schemas::new()?;
    let mut manifests = Manifests::default();
    for (path, text) in files.iter().zip(texts) {
        let documents: Vec<Value> = serde_saphyr::from_multiple(text)
            .map_err(|error| Error::Yaml { path: path.clone(), problem: error.to_string() })?;
        let mut problems = Vec::new();
        for document in documents.into_iter().filter(|document| !document.is_null()) {
            take(&schemas, document, path, &mut manifests, &mut problems)?;
        }
        if !problems.is_empty() {
            return Err(Error::Invalid { path: path.clone(), problems });
        }
    }
    if manifests.clusters.is_empty() { Err(Error::Empty) } else { Ok(manifests) }
}

fn take(
    schemas: &Schemas,
    document: Value,
    path: &Path,
    manifests: &mut Manifests,
    problems: &mut Vec<String>,
) -> Result<(), Error> {
    let text = |pointer: &str| document.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (kind, name) = (text("/kind"), text("/metadata/name"));
    let what = format!("{kind} {name}");
    let before = problems.len();
    if name.is_empty() {
        problems.push(format!("{what}: metadata.name is missing"));
    }
    let version = text("/apiVersion");
    match (kind.as_str(), version.as_str()) {
        ("MqttCluster" | "MqttUser", "covey.io/v1alpha1") | ("Secret", "v1") => {}
        _ => problems.push(format!(
            "{}: {what} of apiVersion {version:?} is not supported; supported are MqttCluster and MqttUser of \
             covey.io/v1alpha1 and Secret of v1",
            path.display()
        )),
    }
    schemas.check(&kind, &document, &what, problems);
    if problems.len() > before {
        return Ok(());
    }
    match kind.as_str() {
        "MqttCluster" => insert(&what, document, &mut manifests.clusters, problems, check_cluster),
        "MqttUser" => insert(&what, document, &mut manifests.users, problems, check_user),
        _ => insert(&what, document, &mut manifests.secrets, problems, merge_strings),
    }
}

fn insert<T: DeserializeOwned + kube::Resource>(
    what: &str,
    document: Value,
    objects: &mut BTreeMap<Key, T>,
    problems: &mut Vec<String>,
    check: fn(&mut T) -> Vec<String>,
) -> Result<(), Error> {
    let mut object: T = match serde_json::from_value(document) {
        Ok(object) => object,
        Err(error) => {
            problems.push(format!("{what}: {error}"));
            return Ok(());
        }
    };
    let namespace = object.namespace().unwrap_or_else(|| NAMESPACE.to_owned());
    object.meta_mut().namespace = Some(namespace.clone());
    problems.extend(check(&mut object).into_iter().map(|problem| format!("{what}: {problem}")));
    let key = (namespace, object.name_any());
    if objects.insert(key, object).is_some() {
        return Err(Error::Twice(what.to_owned()));
    }
    Ok(())
}

fn check_cluster(cluster: &mut MqttCluster) -> Vec<String> {
    cluster.metadata.uid = Some(NO_UID.to_owned());
    match validate::validate(cluster, &validate::ImageDefaults::default()) {
        Ok(_) => vec![],
        Err(error) => error.problems,
    }
}

fn check_user(user: &mut MqttUser) -> Vec<String> {
    let pattern = user.spec.client_id_pattern.as_deref();
    let pattern_problem = pattern.and_then(|pattern| covey_contract::access::check_client_id_pattern(pattern).err());
    let rules = user.spec.acl.iter().filter_map(|rule| rule.to_access(pattern.is_some()).err());
    let mut problems: Vec<String> = pattern_problem.into_iter().chain(rules).collect();
    let password = &user.spec.authentication.password;
    if password.generate.unwrap_or(false) == password.secret_ref.is_some() {
        problems.push("exactly one of generate: true and secretRef must be set".to_owned());
    }
    problems
}

/// Merges `stringData` into `data`, where it takes precedence, as the API server does.
fn merge_strings(secret: &mut Secret) -> Vec<String> {
    let strings = secret.string_data.take().unwrap_or_default();
    let data = secret.data.get_or_insert_default();
    data.extend(strings.into_iter().map(|(key, text)| (key, k8s_openapi::ByteString(text.into_bytes()))));
    vec![]
}

/// Schemas of the custom resources by kind, to reject unknown fields, which would otherwise be ignored silently.
struct Schemas(BTreeMap<String, Value>);

impl Schemas {
    fn new() -> Result<Self, Error> {
        let mut schemas = BTreeMap::new();
        for definition in covey_crds::all()? {
            let version = definition.spec.versions.first().and_then(|version| version.schema.as_ref());
            let schema = serde_json::to_value(version.and_then(|schema| schema.open_api_v3_schema.as_ref()))?;
            schemas.insert(definition.spec.names.kind, schema);
        }
        Ok(Self(schemas))
    }

    fn check(&self, kind: &str, document: &Value, what: &str, problems: &mut Vec<String>) {
        let Some(schema) = self.0.get(kind).and_then(|schema| schema.pointer("/properties/spec")) else { return };
        match document.get("spec") {
            Some(spec) => unknown_fields(schema, spec, &format!("{what}: spec"), problems),
            None => problems.push(format!("{what}: spec is missing")),
        }
    }
}

fn unknown_fields(schema: &Value, value: &Value, place: &str, problems: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            let Some(known) = schema.get("properties").and_then(Value::as_object) else { return };
            for (name, value) in fields {
                match known.get(name) {
                    Some(schema) => unknown_fields(schema, value, &format!("{place}.{name}"), problems),
                    None => problems.push(format!("{place}.{name}: there is no such field")),
                }
            }
        }
        Value::Array(items) => {
            let Some(schema) = schema.get("items") else { return };
            for (position, item) in items.iter().enumerate() {
                unknown_fields(schema, item, &format!("{place}[{position}]"), problems);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: &str =
        "apiVersion: covey.io/v1alpha1\nkind: MqttCluster\nmetadata: {name: prod}\nspec: {replicas: 1}\n";

    fn user(spec: &str) -> String {
        format!("{CLUSTER}---\napiVersion: covey.io/v1alpha1\nkind: MqttUser\nmetadata: {{name: a}}\nspec: {spec}\n")
    }

    fn parse(text: &str) -> Result<Manifests, Error> {
        read(&[PathBuf::from("test.yaml")], &[text.to_owned()])
    }

    fn refused(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn documents_find_their_cluster() {
        let manifests = parse(&user("{clusterRef: {name: prod}, acl: []}")).unwrap();
        let key = ("default".to_owned(), "prod".to_owned());
        assert_eq!(manifests.users_of(&key).len(), 1);
        assert!(manifests.orphans().is_empty());
        assert_eq!(parse(&user("{clusterRef: {name: other}}")).unwrap().orphans(), ["a"]);
    }

    #[test]
    fn a_secret_in_plain_text_is_as_good_as_one_in_base64() {
        let secret = "---\napiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {pin: \"1234\"}\n";
        let manifests = parse(&format!("{CLUSTER}{secret}")).unwrap();
        let data = manifests.secrets_in("default")["s"].data.clone().unwrap();
        assert_eq!(data["pin"].0, b"1234");
    }

    #[test]
    fn bad_manifests_are_refused_with_a_sentence() {
        assert!(refused(&CLUSTER.replace("replicas: 1", "replicas: 2")).contains("replicas must not be 2"));
        assert!(refused(&CLUSTER.replace("replicas", "replica")).contains("spec.replica: there is no such field"));
        assert!(refused(&CLUSTER.replace("MqttCluster", "Deployment")).contains("is not supported"));
        assert!(refused(&format!("{CLUSTER}---\n{CLUSTER}")).contains("twice"));
        assert!(refused("").contains("no MqttCluster"));
        let rule = "{clusterRef: {name: prod}, acl: [{allow: [Publish], topics: [\"a/#/b\"]}]}";
        assert!(refused(&user(rule)).contains("MqttUser a"), "{}", refused(&user(rule)));
        let nobody = "{clusterRef: {name: prod}, acl: [{allow: [Publish], topics: [\"{clientId}/a\"]}]}";
        assert!(refused(&user(nobody)).contains("clientIdPattern"), "{}", refused(&user(nobody)));
    }
}
