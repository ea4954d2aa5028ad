//! The quickstart example: formation, delivery, growth and refused manifests.

use std::time::Duration;

use covey_codec::ReasonCode;
use covey_tests::client::{Client, Options};
use covey_tests::local::{Local, free_port, run};
use covey_tests::{Result, wait};
use tokio::time::Instant;

use super::{folder, manifest, quickstart};

async fn deliver_one(local: &Local, from: usize, to: usize, payload: &str) -> Result<()> {
    let worker = Options::new(&format!("deploy.{to}"), "worker", &local.password("worker")?);
    let (mut worker, _) = Client::admitted(&local.address(to), &worker).await?;
    assert_eq!(worker.subscribe("jobs/#").await?, ReasonCode::GrantedQos1);
    let dispatcher = Options::new("dispatcher", "dispatcher", &local.password("dispatcher")?);
    let (mut dispatcher, _) = Client::admitted(&local.address(from), &dispatcher).await?;
    assert_eq!(dispatcher.publish("jobs/1", payload).await?, ReasonCode::Success);
    let message = worker.message(Duration::from_secs(10)).await?;
    assert_eq!(message, Some(("jobs/1".to_owned(), payload.to_owned())));
    worker.leave().await?;
    dispatcher.leave().await
}

#[tokio::test]
async fn the_quickstart_forms_within_ten_seconds_and_delivers() -> Result<()> {
    let folder = folder().await?;
    let started = Instant::now();
    let local = Local::start(&quickstart(), &folder.path().join("data"), free_port()?).await?;
    let took = started.elapsed();
    assert!(took < Duration::from_secs(10), "formed in {took:?}");
    assert_eq!(local.addresses().len(), 3);
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        deliver_one(&local, from, to, &format!("from {from} to {to}")).await?;
    }
    local.stop().await
}

#[tokio::test]
async fn one_broker_is_a_cluster_and_grows_to_three() -> Result<()> {
    let folder = folder().await?;
    let file = manifest(&folder, 1)?;
    let local = Local::start(&file, &folder.path().join("data"), free_port()?).await?;
    assert_eq!(local.addresses().len(), 1);
    deliver_one(&local, 0, 0, "alone").await?;
    manifest(&folder, 3)?;
    let grown = async || {
        local.connect().ok().filter(|now| now["clusters"][0]["brokers"].as_array().is_some_and(|all| all.len() == 3))
    };
    let now = wait::until("three brokers are ready", Duration::from_mins(1), grown).await?;
    let third = now["clusters"][0]["brokers"][2]["addresses"][0].as_str().unwrap_or_default().to_owned();
    let worker = Options::new("deploy.third", "worker", &local.password("worker")?);
    let (mut worker, _) = Client::admitted(&third, &worker).await?;
    assert_eq!(worker.subscribe("jobs/#").await?, ReasonCode::GrantedQos1);
    local.stop().await
}

#[tokio::test]
async fn a_bad_manifest_is_refused_with_a_sentence() -> Result<()> {
    let folder = folder().await?;
    let file = manifest(&folder, 2)?;
    let data = folder.path().join("data");
    let output = run(&["local", &file.display().to_string(), "--data", &data.display().to_string()]).await?;
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("replicas must not be 2"), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_second_program_on_one_directory_is_refused() -> Result<()> {
    let folder = folder().await?;
    let file = manifest(&folder, 1)?;
    let data = folder.path().join("data");
    let local = Local::start(&file, &data, free_port()?).await?;
    let port = free_port()?.to_string();
    let arguments = ["local", &file.display().to_string(), "--data", &data.display().to_string(), "--port", &port];
    let output = run(&arguments).await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("another `covey local`"), "{said}");
    // The same holds for the data directory of a broker.
    let output = run(&["broker", "--config", &local.config(0).display().to_string(), "--name", "prod-0"]).await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("uses this data directory"), "{said}");
    local.stop().await
}
