//! Creates metrics and registers them.

use prometheus::core::{AtomicI64, AtomicU64, Collector, GenericCounter, GenericGauge};
use prometheus::{
    Error, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry,
};

use super::label::{Family, Family2, Label};

/// Histogram buckets in seconds, from half a millisecond to 2.5 s, for disks, networks and Raft.
pub(super) const FAST: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

/// Registers metrics under the prefix `mqtt_broker_`.
pub(super) struct Registrar<'a>(pub(super) &'a Registry);

impl Registrar<'_> {
    fn add<M: Collector + Clone + 'static>(&self, metric: Result<M, Error>) -> Result<M, Error> {
        let metric = metric?;
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    pub(super) fn counter(&self, name: &str, help: &str) -> Result<IntCounter, Error> {
        self.add(GenericCounter::<AtomicU64>::with_opts(opts(name, help)))
    }

    pub(super) fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, Error> {
        self.add(GenericGauge::<AtomicI64>::with_opts(opts(name, help)))
    }

    pub(super) fn float(&self, name: &str, help: &str) -> Result<Gauge, Error> {
        self.add(Gauge::with_opts(opts(name, help)))
    }

    pub(super) fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram, Error> {
        self.add(Histogram::with_opts(histogram_opts(name, help, buckets)))
    }

    pub(super) fn counters<L: Label>(&self, name: &str, help: &str) -> Result<Family<L, IntCounter>, Error> {
        let vec = self.counter_vec(name, help, &[L::NAME])?;
        Ok(Family::new(|value| vec.with_label_values(&[value])))
    }

    pub(super) fn counters2<A: Label, B: Label>(
        &self,
        name: &str,
        help: &str,
    ) -> Result<Family2<A, B, IntCounter>, Error> {
        let vec = self.counter_vec(name, help, &[A::NAME, B::NAME])?;
        Ok(Family::new(|a| Family::new(|b| vec.with_label_values(&[a, b]))))
    }

    pub(super) fn gauges<L: Label>(&self, name: &str, help: &str) -> Result<Family<L, IntGauge>, Error> {
        let vec = self.gauge_vec(name, help, &[L::NAME])?;
        Ok(Family::new(|value| vec.with_label_values(&[value])))
    }

    pub(super) fn gauges2<A: Label, B: Label>(&self, name: &str, help: &str) -> Result<Family2<A, B, IntGauge>, Error> {
        let vec = self.gauge_vec(name, help, &[A::NAME, B::NAME])?;
        Ok(Family::new(|a| Family::new(|b| vec.with_label_values(&[a, b]))))
    }

    pub(super) fn histograms<L: Label>(
        &self,
        name: &str,
        help: &str,
        buckets: &[f64],
    ) -> Result<Family<L, Histogram>, Error> {
        let vec = self.add(HistogramVec::new(histogram_opts(name, help, buckets), &[L::NAME]))?;
        Ok(Family::new(|value| vec.with_label_values(&[value])))
    }

    pub(super) fn histograms2<A: Label, B: Label>(
        &self,
        name: &str,
        help: &str,
        buckets: &[f64],
    ) -> Result<Family2<A, B, Histogram>, Error> {
        let vec = self.add(HistogramVec::new(histogram_opts(name, help, buckets), &[A::NAME, B::NAME]))?;
        Ok(Family::new(|a| Family::new(|b| vec.with_label_values(&[a, b]))))
    }

    pub(super) fn counter_vec(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, Error> {
        self.add(IntCounterVec::new(opts(name, help), labels))
    }

    pub(super) fn gauge_vec(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, Error> {
        self.add(IntGaugeVec::new(opts(name, help), labels))
    }

    pub(super) fn float_vec(&self, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec, Error> {
        self.add(GaugeVec::new(opts(name, help), labels))
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("mqtt_broker_{name}"), help)
}

fn histogram_opts(name: &str, help: &str, buckets: &[f64]) -> HistogramOpts {
    HistogramOpts::new(format!("mqtt_broker_{name}"), help).buckets(buckets.to_vec())
}
