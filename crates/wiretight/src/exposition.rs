//! Metrics in Prometheus' text formats: how a program answers `GET /metrics`, and the metrics of its process, by their
//! usual names.
//!
//! The unit is a part of the name: `_seconds` and `_bytes` at its end also give the metadata.

use std::fmt;
use std::fs;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http_body_util::Full;
use hyper::Response;
use hyper::body::Bytes;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, MetricEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};
use wiretight_proxy::Latency;
use wiretight_proxy::latency::BOUNDS;

pub(crate) type Labels = Vec<(&'static str, String)>;

const OPENMETRICS: &str = "application/openmetrics-text";

/// The response to a scrape: the metrics of `ours`, with the prefix `wiretight`, and those of this process. Scrapers that
/// accept OpenMetrics get it; others, and people, get Prometheus' older text format.
pub(crate) fn answer(request: &HeaderMap, ours: Box<dyn Collector>) -> Response<Full<Bytes>> {
    let accepts = request.get_all(ACCEPT).iter().filter_map(|accept| accept.to_str().ok());
    let (text, kind) = match accepts.into_iter().any(|accept| accept.contains(OPENMETRICS)) {
        true => (openmetrics(ours), "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        false => (classic(&openmetrics(ours)), "text/plain; version=0.0.4; charset=utf-8"),
    };
    let mut response = Response::new(Full::from(text));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn openmetrics(ours: Box<dyn Collector>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Process::now()));
    registry.sub_registry_with_prefix("wiretight").register_collector(ours);
    let mut out = String::new();
    match prometheus_client::encoding::text::encode(&mut out, &registry) {
        Ok(()) => out,
        Err(fmt::Error) => String::new(), // writing to a String does not fail
    }
}

/// The same in the text format 0.0.4: a counter's metadata has the name of its samples, and there are no units and no end
/// mark. (Line breaks in values are escaped, so each line is one item.)
fn classic(openmetrics: &str) -> String {
    let mut out = String::with_capacity(openmetrics.len());
    let mut help = "";
    for line in openmetrics.lines() {
        if let Some(of) = line.strip_prefix("# HELP ") {
            help = of.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|of| of.split_once(' '))
        {
            let total = if kind == "counter" { "_total" } else { "" };
            out += &format!("# HELP {name}{total} {help}\n# TYPE {name}{total} {kind}\n");
        } else if !line.starts_with('#') {
            out += line;
            out.push('\n');
        }
    }
    out
}

/// A family of counters; `name` is without `_total`.
pub(crate) fn counter<N: EncodeCounterValue>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (Labels, N)>,
) -> fmt::Result {
    family(encoder, name, help, MetricType::Counter, values, |mut metric, value: N| {
        metric.encode_counter::<NoLabelSet, N, u64>(&value, None)
    })
}

pub(crate) fn gauge<N: EncodeGaugeValue>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (Labels, N)>,
) -> fmt::Result {
    family(encoder, name, help, MetricType::Gauge, values, |mut metric, value: N| {
        metric.encode_gauge(&value)
    })
}

/// Latencies; `name` ends in `_seconds`.
pub(crate) fn histogram(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (Labels, Latency)>,
) -> fmt::Result {
    let bounds = BOUNDS.map(|micros| micros as f64 / 1e6).into_iter().chain([f64::INFINITY]);
    family(encoder, name, help, MetricType::Histogram, values, |mut metric, value: Latency| {
        let buckets: Vec<_> = bounds.clone().zip(value.buckets).collect();
        let sum = value.micros as f64 / 1e6;
        metric.encode_histogram::<NoLabelSet>(sum, value.count(), &buckets, None)
    })
}

fn family<N>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    kind: MetricType,
    values: impl IntoIterator<Item = (Labels, N)>,
    encode: impl Fn(MetricEncoder<'_>, N) -> fmt::Result,
) -> fmt::Result {
    let (name, unit) = match (name.strip_suffix("_seconds"), name.strip_suffix("_bytes")) {
        (Some(name), _) => (name, Some(Unit::Seconds)),
        (_, Some(name)) => (name, Some(Unit::Bytes)),
        _ => (name, None),
    };
    let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), kind)?;
    for (labels, value) in values {
        encode(family.encode_family(&labels)?, value)?;
    }
    Ok(())
}

/// A value without labels.
pub(crate) fn one<N>(value: N) -> [(Labels, N); 1] {
    [(Labels::new(), value)]
}

static STARTED: LazyLock<SystemTime> = LazyLock::new(SystemTime::now);

/// To be called when the process starts.
pub(crate) fn started() {
    LazyLock::force(&STARTED);
}

/// What this process uses. Only its own files in `/proc` are read, which the sandbox allows, and which exist also with
/// systemd's `ProcSubset=pid`.
#[derive(Debug)]
struct Process {
    cpu: Duration,
    /// From /proc/self/status, by its keys; in bytes where it is in kB there.
    status: String,
    open_files: Option<u64>,
    max_files: Option<u64>,
}

/// The processor time that this process has used.
pub(crate) fn cpu_time() -> Duration {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(used.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(used.tv_nsec).unwrap_or(0))
}

/// The resident memory of this process, in bytes.
pub(crate) fn resident_memory() -> Option<u64> {
    number(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS")
}

/// A value of /proc/PID/status, in bytes if it is an amount of memory.
fn number(status: &str, key: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let mut words = value.split_whitespace();
    let number: u64 = words.next()?.parse().ok()?;
    match words.next() {
        Some("kB") => number.checked_mul(1024),
        _ => Some(number),
    }
}

impl Process {
    fn now() -> Process {
        // One of the descriptors is that of the directory itself.
        let open =
            fs::read_dir("/proc/self/fd").map(|files| (files.count() as u64).saturating_sub(1));
        Process {
            cpu: cpu_time(),
            status: fs::read_to_string("/proc/self/status").unwrap_or_default(),
            open_files: open.ok(),
            max_files: getrlimit(Resource::Nofile).current,
        }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let e = &mut encoder;
        let known = |value: Option<u64>| value.map(|value| (Labels::new(), value));
        let of = |key: &str| known(number(&self.status, key));
        let cpu = one(self.cpu.as_secs_f64());
        counter(e, "process_cpu_seconds", "Processor time used, user and system", cpu)?;
        let started = STARTED.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let help = "When the process was started, in Unix time";
        gauge(e, "process_start_time_seconds", help, one(started))?;
        gauge(e, "process_resident_memory_bytes", "Resident memory", of("VmRSS"))?;
        gauge(e, "process_virtual_memory_bytes", "Virtual memory", of("VmSize"))?;
        gauge(e, "process_threads", "Threads", of("Threads"))?;
        gauge(e, "process_open_fds", "Open file descriptors", known(self.open_files))?;
        let help = "The limit of open file descriptors";
        gauge(e, "process_max_fds", help, known(self.max_files))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::Command;

    use super::*;

    #[derive(Debug)]
    struct Sample;

    impl Collector for Sample {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            let e = &mut encoder;
            let label = |value: &str| vec![("of", value.to_owned())];
            counter(e, "sent_bytes", "Sent", [(label("a \"b\"\n# EOF"), 7u64), (label("c"), 0)])?;
            gauge(e, "ready", "Ready", one(1u64))?;
            let mut buckets = [0; BOUNDS.len() + 1];
            (buckets[0], buckets[3], buckets[14]) = (1, 2, 3);
            let took = Latency { buckets, micros: 1_500_000 };
            histogram(e, "open_duration_seconds", "Open", [(label("d"), took)])
        }
    }

    fn asked(accept: &'static str) -> (String, String) {
        use http_body_util::BodyExt;
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        let response = answer(&headers, Box::new(Sample));
        let kind = response.headers()[CONTENT_TYPE].to_str().unwrap().to_owned();
        let body = response.into_body().collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let body = runtime.block_on(body).unwrap().to_bytes();
        (kind, String::from_utf8(body.to_vec()).unwrap())
    }

    #[test]
    fn both_text_formats_are_served_as_the_scraper_accepts() {
        let prometheus =
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
        let (kind, open) = asked(prometheus);
        assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"));
        for part in [
            "# TYPE wiretight_sent_bytes counter\n# UNIT wiretight_sent_bytes bytes\n",
            "wiretight_sent_bytes_total{of=\"a \\\"b\\\"\\n# EOF\"} 7\n",
            "wiretight_ready{} 1\n",
            "wiretight_open_duration_seconds_sum{of=\"d\"} 1.5\n",
            "wiretight_open_duration_seconds_count{of=\"d\"} 6\n",
            "wiretight_open_duration_seconds_bucket{le=\"0.001\",of=\"d\"} 3\n",
            "wiretight_open_duration_seconds_bucket{le=\"10.0\",of=\"d\"} 3\n",
            "wiretight_open_duration_seconds_bucket{le=\"+Inf\",of=\"d\"} 6\n",
        ] {
            assert!(open.contains(part), "{part}\n{open}");
        }
        assert!(open.ends_with("# EOF\n"));

        let (kind, text) = asked("*/*");
        assert!(kind.starts_with("text/plain; version=0.0.4"));
        let part =
            "# HELP wiretight_sent_bytes_total Sent\n# TYPE wiretight_sent_bytes_total counter\n";
        assert!(text.contains(part) && text.contains("# TYPE wiretight_ready gauge\n"), "{text}");
        assert!(!text.contains("UNIT") && !text.contains("\n# EOF"), "{text}");
        // The samples are the same (except those of the process, which change).
        let samples = |text: &str| -> Vec<String> {
            let ours = |line: &&str| line.starts_with("wiretight");
            text.lines().filter(ours).map(str::to_owned).collect()
        };
        assert_eq!(samples(&text), samples(&open));
        assert_eq!(samples(&text).len(), 3 + BOUNDS.len() + 3);
    }

    /// What is measured, by name.
    fn measured() -> Vec<(String, f64)> {
        let (_, text) = asked("*/*");
        let line = |line: &str| {
            let (name, value) = line.strip_prefix("process_")?.split_once("{} ")?;
            Some((name.to_owned(), value.parse().unwrap()))
        };
        text.lines().filter_map(line).collect()
    }

    #[test]
    #[ignore = "run by the next test, in its own mount namespace"]
    fn all_of_a_process_is_measured() {
        let _open: Vec<_> = (0..5).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let all: std::collections::BTreeMap<_, _> = measured().into_iter().collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        for (name, low, high) in [
            ("cpu_seconds_total", 1e-4, 1e4),
            ("max_fds", 16.0, 1e10),
            ("open_fds", 8.0, 100.0),
            ("resident_memory_bytes", 1e6, 1e10),
            ("start_time_seconds", now - 60.0, now),
            ("threads", 2.0, 100.0),
            ("virtual_memory_bytes", 1e6, 1e13),
        ] {
            assert!((low..=high).contains(&all[name]), "{name}: {all:?}");
        }
        assert_eq!(all.len(), 7);
    }

    #[test]
    fn a_process_is_measured_also_where_proc_has_only_processes() {
        let own = std::env::current_exe().unwrap();
        let test = ["--exact", "exposition::tests::all_of_a_process_is_measured", "--ignored"];
        let plain = Command::new(&own).args(test).output().unwrap();
        let said = |out: &std::process::Output| String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(plain.status.success() && said(&plain).contains("1 passed"), "{}", said(&plain));
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "this needs root, which CI must have");
            let _ = writeln!(std::io::stderr(), "skipped: there is no root");
            return;
        }
        // As systemd does for ProcSubset=pid; the control: the rest of /proc is hidden.
        let hidden =
            "mount -t proc -o subset=pid proc /proc && ! test -e /proc/stat && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", hidden, "sh"]).arg(&own).args(test);
        let out = command.output().unwrap();
        assert!(out.status.success() && said(&out).contains("1 passed"), "{out:?}");
    }

    #[test]
    fn memory_is_converted_to_bytes_and_nonsense_is_left_out() {
        let status = "Name:\tx\nVmRSS:\t    12 kB\nThreads:\t3\nVmSize:\t99999999999999999999 kB\n";
        assert_eq!(number(status, "VmRSS"), Some(12 << 10));
        assert_eq!(number(status, "Threads"), Some(3));
        assert_eq!((number(status, "VmSize"), number(status, "VmHWM")), (None, None));
        assert_eq!(number("VmRSS:\t18446744073709551615 kB\n", "VmRSS"), None);
    }
}
