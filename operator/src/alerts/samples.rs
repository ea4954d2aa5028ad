//! Parses one scrape of a broker (Prometheus text format 0.0.4) into samples by name.
//!
//! The reconciler parses each scrape once; `predicate` reads the samples. Invariant: a page that cannot be parsed in
//! full yields no samples, because the rest of a truncated page would look like metrics that disappeared.

use std::collections::HashMap;

/// Why a page was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes are not UTF-8.
    #[error("failed to read metrics: not UTF-8")]
    Utf8,
    /// A line is not a sample, for example because the page is truncated there.
    #[error("failed to read metrics: line {line} is not a sample")]
    Line {
        /// Number of the line, from 1.
        line: usize,
    },
}

/// One sample of a metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    labels: Vec<(String, String)>,
    /// The value.
    pub value: f64,
}

impl Sample {
    /// Returns the value of a label.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// All samples of one scrape.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples {
    by_name: HashMap<String, Vec<Sample>>,
}

impl Samples {
    /// Parses a metrics page.
    ///
    /// # Errors
    /// If the page is not UTF-8 or a line is not a sample.
    pub fn parse(page: &[u8]) -> Result<Self, Error> {
        let text = std::str::from_utf8(page).map_err(|_| Error::Utf8)?;
        let mut by_name: HashMap<String, Vec<Sample>> = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, sample) = sample(line).ok_or(Error::Line { line: index + 1 })?;
            by_name.entry(name.to_owned()).or_default().push(sample);
        }
        Ok(Self { by_name })
    }

    /// Returns all samples of a metric.
    pub fn all(&self, name: &str) -> &[Sample] {
        self.by_name.get(name).map_or(&[], Vec::as_slice)
    }

    /// Returns the value of the metric's first sample; meant for metrics without labels.
    pub fn value(&self, name: &str) -> Option<f64> {
        self.all(name).first().map(|sample| sample.value)
    }
}

fn sample(line: &str) -> Option<(&str, Sample)> {
    let end = line.find(|c: char| c == '{' || c.is_whitespace())?;
    let (name, rest) = line.split_at_checked(end)?;
    if !is_name(name) {
        return None;
    }
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    let mut fields = rest.split_whitespace();
    let value = number(fields.next()?)?;
    let timestamp = fields.next();
    if timestamp.is_some_and(|text| text.parse::<i64>().is_err()) || fields.next().is_some() {
        return None;
    }
    Some((name, Sample { labels, value }))
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
}

fn number(text: &str) -> Option<f64> {
    match text {
        "+Inf" => Some(f64::INFINITY),
        "-Inf" => Some(f64::NEG_INFINITY),
        _ => text.parse().ok(),
    }
}

type Labels = Vec<(String, String)>;

fn labels(mut rest: &str) -> Option<(Labels, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (key, after) = rest.split_once('=')?;
        let key = key.trim();
        if !is_name(key) {
            return None;
        }
        let (value, after) = quoted(after.trim_start())?;
        labels.push((key.to_owned(), value));
        rest = after.trim_start();
        if let Some(after) = rest.strip_prefix(',') {
            rest = after;
        } else if !rest.starts_with('}') {
            return None;
        }
    }
}

fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.strip_prefix('"')?.chars();
    loop {
        match chars.next()? {
            '"' => return Some((value, chars.as_str())),
            '\\' => value.push(match chars.next()? {
                'n' => '\n',
                escaped @ ('"' | '\\') => escaped,
                _ => return None,
            }),
            c => value.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_of_the_prometheus_library_is_read() {
        use prometheus::{Encoder, GaugeVec, HistogramOpts, Opts, Registry, TextEncoder};
        let registry = Registry::new();
        let gauge = GaugeVec::new(Opts::new("g", "help with \\ and \n"), &["group"]).unwrap();
        registry.register(Box::new(gauge.clone())).unwrap();
        gauge.with_label_values(&["a\"b\\c\nd,e}"]).set(0.25);
        let histogram = prometheus::Histogram::with_opts(HistogramOpts::new("h", "help")).unwrap();
        registry.register(Box::new(histogram.clone())).unwrap();
        histogram.observe(3.0);
        let mut page = Vec::new();
        TextEncoder::new().encode(&registry.gather(), &mut page).unwrap();

        let samples = Samples::parse(&page).unwrap();
        let one = samples.all("g").first().unwrap();
        assert_eq!((one.label("group"), one.value), (Some("a\"b\\c\nd,e}"), 0.25));
        assert_eq!(samples.value("h_count"), Some(1.0));
        assert_eq!(samples.all("h_bucket").last().unwrap().label("le"), Some("+Inf"));
        assert!(samples.all("absent").is_empty());
    }

    #[test]
    fn legal_spellings_are_read() {
        let page = b"a 1 1700000000000\na{x=\"1\",} 2\na{ x = \"1\" , y=\"\" } +Inf\r\n\n# HELP a b\nb:c NaN\n";
        let samples = Samples::parse(page).unwrap();
        let values: Vec<f64> = samples.all("a").iter().map(|sample| sample.value).collect();
        assert_eq!(values, [1.0, 2.0, f64::INFINITY]);
        assert!(samples.value("b:c").unwrap().is_nan());
    }

    #[test]
    fn broken_pages_yield_nothing() {
        for (page, line) in [
            ("a 1\nb{x=\"1", 2),
            ("a 1\nb", 2),
            ("a{x=1} 2", 1),
            ("a{x=\"1\"y=\"2\"} 2", 1),
            ("1a 2", 1),
            ("a x", 1),
            ("a 1 2 3", 1),
            ("a{x=\"\\q\"} 1", 1),
            ("<html>", 1),
        ] {
            assert_eq!(Samples::parse(page.as_bytes()), Err(Error::Line { line }), "{page}");
        }
        assert_eq!(Samples::parse(b"a 1\n\xff"), Err(Error::Utf8));
    }
}
