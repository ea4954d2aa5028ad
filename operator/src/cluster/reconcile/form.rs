//! Carries out the decisions of [`formation`](super::super::formation): writes the record first, then initializes the nodes.

use std::time::Duration;

use covey_contract::names;
use covey_contract::proto::Member;
use covey_crds::condition::reason;
use covey_crds::{Formation, MqttCluster};
use futures::future::join_all;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::PostParams;
use kube::runtime::events::EventType;
use kube::{Api, ResourceExt as _};

use super::super::formation::{Decision, Known, decide};
use super::super::nodes::{self, Node};
use super::super::status::Phase;
use crate::context::{Context, Memory};

const INITIALIZE_TIMEOUT: Duration = Duration::from_secs(5);

/// Carries out the next step of the formation. Writes the status of `cluster` with a resourceVersion precondition, and
/// replaces `cluster` with the object that the API server returned.
///
/// # Errors
/// If the status cannot be written, for example because the object was changed in the meantime.
pub(crate) async fn form(
    context: &Context,
    about: &ObjectReference,
    cluster: &mut MqttCluster,
    replicas: u32,
    nodes: &[Node],
    memory: &mut Memory,
) -> Result<Phase, kube::Error> {
    let answers = nodes::answers(nodes);
    let mut decision = decide_for(cluster, replicas, &answers);
    if let Decision::Record(formation) = &decision {
        write(context, cluster, formation, None).await?;
        let note = format!("forming cluster {} with {} first members", formation.cluster_id, formation.members.len());
        context.event(about, EventType::Normal, reason::FORMING, "Form", &note).await;
        decision = decide_for(cluster, replicas, &answers);
    }
    Ok(match decision {
        Decision::Wait { .. } if is_formed(cluster) => Phase::Formed,
        Decision::Wait { missing } => Phase::Forming { waiting: waiting(&missing) },
        Decision::Record(_) => Phase::Forming { waiting: "recording the first members".into() },
        Decision::Adopt(formation) => {
            let id = formation.cluster_id.clone();
            write(context, cluster, &formation, Some(&id)).await?;
            let note = format!("adopted cluster {id}, which the volumes already hold");
            context.event(about, EventType::Normal, reason::ADOPTED, "Adopt", &note).await;
            Phase::Formed
        }
        Decision::Initialize { ordinals } => {
            let waiting = initialize(cluster, nodes, memory, &ordinals).await;
            if is_formed(cluster) { Phase::Formed } else { Phase::Forming { waiting } }
        }
        Decision::Formed => {
            let formation = cluster.status.as_ref().and_then(|status| status.formation.clone()).unwrap_or_default();
            if !is_formed(cluster) {
                write(context, cluster, &formation, Some(&formation.cluster_id)).await?;
                let note = format!("formed cluster {}", formation.cluster_id);
                context.event(about, EventType::Normal, reason::FORMED, "Form", &note).await;
            }
            Phase::Formed
        }
        Decision::Foreign { disks } => {
            if !is_reported(cluster) {
                let note: Vec<String> =
                    disks.iter().map(|(node, id)| format!("node {node} has a volume of cluster {id}")).collect();
                context.event(about, EventType::Warning, reason::FOREIGN_DISK, "Form", &note.join(", ")).await;
            }
            Phase::Foreign { disks }
        }
        Decision::TooFew { members } => Phase::TooFew { members },
        Decision::AllDisksEmpty => Phase::AllDisksEmpty,
    })
}

/// Returns whether the cluster has been formed: some node has reported the cluster's id.
pub(crate) fn is_formed(cluster: &MqttCluster) -> bool {
    cluster.status.as_ref().and_then(|status| status.cluster_id.as_ref()).is_some()
}

/// Returns whether the status already reports a foreign disk.
fn is_reported(cluster: &MqttCluster) -> bool {
    let conditions = cluster.status.iter().flat_map(|status| &status.conditions);
    conditions.into_iter().any(|condition| condition.reason == reason::FOREIGN_DISK)
}

fn decide_for(cluster: &MqttCluster, replicas: u32, answers: &[super::super::formation::Answer]) -> Decision {
    let status = cluster.status.as_ref();
    let known = Known {
        replicas,
        recorded: status.and_then(|status| status.formation.as_ref()),
        formed: status.and_then(|status| status.cluster_id.as_deref()),
    };
    decide(known, answers, &uuid::Uuid::new_v4().to_string())
}

fn waiting(missing: &[u32]) -> String {
    let missing: Vec<String> = missing.iter().map(u32::to_string).collect();
    if missing.is_empty() {
        "waiting for a majority of the first members to report the same cluster id".into()
    } else {
        format!("waiting for node {} to answer on TCP port {}", missing.join(", "), names::PORT_ADMIN)
    }
}

/// Writes formation and cluster id to the status. Fails with a conflict if the object was changed in the meantime.
/// `cluster` is replaced only once the API server has stored it: what follows is decided and reported from `cluster`.
async fn write(
    context: &Context,
    cluster: &mut MqttCluster,
    formation: &Formation,
    formed: Option<&str>,
) -> Result<(), kube::Error> {
    let mut wanted = cluster.clone();
    let status = wanted.status.get_or_insert_default();
    status.formation = Some(formation.clone());
    status.cluster_id = formed.map(str::to_owned).or_else(|| status.cluster_id.clone());
    let api: Api<MqttCluster> = Api::namespaced(context.client.clone(), &cluster.namespace().unwrap_or_default());
    *cluster = api.replace_status(&cluster.name_any(), &PostParams::default(), &wanted).await?;
    Ok(())
}

async fn initialize(cluster: &MqttCluster, nodes: &[Node], memory: &mut Memory, ordinals: &[u32]) -> String {
    let Some(formation) = cluster.status.as_ref().and_then(|status| status.formation.clone()) else {
        return "recording the first members".into();
    };
    let members: Vec<Member> = formation
        .members
        .iter()
        .map(|member| Member { ordinal: member.ordinal, node_id: member.node_id.clone() })
        .collect();
    let initialized: Vec<_> = nodes
        .iter()
        .filter(|node| ordinals.contains(&node.ordinal))
        .map(|node| {
            let client = nodes::client(memory, node);
            let (id, members) = (formation.cluster_id.clone(), members.clone());
            async move {
                let outcome = client?.initialize(&id, members, INITIALIZE_TIMEOUT).await;
                outcome.err().map(|error| {
                    tracing::warn!(node = %node.name, %error, "failed to initialize a node");
                    format!("{}: {error}", node.name)
                })
            }
        })
        .collect();
    let problems: Vec<String> = join_all(initialized).await.into_iter().flatten().collect();
    if problems.is_empty() { "waiting for the nodes to form the cluster".into() } else { problems.join("; ") }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use kube::client::Body;
    use kube::{Client, Resource as _};
    use serde_json::json;

    use super::super::super::node_samples;
    use super::*;
    use crate::metrics::Metrics;
    use crate::options::Options;
    use crate::test_support::cluster;

    /// Returns the context of an operator whose every request is answered with a conflict.
    fn refused() -> Context {
        let status = json!({"kind": "Status", "status": "Failure", "reason": "Conflict", "code": 409});
        let body = status.to_string().into_bytes();
        let service = tower::service_fn(move |_: http::Request<Body>| {
            let answer = http::Response::builder().status(409).body(Body::from(body.clone())).unwrap();
            async move { Ok::<_, Infallible>(answer) }
        });
        Context::new(Client::new(service, "floor"), Metrics::new("1").unwrap(), &Options::default())
    }

    /// Runs a step of the formation on nodes whose disks carry `id`, with a status that cannot be written.
    async fn unwritten(id: &str) -> MqttCluster {
        let mut cluster = cluster("{}");
        let mut nodes = node_samples::nodes(["new", "new", "new"]);
        for node in &mut nodes {
            node.report.as_mut().unwrap().cluster_id = id.into();
        }
        let about = cluster.object_ref(&());
        let formed = form(&refused(), &about, &mut cluster, 3, &nodes, &mut Memory::default()).await;
        assert!(matches!(formed, Err(kube::Error::Api(status)) if status.is_conflict()));
        cluster
    }

    #[tokio::test]
    async fn a_status_that_was_not_written_is_not_kept() {
        assert_eq!(unwritten("").await.status, None, "a record that was not stored");
        assert_eq!(unwritten("carried").await.status, None, "an adoption that was not stored");
    }
}
