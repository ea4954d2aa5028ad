//! The standard metrics of a process, from /proc/self.

use std::fs;
use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Error, Gauge, Opts};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// Collector that reads /proc on each scrape.
pub(super) struct Process {
    descs: Vec<Desc>,
    /// Start of the process in seconds since the Unix epoch; 0 if unknown.
    start_time: f64,
}

impl Process {
    pub(super) fn new() -> Result<Self, Error> {
        let process = Self { descs: Vec::new(), start_time: start_time().unwrap_or_default() };
        let descs = process.read()?.iter().flat_map(|metric| metric.desc()).cloned().collect();
        Ok(Self { descs, ..process })
    }

    fn read(&self) -> Result<Vec<Box<dyn Collector>>, Error> {
        let cpu = Counter::with_opts(Opts::new(
            "process_cpu_seconds_total",
            "Processor time used by the process, in seconds.",
        ))?;
        cpu.inc_by(cpu_time().as_secs_f64());
        let max_fds = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        Ok(vec![
            Box::new(cpu),
            gauge(
                "process_resident_memory_bytes",
                "Resident memory of the process in bytes.",
                resident_bytes().unwrap_or(0),
            )?,
            gauge("process_open_fds", "Number of open file descriptors.", open_fds())?,
            gauge("process_max_fds", "Limit of open file descriptors.", max_fds)?,
            float(
                "process_start_time_seconds",
                "Start of the process in seconds since the Unix epoch.",
                self.start_time,
            )?,
        ])
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.read().unwrap_or_default().iter().flat_map(|metric| metric.collect()).collect()
    }
}

#[expect(clippy::cast_precision_loss, reason = "bytes and counts are far below 2^53")]
pub(super) fn gauge(name: &str, help: &str, value: u64) -> Result<Box<dyn Collector>, Error> {
    float(name, help, value as f64)
}

pub(super) fn float(name: &str, help: &str, value: f64) -> Result<Box<dyn Collector>, Error> {
    let gauge = Gauge::with_opts(Opts::new(name, help))?;
    gauge.set(value);
    Ok(Box::new(gauge))
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn resident_bytes() -> Option<u64> {
    kilobytes(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// Returns the value of a line such as `VmRSS:  1234 kB`, in bytes.
pub(super) fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn open_fds() -> u64 {
    fs::read_dir("/proc/self/fd").map_or(0, |fds| u64::try_from(fds.count()).unwrap_or(0))
}

fn start_time() -> Option<f64> {
    let boot: u32 =
        fs::read_to_string("/proc/stat").ok()?.lines().find_map(|line| line.strip_prefix("btime "))?.parse().ok()?;
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The program name in parentheses may contain any character. The start time is field 22, the 20th after the name.
    let ticks: u32 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    let per_second = u32::try_from(rustix::param::clock_ticks_per_second()).ok()?;
    Some(f64::from(boot) + f64::from(ticks) / f64::from(per_second))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_this_process() {
        let now = jiff::Timestamp::now().as_second();
        let start = start_time().unwrap();
        #[expect(clippy::cast_precision_loss, reason = "seconds since the epoch are far below 2^53")]
        let age = now as f64 - start;
        assert!((-2.0..3600.0).contains(&age), "began {age} s ago");
        assert!(resident_bytes().unwrap() > 1 << 20);
        assert!(open_fds() > 2);
        assert_eq!(Process::new().unwrap().collect().len(), 5);
    }
}
