//! Acknowledged messages survive SIGKILL: of one broker under load, and of all processes at once.

use std::collections::BTreeSet;
use std::time::Duration;

use covey_codec::ReasonCode;
use covey_tests::client::{Client, Options};
use covey_tests::local::{Local, free_port};
use covey_tests::{Result, wait};

use super::{folder, quickstart};

const MESSAGES: u32 = 500;
/// Publishing takes 5 s and an election less than 1 s; the rest is reserve for slow machines.
const LIMIT: Duration = Duration::from_mins(2);
const SOME_BROKER: Duration = Duration::from_secs(30);

/// Publishes each number until it is acknowledged, on any broker that admits the client, at 100 per second.
async fn publish_all(addresses: Vec<String>, options: Options, numbers: std::ops::Range<u32>) -> Result<()> {
    let (mut client, _) = Client::anywhere(&addresses, &options, SOME_BROKER).await?;
    for number in numbers {
        while !matches!(client.publish("jobs/n", &number.to_string()).await, Ok(ReasonCode::Success)) {
            (client, _) = Client::anywhere(&addresses, &options, SOME_BROKER).await?;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    client.leave().await
}

/// Receives until every number has arrived, with one session over any number of connections. Returns the numbers in the
/// order of their first arrival, and the number of reconnects that did not find the session.
async fn receive_all(addresses: &[String], options: &Options, expected: usize) -> Result<(Vec<u32>, u32)> {
    let (mut arrivals, mut seen, mut lost) = (Vec::new(), BTreeSet::new(), 0);
    let mut client: Option<Client> = None;
    while seen.len() < expected {
        let mut connected = if let Some(client) = client.take() {
            client
        } else {
            let (client, present) = Client::anywhere(addresses, options, SOME_BROKER).await?;
            lost += u32::from(!present);
            client
        };
        match connected.message(Duration::from_secs(20)).await {
            Ok(Some((_, payload))) => {
                let number = payload.parse()?;
                if seen.insert(number) {
                    arrivals.push(number);
                }
                client = Some(connected);
            }
            Ok(None) => anyhow::bail!("{} of {expected} messages arrived, then none for 20 s", seen.len()),
            Err(_) => {}
        }
    }
    Ok((arrivals, lost))
}

async fn subscribe(address: &str, options: &Options) -> Result<()> {
    let (mut worker, _) = Client::admitted(address, options).await?;
    assert_eq!(worker.subscribe("jobs/#").await?, ReasonCode::GrantedQos1);
    worker.leave().await
}

#[tokio::test]
async fn acknowledged_messages_survive_the_death_of_a_broker_under_load() -> Result<()> {
    let folder = folder().await?;
    let local = Local::start(&quickstart(), &folder.path().join("data"), free_port()?).await?;
    let worker = Options::new("deploy.docer.wps.cn", "worker", &local.password("worker")?);
    let dispatcher = Options::new("dispatcher", "dispatcher", &local.password("dispatcher")?);
    subscribe(&local.address(0), &worker).await?;
    let publish = publish_all(local.addresses(), dispatcher, 0..MESSAGES);
    let kill = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        // The first broker of both clients, whichever shards it leads.
        let killed = local.kill_broker(0)?;
        let again = async || local.pid(0).ok().filter(|pid| *pid != killed);
        wait::until("the broker runs again by itself", Duration::from_secs(30), again).await
    };
    let addresses = local.addresses();
    let receive = receive_all(&addresses, &worker, usize::try_from(MESSAGES)?);
    let all = async { tokio::join!(receive, kill, publish) };
    let (received, killed, published) = tokio::time::timeout(LIMIT, all).await?;
    killed?;
    let (arrivals, lost) = received?;
    published?;
    assert_eq!(arrivals, (0..MESSAGES).collect::<Vec<_>>(), "first arrivals are in the order of publishing");
    assert_eq!(lost, 0, "every reconnect finds the session");
    local.stop().await
}

#[tokio::test]
async fn sessions_and_queues_survive_the_death_of_everything() -> Result<()> {
    let folder = folder().await?;
    let (data, port) = (folder.path().join("data"), free_port()?);
    let local = Local::start(&quickstart(), &data, port).await?;
    let worker = Options::new("deploy.docer.wps.cn", "worker", &local.password("worker")?);
    let dispatcher = Options::new("dispatcher", "dispatcher", &local.password("dispatcher")?);
    subscribe(&local.address(1), &worker).await?;
    publish_all(local.addresses(), dispatcher.clone(), 0..50).await?;
    local.crash().await?;
    let local = Local::start(&quickstart(), &data, port).await?;
    assert_eq!(local.password("worker")?, worker.password.clone().unwrap_or_default(), "passwords are kept");
    publish_all(local.addresses(), dispatcher, 50..60).await?;
    let (arrivals, lost) = receive_all(&local.addresses(), &worker, 60).await?;
    assert_eq!(arrivals, (0..60).collect::<Vec<_>>());
    assert_eq!(lost, 0, "the session survives the restart");
    local.stop().await
}
