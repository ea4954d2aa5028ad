//! Processor and memory limits of the broker, from its control group (version 1 or 2) or, without a limit there, from
//! the machine. Alerts therefore need no other exporter.

use std::fs;
use std::path::{Path, PathBuf};

use prometheus::Error;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;

use super::process::{float, gauge, kilobytes};

/// Collector that reads the limits on each scrape.
pub(super) struct Limits {
    descs: Vec<Desc>,
}

impl Limits {
    pub(super) fn new() -> Result<Self, Error> {
        let descs = metrics()?.iter().flat_map(|metric| metric.desc()).cloned().collect();
        Ok(Self { descs })
    }
}

impl Collector for Limits {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        metrics().unwrap_or_default().iter().flat_map(|metric| metric.collect()).collect()
    }
}

fn metrics() -> Result<Vec<Box<dyn Collector>>, Error> {
    let found = Found::read(Path::new("/proc"), Path::new("/sys/fs/cgroup"));
    Ok(vec![
        float("mqtt_broker_cpu_limit_cores", "Processor cores that the broker may use.", found.cpu_cores)?,
        gauge("mqtt_broker_memory_limit_bytes", "Bytes of memory that the broker may use.", found.memory_limit)?,
        gauge(
            "mqtt_broker_memory_used_bytes",
            "Bytes of memory in use that count towards the limit.",
            found.memory_used,
        )?,
    ])
}

/// Limits and usage that were read.
#[derive(Debug, PartialEq)]
struct Found {
    /// Processor cores; fractions are possible.
    cpu_cores: f64,
    /// Bytes.
    memory_limit: u64,
    /// Bytes, less the page cache that the kernel can reclaim.
    memory_used: u64,
}

impl Found {
    fn read(proc: &Path, sys: &Path) -> Self {
        let groups = fs::read_to_string(proc.join("self/cgroup")).unwrap_or_default();
        let machine = fs::read_to_string(proc.join("meminfo")).unwrap_or_default();
        let total = kilobytes(&machine, "MemTotal:").unwrap_or(0);
        let available = kilobytes(&machine, "MemAvailable:").unwrap_or(0);

        let memory = folders(&groups, sys, "memory");
        let limits = memory
            .iter()
            .filter_map(|folder| number(folder, "memory.max").or_else(|| number(folder, "memory.limit_in_bytes")));
        let used = memory.iter().find_map(|folder| {
            let used = number(folder, "memory.current").or_else(|| number(folder, "memory.usage_in_bytes"))?;
            Some(used.saturating_sub(reclaimable(folder)))
        });
        let limit = limits.chain([total]).min().unwrap_or(total);
        let used = if limit < total { used } else { None };
        let cpu = folders(&groups, sys, "cpu").iter().filter_map(|folder| quota(folder)).reduce(f64::min);
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            cpu_cores: cpu.unwrap_or_else(|| u32::try_from(cores).map_or(1.0, f64::from)),
            memory_limit: limit,
            memory_used: used.unwrap_or_else(|| total.saturating_sub(available)),
        }
    }
}

/// Returns the directories of this process's control group and its ancestors, innermost first: each may set a limit.
/// Inside a container the outer part of the path often does not exist.
fn folders(groups: &str, sys: &Path, controller: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let root = match controllers {
            "" => sys.to_path_buf(),
            list if list.split(',').any(|name| name == controller) => sys.join(controller),
            _ => continue,
        };
        let inside = Path::new(path.trim_start_matches('/'));
        found.extend(inside.ancestors().map(|folder| root.join(folder)).filter(|folder| folder.is_dir()));
    }
    found
}

fn text(folder: &Path, file: &str) -> Option<String> {
    fs::read_to_string(folder.join(file)).ok()
}

/// Reads a number; `None` also for "max".
fn number(folder: &Path, file: &str) -> Option<u64> {
    text(folder, file)?.trim().parse().ok()
}

/// Returns the bytes of inactive page cache, which the kernel reclaims before it kills a process.
fn reclaimable(folder: &Path) -> u64 {
    let text = text(folder, "memory.stat").unwrap_or_default();
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok());
    value("total_inactive_file ").or_else(|| value("inactive_file ")).unwrap_or(0)
}

/// Returns the quota in cores, from `cpu.max` of version 2 or the pair of files of version 1; `None` without a quota.
fn quota(folder: &Path) -> Option<f64> {
    let (quota, period) = if let Some(text) = text(folder, "cpu.max") {
        let (quota, period) = text.trim().split_once(' ')?;
        (quota.parse::<f64>().ok()?, period.parse::<f64>().ok()?)
    } else {
        let read = |file| text(folder, file)?.trim().parse::<f64>().ok();
        (read("cpu.cfs_quota_us")?, read("cpu.cfs_period_us")?)
    };
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let meminfo = ("proc/meminfo", "MemTotal: 8388608 kB\nMemFree: 1 kB\nMemAvailable: 6291456 kB\n");
        for (path, text) in files.iter().chain([&meminfo]) {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn read(dir: &tempfile::TempDir) -> Found {
        Found::read(&dir.path().join("proc"), &dir.path().join("sys"))
    }

    #[test]
    fn version_2_inside_a_container() {
        let dir = machine(&[
            ("proc/self/cgroup", "0::/\n"),
            ("sys/cpu.max", "250000 100000\n"),
            ("sys/memory.max", "2147483648\n"),
            ("sys/memory.current", "1073741824\n"),
            ("sys/memory.stat", "anon 5\ninactive_file 536870912\n"),
        ]);
        assert_eq!(read(&dir), Found { cpu_cores: 2.5, memory_limit: 2 * GIB, memory_used: GIB / 2 });
    }

    #[test]
    fn version_2_takes_the_tightest_of_the_groups_around() {
        let dir = machine(&[
            ("proc/self/cgroup", "0::/pods/pod1/c1\n"),
            ("sys/pods/pod1/c1/cpu.max", "max 100000\n"),
            ("sys/pods/pod1/cpu.max", "50000 100000\n"),
            ("sys/pods/pod1/c1/memory.max", "max\n"),
            ("sys/pods/pod1/c1/memory.current", "1000\n"),
            ("sys/pods/memory.max", "1073741824\n"),
        ]);
        assert_eq!(read(&dir), Found { cpu_cores: 0.5, memory_limit: GIB, memory_used: 1000 });
    }

    #[test]
    fn version_1_with_the_host_path_that_a_container_does_not_see() {
        let dir = machine(&[
            ("proc/self/cgroup", "5:memory:/kubepods/x\n3:cpu,cpuacct:/kubepods/x\n0::/\n"),
            ("sys/cpu/cpu.cfs_quota_us", "150000\n"),
            ("sys/cpu/cpu.cfs_period_us", "100000\n"),
            ("sys/memory/memory.limit_in_bytes", "1073741824\n"),
            ("sys/memory/memory.usage_in_bytes", "3000\n"),
            ("sys/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 1000\n"),
        ]);
        assert_eq!(read(&dir), Found { cpu_cores: 1.5, memory_limit: GIB, memory_used: 2000 });
    }

    #[test]
    fn without_limits_it_is_the_machine() {
        let dir = machine(&[
            ("proc/self/cgroup", "5:memory:/\n3:cpu:/\n"),
            ("sys/cpu/cpu.cfs_quota_us", "-1\n"),
            ("sys/cpu/cpu.cfs_period_us", "100000\n"),
            ("sys/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/memory/memory.usage_in_bytes", "3000\n"),
        ]);
        let found = read(&dir);
        assert!(found.cpu_cores >= 1.0);
        assert_eq!((found.memory_limit, found.memory_used), (8 * GIB, 2 * GIB));
    }
}
