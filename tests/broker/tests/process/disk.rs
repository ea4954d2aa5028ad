//! A foreign or corrupt disk is refused with the next step, and is not changed.

use std::path::{Path, PathBuf};

use covey_tests::Result;
use covey_tests::client::{Client, Options};
use covey_tests::disk::{contents, copy, differences};
use covey_tests::local::{Local, free_port, run};

use super::{folder, manifest};

/// Runs and stops a cluster of one broker that stores messages. Returns its configuration file and its data directory.
async fn stopped(folder: &super::Bench) -> Result<(PathBuf, PathBuf)> {
    let file = manifest(folder, 1)?;
    let local = Local::start(&file, &folder.path().join("data"), free_port()?).await?;
    let worker = Options::new("deploy.1", "worker", &local.password("worker")?);
    let (mut client, _) = Client::admitted(&local.address(0), &worker).await?;
    client.subscribe("jobs/#").await?;
    client.leave().await?;
    let dispatcher = Options::new("d", "dispatcher", &local.password("dispatcher")?);
    let (mut client, _) = Client::admitted(&local.address(0), &dispatcher).await?;
    for number in 0..50 {
        client.publish("jobs/1", &format!("job {number}")).await?;
    }
    let config = local.config(0);
    local.stop().await?;
    let data = config.with_file_name("data");
    Ok((config, data))
}

/// Starts a broker on a copy of `data` that `spoil` has changed. Asserts that it fails, names the file `named` and
/// changes no file. Returns its output.
async fn refused(
    config: &Path,
    data: &Path,
    name: &str,
    named: &str,
    spoil: impl Fn(&Path, String) -> Result<String>,
) -> Result<String> {
    let copied = tempfile::tempdir()?;
    let disk = copied.path().join("data");
    copy(data, &disk)?;
    let text = std::fs::read_to_string(config)?.replace(&data.display().to_string(), &disk.display().to_string());
    anyhow::ensure!(text.contains(&disk.display().to_string()), "the configuration does not name its data directory");
    let text = spoil(&disk, text)?;
    let changed = copied.path().join("broker.yaml");
    std::fs::write(&changed, text)?;
    let before = contents(&disk)?;
    let output = run(&["broker", "--config", &changed.display().to_string(), "--name", name]).await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "the broker started: {said}");
    assert!(said.contains(&disk.join(named).display().to_string()), "the file is not named: {said}");
    assert_eq!(differences(&before, &contents(&disk)?), Vec::<PathBuf>::new(), "the directory was changed");
    Ok(said)
}

#[tokio::test]
async fn foreign_and_corrupt_disks_are_refused_and_not_touched() -> Result<()> {
    let folder = folder().await?;
    let (config, data) = stopped(&folder).await?;
    // Another cluster.
    let other = |_: &Path, text: String| {
        let id = "00000000-0000-4000-8000-000000000001";
        let line = text.lines().find(|line| line.trim_start().starts_with("id:")).unwrap_or_default().to_owned();
        anyhow::ensure!(!line.is_empty(), "the cluster's id is not in the configuration");
        Ok(text.replace(&line, &format!("  id: {id}")))
    };
    let said = refused(&config, &data, "prod-0", "covey.json", other).await?;
    assert!(said.contains("belongs to cluster") && said.contains("Attach this node's own volume"), "{said}");
    // Another node.
    let said = refused(&config, &data, "prod-1", "covey.json", |_, text| Ok(text)).await?;
    assert!(said.contains("belongs to node") && said.contains("Attach this node's own volume"), "{said}");
    // One bit, with valid records after it.
    let said = refused(&config, &data, "prod-0", "log", |disk, text| flip_bit(disk).map(|()| text)).await?;
    assert!(said.contains(".seg"), "the file is not named: {said}");
    assert!(said.contains("move"), "the next step is not named: {said}");
    // The original disk is accepted, so the refusals are due to the changes.
    let config = config.display().to_string();
    let arguments = ["broker", "--config", &config, "--name", "prod-0"];
    let ended = tokio::time::timeout(std::time::Duration::from_secs(5), run(&arguments)).await;
    assert!(ended.is_err(), "the unchanged disk was refused");
    Ok(())
}

/// Flips a bit in the middle of the written part of the first segment.
fn flip_bit(disk: &Path) -> Result<()> {
    let mut segments: Vec<PathBuf> = std::fs::read_dir(disk.join("log"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<_>>()?;
    segments.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    segments.sort();
    let path = segments.first().ok_or_else(|| anyhow::anyhow!("there is no segment"))?;
    let mut bytes = std::fs::read(path)?;
    let written = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0);
    anyhow::ensure!(written > 1024, "too little was written to have a middle");
    let byte = bytes.get_mut(written / 2).ok_or_else(|| anyhow::anyhow!("no middle"))?;
    *byte ^= 0x10;
    Ok(std::fs::write(path, bytes)?)
}
