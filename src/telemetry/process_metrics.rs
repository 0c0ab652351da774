//! Metrics of the process: those of the library, with CPU time in fractions of a second.
//!
//! The library's counter has whole seconds, so that `rate()` over a minute moves in steps.

use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Error};

const CPU_SECONDS: &str = "process_cpu_seconds_total";

/// Collector of the metrics of this process.
pub struct ProcessMetrics {
    library: ProcessCollector,
    cpu_seconds: Counter,
    /// Held while the counter is raised: two scrapes at once would add the same time twice.
    collecting: Mutex<()>,
}

impl ProcessMetrics {
    /// # Errors
    ///
    /// The name of the metric is not valid: an internal error.
    pub fn new() -> Result<Self, Error> {
        let cpu_seconds =
            Counter::new(CPU_SECONDS, "Total user and system CPU time spent in seconds.")?;
        Ok(ProcessMetrics {
            library: ProcessCollector::for_self(),
            cpu_seconds,
            collecting: Mutex::new(()),
        })
    }

    fn update_cpu_seconds(&self) {
        let _collecting = self.collecting.lock();
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let increase = time.tv_sec as f64 + time.tv_nsec as f64 / 1e9 - self.cpu_seconds.get();
        if increase > 0.0 {
            self.cpu_seconds.inc_by(increase);
        }
    }
}

impl Collector for ProcessMetrics {
    fn desc(&self) -> Vec<&Desc> {
        let library = self.library.desc().into_iter().filter(|desc| desc.fq_name != CPU_SECONDS);
        library.chain(self.cpu_seconds.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.update_cpu_seconds();
        let library =
            self.library.collect().into_iter().filter(|family| family.name() != CPU_SECONDS);
        library.chain(self.cpu_seconds.collect()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_has_fractions_and_only_grows() {
        let metrics = ProcessMetrics::new().unwrap();
        let cpu_seconds = || {
            let families = metrics.collect();
            let cpu: Vec<_> =
                families.iter().filter(|family| family.name() == CPU_SECONDS).collect();
            assert_eq!(cpu.len(), 1);
            cpu[0].get_metric()[0].get_counter().get_value()
        };
        let first = cpu_seconds();
        let mut work = 0u64;
        while cpu_seconds() - first < 0.02 {
            work = std::hint::black_box(work.wrapping_add(1));
        }
        let second = cpu_seconds();
        assert!(second > first && second - first < 1.0, "{first} {second}");
    }
}
