//! A circuit breaker: a service that accepts calls but does not respond must not block all workers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::domain::failure::{Code, Failure};

/// Failures that take longer than this open the circuit. Fast failures do not block workers.
const SLOW_FAILURE: Duration = Duration::from_secs(1);

/// A circuit breaker for the calls to one service.
///
/// A slow failure opens the circuit. While it is open, one call at a time probes the service and all other
/// calls fail immediately. A probe that does not fail in this way closes the circuit.
#[derive(Debug)]
pub struct Breaker {
    code: Code,
    message: &'static str,
    slow_after: Duration,
    is_open: AtomicBool,
    probe: Mutex<()>,
}

impl Breaker {
    /// Creates a closed breaker. `code`: the code of the service's outages. `message`: the message of calls
    /// that fail immediately.
    pub fn new(code: Code, message: &'static str) -> Self {
        Self {
            code,
            message,
            slow_after: SLOW_FAILURE,
            is_open: AtomicBool::new(false),
            probe: Mutex::new(()),
        }
    }

    /// Makes a call.
    ///
    /// # Errors
    /// Those of the call. Fails immediately if the circuit is open and another call probes the service.
    pub async fn call<T>(
        &self,
        call: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let _probe = if self.is_open.load(Ordering::Relaxed) {
            let probe = self.probe.try_lock();
            Some(probe.map_err(|_| Failure::new(self.code, self.message))?)
        } else {
            None
        };
        let started = Instant::now();
        let result = call.await;
        let is_outage = matches!(&result, Err(failure) if failure.code == self.code)
            && started.elapsed() >= self.slow_after;
        self.is_open.store(is_outage, Ordering::Relaxed);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: Duration = Duration::from_millis(20);

    async fn slow_failure() -> Result<(), Failure> {
        tokio::time::sleep(SLOW).await;
        Err(Failure::new(Code::StorageUnavailable, "timeout"))
    }

    #[tokio::test]
    async fn one_call_at_a_time_probes_an_open_circuit() {
        let breaker = Breaker {
            slow_after: SLOW,
            ..Breaker::new(Code::StorageUnavailable, "open")
        };
        let message = |result: Result<(), Failure>| result.unwrap_err().message;
        // The circuit is still closed.
        let (a, b) = tokio::join!(breaker.call(slow_failure()), breaker.call(slow_failure()));
        assert_eq!(
            (message(a), message(b)),
            ("timeout".into(), "timeout".into())
        );
        let (a, b) = tokio::join!(breaker.call(slow_failure()), breaker.call(async { Ok(()) }));
        assert_eq!((message(a), message(b)), ("timeout".into(), "open".into()));
        assert_eq!(breaker.call(async { Ok(()) }).await, Ok(()));
        let (a, b) = tokio::join!(breaker.call(slow_failure()), breaker.call(async { Ok(()) }));
        assert_eq!((message(a), b), ("timeout".into(), Ok(())));
    }
}
