//! The state of the service as one sentence: what the badge of the status page shows.
//!
//! It is more than the state of the process: a gateway that serves while the API is down is not
//! fine.

use serde_json::{Value, json};

use crate::telemetry::RecentOutcomes;

/// Share of failed requests of the last minute from which the badge is red, and from which it is
/// amber; below [`FAILED_MIN`] failures it is neither.
const FAILING_SHARE: f64 = 0.5;
const DEGRADED_SHARE: f64 = 0.01;
const FAILED_MIN: u64 = 3;

/// Consecutive failures of exchanges with the API after which it is shown as down. The circuit
/// breaker opens later.
const API_DOWN_FAILURES: u32 = 2;

/// What the process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessState {
    Starting,
    Serving,
    Draining,
}

impl ProcessState {
    pub const fn as_str(self) -> &'static str {
        match self {
            ProcessState::Starting => "starting",
            ProcessState::Serving => "serving",
            ProcessState::Draining => "draining",
        }
    }
}

/// How well the service works; the colour of the badge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Good,
    Degraded,
    Failing,
}

impl Level {
    pub const fn as_str(self) -> &'static str {
        match self {
            Level::Good => "good",
            Level::Degraded => "degraded",
            Level::Failing => "failing",
        }
    }
}

/// What the state of the service follows from.
#[derive(Clone, Copy, Debug)]
pub struct Observations {
    pub process: ProcessState,
    /// Whether the circuit breaker lets all requests through.
    pub is_circuit_closed: bool,
    /// Failed exchanges with the API since the last one that succeeded.
    pub api_failures: u32,
    /// Whether the last reload was rejected.
    pub is_configuration_old: bool,
    /// Whether the cache is unused because the invalidations of the cluster cannot be read.
    pub is_isolated: bool,
    pub recent: RecentOutcomes,
}

/// The state of the service.
#[derive(Debug, PartialEq, Eq)]
pub struct ServiceState {
    pub level: Level,
    pub summary: String,
}

impl ServiceState {
    pub fn from_observations(observations: &Observations) -> Self {
        let Observations {
            process,
            is_circuit_closed,
            api_failures,
            is_configuration_old,
            is_isolated,
            recent,
        } = *observations;
        let mut level =
            if process == ProcessState::Serving { Level::Good } else { Level::Degraded };
        let mut parts = vec![process.as_str().to_owned()];
        let mut add = |reached: Level, part: String| {
            level = level.max(reached);
            parts.push(part);
        };
        let is_api_down = !is_circuit_closed || api_failures >= API_DOWN_FAILURES;
        if is_api_down {
            add(Level::Failing, "API down".into());
        }
        let share = recent.failed as f64 / recent.requests.max(1) as f64;
        if recent.failed >= FAILED_MIN && share >= FAILING_SHARE {
            add(Level::Failing, "most requests fail".into());
        } else if recent.failed >= FAILED_MIN && share >= DEGRADED_SHARE {
            add(Level::Degraded, format!("{:.0} % of requests fail", 100.0 * share));
        }
        if is_isolated {
            add(Level::Degraded, "cluster not connected".into());
        }
        if is_configuration_old {
            add(Level::Degraded, "old configuration".into());
        }
        // The usual case of a refused reload reads as a sentence.
        if is_configuration_old && process == ProcessState::Serving {
            parts.pop();
            parts[0] = "serving an old configuration".into();
        }
        ServiceState { level, summary: parts.join(", ") }
    }

    pub fn json(&self) -> Value {
        json!({"level": self.level.as_str(), "summary": self.summary})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Observations = Observations {
        process: ProcessState::Serving,
        is_circuit_closed: true,
        api_failures: 0,
        is_configuration_old: false,
        is_isolated: false,
        recent: RecentOutcomes { requests: 1000, failed: 0 },
    };

    fn state(observations: Observations) -> (Level, String) {
        let ServiceState { level, summary } = ServiceState::from_observations(&observations);
        (level, summary)
    }

    #[test]
    fn state_names_every_condition_and_has_the_worst_level() {
        let recent = |failed| RecentOutcomes { requests: 1000, failed };
        let cases = [
            (GOOD, Level::Good, "serving"),
            (
                Observations { is_circuit_closed: false, ..GOOD },
                Level::Failing,
                "serving, API down",
            ),
            (Observations { api_failures: 2, ..GOOD }, Level::Failing, "serving, API down"),
            (Observations { recent: recent(2), ..GOOD }, Level::Good, "serving"),
            (
                Observations { recent: recent(50), ..GOOD },
                Level::Degraded,
                "serving, 5 % of requests fail",
            ),
            (
                Observations { recent: recent(600), ..GOOD },
                Level::Failing,
                "serving, most requests fail",
            ),
            (
                Observations { is_configuration_old: true, ..GOOD },
                Level::Degraded,
                "serving an old configuration",
            ),
            (
                Observations { is_isolated: true, ..GOOD },
                Level::Degraded,
                "serving, cluster not connected",
            ),
            (Observations { process: ProcessState::Draining, ..GOOD }, Level::Degraded, "draining"),
            (
                Observations { is_configuration_old: true, is_circuit_closed: false, ..GOOD },
                Level::Failing,
                "serving an old configuration, API down",
            ),
            (
                Observations {
                    process: ProcessState::Draining,
                    is_configuration_old: true,
                    ..GOOD
                },
                Level::Degraded,
                "draining, old configuration",
            ),
        ];
        for (observations, level, summary) in cases {
            assert_eq!(state(observations), (level, summary.to_owned()));
        }
    }
}
