//! Access rules: deny by default, and changes while brokers run.

use std::time::Duration;

use covey_codec::ReasonCode;
use covey_tests::client::{Client, Options};
use covey_tests::local::{Local, free_port};
use covey_tests::{Result, wait};

use super::{folder, manifest};

const WITHIN: Duration = Duration::from_secs(5);

async fn refusal(address: &str, options: &Options) -> Result<ReasonCode> {
    Ok(Client::answered(address, options).await?.1.reason)
}

#[tokio::test]
async fn what_no_rule_allows_is_refused_on_every_broker() -> Result<()> {
    let folder = folder().await?;
    let file = manifest(&folder, 3)?;
    let local = Local::start(&file, &folder.path().join("data"), free_port()?).await?;
    let (worker, dispatcher) = (local.password("worker")?, local.password("dispatcher")?);
    for (number, address) in local.addresses().iter().enumerate() {
        assert_eq!(refusal(address, &Options::nobody("x")).await?, ReasonCode::BadUserNameOrPassword);
        let wrong = Options::new("x", "dispatcher", &worker);
        assert_eq!(refusal(address, &wrong).await?, ReasonCode::BadUserNameOrPassword);
        let unknown = Options::new("x", "somebody", &worker);
        assert_eq!(refusal(address, &unknown).await?, ReasonCode::BadUserNameOrPassword);
        let mut options = Options::new(&format!("deploy.{number}"), "worker", &worker);
        options.clean_start = true;
        let (mut client, _) = Client::admitted(address, &options).await?;
        assert_eq!(client.subscribe("secrets/#").await?, ReasonCode::NotAuthorized);
        assert_eq!(client.subscribe("#").await?, ReasonCode::NotAuthorized);
        assert_eq!(client.publish("jobs/1", "not mine to publish").await?, ReasonCode::NotAuthorized);
        let options = Options::new(&format!("d{number}"), "dispatcher", &dispatcher);
        let (mut client, _) = Client::admitted(address, &options).await?;
        assert_eq!(client.publish("secrets/1", "x").await?, ReasonCode::NotAuthorized);
        assert_eq!(client.subscribe("jobs/#").await?, ReasonCode::NotAuthorized);
    }
    local.stop().await
}

#[tokio::test]
async fn changed_rules_and_deleted_users_hold_on_every_broker_within_five_seconds() -> Result<()> {
    let folder = folder().await?;
    let file = manifest(&folder, 3)?;
    let local = Local::start(&file, &folder.path().join("data"), free_port()?).await?;
    let password = local.password("dispatcher")?;
    let mut clients = Vec::new();
    for (number, address) in local.addresses().iter().enumerate() {
        let options = Options::new(&format!("d{number}"), "dispatcher", &password);
        let (mut client, _) = Client::admitted(address, &options).await?;
        assert_eq!(client.publish("extra/1", "x").await?, ReasonCode::NotAuthorized);
        clients.push(client);
    }
    let text = std::fs::read_to_string(&file)?;
    let (before, after) = (
        r#"allow: [Publish]
      topics: ["jobs/#"]"#,
        r#"allow: [Publish]
      topics: ["extra/#"]"#,
    );
    anyhow::ensure!(text.contains(before), "the example's rule is not as this test expects it");
    std::fs::write(&file, text.replace(before, after))?;
    let deadline = tokio::time::Instant::now() + WITHIN;
    for client in &mut clients {
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        let holds = async || {
            let extra = client.publish("extra/1", "x").await.ok()?;
            let jobs = client.publish("jobs/1", "x").await.ok()?;
            let granted = matches!(extra, ReasonCode::Success | ReasonCode::NoMatchingSubscribers);
            (granted && jobs == ReasonCode::NotAuthorized).then_some(())
        };
        wait::until("the changed rules hold", left, holds).await?;
    }
    // Remove the dispatcher, keep the worker.
    let documents: Vec<&str> =
        text.split("\n---\n").filter(|document| !document.contains("name: dispatcher")).collect();
    assert_eq!(documents.len(), 2);
    std::fs::write(&file, documents.join("\n---\n"))?;
    for client in clients {
        let reason = client.closed(WITHIN).await?;
        assert!(reason.is_some_and(|reason| u8::from(reason) >= 0x80), "disconnected with {reason:?}");
    }
    for address in local.addresses() {
        let options = Options::new("d0", "dispatcher", &password);
        assert_eq!(refusal(&address, &options).await?, ReasonCode::BadUserNameOrPassword);
    }
    local.stop().await
}
